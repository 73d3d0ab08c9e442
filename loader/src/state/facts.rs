//! What a node is like.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Live, Saved};
use crate::config::choice::Cipher;
use crate::config::value::{Digest, InterfaceName, PublicKey, WorkloadName};

/// What the desired state depends on and Underseal does not own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// Digest of the object that this loader would load.
    pub object: Digest,
    /// Our public key; `None` while the private key file does not exist.
    pub public_key: Option<PublicKey>,
    /// Our next public key; `None` if there is none, or its private key file does not exist.
    #[serde(default)]
    pub next_public_key: Option<PublicKey>,
    /// Digests of the preshared keys' files, by the peer's public key.
    pub preshared_keys: BTreeMap<PublicKey, Digest>,
    /// Digests of those that go with our next key, likewise.
    #[serde(default)]
    pub next_preshared_keys: BTreeMap<PublicKey, Digest>,
    /// Which WireGuard device leads to each network of a peer, as the `IPCACHE` map has it.
    #[serde(default)]
    pub leading: BTreeMap<IpNet, InterfaceName>,
    /// Seconds since the last handshake, by device and peer.
    #[serde(default)]
    pub sessions: BTreeMap<InterfaceName, BTreeMap<PublicKey, u64>>,
    /// MTU of each configured uplink that exists, bytes.
    pub uplinks: BTreeMap<InterfaceName, u32>,
    /// Whether the kernel has the function that [`super::Program::Sendpage`] is attached to.
    pub sendpage: bool,
    /// Ids of the workloads that the `WORKLOADS` map lists.
    pub ids: BTreeMap<WorkloadName, u32>,
    /// What `seal.cipher = "auto"` stands for; `None` if a cipher is named.
    #[serde(default)]
    pub cipher: Option<Cipher>,
    /// Namespaces of the configured workloads that exist.
    pub namespaces: BTreeMap<WorkloadName, Found>,
}

/// A configured workload's namespace as it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Found {
    /// Its cookie (`SO_NETNS_COOKIE`).
    pub cookie: u64,
    /// Entry of the `NETNS` map; `None` before the take-over.
    pub entry: Option<Saved>,
    /// What is set inside now.
    pub live: Live,
}
