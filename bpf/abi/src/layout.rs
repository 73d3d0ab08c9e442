//! Layouts of map keys, map values and records. All integers are in host order unless a field
//! says otherwise; addresses are always 16 bytes, IPv4 as `::ffff:a.b.c.d` (RFC 4291 §2.5.5.2).

use core::mem::size_of;

/// The key of an IPv4 address in every map: its IPv4-mapped IPv6 form.
#[inline(always)]
#[must_use]
pub const fn ip_key(v4: [u8; 4]) -> [u8; 16] {
    [
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3],
    ]
}

/// What the datapath is told by the loader; entry 0 of `CONFIG`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// [`crate::ABI_VERSION`] of the loader that wrote this.
    pub abi: u32,
    /// [`crate::Mode`] as u32.
    pub mode: u32,
    /// Interface index of the WireGuard device; 0 while there is none: nothing leaves the node.
    pub wireguard: u32,
    /// Bits of [`Config::ALLOW_OUTSIDE`] and its neighbours.
    pub flags: u32,
    /// First 16 bytes of the SHA-256 of the object file whose programs are attached.
    pub object: [u8; 16],
    /// After how many bytes, as [`crate::Flow::used`] counts, the key of a sealed socket is replaced; 0: as its cipher
    /// demands.
    pub rekey_after: u64,
    /// After how many seconds the certificates of an open connection are verified again; 0: never.
    pub recheck: u32,
    /// Which generation of `SUBJECTS`, `PEERS` and `GRANTS` is in force; 0: there are no network policies.
    pub policy: u32,
}

impl Config {
    /// Workloads may exchange packets with addresses that are no workload.
    pub const ALLOW_OUTSIDE: u32 = 1;
    /// UDP, SCTP and whatever else mTLS cannot carry may pass between workloads of this node.
    pub const ALLOW_NON_TCP: u32 = 1 << 1;
    /// Connections older than the take-over of their namespace go on in plaintext.
    pub const KEEP_EXISTING: u32 = 1 << 2;
    /// Sealed connections stay open though a certificate they were made with has been revoked, or its CA is trusted no
    /// longer.
    pub const KEEP_REVOKED: u32 = 1 << 8;
    /// Peers are changing to this node's next WireGuard key: [`Endpoint::next`] means something.
    pub const ROTATING: u32 = 1 << 16;
}

/// Whose an address is: value of the ipcache. All zeros: nobody's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// [`crate::THIS_NODE`], or 2 and up for another node; never 0 in the ipcache.
    pub node: u32,
    /// Workload id; 0 for an address of the node's network that no known workload has.
    pub workload: u32,
    /// Of a workload on this node: its host-side interface's index; 0 if it is absent. Of another node's network: the index
    /// of the WireGuard device that leads there; 0 for [`Config::wireguard`].
    pub ifindex: u32,
    /// Of another node's network: index of the device of the pair of keys with this node's next key; 0 if there is none.
    pub next: u32,
}

impl Endpoint {
    /// Whether it is anybody's: a workload's, or in the network of a node.
    #[inline(always)]
    #[must_use]
    pub const fn is_known(&self) -> bool {
        self.node != 0
    }

    /// Whether it is a workload's of this node.
    #[inline(always)]
    #[must_use]
    pub const fn is_own(&self) -> bool {
        self.node == crate::THIS_NODE && self.workload != 0
    }
}

/// A network namespace that has been taken over, by its cookie (`SO_NETNS_COOKIE`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Netns {
    /// Id of the workload that lives in it; 0 while it is being given back.
    pub workload: u32,
    /// `net.ipv4.tcp_notsent_lowat` as it was found; `down` puts it back.
    pub saved_lowat: u32,
    /// MTU of the workload's interface as it was found, bytes; 0 if it was left alone.
    pub saved_mtu: u32,
    /// 1 once the sockets that were open have been taken over; 0 while that is under way.
    pub taken_over: u32,
}

impl Netns {
    /// Set in the key of a namespace that is being given back: what is put back in the end is kept, and the programs,
    /// which look for cookies, do not find it. Cookies are counted up from 1 (`net/core/net_namespace.c`, 6.1).
    pub const GIVEN_BACK: u64 = 1 << 63;
}

/// What the helper must know of a workload. Strings are UTF-8, padded with zeros, never cut.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// `namespace/name` as in the configuration.
    pub name: [u8; 128],
    /// SPIFFE ID, e.g. `spiffe://example.org/ns/shop/sa/cart`.
    pub spiffe_id: [u8; 256],
    /// Folder with `tls.crt`, `tls.key`, `ca.crt` (cert-manager's Secret layout).
    pub identity: [u8; 256],
    /// Path of the network namespace.
    pub netns: [u8; 256],
    /// Cipher suite to seal with, as `TLS_CIPHER_*` of `linux/tls.h`.
    pub cipher: u32,
    /// How many seconds before its end the certificate is renewed; 0: the configuration does not say.
    pub renew_before: u32,
}

/// Where a node's helper is reached: value of `NODES`. Of another node one address is set, of
/// this one as many as it has.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// Name as in the configuration: UTF-8, padded with zeros, never cut.
    pub name: [u8; 64],
    /// IPv4 address inside of the tunnel, [`ip_key`] form; zeros: none.
    pub v4: [u8; 16],
    /// IPv6 address inside of the tunnel; zeros: none.
    pub v6: [u8; 16],
    /// TCP port of the helper, the same on all nodes.
    pub port: u32,
    /// Zero.
    pub reserved: u32,
}

/// The end of a connection that a socket is.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It called connect: TLS client.
    Client = 1,
    /// It was accepted: TLS server.
    Server = 2,
}

/// How far a socket is on its way to being sealed. Absent storage means: not ours, or unknown.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Seen at connect or setsockopt, not yet established: sends nothing.
    New = 1,
    /// Needs no TLS; sends as it likes.
    Released = 2,
    /// Established, waits for its keys; sends nothing.
    Held = 3,
    /// Keys are in the socket; tasks that slept there before are being restarted.
    Keyed = 4,
    /// Sends and receives TLS records and nothing else.
    Sealed = 5,
    /// One end was closed, or shut down for sending, before keys could be set. No data will pass;
    /// whoever still sends is reset.
    Ending = 6,
    /// Keys are in the socket and nobody sleeps in the old code, but the other end, on another
    /// node, has not said the same: receives TLS records, sends nothing.
    Primed = 7,
    /// The connection ended before it had keys. A program that has not noticed yet still calls, and needs no record.
    Closed = 8,
    /// Sealed, and held for a moment so that what it has sent is read before its key is replaced. Nothing has been
    /// replaced yet.
    Pausing = 9,
    /// Sealed and held; either end of what it sends may have the old key or the new one.
    Replacing = 10,
}

impl State {
    /// The state that `raw`, a value of the `STATES` storage, stands for.
    #[inline(always)]
    #[must_use]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            1 => Self::New,
            2 => Self::Released,
            3 => Self::Held,
            4 => Self::Keyed,
            5 => Self::Sealed,
            6 => Self::Ending,
            7 => Self::Primed,
            8 => Self::Closed,
            9 => Self::Pausing,
            10 => Self::Replacing,
            _ => return None,
        })
    }

    /// Whether what the socket sends is TLS records, and nothing else.
    #[inline(always)]
    #[must_use]
    pub const fn is_sealed(self) -> bool {
        matches!(self, Self::Sealed | Self::Pausing | Self::Replacing)
    }
}

/// Addresses of a connection as one of its ends sees them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Own address, [`ip_key`] form.
    pub local: [u8; 16],
    /// Peer's address, [`ip_key`] form.
    pub remote: [u8; 16],
    /// Own port, host order.
    pub local_port: u16,
    /// Peer's port, host order.
    pub remote_port: u16,
    /// 1 if the socket is `AF_INET6` (its addresses may still be IPv4-mapped), else 0.
    pub v6: u32,
}

impl Tuple {
    /// The same connection seen from the other end. The family is the peer's own affair.
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self {
            local: self.remote,
            remote: self.local,
            local_port: self.remote_port,
            remote_port: self.local_port,
            v6: self.v6,
        }
    }
}

/// One end of a connection that is, or shall be, sealed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conn {
    /// Socket cookie (`SO_COOKIE`).
    pub cookie: u64,
    /// Cookie of the network namespace it lives in.
    pub netns: u64,
    /// Time of establishment, ns, `CLOCK_MONOTONIC`.
    pub since: u64,
    /// Addresses and ports.
    pub tuple: Tuple,
    /// Workload this end belongs to.
    pub workload: u32,
    /// Workload at the other end; 0 if it lives on another node.
    pub peer: u32,
    /// [`Role`] as u32.
    pub role: u32,
    /// Process that called connect or accept; 0 until it has.
    pub tgid: u32,
    /// [`State`] as u32, for display; the socket's own storage decides.
    pub state: u32,
    /// 1 if a task that splices could not be recorded: must never be handed over. (A kprobe does
    /// not reach [`Socket::unrecorded`].)
    pub unrecorded: u32,
    /// Node that the other end lives on, as [`Endpoint::node`].
    pub node: u32,
    /// Zero.
    pub reserved: u32,
}

/// By which certificate the peer of a sealed end was accepted: value of `SEALS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seal {
    /// Key of the peer's certificates in `CHAINS`.
    pub chain: [u8; 32],
    /// When, seconds since the epoch.
    pub at: u64,
    /// Workload whose trust the peer was held against.
    pub workload: u32,
    /// Zero.
    pub reserved: u32,
}

/// Certificates as a peer has presented them: value of `CHAINS`, whose key is their SHA-256.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// How much of `der` is used, bytes.
    pub len: u32,
    /// Zero.
    pub reserved: u32,
    /// DER, one after the other, leaf first.
    pub der: [u8; Self::MAX_LEN],
}

impl Chain {
    /// Longer chains cannot be kept: their connections are ended when trust changes.
    pub const MAX_LEN: usize = 8184;
}

/// The trust bundle of another trust domain: value of `BUNDLES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// The domain, without scheme. UTF-8, padded with zeros, never cut.
    pub trust_domain: [u8; 256],
    /// The PEM file.
    pub file: [u8; 256],
}

/// A workload of another node, as the configuration knows it: value of `PEER_WORKLOADS`, whose key is its address in
/// [`ip_key`] form.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerWorkload {
    /// `namespace/name`. UTF-8, padded with zeros, never cut.
    pub name: [u8; 128],
    /// SPIFFE ID, the only one that its certificate may have.
    pub spiffe_id: [u8; 256],
}

/// Whose DNS names: key of `DNS_NAMES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Named {
    /// Address of a workload of another node, [`ip_key`] form; zeros for one of this node.
    pub address: [u8; 16],
    /// Id of a workload of this node; 0 for one of another.
    pub workload: u32,
}

impl Named {
    /// A workload of this node.
    #[must_use]
    pub const fn own(workload: u32) -> Self {
        Self {
            address: [0; 16],
            workload,
        }
    }

    /// The workload of another node that has this address.
    #[must_use]
    pub const fn other(address: [u8; 16]) -> Self {
        Self {
            address,
            workload: 0,
        }
    }
}

/// DNS names that a workload's certificate must have, because network policies rely on them: value of `DNS_NAMES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DnsNames {
    /// In lower case, without a final dot, each followed by a zero; then zeros.
    pub names: [u8; Self::MAX_LEN],
}

impl DnsNames {
    /// Room for the names of one workload, with a byte behind each.
    pub const MAX_LEN: usize = 4096;

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let parts = self.names.split(|byte| *byte == 0);
        parts.filter(|part| !part.is_empty())
    }
}

/// A packet that would be the answer to one that passed: key of `REPLIES`, whose value is the time at which that was
/// (ns, `CLOCK_MONOTONIC`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// Its source address, [`ip_key`] form.
    pub source: [u8; 16],
    /// Its destination address.
    pub destination: [u8; 16],
    /// Its source port; of an ICMP echo, the identifier.
    pub source_port: u16,
    /// Its destination port; of an ICMP echo, the identifier.
    pub destination_port: u16,
    /// Protocol as in a [`crate::grant_key`].
    pub protocol: u32,
}

impl Reply {
    /// How long after a packet an answer to it may come, ns.
    pub const PATIENCE: u64 = 180_000_000_000;
}

/// `TCP_NOTSENT_LOWAT` as an application has set it while its socket was held.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lowat {
    /// Value of the last call, bytes.
    pub value: u32,
    /// 1 if there was such a call.
    pub set: u32,
}

impl Lowat {
    /// The value to give to the socket when it is let go. Zero would hold it again, so it means
    /// the largest (no limit), as does never having been set.
    #[inline(always)]
    #[must_use]
    pub const fn on_release(&self) -> u32 {
        if self.set == 0 || self.value == 0 {
            u32::MAX
        } else {
            self.value
        }
    }
}

/// What BPF keeps with a socket of a workload.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Socket {
    /// Identity and addresses; zero until established.
    pub conn: Conn,
    /// What the application asked of `TCP_NOTSENT_LOWAT`.
    pub lowat: Lowat,
    /// 1 if a task inside send or recv could not be recorded: must never be handed over.
    pub unrecorded: u32,
    /// 1 if its end must not look orderly: it was closed while data lay in a TLS record that was
    /// never completed, or a call to send was refused before it had keys.
    pub cut: u32,
}

/// A task that was inside send or recv on a held socket: key of `SLEEPERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sleeper {
    /// Socket cookie.
    pub cookie: u64,
    /// Thread id in the initial PID namespace.
    pub tid: u32,
    /// Process id in the initial PID namespace.
    pub tgid: u32,
}

/// What an [`Event`] tells.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A connection was established and is held.
    Held = 1,
    /// The server's end was accepted; [`Conn::tgid`] is known now.
    Accepted = 2,
    /// A held or sealed socket was closed.
    Closed = 3,
    /// The guard dropped a segment; [`Event::reason`] is a [`Drop`].
    Dropped = 4,
    /// The connection ends before it has keys; [`Event::reason`] is 1 at the end that was closed or
    /// shut down, 0 at the other.
    Ending = 5,
    /// A connection is held that is not in `CONNS`, for the reason [`Unplaced`]: it must be ended.
    Unplaced = 6,
    /// A sealed socket has sent so much that its key should be replaced.
    KeyLimit = 7,
}

/// Why a connection is in no table.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unplaced {
    /// The maps had no room.
    Full = 1,
    /// Its own address is not its workload's.
    Foreign = 2,
    /// Network policies do not allow it any more: they were changed while it was being made.
    Refused = 3,
}

/// Why the guard dropped a segment.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drop {
    /// Payload of a socket that has no keys yet.
    Unsealed = 1,
    /// Payload of a sealed socket that is not a TLS record.
    NotARecord = 2,
    /// Payload that does not continue the record stream.
    Gap = 3,
    /// Payload for a socket that has no keys yet.
    UnsealedIngress = 4,
    /// Payload between workloads that must be sealed, by a socket Underseal has never seen.
    Unknown = 5,
    /// The end of a sealed stream whose last bytes were never sent: more was announced
    /// (`MSG_MORE`) and did not come.
    Cut = 6,
    /// A call to send on a connection that ends before it has keys; refused before it made a
    /// segment.
    Ending = 7,
    /// A sealed socket has sent as much as its key may encrypt.
    KeyLimit = 8,
}

/// Record of the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// [`EventKind`] as u32.
    pub kind: u32,
    /// [`Drop`] or [`Unplaced`] as u32 where it applies.
    pub reason: u32,
    /// The end that it is about.
    pub conn: Conn,
}

/// What the `task_file` iterator writes for each socket it finds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskFile {
    /// Socket cookie.
    pub cookie: u64,
    /// Process id in the initial PID namespace.
    pub tgid: u32,
    /// Descriptor number in that process.
    pub fd: u32,
}

/// Packets and bytes of one [`Counter`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Packets, connections or calls: see the counter.
    pub packets: u64,
    /// Bytes of those packets from the IP header on; 0 where bytes make no sense.
    pub bytes: u64,
}

macro_rules! counters {
    ($counter:ident, $all:ident, $($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        #[doc = concat!("Index into the map `", stringify!($all), "`.")]
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $counter { $($(#[$doc])* $variant,)* }

        /// Every counter with the name it is shown by, in index order.
        pub const $all: &[($counter, &str)] = &[$(($counter::$variant, $name),)*];
    };
}

counters! {
    Counter, COUNTERS,
    /// Connections held at establishment (ends, not pairs).
    Held = "held",
    /// Connections that need no TLS (ends, not pairs).
    Released = "released",
    /// Connects refused because the policy denies the destination.
    DeniedConnect = "denied_connect",
    /// Packets handed from a workload to another one on this node.
    SameNode = "same_node",
    /// Packets handed from a workload to WireGuard.
    ToWireguard = "to_wireguard",
    /// Packets handed from WireGuard to a workload.
    FromWireguard = "from_wireguard",
    /// Packets between a workload and an address that is none.
    Outside = "outside",
    /// Segments of sealed sockets that the guard let pass.
    SealedSegments = "sealed_segments",
    /// Drops: payload of a socket without keys.
    DropUnsealed = "drop_unsealed",
    /// Drops: payload of a sealed socket that is not TLS records.
    DropNotARecord = "drop_not_a_record",
    /// Drops: payload for a socket without keys.
    DropUnsealedIngress = "drop_unsealed_ingress",
    /// Drops: payload of a socket that no program has seen, between workloads that must be sealed.
    DropUnknown = "drop_unknown",
    /// FINs of held sockets put off until they are sealed.
    FinDeferred = "fin_deferred",
    /// Drops: a workload used a source address that is not its own (a packet, or a connection within
    /// its own namespace).
    DropSpoofed = "drop_spoofed",
    /// Drops: what mTLS cannot carry, between workloads of this node; data to and from addresses of
    /// the link, TCP included, where neighbours must use mTLS; what is neither IP nor ARP.
    DropNonTcp = "drop_non_tcp",
    /// Drops: packets between a workload and an address that is none, where policy denies it.
    DropOutside = "drop_outside",
    /// Drops: a workload's packet for a node or workload that cannot be reached now.
    DropUnreachable = "drop_unreachable",
    /// Drops by the strict check: a workload's packet was about to leave outside WireGuard.
    DropStrictEgress = "drop_strict_egress",
    /// Drops by the strict check: a packet for or from a workload came in outside WireGuard.
    DropStrictIngress = "drop_strict_ingress",
    /// Drops: a packet reached a workload's interface past the programs that decide.
    DropBypass = "drop_bypass",
    /// Ends that could not be recorded because a map was full; the helper resets them.
    MapFull = "map_full",
    /// Messages to the helper that found the ring buffer full; it reads `CONNS` instead.
    EventLost = "event_lost",
    /// Ends of connections that were closed before they had keys and had sent nothing.
    EndedUnsealed = "ended_unsealed",
    /// Drops: the end of a sealed stream whose last bytes were never sent.
    DropCut = "drop_cut",
    /// Calls to send refused: the peer was closed or shut down before there were keys.
    RefusedEnding = "refused_ending",
    /// Calls to send refused after the program's own shutdown, which kTLS would report as done.
    RefusedShutdown = "refused_shutdown",
    /// Sockets that were to be MPTCP; programs fall back to TCP.
    RefusedMptcp = "refused_mptcp",
    /// Requests for TCP Fast Open; the connection is made without.
    RefusedFastOpen = "refused_fast_open",
    /// Connections and packets that network policies do not allow.
    RefusedPolicy = "refused_policy",
    /// Connections and packets that a network policy allows only sealed, and that would not be.
    RefusedMtls = "refused_mtls",
    /// Drops: a sealed socket has sent as much as its key may encrypt.
    DropKeyLimit = "drop_key_limit",
}

counters! {
    HelperCounter, HELPER_COUNTERS,
    /// Connections sealed (pairs; if the other end is on another node, this end).
    Sealed = "sealed",
    /// Tasks made to restart a send or recv.
    Restarted = "restarted",
    /// Resets: an identity could not be loaded, or the other side did not accept it.
    ResetRefused = "reset_refused",
    /// Resets: no process has the socket.
    ResetLost = "reset_lost",
    /// Resets: the kernel did not take the keys.
    ResetInstall = "reset_install",
    /// Resets: a task inside send or recv could not be restarted, or was never recorded.
    ResetRestart = "reset_restart",
    /// Resets: an earlier helper ended in the middle of the hand-over.
    ResetInterrupted = "reset_interrupted",
    /// Resets: the guard dropped a segment.
    ResetGuard = "reset_guard",
    /// Resets: the maps had no room for the connection.
    ResetFull = "reset_full",
    /// Resets: the other node does not seal connections between nodes.
    ResetNotSealing = "reset_not_sealing",
    /// Resets: the other node gave the connection up, does not know it, or its helper went away
    /// when keys were in already.
    ResetNode = "reset_node",
    /// Attempts to reach another node's helper that failed; connections wait.
    NodeUnreachable = "node_unreachable",
    /// Connects to the helper's port by whoever is no configured node.
    LinkRefused = "link_refused",
    /// Of `reset_refused`: a certificate had expired.
    RefusedExpired = "refused_expired",
    /// Of `reset_refused`: a certificate was not valid yet.
    RefusedNotYetValid = "refused_not_yet_valid",
    /// Of `reset_refused`: a certificate by a CA that is not in the bundle.
    RefusedUnknownCa = "refused_unknown_ca",
    /// Of `reset_refused`: a workload of a trust domain that was not expected.
    RefusedTrustDomain = "refused_trust_domain",
    /// Of `reset_refused`: another workload than was expected.
    RefusedId = "refused_id",
    /// Of `reset_refused`: a certificate was revoked, or the revocation list had expired.
    RefusedRevoked = "refused_revoked",
    /// Of `reset_refused`: a key that is not the certificate's, or is unusable.
    RefusedKey = "refused_key",
    /// Of `reset_refused`: a file could not be read, or holds something else.
    RefusedFile = "refused_file",
    /// Sealed connections ended: a certificate was revoked, its CA is trusted no longer, or it does not have a DNS name
    /// that network policies rely on now.
    ResetRevoked = "reset_revoked",
    /// New files of an identity that could not be used; the old certificate serves until its end.
    IdentityKept = "identity_kept",
    /// Resets: network policies were changed while the connection was being made.
    ResetPolicy = "reset_policy",
    /// Now: identities whose files cannot be used.
    IdentitiesBroken = "identities_broken",
    /// Now: identities whose certificate ends soon, and nobody has renewed it.
    IdentitiesDue = "identities_due",
    /// Resets: a socket has sent as much as its key may encrypt, and the key could not be replaced.
    ResetKeyLimit = "reset_key_limit",
    /// Keys replaced in open connections (directions, not connections).
    Rekeyed = "rekeyed",
    /// Keys that could not be replaced in time, because what was sent under them was not read; tried again.
    RekeyPutOff = "rekey_put_off",
    /// Open connections whose certificates were verified again, and are good.
    Rechecked = "rechecked",
    /// Of `reset_refused`: connections that were open when their certificates were verified again.
    RefusedRecheck = "refused_recheck",
    /// Of `reset_refused`: a certificate without a DNS name that network policies rely on.
    RefusedDnsName = "refused_dns_name",
}

const _: () = {
    assert!(size_of::<Config>() == 48);
    assert!(size_of::<Endpoint>() == 16);
    assert!(size_of::<Netns>() == 16);
    assert!(size_of::<Workload>() == 904);
    assert!(size_of::<Node>() == 104);
    assert!(size_of::<Tuple>() == 40);
    assert!(size_of::<Conn>() == 96);
    assert!(size_of::<Seal>() == 48);
    assert!(size_of::<Chain>() == 8192);
    assert!(size_of::<Bundle>() == 512);
    assert!(size_of::<PeerWorkload>() == 384);
    assert!(size_of::<Named>() == 20);
    assert!(size_of::<DnsNames>() == 4096);
    assert!(size_of::<Reply>() == 40);
    assert!(size_of::<crate::Subject>() == 4);
    assert!(size_of::<crate::SubjectKey>() == 8);
    assert!(size_of::<crate::Grant>() == 8);
    assert!(size_of::<Lowat>() == 8);
    assert!(size_of::<Socket>() == 112);
    assert!(size_of::<Sleeper>() == 16);
    assert!(size_of::<Event>() == 104);
    assert!(size_of::<TaskFile>() == 16);
    assert!(size_of::<Tally>() == 16);
};

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    /// `status` and whoever asks it know counters by their names alone.
    #[test]
    fn no_two_counters_have_one_name() {
        let ours = COUNTERS.iter().map(|(_, name)| *name);
        let helpers = HELPER_COUNTERS.iter().map(|(_, name)| *name);
        let mut names: std::vec::Vec<&str> = ours.chain(helpers).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
