//! Network policies worked out: from what the file says to what the programs look up. Pure.
//!
//! The programs walk no rules. Everybody that rules can tell from others gets a number ([`who`]), and for each workload of
//! this node it is worked out who may do what with it ([`table`]). What follows from that for a connection is decided by
//! `underseal_abi::ruling`, here as in the kernel.

pub mod explain;
mod intervals;
pub mod names;
pub mod outcome;
pub mod table;
pub mod who;

use std::collections::BTreeMap;
use std::fmt;

use underseal_abi::Direction;
use underseal_abi::names::RULES_HALF;

use crate::config::Config;
use crate::config::network_policy::{NetworkPolicy, Rule};
use crate::config::value::WorkloadName;
use crate::state::Policies;

/// Half of the room of the maps: two generations have room.
const MOST_GRANTS: usize = 131_072;
const MOST_PEERS: usize = 32_768;
const MOST_SUBJECTS: usize = 4096;

/// A rule with its number and where it stands.
#[derive(Clone, Copy, Debug)]
pub struct Numbered<'a> {
    /// From 1 on, in the order of the file: a policy's ingress before its egress.
    pub number: u32,
    /// The policy.
    pub policy: &'a NetworkPolicy,
    /// Of which direction it is.
    pub direction: Direction,
    /// Which one of those it is, from 1 on.
    pub index: usize,
    /// What it says.
    pub rule: &'a Rule,
}

impl fmt::Display for Numbered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = word(self.direction);
        write!(
            f,
            "rule {} (policy {}, {direction} {})",
            self.number, self.policy, self.index
        )
    }
}

/// A direction as the file calls it.
#[must_use]
pub const fn word(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

/// All rules of a configuration.
#[must_use]
pub fn rules(config: &Config) -> Vec<Numbered<'_>> {
    let mut all = Vec::new();
    for policy in &config.network_policies {
        for direction in [Direction::Ingress, Direction::Egress] {
            let rules = policy.rules(direction).unwrap_or_default();
            for (i, rule) in rules.iter().enumerate() {
                all.push(Numbered {
                    number: u32::try_from(all.len() + 1).unwrap_or(u32::MAX),
                    policy,
                    direction,
                    index: i + 1,
                    rule,
                });
            }
        }
    }
    all
}

/// What the maps are to have; `None` if there are no policies. `ids` has all workloads of this node.
#[must_use]
pub fn compile(config: &Config, ids: &BTreeMap<WorkloadName, u32>) -> Option<Policies> {
    (!config.network_policies.is_empty()).then(|| table::of(config, ids))
}

/// Ids for the workloads of a configuration that is not applied.
#[must_use]
pub fn ids(config: &Config) -> BTreeMap<WorkloadName, u32> {
    let names = config.workloads.iter().map(|it| it.name.clone());
    names.zip(1..).collect()
}

/// What of a configuration is more than the maps have room for, if something is.
#[must_use]
pub fn too_much(config: &Config) -> Option<String> {
    let rules = rules(config).len();
    let most = RULES_HALF as usize - 1;
    if rules > most {
        return Some(format!("{rules} rules; there is room for {most}"));
    }
    let ids = ids(config);
    if let Some(bytes) = names::too_long(&names::demanded(config, &ids)) {
        let most = underseal_abi::DnsNames::MAX_LEN;
        return Some(format!(
            "rules rely on {bytes} bytes of DNS names of one workload; there is room for {most}"
        ));
    }
    let table = compile(config, &ids)?;
    let counts = [
        ("workloads", table.subjects.len(), MOST_SUBJECTS),
        (
            "networks and workloads of other nodes",
            table.peers.len(),
            MOST_PEERS,
        ),
        (
            "combinations of workload, peer and ports",
            table.grants.len(),
            MOST_GRANTS,
        ),
    ];
    let (what, count, most) = counts.into_iter().find(|(_, count, most)| count > most)?;
    Some(format!(
        "the rules make {count} {what}; there is room for {most}"
    ))
}
