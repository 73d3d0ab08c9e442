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

const _: () = {
    assert!(size_of::<Config>() == 48);
    assert!(size_of::<Endpoint>() == 16);
    assert!(size_of::<Netns>() == 16);
    assert!(size_of::<Workload>() == 904);
    assert!(size_of::<Node>() == 104);
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
};
