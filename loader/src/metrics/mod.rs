//! What `underseal metrics` tells: every metric once, in [`FAMILIES`], and what its samples are made from. Pure.
//!
//! Names are the field's: a unit at the end, `_total` for what only grows, and no label that grows with connections.

mod list;
mod samples;
mod text;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use self::list::FAMILIES;

/// What was seen of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Observed {
    /// Version of this program.
    pub version: String,
    /// Version of the layouts that this program knows.
    pub abi: u32,
    /// When it was looked, seconds since the epoch.
    pub at: u64,
    /// Version of the layouts in the kernel; `None` if nothing was ever applied.
    pub applied_abi: Option<u32>,
    /// Whether the file is in order; `None` if there is none.
    pub valid: Option<bool>,
    /// How many steps an apply would make; `None` if there is nothing to compare with.
    pub differences: Option<u64>,
    /// When the helper was started, seconds since the epoch; `None` if it does not run.
    pub helper: Option<u64>,
    /// What the kernel has; `None` if nothing is applied, or it cannot be read.
    pub node: Option<Node>,
}

/// What the kernel has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Whether an apply was carried out to its end.
    pub whole: bool,
    /// When connections are sealed.
    pub mode: String,
    /// By `namespace/name`.
    pub workloads: BTreeMap<String, Workload>,
    /// Ends of connections whose workload is not known, by state.
    #[serde(default)]
    pub strays: BTreeMap<String, u64>,
    /// Sessions with other nodes.
    #[serde(default)]
    pub sessions: Vec<Session>,
    /// The datapath's counters by name.
    pub counters: BTreeMap<String, Tally>,
    /// The helper's.
    pub helper_counters: BTreeMap<String, u64>,
    /// What the rules of network policies have let pass; empty unless they are known to be in force.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// How full maps are, by name.
    pub maps: BTreeMap<String, Fill>,
}

/// A workload of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Whether its namespace is there and taken over.
    pub covered: bool,
    /// Ends of its connections that are or shall be sealed, by state.
    #[serde(default)]
    pub connections: BTreeMap<String, u64>,
    /// When its certificate ends, seconds since the epoch; `None` if there is none that can be read.
    pub not_after: Option<u64>,
}

/// A WireGuard session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Session {
    /// Name of the peer, or its public key if the file has no name for it.
    pub peer: String,
    /// The device that it lives on.
    pub device: String,
    /// When the last handshake was, seconds since the epoch; `None` if there was none.
    pub handshake: Option<u64>,
    /// Bytes received.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
}

/// A rule of a network policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Its number, as `underseal policy list` shows it.
    pub number: u32,
    /// Its policy.
    pub policy: String,
    /// `ingress` or `egress`.
    pub direction: String,
    /// What it has let pass.
    pub tally: Tally,
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tally {
    /// Packets, connections or calls.
    pub packets: u64,
    /// Bytes of packets.
    pub bytes: u64,
}

/// How full a map is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fill {
    /// Entries that it has.
    pub used: u64,
    /// Entries that it has room for.
    pub room: u64,
}

/// The states that ends of connections are shown in.
pub const STATES: [&str; 5] = ["held", "keyed", "sealed", "ending", "released"];

/// What kind of number a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Only grows, until the node is taken down.
    Counter,
    /// Goes up and down.
    Gauge,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        })
    }
}

/// A metric.
#[derive(Debug)]
pub struct Family {
    /// Its name, whole.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// What it means.
    pub help: &'static str,
    /// Its values on a node.
    samples: fn(&Observed) -> Vec<Sample>,
}

/// A value, with those of the labels in their order.
type Sample = (Vec<String>, u64);

/// The metrics of a node that have a value.
#[must_use]
pub fn shown(observed: &Observed) -> Vec<Shown> {
    let shown = FAMILIES.iter().map(|family| Shown {
        name: family.name,
        kind: family.kind,
        help: family.help,
        samples: named(family, observed),
    });
    shown.filter(|it| !it.samples.is_empty()).collect()
}

fn named(family: &Family, observed: &Observed) -> Vec<Labelled> {
    let samples = (family.samples)(observed).into_iter();
    let named = samples.map(|(values, value)| Labelled {
        labels: family.labels.iter().copied().zip(values).collect(),
        value,
    });
    named.collect()
}

/// A metric with its values.
#[derive(Clone, Debug, Serialize)]
pub struct Shown {
    /// Its name.
    pub name: &'static str,
    /// Its kind.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// What it means.
    pub help: &'static str,
    /// Its values.
    pub samples: Vec<Labelled>,
}

/// A value.
#[derive(Clone, Debug, Serialize)]
pub struct Labelled {
    /// Names and values of its labels.
    pub labels: BTreeMap<&'static str, String>,
    /// The value.
    pub value: u64,
}

/// Metrics as the Prometheus text format (version 0.0.4) has them, which node_exporter's textfile collector reads.
///
/// # Errors
/// The library cannot write them.
pub fn text(shown: &[Shown]) -> Result<String, fmt::Error> {
    text::encode(shown)
}

#[cfg(test)]
mod tests;
