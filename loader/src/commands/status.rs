//! `underseal status`: the node as the kernel shows it. The file, if there is one, is only held
//! against it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use ipnet::IpNet;
use underseal_abi::{Conn, Role, Usage};

use super::{Comparison, Context, Error, preflight};
use crate::config::value::WorkloadName;
use crate::config::{self, Config};
use crate::kernel::bpf::{iterate, maps};
use crate::kernel::netns::Netns;
use crate::kernel::observe::{self, Observed};
use crate::kernel::{lock, probe};
use crate::report::{
    Connection, Count, Ends, Report, Rotation, Sent, Session, Status, Step, standing,
};
use crate::rotation;
use crate::state::{State, Wireguard};

/// Runs it.
///
/// # Errors
/// The node cannot be looked at.
pub fn run(context: &Context<'_>) -> Result<Report, Error> {
    if let Some(problem) = probe::privileges() {
        return Err(Error::Problems(vec![problem]));
    }
    let mut warnings = Vec::new();
    let config = context.load_if_any().unwrap_or_else(|error| {
        warnings.push(format!("{error}\n  ignoring"));
        None
    });
    let observed = observe::node(config.as_ref())?;
    let differences =
        config.as_ref().and_then(
            |config| match differences(config, &observed, &mut warnings) {
                Ok(steps) => Some(steps),
                Err(error) => {
                    warnings.push(format!(
                        "cannot compare with the configuration: {error}\n  ignoring"
                    ));
                    None
                }
            },
        );
    let peers = sessions(&observed, config.as_ref());
    let state = observed.state;
    let usage = usage(&state, &mut warnings);
    Ok(Report::Status(Box::new(Status {
        helper: lock::helper()?,
        rotation: rotation(config.as_ref(), &peers),
        peers,
        connections: maps::conns()?
            .values()
            .map(|conn| connection(conn, &state, usage.get(&conn.cookie)))
            .collect(),
        counters: counters()?,
        helper_counters: helper_counters()?,
        differences,
        warnings,
        state,
    })))
}

/// What an apply would do.
pub(super) fn differences(
    config: &Config,
    observed: &Observed,
    warnings: &mut Vec<String>,
) -> Result<Vec<Step>, Error> {
    preflight(config)?;
    let comparison = Comparison::with(config, observed.clone())?;
    let steps = Step::all(comparison.plan());
    warnings.extend(comparison.warnings);
    Ok(steps)
}

/// Sessions with other nodes.
pub(super) fn sessions(observed: &Observed, config: Option<&Config>) -> Vec<Session> {
    let now = SystemTime::now();
    let state = &observed.state;
    let mut sessions = Vec::new();
    for device in state.devices() {
        let peers = observed.devices.get(&device.interface);
        for (public_key, found) in peers.into_iter().flat_map(|read| &read.peers) {
            let public_key = *public_key;
            let peer = config.and_then(|config| {
                let mut peers = config.peers.iter();
                peers.find(|peer| peer.public_key == public_key)
            });
            let own_generation = config
                .zip(peer)
                .and_then(|(config, peer)| rotation::own_generation(config, peer, device));
            sessions.push(Session {
                public_key,
                name: peer.map(|peer| peer.name.clone()),
                own_generation,
                peer_generation: peer
                    .filter(|_| own_generation.is_some())
                    .map(|peer| peer.generation),
                in_use: is_in_use(state, device, &found.networks),
                device: device.interface.clone(),
                endpoint: found.endpoint,
                handshake_age: found.handshake_age(now),
                received: found.received,
                sent: found.sent,
            });
        }
    }
    sessions
}

/// Whether packets for one of these networks go to a device.
fn is_in_use(state: &State, device: &Wireguard, networks: &BTreeSet<IpNet>) -> bool {
    let all = state.datapath.iter().flat_map(|d| &d.ipcache);
    let mut theirs = all.filter(|(network, _)| networks.contains(network));
    theirs.any(|(_, endpoint)| {
        let leading = state.leading(endpoint);
        leading.is_some_and(|leading| leading.interface == device.interface)
    })
}

/// Who uses the next key and who the present one, if there is a next one.
fn rotation(config: Option<&Config>, sessions: &[Session]) -> Option<Rotation> {
    let config = config?;
    let own = config.wireguard.as_ref().filter(|own| own.next.is_some())?;
    let uses_next = |peer: &&config::Peer| {
        sessions.iter().any(|session| {
            session.in_use
                && session.public_key == peer.public_key
                && session.own_generation == Some(own.generation + 1)
        })
    };
    let (changed, waiting): (Vec<_>, Vec<_>) = config.peers.iter().partition(uses_next);
    let names = |peers: Vec<&config::Peer>| peers.into_iter().map(|p| p.name.clone()).collect();
    Some(Rotation {
        changed: names(changed),
        waiting: names(waiting),
    })
}

/// What keys have been used for, by socket cookie. Without it the rest is still worth to be shown.
fn usage(state: &State, warnings: &mut Vec<String>) -> BTreeMap<u64, Usage> {
    let mut found = BTreeMap::new();
    if state.datapath.is_none() {
        return found;
    }
    for live in state.namespaces.values().filter_map(|n| n.live.as_ref()) {
        let of_namespace = Netns::open(live.path.as_path()).and_then(|namespace| {
            // One that has gone meanwhile has no sockets.
            namespace.map_or(Ok(Vec::new()), |namespace| iterate::usage(&namespace))
        });
        match of_namespace {
            Ok(usage) => found.extend(usage.into_iter().map(|usage| (usage.cookie, usage))),
            Err(error) => warnings.push(format!("{error}\n  ignoring")),
        }
    }
    found
}

fn connection(conn: &Conn, state: &State, usage: Option<&Usage>) -> Connection {
    let name = |id: u32| -> Option<WorkloadName> {
        let workloads = &state.datapath.as_ref()?.workloads;
        Some(workloads.get(&id)?.name.clone())
    };
    Connection {
        ends: Ends::of(&conn.tuple),
        role: if conn.role == Role::Client as u32 {
            "client"
        } else {
            "server"
        },
        state: standing(conn.state),
        workload: name(conn.workload),
        peer: name(conn.peer),
        pid: conn.tgid,
        sent: usage.map(|usage| Sent {
            bytes: usage.bytes,
            records: usage.records,
            left: Some(usage.left).filter(|left| *left != u64::MAX),
        }),
    }
}

fn counters() -> Result<Vec<Count>, Error> {
    let count = |(name, tally): (_, underseal_abi::Tally)| Count {
        name,
        count: tally.packets,
        bytes: tally.bytes,
    };
    Ok(maps::counters()?.into_iter().map(count).collect())
}

fn helper_counters() -> Result<Vec<Count>, Error> {
    let count = |(name, count)| Count {
        name,
        count,
        bytes: 0,
    };
    Ok(maps::helper_counters()?.into_iter().map(count).collect())
}
