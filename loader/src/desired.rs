//! What the configuration asks for on this machine. Pure: what must be known of the machine comes
//! in as [`Facts`].

mod tunnel;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use underseal_abi::THIS_NODE;

use crate::{
    config::{
        self, Config,
        bundle::TrustBundle,
        choice::{Access, Existing},
        value::{InterfaceName, Label, WorkloadName},
    },
    policy,
    state::{
        Attachment, Bundle, Datapath, Endpoint, Facts, Found, Hook, Live, Namespace, Node,
        PeerWorkload, Program, Saved, Settings, State, Target, Veth, Workload,
    },
};

pub use self::tunnel::ways;
use self::tunnel::{devices, routes, tunnel_mtu};

/// The kernel's own default of `net.ipv4.tcp_notsent_lowat` (`tcp_ipv4.c`).
pub const DEFAULT_LOWAT: u32 = u32::MAX;

/// The state that `config` asks for.
#[must_use]
pub fn desired(config: &Config, facts: &Facts) -> State {
    let ids = ids(config, facts);
    let (wireguard, beside) = devices(config, facts);
    State {
        wireguard,
        beside,
        routes: routes(config),
        datapath: Some(Datapath {
            object: Some(facts.object),
            settings: settings(config),
            ipcache: ipcache(config, facts, &ids),
            workloads: workloads(config, facts, &ids),
            nodes: nodes(config),
            bundles: bundles(config),
            peer_workloads: peer_workloads(config),
            dns_names: policy::names::demanded(config, &ids),
            policies: policy::compile(config, &ids),
            attachments: attachments(config, facts),
        }),
        namespaces: namespaces(config, facts, &ids),
    }
}

/// Configured workloads that are not there, or not wholly, with what is missing.
#[must_use]
pub fn absent<'a>(config: &'a Config, facts: &Facts) -> Vec<(&'a WorkloadName, String)> {
    let missing = config.workloads.iter().filter_map(|workload| {
        let what = match facts.namespaces.get(&workload.name) {
            None => format!("there is no {}", workload.netns),
            Some(Found {
                live: Live { veth: None, .. },
                ..
            }) => {
                format!("there is no {} in {}", workload.interface, workload.netns)
            }
            Some(_) => return None,
        };
        Some((&workload.name, what))
    });
    missing.collect()
}

/// The ids of all configured workloads: those they have; for new ones the lowest that nobody has,
/// not even a workload that is about to be removed (its connections may still be listed).
fn ids(config: &Config, facts: &Facts) -> BTreeMap<WorkloadName, u32> {
    let mut taken: BTreeSet<u32> = facts.ids.values().copied().collect();
    let mut ids = BTreeMap::new();
    for workload in &config.workloads {
        let id = facts.ids.get(&workload.name).copied().unwrap_or_else(|| {
            let mut id = 1;
            while taken.contains(&id) {
                id += 1;
            }
            taken.insert(id);
            id
        });
        ids.insert(workload.name.clone(), id);
    }
    ids
}

fn settings(config: &Config) -> Settings {
    Settings {
        mode: config.seal.mode,
        wireguard: config.wireguard.as_ref().map(|w| w.interface.clone()),
        allow_outside: config.policy.outside == Access::Allow,
        allow_non_tcp: config.policy.non_tcp == Access::Allow,
        keep_existing: config.seal.existing == Existing::Keep,
        keep_revoked: !config.seal.close_revoked,
        rekey_after: config.seal.rekey_after,
        rotating: config
            .wireguard
            .as_ref()
            .is_some_and(|own| own.next.is_some()),
        recheck: config.seal.recheck.seconds(),
    }
}

fn ipcache(
    config: &Config,
    facts: &Facts,
    ids: &BTreeMap<WorkloadName, u32>,
) -> BTreeMap<IpNet, Endpoint> {
    let whole = |node| Endpoint {
        node,
        workload: 0,
        ifindex: 0,
        device: None,
        next: None,
    };
    let own = config
        .node
        .networks
        .iter()
        .map(|net| (net.0, whole(THIS_NODE)));
    let others = (THIS_NODE + 1..)
        .zip(&config.peers)
        .flat_map(|(node, peer)| {
            let networks = peer.networks.iter();
            networks.map(move |net| (net.0, to_peer(config, facts, (node, peer), net.0)))
        });
    // After the networks: a network of one address gives way to the workload that has it.
    let single = config.workloads.iter().flat_map(|workload| {
        let found = facts.namespaces.get(&workload.name);
        let veth = found.and_then(|found| found.live.veth.as_ref());
        let endpoint = Endpoint {
            node: THIS_NODE,
            workload: ids[&workload.name],
            ifindex: veth.map_or(0, |veth| veth.host.index),
            device: None,
            next: None,
        };
        workload
            .addresses
            .iter()
            .map(move |address| (IpNet::from(address.0), endpoint.clone()))
    });
    own.chain(others).chain(single).collect()
}

/// Where a network of a peer is. While this node has a next key, the peer may use either, and the map knows which one:
/// the peer has said so.
fn to_peer(
    config: &Config,
    facts: &Facts,
    (node, peer): (u32, &config::Peer),
    network: IpNet,
) -> Endpoint {
    let (present, next) = ways(config, peer);
    let leading = facts.leading.get(&network);
    let device = match &next {
        Some(next) if leading == Some(next) => Some(next.clone()),
        _ => present,
    };
    let face = config.wireguard.as_ref().map(|own| &own.interface);
    Endpoint {
        node,
        workload: 0,
        ifindex: 0,
        device: device.filter(|device| Some(device) != face),
        next,
    }
}

fn workloads(
    config: &Config,
    facts: &Facts,
    ids: &BTreeMap<WorkloadName, u32>,
) -> BTreeMap<u32, Workload> {
    let records = config.workloads.iter().map(|workload| {
        let record = Workload {
            name: workload.name.clone(),
            spiffe_id: workload.spiffe_id.clone(),
            identity: workload.identity.clone(),
            netns: workload.netns.clone(),
            cipher: config.seal.cipher.cipher(facts.cipher),
            renew_before: match workload.spire {
                true => 0,
                // At most 90 days: it fits.
                false => u32::try_from(config.pki.renew_before.seconds()).unwrap_or(0),
            },
        };
        (ids[&workload.name], record)
    });
    records.collect()
}

fn bundles(config: &Config) -> BTreeMap<u32, Bundle> {
    let bundle = |bundle: &TrustBundle| Bundle {
        trust_domain: bundle.trust_domain.clone(),
        file: bundle.file.clone(),
    };
    (1..).zip(config.bundles.iter().map(bundle)).collect()
}

fn peer_workloads(config: &Config) -> BTreeMap<IpAddr, PeerWorkload> {
    let workloads = config.peers.iter().flat_map(|peer| &peer.workloads);
    let entries = workloads.flat_map(|workload| {
        let entry = PeerWorkload {
            name: workload.name.clone(),
            spiffe_id: workload.spiffe_id.clone(),
        };
        let addresses = workload.addresses.iter();
        addresses.map(move |address| (address.0, entry.clone()))
    });
    entries.collect()
}

/// This node's helper and those of the peers that say where theirs is. None of them without a peer
/// that does: then nobody may reach this one.
fn nodes(config: &Config) -> BTreeMap<u32, Node> {
    let node = |name: &Label, addresses: Vec<IpAddr>| Node {
        name: name.clone(),
        v4: addresses.iter().find_map(|ip| match ip {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        }),
        v6: addresses.iter().find_map(|ip| match ip {
            IpAddr::V6(v6) => Some(*v6),
            IpAddr::V4(_) => None,
        }),
        port: config.seal.port,
    };
    let peers = (THIS_NODE + 1..).zip(&config.peers);
    let mut nodes: BTreeMap<u32, Node> = peers
        .filter_map(|(number, peer)| Some((number, node(&peer.name, vec![peer.address?.0]))))
        .collect();
    if !nodes.is_empty() {
        let own = config.wireguard.iter().flat_map(|w| &w.addresses);
        let own = own.map(|address| address.0.addr()).collect();
        nodes.insert(THIS_NODE, node(&config.node.name, own));
    }
    nodes
}

fn attachments(config: &Config, facts: &Facts) -> BTreeSet<Attachment> {
    let veths = facts
        .namespaces
        .values()
        .filter_map(|found| found.live.veth.as_ref());
    let hosts: Vec<&InterfaceName> = veths.map(|veth| &veth.host.name).collect();
    let (face, beside) = devices(config, facts);
    let face: Vec<&InterfaceName> = face.iter().map(|w| &w.interface).collect();
    let tunnels: Vec<&InterfaceName> = face.iter().copied().chain(beside.keys()).collect();
    let uplinks: Vec<&InterfaceName> = config.node.uplinks.iter().collect();
    let mut wanted = BTreeSet::new();
    for (program, _, hook) in Program::ALL {
        let targets = match (program, hook) {
            (Program::Sendpage, _) if !facts.sendpage => Vec::new(),
            (_, Hook::Cgroup(_)) => vec![Target::Cgroup(config.node.cgroup.clone())],
            (_, Hook::Kernel) => vec![Target::Kernel],
            (Program::UplinkEgress | Program::UplinkIngress, _) => interfaces(&uplinks),
            (Program::FromWireguard, _) => interfaces(&tunnels),
            (Program::ToWireguard, _) if beside.is_empty() => Vec::new(),
            (Program::ToWireguard, _) => interfaces(&face),
            (_, Hook::Ingress | Hook::Egress) => interfaces(&hosts),
        };
        wanted.extend(targets.into_iter().map(|target| Attachment {
            program: *program,
            target,
        }));
    }
    wanted
}

fn interfaces(names: &[&InterfaceName]) -> Vec<Target> {
    names
        .iter()
        .map(|name| Target::Interface((*name).clone()))
        .collect()
}

fn namespaces(
    config: &Config,
    facts: &Facts,
    ids: &BTreeMap<WorkloadName, u32>,
) -> BTreeMap<u64, Namespace> {
    let limit = tunnel_mtu(config, facts);
    let present = facts.namespaces.iter().filter_map(|(name, found)| {
        let namespace = Namespace {
            workload: *ids.get(name)?,
            ..namespace(found, limit)
        };
        Some((found.cookie, namespace))
    });
    present.collect()
}

/// What is wanted of a namespace whose packets must fit into `limit` bytes.
fn namespace(found: &Found, limit: Option<u32>) -> Namespace {
    let lowered = found.entry.map_or(0, |entry| entry.mtu);
    let (saved, veth) = match &found.live.veth {
        None => (lowered, None),
        Some(veth) => {
            let (saved, veth) = fitted(veth, lowered, limit.unwrap_or(u32::MAX));
            (saved, Some(veth))
        }
    };
    let lowat = found.entry.map_or(found.live.lowat, |entry| entry.lowat);
    Namespace {
        workload: 0,
        entry: Some(Saved {
            // Nobody sets 0 but we: it is left from an apply that was interrupted.
            lowat: if lowat == 0 { DEFAULT_LOWAT } else { lowat },
            mtu: saved,
            taken_over: true,
        }),
        live: Some(Live {
            path: found.live.path.clone(),
            lowat: 0,
            veth,
        }),
    }
}

/// The MTU to put back in the end (0: none), and the pair as it should be. `lowered` is the MTU
/// from which it has been lowered before; 0 if it has not.
fn fitted(veth: &Veth, lowered: u32, limit: u32) -> (u32, Veth) {
    let original = if lowered == 0 { veth.mtu } else { lowered };
    let (saved, mtu, host_mtu) = if original > limit {
        (original, limit, limit)
    } else if lowered == 0 {
        (0, veth.mtu, veth.host_mtu)
    } else {
        (0, original, original)
    };
    let veth = Veth {
        mtu,
        host_mtu,
        ..veth.clone()
    };
    (saved, veth)
}
