//! Names of what is pinned, each written once. Paths are relative to [`PIN_ROOT`].

/// Folder in the BPF file system that holds everything Underseal pins.
pub const PIN_ROOT: &str = "/sys/fs/bpf/underseal";
/// Sub-folder of pinned maps.
pub const MAPS: &str = "maps";
/// Sub-folder of pinned links; deleting a pin detaches the program.
pub const LINKS: &str = "links";
/// Sub-folder of pinned programs that user space starts itself (iterators).
pub const PROGS: &str = "progs";

/// Array of one [`crate::Config`].
pub const CONFIG: &str = "CONFIG";
/// LPM trie: address to [`crate::Endpoint`].
pub const IPCACHE: &str = "IPCACHE";
/// Hash: network namespace cookie to [`crate::Netns`].
pub const NETNS: &str = "NETNS";
/// Hash: workload id to [`crate::Workload`].
pub const WORKLOADS: &str = "WORKLOADS";
/// Hash: node as in [`crate::Endpoint::node`] to [`crate::Node`]. [`crate::THIS_NODE`] is there
/// if its helper may be reached by others; they are there if they say where theirs is.
pub const NODES: &str = "NODES";
/// Hash: socket cookie to [`crate::Conn`]; every connection that is or shall be sealed.
pub const CONNS: &str = "CONNS";
/// Hash: [`crate::Sleeper`] to the time at which it was recorded (ns, `CLOCK_MONOTONIC`).
pub const SLEEPERS: &str = "SLEEPERS";
/// Ring buffer of [`crate::Event`].
pub const EVENTS: &str = "EVENTS";
/// Per-CPU array of [`crate::Tally`], indexed by [`crate::Counter`].
pub const COUNTERS: &str = "COUNTERS";
/// Array of u64 that the helper alone writes; index: the helper's own counter table.
pub const HELPER_COUNTERS: &str = "HELPER_COUNTERS";
/// Socket storage: [`crate::State`] as u32. BPF creates it, the helper advances it.
pub const STATES: &str = "STATES";
/// Socket storage of [`crate::Socket`]; written by BPF only.
pub const SOCKETS: &str = "SOCKETS";
/// Socket storage of [`crate::Flow`]; written by the guard only.
pub const FLOWS: &str = "FLOWS";

/// Socket storage of [`crate::KeyLimit`]; written by the helper only.
pub const KEY_LIMITS: &str = "KEY_LIMITS";

/// Hash: socket cookie to [`crate::Seal`]. The helper alone writes and reads it.
pub const SEALS: &str = "SEALS";
/// Hash: SHA-256 to [`crate::Chain`]. The helper alone writes and reads it.
pub const CHAINS: &str = "CHAINS";
/// Hash: number from 1 on to [`crate::Bundle`].
pub const BUNDLES: &str = "BUNDLES";

/// Hash: [`crate::SubjectKey`] to [`crate::Subject`]: what policies say of this node's workloads.
pub const SUBJECTS: &str = "SUBJECTS";
/// LPM trie: [`crate::peer_key`] to u32, the number of an address in rules.
pub const PEERS: &str = "PEERS";
/// LPM trie: [`crate::grant_key`] to [`crate::Grant`].
pub const GRANTS: &str = "GRANTS";
/// Per-CPU array of [`crate::Tally`]: what each rule let pass. An odd generation of rules has the indices from 0 on, an
/// even one those from [`RULES_HALF`] on.
pub const RULES: &str = "RULES";
/// Half of the places in [`RULES`]: rules have numbers below this.
pub const RULES_HALF: u32 = 4096;
/// LRU hash: [`crate::Reply`] to the time of the packet that it would be the answer to.
pub const REPLIES: &str = "REPLIES";
/// Hash: address to [`crate::PeerWorkload`].
pub const PEER_WORKLOADS: &str = "PEER_WORKLOADS";
/// Hash: [`crate::Named`] to [`crate::DnsNames`]; a workload of which none are needed has no entry.
pub const DNS_NAMES: &str = "DNS_NAMES";

/// All maps that are pinned, in the order in which they are created.
pub const ALL_MAPS: [&str; 24] = [
    CONFIG,
    IPCACHE,
    NETNS,
    WORKLOADS,
    NODES,
    CONNS,
    SLEEPERS,
    EVENTS,
    COUNTERS,
    HELPER_COUNTERS,
    STATES,
    SOCKETS,
    FLOWS,
    SEALS,
    CHAINS,
    BUNDLES,
    SUBJECTS,
    PEERS,
    GRANTS,
    RULES,
    REPLIES,
    PEER_WORKLOADS,
    KEY_LIMITS,
    DNS_NAMES,
];

/// Iterator over the descriptors of one process; writes [`crate::TaskFile`] records.
pub const ITER_TASK_FILE: &str = "task_file";
/// Iterator over the TCP sockets of the reader's network namespace: takes them over. Writes a
/// [`crate::Conn`] for each connection that must not go on (its state says why).
pub const ITER_TAKE_OVER: &str = "take_over";
/// Iterator over the TCP sockets of the reader's network namespace: lets go of them. Writes a
/// [`crate::Conn`] for each connection that is held.
pub const ITER_LET_GO: &str = "let_go";
/// Iterator over the TCP sockets of the reader's network namespace. Writes a [`crate::Conn`] for
/// each that waits for keys without being in [`CONNS`], because that was full.
pub const ITER_STRANDED: &str = "stranded";
/// Iterator over the TCP sockets of the reader's network namespace. Writes a [`crate::Usage`] for each that is sealed.
pub const ITER_USAGE: &str = "usage";
