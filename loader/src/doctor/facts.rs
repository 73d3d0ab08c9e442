//! What the checks go by: plain values, read by `kernel::examine`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::metrics::Observed;

/// What was seen of a machine.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// What metrics are made from.
    pub observed: Observed,
    /// Why the kernel could not be read, if so.
    #[serde(default)]
    pub unreadable: Option<String>,
    /// What the machine lacks.
    #[serde(default)]
    pub missing: Vec<Missing>,
    /// `uname -r`.
    pub release: String,
    /// `uname -v`, where Debian has the point release.
    pub version: String,
    /// `kernel.yama.ptrace_scope`; `None` if there is none.
    #[serde(default)]
    pub ptrace_scope: Option<String>,
    /// The configuration's file.
    pub file: String,
    /// What is wrong with it, if something is.
    #[serde(default)]
    pub mistakes: Option<String>,
    /// What an apply would do; `None` if there is nothing to compare with.
    #[serde(default)]
    pub differences: Option<Vec<String>>,
    /// Why the two cannot be compared, if so.
    #[serde(default)]
    pub incomparable: Option<String>,
    /// What is in order, but not as it may be meant to be, as `status` says it.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Secret keys that the configuration names.
    #[serde(default)]
    pub keys: Vec<SecretFile>,
    /// Identities of workloads, by `namespace/name`.
    #[serde(default)]
    pub identities: BTreeMap<String, Identity>,
    /// Whether the helper's program was replaced since it was started.
    #[serde(default)]
    pub helper_is_old: bool,
    /// Whether each unit is enabled; `None` if systemd does not run here.
    #[serde(default)]
    pub units: Option<BTreeMap<String, bool>>,
    /// Programs that are attached nowhere any more.
    #[serde(default)]
    pub detached: Vec<String>,
    /// Programs on the interfaces that ours are attached to, in the order in which they run, by hook.
    #[serde(default)]
    pub hooks: BTreeMap<String, Vec<Attached>>,
    /// Uplinks that the configuration names.
    #[serde(default)]
    pub uplinks: BTreeMap<String, Option<Link>>,
    /// The WireGuard device; `None` if there is none.
    #[serde(default)]
    pub device: Option<Link>,
    /// Sessions, as `PEER (DEVICE)`, whose last handshake is long ago and for which handshakes are being sent.
    #[serde(default)]
    pub trying: BTreeSet<String>,
    /// Peers, as `PEER (ENDPOINT)`, to whose endpoint no route leads.
    #[serde(default)]
    pub unroutable: BTreeSet<String>,
    /// Which interface leads to each network of a peer, for the node's own packets.
    #[serde(default)]
    pub ways: BTreeMap<String, String>,
    /// `net.ipv4.ip_forward`.
    #[serde(default)]
    pub ip_forward: Option<bool>,
    /// Whether workloads may talk to addresses that are none.
    #[serde(default)]
    pub allows_outside: bool,
}

/// Something that is missing.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Missing {
    /// What does not work, and why.
    pub seen: String,
    /// What to do about it.
    pub fix: String,
}

/// A file with a secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretFile {
    /// What it is.
    pub what: String,
    /// Its path.
    pub path: String,
    /// Its mode and the id of its owner; `None` if it is not there.
    pub found: Option<(u32, u32)>,
}

/// An identity.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Its folder.
    pub folder: String,
    /// Why it cannot be used, if so.
    #[serde(default)]
    pub broken: Option<String>,
    /// Whether its certificate should have been renewed.
    #[serde(default)]
    pub due: bool,
    /// When its certificate begins, seconds since the epoch; `None` if it cannot be read.
    #[serde(default)]
    pub not_before: Option<i64>,
    /// When it ends.
    #[serde(default)]
    pub not_after: Option<i64>,
}

/// A program at a hook.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attached {
    /// Its name in the kernel.
    pub name: String,
    /// Whether it is ours.
    pub ours: bool,
}

/// An interface.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Whether it is up.
    pub up: bool,
    /// MTU, bytes.
    pub mtu: u32,
}
