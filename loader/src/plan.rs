//! The difference between two states as steps, in the one order in which they may be carried out.
//!
//! What closes comes before what opens: programs and map contents, then the guard and the strict
//! check (the order of [`crate::state::Program`]), then the tunnel and its routes, then the
//! workloads' own namespaces. Removal goes the exact reverse way, after everything that is added.

mod policies;
mod tunnel;

pub use self::tunnel::notices;

use crate::{
    config::value::{AbsolutePath, InterfaceName},
    desired::DEFAULT_LOWAT,
    op::{DatapathOp, DeviceChange, DeviceOp, NamespaceChange, NamespaceOp, NetnsEntry, Op},
    state::{Datapath, Namespace, Saved, State, Veth},
};

/// The steps that turn `observed` into `desired`; none if there is nothing to do.
#[must_use]
pub fn plan(desired: &State, observed: &State) -> Vec<Op> {
    let stages = STAGES.map(|stage| stage(desired, observed));
    let (add, remove): (Vec<_>, Vec<_>) = stages.into_iter().map(|s| (s.add, s.remove)).unzip();
    add.into_iter()
        .chain(remove.into_iter().rev())
        .flatten()
        .collect()
}

/// The order.
const STAGES: [fn(&State, &State) -> Stage; 7] = [
    programs,
    tunnel::devices,
    contents,
    attachments,
    tunnel::ways,
    namespaces,
    stamp,
];

/// What one kind of object needs.
#[derive(Default)]
struct Stage {
    /// Done before the additions of the next kind.
    add: Vec<Op>,
    /// Done after the removals of the next kind.
    remove: Vec<Op>,
}

fn programs(desired: &State, observed: &State) -> Stage {
    let mut stage = Stage::default();
    match (&desired.datapath, &observed.datapath) {
        (Some(wanted), found) => {
            let attached = found.as_ref().and_then(|d| d.object);
            if let Some(object) = wanted.object.filter(|object| attached != Some(*object)) {
                // From here to the last attachment nobody could tell which programs are attached.
                stage
                    .add
                    .extend(attached.map(|_| DatapathOp::Stamp(None).into()));
                stage.add.push(DatapathOp::Load(object).into());
            }
        }
        (None, Some(_)) => stage.remove.push(DatapathOp::Unload.into()),
        (None, None) => {}
    }
    stage
}

fn stamp(desired: &State, observed: &State) -> Stage {
    let object = |state: &State| state.datapath.as_ref().and_then(|d| d.object);
    let mut stage = Stage::default();
    if let Some(wanted) = object(desired)
        && object(observed) != Some(wanted)
    {
        stage.add.push(DatapathOp::Stamp(Some(wanted)).into());
    }
    stage
}

/// Contents of maps. Without maps there is nothing to remove.
fn contents(desired: &State, observed: &State) -> Stage {
    let mut stage = Stage::default();
    let Some(wanted) = &desired.datapath else {
        return stage;
    };
    let nothing = Datapath::default();
    let found = observed.datapath.as_ref().unwrap_or(&nothing);
    // A device that is created now has a new index, whatever its name. That of another one is read as no device at all.
    let new_device = desired.wireguard.is_some() && observed.wireguard.is_none();
    if observed.datapath.is_none() || new_device || found.settings != wanted.settings {
        stage
            .add
            .push(DatapathOp::Configure(wanted.settings.clone()).into());
    }
    for (id, workload) in &wanted.workloads {
        if found.workloads.get(id) != Some(workload) {
            stage
                .add
                .push(DatapathOp::SetWorkload(*id, workload.clone()).into());
        }
    }
    for (id, node) in &wanted.nodes {
        if found.nodes.get(id) != Some(node) {
            stage
                .add
                .push(DatapathOp::SetNode(*id, node.clone()).into());
        }
    }
    bundles(wanted, found, &mut stage);
    policies::stage(wanted, found, &mut stage);
    for (net, endpoint) in &wanted.ipcache {
        let first = tunnel::before_switch(net, endpoint, desired, observed);
        if found.ipcache.get(net) != Some(&first) {
            stage.add.push(DatapathOp::SetEndpoint(*net, first).into());
        }
    }
    for net in found
        .ipcache
        .keys()
        .filter(|net| !wanted.ipcache.contains_key(net))
    {
        stage.remove.push(DatapathOp::DeleteEndpoint(*net).into());
    }
    for id in found
        .nodes
        .keys()
        .filter(|id| !wanted.nodes.contains_key(id))
    {
        stage.remove.push(DatapathOp::DeleteNode(*id).into());
    }
    for id in found
        .workloads
        .keys()
        .filter(|id| !wanted.workloads.contains_key(id))
    {
        stage.remove.push(DatapathOp::DeleteWorkload(*id).into());
    }
    stage
}

fn bundles(wanted: &Datapath, found: &Datapath, stage: &mut Stage) {
    for (id, bundle) in &wanted.bundles {
        if found.bundles.get(id) != Some(bundle) {
            stage
                .add
                .push(DatapathOp::SetBundle(*id, bundle.clone()).into());
        }
    }
    let gone = |id: &&u32| !wanted.bundles.contains_key(id);
    for id in found.bundles.keys().filter(gone) {
        stage.remove.push(DatapathOp::DeleteBundle(*id).into());
    }
}

fn attachments(desired: &State, observed: &State) -> Stage {
    let nothing = Datapath::default();
    let wanted = desired.datapath.as_ref().unwrap_or(&nothing);
    let found = observed.datapath.as_ref().unwrap_or(&nothing);
    let mut stage = Stage::default();
    for attachment in &wanted.attachments {
        if found.object != wanted.object || !found.attachments.contains(attachment) {
            stage
                .add
                .push(DatapathOp::Attach(attachment.clone()).into());
        }
    }
    for attachment in found.attachments.iter().rev() {
        // A new link under the same pin has replaced it already.
        let replaced = wanted
            .attachments
            .iter()
            .any(|new| new.pin() == attachment.pin());
        if !replaced {
            stage
                .remove
                .push(DatapathOp::Detach(attachment.clone()).into());
        }
    }
    stage
}

fn namespaces(desired: &State, observed: &State) -> Stage {
    let mut stage = Stage::default();
    let mode = |state: &State| state.datapath.as_ref().map(|d| d.settings.mode);
    let seals_more = match (mode(observed), mode(desired)) {
        (Some(before), Some(wanted)) => wanted.seals_more_than(before),
        _ => false,
    };
    let again = seals_more || denies_more(desired, observed);
    for (cookie, wanted) in &desired.namespaces {
        if let Some(found) = observed.namespaces.get(cookie) {
            stage.add.extend(take_over(*cookie, wanted, found, again));
        }
    }
    for (cookie, found) in &observed.namespaces {
        if !desired.namespaces.contains_key(cookie) {
            stage.remove.extend(give_back(*cookie, found));
        }
    }
    stage
}

/// Whether policies have changed so that connections may be open which are not allowed any more.
fn denies_more(desired: &State, observed: &State) -> bool {
    match (&desired.datapath, &observed.datapath) {
        (Some(wanted), Some(found)) => {
            wanted.policies.is_some()
                && !wanted.settings.keep_revoked
                && (wanted.policies != found.policies || found.settings.keep_revoked)
        }
        _ => false,
    }
}

/// The entry comes first, because it keeps what is put back in the end; the take-over comes after
/// the sysctl, so that no connection is established between the two and missed by both.
fn take_over(cookie: u64, wanted: &Namespace, found: &Namespace, again: bool) -> Vec<Op> {
    let (Some(entry), Some(live), Some(now)) =
        (NetnsEntry::of(cookie, wanted), &wanted.live, &found.live)
    else {
        return Vec::new();
    };
    let path = &live.path;
    // Without a workload it is being given back.
    let is_new = found.workload == 0 || !found.entry.is_some_and(|entry| entry.taken_over);
    let mut ops = Vec::new();
    if is_new {
        let saved = Saved {
            taken_over: false,
            ..entry.saved
        };
        let begun = NetnsEntry {
            saved,
            ..entry.clone()
        };
        if NetnsEntry::of(cookie, found).as_ref() != Some(&begun) {
            ops.push(DatapathOp::SetNetns(begun).into());
        }
    } else if NetnsEntry::of(cookie, found).as_ref() != Some(&entry) {
        ops.push(DatapathOp::SetNetns(entry.clone()).into());
    }
    if let (Some(wanted), Some(found)) = (&live.veth, &now.veth) {
        ops.extend(set_mtu(path, wanted, found));
    }
    if now.lowat != live.lowat {
        ops.push(inside(path, NamespaceChange::SetLowat(live.lowat)));
    }
    if is_new || again {
        ops.push(inside(path, NamespaceChange::TakeOver));
    }
    if is_new {
        ops.push(DatapathOp::SetNetns(entry).into());
    }
    ops
}

/// The workload goes out of the entry first: from then on no new connection is held; those that are get reset while
/// the sysctl still keeps them from sending. What is established between that and the sysctl is held by the sysctl
/// alone, and setting that wakes nobody: so they are let go once more. The entry itself goes last, because it keeps
/// what is put back, and says to whoever finds it after an interruption that all of this has to be done.
fn give_back(cookie: u64, found: &Namespace) -> Vec<Op> {
    let mut ops = Vec::new();
    let entry = NetnsEntry::of(cookie, found);
    let delete = entry
        .as_ref()
        .map(|_| DatapathOp::DeleteNetns(cookie).into());
    let Some(now) = &found.live else {
        ops.extend(delete);
        return ops;
    };
    if let Some(entry) = entry.filter(|entry| entry.workload != 0) {
        let nobody = NetnsEntry {
            workload: 0,
            ..entry
        };
        ops.push(DatapathOp::SetNetns(nobody).into());
    }
    let saved = found.entry.unwrap_or(Saved {
        lowat: DEFAULT_LOWAT,
        mtu: 0,
        taken_over: false,
    });
    if found.entry.is_some() || now.lowat == 0 {
        ops.push(inside(&now.path, NamespaceChange::LetGo));
    }
    if now.lowat == 0 && saved.lowat != 0 {
        ops.push(inside(&now.path, NamespaceChange::SetLowat(saved.lowat)));
        ops.push(inside(&now.path, NamespaceChange::LetGo));
    }
    if let Some(veth) = now.veth.as_ref().filter(|_| saved.mtu != 0) {
        let before = Veth {
            mtu: saved.mtu,
            host_mtu: saved.mtu,
            ..veth.clone()
        };
        ops.extend(set_mtu(&now.path, &before, veth));
    }
    ops.extend(delete);
    ops
}

fn set_mtu(netns: &AbsolutePath, wanted: &Veth, found: &Veth) -> Vec<Op> {
    let mut ops = Vec::new();
    if wanted.mtu != found.mtu {
        let set = NamespaceChange::SetMtu(wanted.interface.clone(), wanted.mtu);
        ops.push(inside(netns, set));
    }
    if wanted.host_mtu != found.host_mtu {
        ops.push(change(
            &wanted.host.name,
            DeviceChange::SetMtu(wanted.host_mtu),
        ));
    }
    ops
}

fn change(interface: &InterfaceName, change: DeviceChange) -> Op {
    Op::Device(DeviceOp {
        interface: interface.clone(),
        change,
    })
}

fn inside(netns: &AbsolutePath, change: NamespaceChange) -> Op {
    Op::Namespace(NamespaceOp {
        netns: netns.clone(),
        change,
    })
}
