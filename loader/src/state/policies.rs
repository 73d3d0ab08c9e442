//! Network policies as the maps have them.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::network_policy::Mtls;

/// Network policies as the programs look them up: the generation that is in force of the maps `SUBJECTS`, `PEERS` and
/// `GRANTS`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policies {
    /// Workloads of this node by id: in which directions they are selected, as [`underseal_abi::Subject::selected`].
    pub subjects: BTreeMap<u32, u32>,
    /// The number of each network that is no workload of this node.
    pub peers: BTreeMap<IpNet, u32>,
    /// What is allowed.
    pub grants: BTreeSet<Grant>,
}

/// Something that is allowed; see [`underseal_abi::grant_key`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// Id of the workload of this node that it is about.
    pub subject: u32,
    /// [`underseal_abi::Direction`] as u8.
    pub direction: u8,
    /// The peer's number, or [`underseal_abi::ANYBODY`].
    pub peer: u32,
    /// Protocol number; `None`: all that no longer key is for.
    pub protocol: Option<u8>,
    /// Port of the server.
    pub port: u16,
    /// How many leading bits of it count.
    pub port_bits: u8,
    /// Number of the rule that decides.
    pub rule: u32,
    /// What it demands of mTLS.
    pub mtls: Mtls,
}
