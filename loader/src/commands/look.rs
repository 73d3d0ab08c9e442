//! What `metrics` and `doctor` go by: the file, the kernel, and how they differ, each as far as it can be had.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use underseal_abi::{ABI_VERSION, Conn};

use super::{Context, Error, policy, status};
use crate::config::Config;
use crate::kernel::bpf::{fill, maps};
use crate::kernel::{lock, observe};
use crate::metrics::{Fill, Node, Observed, Rule, Session, Tally, Workload};
use crate::pki::installed;
use crate::policy::{rules, word};
use crate::report::{self, Step};
use crate::state::{Datapath, State};

/// What was seen.
pub(super) struct Seen {
    /// The configuration; `None` if there is none, or it is not in order.
    pub(super) config: Option<Config>,
    /// What is wrong with it.
    pub(super) mistakes: Option<String>,
    /// What the kernel has; `None` if it cannot be read.
    pub(super) state: Option<State>,
    /// Why not.
    pub(super) unreadable: Option<String>,
    /// What an apply would do; `None` if there is nothing to compare.
    pub(super) steps: Option<Vec<Step>>,
    /// Why the two cannot be compared, though both are there.
    pub(super) incomparable: Option<String>,
    /// What is in order, but not as it may be meant to be.
    pub(super) warnings: Vec<String>,
    /// What follows from it in numbers.
    pub(super) observed: Observed,
}

impl Seen {
    /// Looks.
    ///
    /// # Errors
    /// What is neither the file's nor the kernel's fault.
    pub(super) fn of(context: &Context<'_>) -> Result<Self, Error> {
        let (config, mistakes) = parted(context.load_if_any());
        let config = config.flatten();
        let (found, unreadable) = parted(observe::node(config.as_ref()).map_err(Error::from));
        let (node, uncounted) = match &found {
            Some(found) => parted(node(found, config.as_ref())),
            None => (None, None),
        };
        let node = node.flatten();
        let mut warnings = Vec::new();
        // On a node on which nothing is applied all of it is different.
        let (steps, incomparable) = match (&config, &found) {
            (Some(config), Some(found)) if node.is_some() => {
                parted(status::differences(config, found, &mut warnings))
            }
            _ => (None, None),
        };
        let helper = lock::helper()?.and(lock::helper_since()?);
        let observed = Observed {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            abi: ABI_VERSION,
            at: seconds(SystemTime::now()),
            applied_abi: maps::config()?.map(|raw| raw.abi).filter(|abi| *abi != 0),
            valid: match (&config, &mistakes) {
                (_, Some(_)) => Some(false),
                (config, None) => config.as_ref().map(|_| true),
            },
            differences: steps.as_ref().and_then(|it| u64::try_from(it.len()).ok()),
            helper: helper.map(seconds),
            node,
        };
        Ok(Self {
            config,
            mistakes,
            state: found.map(|found| found.state),
            unreadable: unreadable.or(uncounted),
            steps,
            incomparable,
            warnings,
            observed,
        })
    }
}

/// What was had, or why not.
fn parted<T>(result: Result<T, Error>) -> (Option<T>, Option<String>) {
    match result {
        Ok(value) => (Some(value), None),
        Err(error) => (None, Some(error.to_string())),
    }
}

fn node(found: &observe::Observed, config: Option<&Config>) -> Result<Option<Node>, Error> {
    let state = &found.state;
    let Some(datapath) = &state.datapath else {
        return Ok(None);
    };
    let conns = maps::conns()?;
    let mut workloads: BTreeMap<u32, (String, Workload)> = datapath
        .workloads
        .iter()
        .map(|(id, it)| (*id, (it.name.to_string(), workload(state, *id, it))))
        .collect();
    let mut strays = BTreeMap::new();
    for conn in conns.values() {
        count(conn, &mut workloads, &mut strays);
    }
    Ok(Some(Node {
        whole: datapath.object.is_some(),
        mode: datapath.settings.mode.to_string(),
        workloads: workloads.into_values().collect(),
        strays,
        sessions: sessions(found, config),
        counters: counters()?,
        helper_counters: maps::helper_counters()?
            .into_iter()
            .map(|(name, count)| (name.to_owned(), count))
            .collect(),
        rules: counted_rules(state, config)?,
        maps: fills(datapath, conns.len())?,
    }))
}

fn workload(state: &State, id: u32, workload: &crate::state::Workload) -> Workload {
    Workload {
        covered: state.is_covered(id),
        connections: BTreeMap::new(),
        not_after: installed::end(workload.identity.as_path()),
    }
}

fn count(
    conn: &Conn,
    workloads: &mut BTreeMap<u32, (String, Workload)>,
    strays: &mut BTreeMap<String, u64>,
) {
    let ends = match workloads.get_mut(&conn.workload) {
        Some((_, workload)) => &mut workload.connections,
        None => strays,
    };
    *ends
        .entry(report::standing(conn.state).to_owned())
        .or_default() += 1;
}

fn sessions(found: &observe::Observed, config: Option<&Config>) -> Vec<Session> {
    let now = seconds(SystemTime::now());
    let session = |it: report::Session| Session {
        peer: it
            .name
            .map_or_else(|| it.public_key.to_string(), |name| name.to_string()),
        device: it.device.to_string(),
        handshake: it.handshake_age.map(|age| now.saturating_sub(age)),
        received: it.received,
        sent: it.sent,
    };
    let sessions = status::sessions(found, config);
    sessions.into_iter().map(session).collect()
}

fn counters() -> Result<BTreeMap<String, Tally>, Error> {
    let all = maps::counters()?.into_iter();
    Ok(all.map(|(name, it)| (name.to_owned(), tally(it))).collect())
}

fn counted_rules(state: &State, config: Option<&Config>) -> Result<Vec<Rule>, Error> {
    let Some(config) = config else {
        return Ok(Vec::new());
    };
    let Some(counters) = policy::counters(config, state)? else {
        return Ok(Vec::new());
    };
    let all = rules(config).into_iter();
    let rule = |it: crate::policy::Numbered<'_>| Rule {
        number: it.number,
        policy: it.policy.to_string(),
        direction: word(it.direction).to_owned(),
        tally: counters
            .get(&it.number)
            .copied()
            .map(tally)
            .unwrap_or_default(),
    };
    Ok(all.map(rule).collect())
}

fn fills(datapath: &Datapath, conns: usize) -> Result<BTreeMap<String, Fill>, Error> {
    let fill = |(used, room): (usize, u32)| Fill {
        used: u64::try_from(used).unwrap_or(u64::MAX),
        room: room.into(),
    };
    let all = fill::fill(datapath, conns)?.into_iter();
    Ok(all.map(|(name, it)| (name.to_owned(), fill(it))).collect())
}

const fn tally(it: underseal_abi::Tally) -> Tally {
    Tally {
        packets: it.packets,
        bytes: it.bytes,
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
