//! What the BPF programs and user space share: memory layouts, names of pinned objects, and the
//! decisions themselves as pure functions.
//!
//! Nothing here performs I/O or calls a helper. Every struct that crosses the border is `repr(C)`,
//! has explicit padding and a size assertion; a change to any of them raises [`ABI_VERSION`], and
//! the loader refuses to touch maps that another version pinned.
#![no_std]

mod conn;
mod counter;
mod event;
mod layout;
mod limit;
pub mod names;
mod notice;
mod path;
#[cfg(feature = "user")]
mod pod;
mod record;
mod verdict;

pub use conn::{Conn, Lowat, Role, Sleeper, Socket, State, Tuple};
pub use counter::{COUNTERS, Counter, HELPER_COUNTERS, HelperCounter, Tally};
pub use event::{Drop, Event, EventKind, TaskFile, Unplaced};
pub use layout::{
    Bundle, Chain, Config, DnsNames, Endpoint, Named, Netns, Node, PeerWorkload, Reply, Seal,
    Workload, ip_key,
};
pub use limit::{KeyLimit, KeyUse, Usage};
pub use notice::{NOTICE_BYTES, NOTICE_PROTOCOL, NoticeKind, notice, notice_kind};
pub use path::{Mode, Path, Policy, connection_of, is_link_scope, is_loopback, mode_of, path_of};
pub use record::{Flow, Segment, Step, Verdict};
pub use verdict::{
    ANY_PORT, ANY_PROTOCOL, ANYBODY, Direction, Grant, Mtls, Ruling, Side, Subject, SubjectKey,
    WORLD, Way, grant_key, peer_key, ruling,
};

/// Version of every layout and name in this crate. Written by the loader into [`Config::abi`].
pub const ABI_VERSION: u32 = 8;

/// [`Endpoint::node`] of addresses that belong to the node the program runs on.
pub const THIS_NODE: u32 = 1;
