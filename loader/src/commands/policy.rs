//! `underseal policy` and `underseal ipcache`: who may talk to whom, by the file and by the maps.

use std::collections::BTreeMap;

use clap::Subcommand;
use underseal_abi::Tally;

use super::{Context, Error};
use crate::config::Config;
use crate::kernel::bpf::policies;
use crate::kernel::{observe, probe};
use crate::policy;
use crate::policy::explain::{self, Port};
use crate::report::Report;
use crate::report::policy::{Address, Dump, Listed, Rule};
use crate::state::State;

/// What is asked.
#[derive(Subcommand)]
pub enum Command {
    /// Show the rules of the configuration, and what each has let pass if they are in force
    List,
    /// Show what the programs look up, as it is in the kernel
    Dump,
    /// Say what becomes of a connection, and which rule decides; needs no privileges
    Test {
        /// Who connects: a workload as `namespace/name`, an address, `host` or `world`
        from: String,
        /// To whom
        to: String,
        /// A port with `/tcp`, `/udp` or `/sctp` (else TCP), or `icmp`
        port: Port,
    },
}

/// Runs it.
///
/// # Errors
/// The file is not in order, the maps cannot be read, or somebody is not known.
pub fn run(context: &Context<'_>, command: Command) -> Result<Report, Error> {
    match command {
        Command::List => list(context),
        Command::Dump => dump(context),
        Command::Test { from, to, port } => {
            let config = context.load()?;
            let answer = explain::explain(&config, &from, &to, port).map_err(Error::Usage)?;
            Ok(Report::PolicyTest(Box::new(answer)))
        }
    }
}

fn list(context: &Context<'_>) -> Result<Report, Error> {
    let config = context.load()?;
    let counters = if probe::privileges().is_none() {
        counters(&config, &observe::state(Some(&config))?)?
    } else {
        None
    };
    let rules = policy::rules(&config);
    let rules = rules.iter().map(|it| Rule::of(it, counters.as_ref()));
    Ok(Report::PolicyList(Listed {
        in_force: counters.is_some(),
        rules: rules.collect(),
    }))
}

/// What the rules of a configuration have let pass, by their numbers; `None` unless just these are in force: numbers mean
/// these rules only then.
pub(super) fn counters(
    config: &Config,
    state: &State,
) -> Result<Option<BTreeMap<u32, Tally>>, Error> {
    let Some(datapath) = &state.datapath else {
        return Ok(None);
    };
    let ids = datapath.workloads.iter();
    let ids: BTreeMap<_, _> = ids.map(|(id, it)| (it.name.clone(), *id)).collect();
    let in_force = datapath.policies.is_some()
        && config.workloads.iter().all(|it| ids.contains_key(&it.name))
        && policy::compile(config, &ids) == datapath.policies;
    Ok(in_force.then(policies::counters).transpose()?)
}

fn dump(context: &Context<'_>) -> Result<Report, Error> {
    if let Some(problem) = probe::privileges() {
        return Err(Error::Problems(vec![problem]));
    }
    let state = observe::state(context.load_if_any()?.as_ref())?;
    let datapath = state.datapath.unwrap_or_default();
    Ok(Report::PolicyDump(Box::new(Dump::of(&datapath))))
}

/// `underseal ipcache`: whose each address is, to the programs.
///
/// # Errors
/// The maps cannot be read.
pub fn ipcache(context: &Context<'_>) -> Result<Report, Error> {
    if let Some(problem) = probe::privileges() {
        return Err(Error::Problems(vec![problem]));
    }
    let config = context.load_if_any()?;
    let state = observe::state(config.as_ref())?;
    let datapath = state.datapath.unwrap_or_default();
    let node = |number: u32| match (&config, number) {
        (Some(config), underseal_abi::THIS_NODE) => config.node.name.to_string(),
        (Some(config), number) => {
            let peer = usize::try_from(number)
                .ok()
                .and_then(|n| config.peers.get(n.checked_sub(2)?));
            peer.map_or_else(|| number.to_string(), |peer| peer.name.to_string())
        }
        (None, number) => number.to_string(),
    };
    let addresses = Address::all(&datapath, node);
    Ok(Report::Ipcache { addresses })
}
