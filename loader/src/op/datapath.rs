//! Steps of BPF: programs, the contents of maps, what programs are attached to.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;
use underseal_abi::names::{
    BUNDLES, CONFIG, DNS_NAMES, IPCACHE, LINKS, MAPS, NETNS, NODES, PEER_WORKLOADS, PIN_ROOT,
    PROGS, WORKLOADS,
};

use crate::{
    config::pki::DnsName,
    config::value::{Digest, InterfaceName},
    state::{
        Attachment, Bundle, Endpoint, Hook, Named, Namespace, Node, PeerWorkload, Policies, Saved,
        Settings, State, Target, Workload,
    },
};

/// A step of BPF.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DatapathOp {
    /// Creates the maps that are missing, loads all programs and pins those that user space
    /// starts. What is attached stays until [`Self::Attach`] replaces it.
    Load(Digest),
    /// Removes all pins and their folder.
    Unload,
    /// Writes to `CONFIG` whose programs are attached; `None` while they are being replaced.
    Stamp(Option<Digest>),
    /// Writes the rest of `CONFIG`.
    Configure(Settings),
    /// Writes an entry of `WORKLOADS`.
    SetWorkload(u32, Workload),
    /// Deletes an entry of `WORKLOADS`.
    DeleteWorkload(u32),
    /// Writes an entry of `NODES`.
    SetNode(u32, Node),
    /// Deletes an entry of `NODES`.
    DeleteNode(u32),
    /// Writes an entry of `BUNDLES`.
    SetBundle(u32, Bundle),
    /// Deletes an entry of `BUNDLES`.
    DeleteBundle(u32),
    /// Writes an entry of `PEER_WORKLOADS`.
    SetPeerWorkload(IpAddr, PeerWorkload),
    /// Deletes an entry of `PEER_WORKLOADS`.
    DeletePeerWorkload(IpAddr),
    /// Writes an entry of `DNS_NAMES`, or deletes it if there are none.
    SetDnsNames(Named, BTreeSet<DnsName>),
    /// Writes another generation of `SUBJECTS`, `PEERS` and `GRANTS`, puts it in force in `CONFIG`, and deletes the one
    /// before; `None`: there are no policies any more.
    SetPolicies(Option<Policies>),
    /// Writes an entry of `IPCACHE`.
    SetEndpoint(IpNet, Endpoint),
    /// Deletes an entry of `IPCACHE`.
    DeleteEndpoint(IpNet),
    /// Attaches a program; if its pin exists, in the place of the one before, without a gap.
    Attach(Attachment),
    /// Detaches a program.
    Detach(Attachment),
    /// Writes an entry of `NETNS`.
    SetNetns(NetnsEntry),
    /// Deletes an entry of `NETNS`.
    DeleteNetns(u64),
}

/// An entry of `NETNS`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NetnsEntry {
    /// The namespace's cookie.
    pub cookie: u64,
    /// Id of the workload that lives in it.
    pub workload: u32,
    /// What is put back in the end.
    pub saved: Saved,
}

impl NetnsEntry {
    /// The entry of a namespace; `None` if it has none.
    #[must_use]
    pub fn of(cookie: u64, namespace: &Namespace) -> Option<Self> {
        Some(Self {
            cookie,
            workload: namespace.workload,
            saved: namespace.entry?,
        })
    }
}

impl DatapathOp {
    /// See [`super::Op::inverse`]. Programs that were replaced are not in a state; nor do maps that
    /// were not there before need their contents back.
    pub(super) fn inverse(&self, before: &State) -> Option<Self> {
        let old = before.datapath.as_ref();
        let inverse = match self {
            Self::Load(_) if old.is_none() => Self::Unload,
            Self::Load(_) | Self::Unload => return None,
            Self::Stamp(_) => Self::Stamp(old?.object),
            Self::Configure(_) => Self::Configure(old?.settings.clone()),
            Self::SetWorkload(id, _) | Self::DeleteWorkload(id) => {
                match old.and_then(|d| d.workloads.get(id)) {
                    Some(workload) => Self::SetWorkload(*id, workload.clone()),
                    None => Self::DeleteWorkload(*id),
                }
            }
            Self::SetNode(id, _) | Self::DeleteNode(id) => {
                match old.and_then(|d| d.nodes.get(id)) {
                    Some(node) => Self::SetNode(*id, node.clone()),
                    None => Self::DeleteNode(*id),
                }
            }
            Self::SetBundle(id, _) | Self::DeleteBundle(id) => {
                match old.and_then(|d| d.bundles.get(id)) {
                    Some(bundle) => Self::SetBundle(*id, bundle.clone()),
                    None => Self::DeleteBundle(*id),
                }
            }
            Self::SetPeerWorkload(ip, _) | Self::DeletePeerWorkload(ip) => {
                match old.and_then(|d| d.peer_workloads.get(ip)) {
                    Some(workload) => Self::SetPeerWorkload(*ip, workload.clone()),
                    None => Self::DeletePeerWorkload(*ip),
                }
            }
            Self::SetDnsNames(whose, _) => {
                let names = old.and_then(|d| d.dns_names.get(whose));
                Self::SetDnsNames(*whose, names.cloned().unwrap_or_default())
            }
            Self::SetPolicies(_) => Self::SetPolicies(old?.policies.clone()),
            Self::SetEndpoint(net, _) | Self::DeleteEndpoint(net) => {
                match old.and_then(|d| d.ipcache.get(net)) {
                    Some(endpoint) => Self::SetEndpoint(*net, endpoint.clone()),
                    None => Self::DeleteEndpoint(*net),
                }
            }
            Self::Attach(what) | Self::Detach(what) => {
                if old.is_some_and(|d| d.attachments.contains(what)) {
                    Self::Attach(what.clone())
                } else {
                    Self::Detach(what.clone())
                }
            }
            Self::SetNetns(NetnsEntry { cookie, .. }) | Self::DeleteNetns(cookie) => before
                .namespaces
                .get(cookie)
                .and_then(|namespace| NetnsEntry::of(*cookie, namespace))
                .map_or(Self::DeleteNetns(*cookie), Self::SetNetns),
        };
        Some(inverse)
    }

    /// See [`super::Op::closes`]. Settings and policies may allow more or less than those before.
    pub(super) const fn closes(&self) -> bool {
        match self {
            Self::Load(_)
            | Self::Stamp(_)
            | Self::SetWorkload(..)
            | Self::SetNode(..)
            | Self::SetEndpoint(..)
            | Self::Attach(_) => true,
            // Of nobody: it is being given back.
            Self::SetNetns(entry) => entry.workload != 0,
            Self::Unload
            | Self::Configure(_)
            | Self::DeleteWorkload(_)
            | Self::DeleteNode(_)
            | Self::SetBundle(..)
            | Self::DeleteBundle(_)
            | Self::SetPeerWorkload(..)
            | Self::DeletePeerWorkload(_)
            | Self::SetDnsNames(..)
            | Self::SetPolicies(_)
            | Self::DeleteEndpoint(_)
            | Self::Detach(_)
            | Self::DeleteNetns(_) => false,
        }
    }
}

impl fmt::Display for DatapathOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load(_) => write!(
                f,
                "bpftool prog loadall underseal.bpf.o {PIN_ROOT}/{PROGS} pinmaps {PIN_ROOT}/{MAPS}"
            ),
            Self::Unload => write!(f, "rm -r {PIN_ROOT}"),
            Self::Stamp(Some(object)) => update(f, CONFIG, 0, format_args!("object {object}")),
            Self::Stamp(None) => update(f, CONFIG, 0, format_args!("object none")),
            Self::Configure(settings) => update(f, CONFIG, 0, Words(settings)),
            Self::SetWorkload(id, workload) => update(f, WORKLOADS, id, Words(workload)),
            Self::DeleteWorkload(id) => delete(f, WORKLOADS, id),
            Self::SetNode(id, node) => update(f, NODES, id, Words(node)),
            Self::DeleteNode(id) => delete(f, NODES, id),
            Self::SetBundle(id, bundle) => update(f, BUNDLES, id, Words(bundle)),
            Self::DeleteBundle(id) => delete(f, BUNDLES, id),
            Self::SetPeerWorkload(ip, it) => {
                let PeerWorkload { name, spiffe_id } = it;
                let value = format_args!("{name} {spiffe_id}");
                update(f, PEER_WORKLOADS, ip, value)
            }
            Self::DeletePeerWorkload(ip) => delete(f, PEER_WORKLOADS, ip),
            Self::SetDnsNames(whose, names) if names.is_empty() => delete(f, DNS_NAMES, whose),
            Self::SetDnsNames(whose, names) => update(f, DNS_NAMES, whose, Words(names)),
            Self::SetPolicies(None) => update(f, CONFIG, 0, format_args!("policies none")),
            Self::SetPolicies(Some(policies)) => update(f, CONFIG, 0, Words(policies)),
            Self::SetEndpoint(net, endpoint) => update(f, IPCACHE, net, Words(endpoint)),
            Self::DeleteEndpoint(net) => delete(f, IPCACHE, net),
            Self::Attach(attachment) => attach(f, attachment),
            Self::Detach(attachment) => write!(f, "rm {PIN_ROOT}/{LINKS}/{}", attachment.pin()),
            Self::SetNetns(entry) => update(f, NETNS, entry.cookie, Words(entry)),
            Self::DeleteNetns(cookie) => delete(f, NETNS, cookie),
        }
    }
}

fn update(
    f: &mut fmt::Formatter<'_>,
    map: &str,
    key: impl fmt::Display,
    value: impl fmt::Display,
) -> fmt::Result {
    write!(
        f,
        "bpftool map update pinned {PIN_ROOT}/{MAPS}/{map} key {key} value {value}"
    )
}

fn delete(f: &mut fmt::Formatter<'_>, map: &str, key: impl fmt::Display) -> fmt::Result {
    write!(
        f,
        "bpftool map delete pinned {PIN_ROOT}/{MAPS}/{map} key {key}"
    )
}

fn attach(f: &mut fmt::Formatter<'_>, attachment: &Attachment) -> fmt::Result {
    let program = attachment.program;
    match (&attachment.target, program.hook()) {
        (Target::Cgroup(path), Hook::Cgroup(kind)) => {
            write!(
                f,
                "bpftool cgroup attach {path} {kind} name {program} multi"
            )
        }
        (Target::Interface(name), Hook::Ingress) => {
            write!(
                f,
                "bpftool net attach tcx_ingress name {program} dev {name}"
            )
        }
        (Target::Interface(name), Hook::Egress) => {
            write!(f, "bpftool net attach tcx_egress name {program} dev {name}")
        }
        _ => write!(
            f,
            "bpftool prog load underseal.bpf.o {PIN_ROOT}/{LINKS}/{} autoattach",
            attachment.pin()
        ),
    }
}

/// A map value in words, where bpftool would want bytes.
struct Words<'a, T>(&'a T);

impl fmt::Display for Words<'_, Settings> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |allowed: bool| if allowed { "allow" } else { "deny" };
        write!(
            f,
            "mode {} wireguard {} outside {} non-tcp {} existing {}",
            self.0.mode,
            self.0
                .wireguard
                .as_ref()
                .map_or("none", InterfaceName::as_str),
            word(self.0.allow_outside),
            word(self.0.allow_non_tcp),
            if self.0.keep_existing {
                "keep"
            } else {
                "reset"
            },
        )?;
        if self.0.keep_revoked {
            f.write_str(" revoked keep")?;
        }
        if let Some(bytes) = self.0.rekey_after {
            write!(f, " rekey-after {bytes}")?;
        }
        if self.0.rotating {
            f.write_str(" rotating")?;
        }
        match self.0.recheck {
            0 => f.write_str(" recheck off"),
            // What it is unless the configuration says otherwise.
            86400 => Ok(()),
            seconds => write!(f, " recheck {seconds}s"),
        }
    }
}

impl fmt::Display for Words<'_, Policies> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Policies {
            subjects,
            peers,
            grants,
        } = self.0;
        let selected = subjects.values().filter(|selected| **selected != 0);
        write!(
            f,
            "policies selected {} peers {} grants {}",
            selected.count(),
            peers.len(),
            grants.len()
        )
    }
}

impl fmt::Display for Words<'_, Bundle> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.0.trust_domain, self.0.file)
    }
}

impl fmt::Display for Words<'_, BTreeSet<DnsName>> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.0.iter().map(DnsName::as_str).collect();
        f.write_str(&names.join(" "))
    }
}

impl fmt::Display for Words<'_, Workload> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Workload {
            name,
            spiffe_id,
            identity,
            netns,
            cipher,
            renew_before,
        } = self.0;
        write!(
            f,
            "{name} {spiffe_id} identity {identity} netns {netns} cipher {cipher}"
        )?;
        match renew_before {
            // What it is unless the configuration says otherwise.
            3600 => Ok(()),
            0 => f.write_str(" renewed elsewhere"),
            seconds => write!(f, " renew-before {seconds}s"),
        }
    }
}

impl fmt::Display for Words<'_, Node> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Node { name, v4, v6, port } = self.0;
        write!(f, "{name}")?;
        if let Some(v4) = v4 {
            write!(f, " {v4}")?;
        }
        if let Some(v6) = v6 {
            write!(f, " {v6}")?;
        }
        write!(f, " port {port}")
    }
}

impl fmt::Display for Words<'_, Endpoint> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Endpoint {
            node,
            workload,
            ifindex,
            device,
            next,
        } = self.0;
        write!(f, "node {node} workload {workload} ifindex {ifindex}")?;
        if let Some(device) = device {
            write!(f, " device {device}")?;
        }
        match next {
            Some(next) => write!(f, " next {next}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Words<'_, NetnsEntry> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NetnsEntry {
            workload, saved, ..
        } = self.0;
        let Saved {
            lowat,
            mtu,
            taken_over,
        } = saved;
        let taken_over = u8::from(*taken_over);
        write!(
            f,
            "workload {workload} lowat {lowat} mtu {mtu} taken-over {taken_over}"
        )
    }
}
