//! WireGuard's part of a plan: devices, and which of them leads where.
//!
//! A peer that goes from one pair of keys to another does so without losing a packet: the new pair is there on both nodes
//! before anything is sent under it, and the old one until nothing comes under it any more.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use underseal_abi::THIS_NODE;

use super::{Stage, change};
use crate::{
    config::value::PublicKey,
    op::{DatapathOp, DeviceChange, DeviceOp, Moved, Op, Switch},
    state::{Endpoint, Peer, PresharedKey, State, Wireguard},
};

/// Devices, their keys and peers.
pub(super) fn devices(desired: &State, observed: &State) -> Stage {
    let mut stage = Stage::default();
    // What cannot be taken back comes last.
    let mut last = Vec::new();
    for found in gone(desired, observed) {
        if found.up && is_in_the_way(desired, observed, found) {
            stage.add.push(change(&found.interface, DeviceChange::Down));
        }
        last.push(change(&found.interface, DeviceChange::Delete));
    }
    let mut made = BTreeSet::new();
    for wanted in desired.devices() {
        let found = observed.device(&wanted.interface);
        let new_key = wanted.key.file.as_ref();
        if let Some(file) = new_key.filter(|_| wanted.key.public.is_none())
            && made.insert(file)
        {
            let generate = DeviceChange::GenerateKey(file.clone());
            stage.add.push(change(&wanted.interface, generate));
        }
        let changes = device_additions(wanted, found);
        stage
            .add
            .extend(changes.into_iter().map(|c| change(&wanted.interface, c)));
        let removals = found.map_or_else(Vec::new, |found| device_removals(wanted, found));
        stage
            .remove
            .extend(removals.into_iter().map(|c| change(&wanted.interface, c)));
        // A key that is of no use any more does not stay in the kernel.
        if wanted.key.file.is_none() && found.is_some_and(|found| found.key.public.is_some()) {
            last.push(change(&wanted.interface, DeviceChange::ClearPrivateKey));
        }
    }
    stage.remove.extend(last);
    stage
}

/// What opens the way to other nodes: devices go up, routes lead to the one with the addresses, and peers are told where
/// they are to come.
pub(super) fn ways(desired: &State, observed: &State) -> Stage {
    let mut stage = Stage::default();
    for wanted in desired.devices() {
        let up = observed.device(&wanted.interface).is_some_and(|f| f.up);
        if wanted.up && !up {
            stage.add.push(change(&wanted.interface, DeviceChange::Up));
        }
    }
    routes(desired, observed, &mut stage);
    stage.add.extend(switches(desired, observed));
    stage.add.extend(drains(desired, observed));
    for found in gone(desired, observed) {
        if found.up && !is_in_the_way(desired, observed, found) {
            stage
                .remove
                .push(change(&found.interface, DeviceChange::Down));
        }
    }
    stage
}

fn routes(desired: &State, observed: &State, stage: &mut Stage) {
    let found = observed.wireguard.as_ref();
    if let Some(wanted) = &desired.wireguard {
        let up = found.is_some_and(|f| f.interface == wanted.interface && f.up);
        // The kernel forgets the routes of a device that is down.
        for route in &desired.routes {
            if !(up && observed.routes.contains(route)) {
                let add = DeviceChange::AddRoute(route.destination);
                stage.add.push(change(&route.interface, add));
            }
        }
    }
    // Those of a device that is switched off go with it.
    let kept = desired.wireguard.as_ref().map(|wanted| &wanted.interface);
    let silenced = found
        .map(|f| &f.interface)
        .filter(|name| kept != Some(*name));
    for route in observed.routes.difference(&desired.routes) {
        if silenced != Some(&route.interface) {
            let removal = DeviceChange::DeleteRoute(route.destination);
            stage.remove.push(change(&route.interface, removal));
        }
    }
}

/// Devices that are not wanted any more.
fn gone<'a>(desired: &'a State, observed: &'a State) -> impl Iterator<Item = &'a Wireguard> {
    let is_gone = |found: &&Wireguard| desired.device(&found.interface).is_none();
    observed.devices().filter(is_gone)
}

/// Whether a device that is not wanted any more has to be silent before others speak: two cannot use one port, and two
/// routes not one destination.
fn is_in_the_way(desired: &State, observed: &State, found: &Wireguard) -> bool {
    let is_face = observed.wireguard.as_ref() == Some(found);
    (is_face && desired.wireguard.is_some()) || desired.devices().any(|w| w.port == found.port)
}

/// What an entry of the ipcache is until its peer has been told of another device: the way that there is stays.
pub(super) fn before_switch(
    network: &IpNet,
    wanted: &Endpoint,
    desired: &State,
    observed: &State,
) -> Endpoint {
    let now = observed.datapath.as_ref();
    let now = now.and_then(|datapath| datapath.ipcache.get(network));
    match now {
        Some(now) if moves(network, now, wanted, desired, observed) => Endpoint {
            device: now.device.clone(),
            ..wanted.clone()
        },
        _ => wanted.clone(),
    }
}

/// Whether there is a way to a network now, and it is to be another one.
fn moves(
    network: &IpNet,
    now: &Endpoint,
    wanted: &Endpoint,
    desired: &State,
    observed: &State,
) -> bool {
    let old = observed.leading(now).filter(|old| {
        let stays =
            desired.device(&old.interface).is_some() || !is_in_the_way(desired, observed, old);
        old.up && stays && owner(old, network).is_some()
    });
    let new = desired.leading(wanted);
    match (old, new) {
        (Some(old), Some(new)) => old.interface != new.interface,
        _ => false,
    }
}

/// The peer of a device that a network belongs to.
fn owner<'a>(device: &'a Wireguard, network: &IpNet) -> Option<&'a PublicKey> {
    let mut peers = device.peers.iter();
    let (key, _) = peers.find(|(_, peer)| peer.networks.contains(network))?;
    Some(key)
}

/// Each peer that moves to another device is told by that, and then packets for it go there.
fn switches(desired: &State, observed: &State) -> Vec<Op> {
    let (Some(wanted), Some(found)) = (&desired.datapath, &observed.datapath) else {
        return Vec::new();
    };
    let mut told: BTreeMap<u32, (DeviceOp, Vec<Op>)> = BTreeMap::new();
    for (network, endpoint) in &wanted.ipcache {
        let moving = found.ipcache.get(network);
        let moving = moving.filter(|now| moves(network, now, endpoint, desired, observed));
        let devices = moving.and_then(|now| {
            let (old, new) = (observed.leading(now)?, desired.leading(endpoint)?);
            Some((old, owner(old, network)?, new, owner(new, network)?))
        });
        let Some((old, old_peer, new, peer)) = devices else {
            continue;
        };
        let (_, sets) = told.entry(endpoint.node).or_insert_with(|| {
            let switch = Switch {
                peer: *peer,
                pairs: pairs(desired, new.peers.get(peer)),
                before: Some((old.interface.clone(), *old_peer)),
            };
            let switch = DeviceOp {
                interface: new.interface.clone(),
                change: DeviceChange::Switch(switch),
            };
            (switch, Vec::new())
        });
        sets.push(DatapathOp::SetEndpoint(*network, endpoint.clone()).into());
    }
    let mut ops = Vec::new();
    for (switch, sets) in told.into_values() {
        // Once more when this node sends by it too: a peer with two keys follows what comes by the next one, and that came
        // until now if the way is back to the present one.
        let again = switch.again();
        ops.push(switch.into());
        ops.extend(sets);
        ops.push(again.into());
    }
    ops
}

/// From where and to where a peer has to hear something, so that it knows of each of our networks, and answers for each
/// of its own.
fn pairs(state: &State, peer: Option<&Peer>) -> Vec<(IpNet, IpNet)> {
    let all = state.datapath.iter().flat_map(|d| &d.ipcache);
    let own: Vec<IpNet> = all
        .filter(|(_, endpoint)| endpoint.node == THIS_NODE)
        .map(|(network, _)| *network)
        .collect();
    // Workloads' addresses lie in the node's networks.
    let is_whole = |net: &&IpNet| {
        !own.iter()
            .any(|other| other != *net && other.contains(*net))
    };
    let whole: Vec<IpNet> = own.iter().filter(is_whole).copied().collect();
    let theirs = peer.map_or_else(Vec::new, |peer| peer.networks.iter().copied().collect());
    notices(&whole, &theirs)
}

/// Pairs of networks of one family, so that each network of a side that has one of the other's family is in a pair.
#[must_use]
pub fn notices(own: &[IpNet], theirs: &[IpNet]) -> Vec<(IpNet, IpNet)> {
    let family = |nets: &[IpNet], v6: bool| -> Vec<IpNet> {
        let all = nets.iter().copied();
        all.filter(|net| net.addr().is_ipv6() == v6).collect()
    };
    let mut pairs = Vec::new();
    for v6 in [false, true] {
        let (own, theirs) = (family(own, v6), family(theirs, v6));
        if own.is_empty() || theirs.is_empty() {
            continue;
        }
        let longest = own.len().max(theirs.len());
        let (own, theirs) = (own.iter().cycle(), theirs.iter().cycle());
        pairs.extend(own.copied().zip(theirs.copied()).take(longest));
    }
    pairs
}

/// Pairs of keys that are about to go while another one is there for the same networks: what is on the way under them
/// has to arrive first.
fn drains(desired: &State, observed: &State) -> Vec<Op> {
    let mut drains = Vec::new();
    for found in observed.devices().filter(|found| found.up) {
        let wanted = desired.device(&found.interface);
        if wanted.is_none() && is_in_the_way(desired, observed, found) {
            continue;
        }
        let goes = |key: &PublicKey| wanted.is_none_or(|wanted| !wanted.peers.contains_key(key));
        let moved = |(key, peer): (&PublicKey, &Peer)| {
            let mut others = desired.devices().filter(|d| d.interface != found.interface);
            others.find_map(|other| {
                let there = peer.networks.iter().find_map(|net| owner(other, net))?;
                Some(Moved {
                    peer: *key,
                    to: other.interface.clone(),
                    pairs: pairs(desired, other.peers.get(there)),
                })
            })
        };
        let peers = found.peers.iter().filter(|(key, _)| goes(key));
        let peers: Vec<Moved> = peers.filter_map(moved).collect();
        if !peers.is_empty() {
            drains.push(change(&found.interface, DeviceChange::Drain(peers)));
        }
    }
    drains
}

fn device_additions(wanted: &Wireguard, found: Option<&Wireguard>) -> Vec<DeviceChange> {
    let mut changes = Vec::new();
    if found.is_none() {
        changes.push(DeviceChange::Add);
    }
    if let Some(file) = &wanted.key.file
        && found.is_none_or(|f| wanted.key.public.is_none() || f.key.public != wanted.key.public)
    {
        changes.push(DeviceChange::SetPrivateKey(file.clone()));
    }
    if found.is_none_or(|f| f.port != wanted.port) {
        changes.push(DeviceChange::SetPort(wanted.port));
    }
    if found.is_none_or(|f| f.mtu != wanted.mtu) {
        changes.push(DeviceChange::SetMtu(wanted.mtu));
    }
    for address in &wanted.addresses {
        if found.is_none_or(|f| !f.addresses.contains(address)) {
            changes.push(DeviceChange::AddAddress(*address));
        }
    }
    for (key, peer) in &wanted.peers {
        if !found
            .and_then(|f| f.peers.get(key))
            .is_some_and(|f| is_same_peer(peer, f))
        {
            changes.push(DeviceChange::SetPeer(*key, peer.clone()));
        }
    }
    changes
}

fn device_removals(wanted: &Wireguard, found: &Wireguard) -> Vec<DeviceChange> {
    let addresses = found.addresses.difference(&wanted.addresses);
    let peers = found
        .peers
        .keys()
        .filter(|key| !wanted.peers.contains_key(key));
    peers
        .map(|key| DeviceChange::DeletePeer(*key))
        .chain(addresses.map(|address| DeviceChange::DeleteAddress(*address)))
        .collect()
}

/// Whether nothing need be done; where the preshared key is kept is not the kernel's business.
fn is_same_peer(wanted: &Peer, found: &Peer) -> bool {
    let digest = |peer: &Peer| {
        peer.preshared_key
            .as_ref()
            .map(|PresharedKey { digest, .. }| *digest)
    };
    wanted.endpoint == found.endpoint
        && wanted.networks == found.networks
        && wanted.persistent_keepalive == found.persistent_keepalive
        && digest(wanted) == digest(found)
}
