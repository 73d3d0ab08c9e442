//! `underseal status`: the node as the kernel shows it. The file, if there is one, is only held
//! against it.

use std::time::SystemTime;

use underseal_abi::{Conn, Role, State as ConnState};

use super::{Comparison, Context, Error, preflight};
use crate::config::Config;
use crate::config::value::WorkloadName;
use crate::kernel::bpf::maps;
use crate::kernel::{lock, observe, probe, wireguard};
use crate::report::{Connection, Count, Ends, Report, Session, Status, Step};
use crate::state::State;

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
    let differences = config
        .as_ref()
        .and_then(|config| match differences(config, &mut warnings) {
            Ok(steps) => Some(steps),
            Err(error) => {
                warnings.push(format!(
                    "cannot compare with the configuration: {error}\n  ignoring"
                ));
                None
            }
        });
    let state = observe::state(config.as_ref())?;
    Ok(Report::Status(Box::new(Status {
        helper: lock::helper()?,
        peers: sessions(&state)?,
        connections: maps::conns()?
            .values()
            .map(|conn| connection(conn, &state))
            .collect(),
        counters: counters()?,
        helper_counters: helper_counters()?,
        differences,
        warnings,
        state,
    })))
}

fn differences(config: &Config, warnings: &mut Vec<String>) -> Result<Vec<Step>, Error> {
    preflight(config)?;
    let comparison = Comparison::of(config)?;
    let steps = Step::all(comparison.plan());
    warnings.extend(comparison.warnings);
    Ok(steps)
}

fn sessions(state: &State) -> Result<Vec<Session>, Error> {
    let Some(device) = &state.wireguard else {
        return Ok(Vec::new());
    };
    let now = SystemTime::now();
    let peers = wireguard::read(&device.interface)?.peers.into_iter();
    let session = |(public_key, peer): (_, wireguard::Peer)| Session {
        public_key,
        endpoint: peer.endpoint,
        handshake_age: peer
            .last_handshake
            .and_then(|at| Some(now.duration_since(at).ok()?.as_secs())),
        received: peer.received,
        sent: peer.sent,
    };
    Ok(peers.map(session).collect())
}

fn connection(conn: &Conn, state: &State) -> Connection {
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
        state: match ConnState::from_raw(conn.state) {
            Some(ConnState::Sealed | ConnState::Pausing | ConnState::Replacing) => "sealed",
            Some(ConnState::Keyed) => "keyed",
            Some(ConnState::Ending) => "ending",
            Some(ConnState::Released) => "released",
            Some(ConnState::New | ConnState::Held | ConnState::Primed) | None => "held",
        },
        workload: name(conn.workload),
        peer: name(conn.peer),
        pid: conn.tgid,
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
