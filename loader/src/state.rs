//! The state of a node, as wanted and as found: the same plain, ordered, comparable type.
//!
//! Only what Underseal owns is in it. Fields that the kernel does not hold (paths of key files) are
//! `None` in what was observed, and no comparison looks at them. Names stand for interfaces
//! wherever the index is not known before the interface exists; the kernel edge resolves them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::{
    bytes::Bytes,
    choice::{Cipher, Mode},
    pki::DnsName,
    value::{
        AbsolutePath, Digest, InterfaceName, Label, PublicKey, SpiffeId, TrustDomain, WorkloadName,
    },
};

mod attachment;
mod facts;
mod named;
mod policies;

pub use self::{
    attachment::{Attachment, Hook, Program, Target},
    facts::{Facts, Found},
    named::Named,
    policies::{Grant, Policies},
};

/// Everything that `apply` makes and `down` removes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The WireGuard device; `None` if there is none.
    pub wireguard: Option<Wireguard>,
    /// Those beside it, for other generations of keys ([`crate::generation`]), by name: no addresses, no routes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub beside: BTreeMap<InterfaceName, Wireguard>,
    /// Routes with our protocol number.
    pub routes: BTreeSet<Route>,
    /// BPF programs and maps; `None` if nothing is pinned.
    pub datapath: Option<Datapath>,
    /// Network namespaces of workloads by cookie (`SO_NETNS_COOKIE`): those of the configuration
    /// that exist, and those that the `NETNS` map lists.
    pub namespaces: BTreeMap<u64, Namespace>,
}

impl State {
    /// All WireGuard devices.
    pub fn devices(&self) -> impl Iterator<Item = &Wireguard> {
        self.wireguard.iter().chain(self.beside.values())
    }

    /// The WireGuard device of this name.
    #[must_use]
    pub fn device(&self, name: &InterfaceName) -> Option<&Wireguard> {
        self.devices().find(|device| device.interface == *name)
    }

    /// Whether the namespace of the workload with this id is there and taken over.
    #[must_use]
    pub fn is_covered(&self, id: u32) -> bool {
        self.namespaces.values().any(|namespace| {
            namespace.workload == id
                && namespace.live.is_some()
                && namespace.entry.is_some_and(|entry| entry.taken_over)
        })
    }

    /// The device that leads to the network of `endpoint`.
    #[must_use]
    pub fn leading(&self, endpoint: &Endpoint) -> Option<&Wireguard> {
        match &endpoint.device {
            Some(name) => self.device(name),
            None => self.wireguard.as_ref(),
        }
    }
}

/// A WireGuard device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wireguard {
    /// Its name.
    pub interface: InterfaceName,
    /// Whether `IFF_UP` is set.
    pub up: bool,
    /// MTU, bytes.
    pub mtu: u32,
    /// UDP port it listens on.
    pub port: u16,
    /// Its key pair, without the private half. Without a public half and a file: it is to have none.
    pub key: Key,
    /// Addresses with their prefix length.
    pub addresses: BTreeSet<IpNet>,
    /// Peers by public key.
    pub peers: BTreeMap<PublicKey, Peer>,
}

/// A device's key pair as far as it may be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// The public half; `None` in what is wanted: the key file does not exist yet and is to be
    /// made. `None` in what was observed: the device has no key yet.
    pub public: Option<PublicKey>,
    /// Where the private half is kept; `None` in what was observed.
    pub file: Option<AbsolutePath>,
}

/// A WireGuard peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Where it is reached; `None` if the kernel has not been told.
    pub endpoint: Option<SocketAddr>,
    /// Allowed IPs.
    pub networks: BTreeSet<IpNet>,
    /// Interval of keepalives, seconds; 0 for none.
    pub persistent_keepalive: u16,
    /// Preshared key.
    pub preshared_key: Option<PresharedKey>,
}

/// A preshared key as far as it may be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PresharedKey {
    /// Digest of the key.
    pub digest: Digest,
    /// Where it is kept; `None` in what was observed.
    pub file: Option<AbsolutePath>,
}

/// A route to another node's workloads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Destination.
    pub destination: IpNet,
    /// Output interface.
    pub interface: InterfaceName,
}

/// `rtm_protocol` of our routes: says whose they are. Not assigned in `linux/rtnetlink.h` nor in
/// iproute2's table.
pub const ROUTE_PROTOCOL: u8 = 171;

/// What is pinned below [`underseal_abi::names::PIN_ROOT`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Datapath {
    /// Digest of the object whose programs are attached; written after the last of them was, so
    /// `None` means that an apply is under way or was interrupted.
    pub object: Option<Digest>,
    /// Entry of the `CONFIG` map.
    pub settings: Settings,
    /// The `IPCACHE` map.
    pub ipcache: BTreeMap<IpNet, Endpoint>,
    /// The `WORKLOADS` map by id.
    pub workloads: BTreeMap<u32, Workload>,
    /// The `NODES` map by number.
    #[serde(default)]
    pub nodes: BTreeMap<u32, Node>,
    /// The `BUNDLES` map by number, from 1 on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub bundles: BTreeMap<u32, Bundle>,
    /// The `PEER_WORKLOADS` map by address.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub peer_workloads: BTreeMap<IpAddr, PeerWorkload>,
    /// The `DNS_NAMES` map.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dns_names: BTreeMap<Named, BTreeSet<DnsName>>,
    /// What is in force of network policies; `None` if there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policies: Option<Policies>,
    /// Pinned links, in the order in which they are attached.
    pub attachments: BTreeSet<Attachment>,
}

/// The trust bundle of another trust domain; see [`underseal_abi::Bundle`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// The domain.
    pub trust_domain: TrustDomain,
    /// Its certificates, PEM.
    pub file: AbsolutePath,
}

/// The `CONFIG` map without the object's digest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// When connections are sealed.
    pub mode: Mode,
    /// The device that leads to other nodes; `None` while there is none, or if it is gone.
    pub wireguard: Option<InterfaceName>,
    /// Whether workloads may exchange packets with addresses that are no workload.
    pub allow_outside: bool,
    /// Whether what mTLS cannot carry may pass between workloads of this node.
    pub allow_non_tcp: bool,
    /// Whether connections older than the take-over of their namespace go on in plaintext.
    pub keep_existing: bool,
    /// Whether sealed connections stay open though a certificate they were made with has been revoked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_revoked: bool,
    /// After how many bytes keys are replaced; `None`: as the cipher demands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rekey_after: Option<Bytes>,
    /// Whether peers are changing to this node's next key.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rotating: bool,
    /// After how many seconds the certificates of an open connection are verified again; 0: never.
    #[serde(default = "a_day", skip_serializing_if = "is_a_day")]
    pub recheck: u32,
}

const fn a_day() -> u32 {
    86400
}

const fn an_hour() -> u32 {
    3600
}

/// As [`is_a_day`].
const fn is_an_hour(seconds: &u32) -> bool {
    *seconds == an_hour()
}

/// By reference, because serde passes it so.
const fn is_a_day(seconds: &u32) -> bool {
    *seconds == a_day()
}

/// Whose a network or an address is; see [`underseal_abi::Endpoint`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// [`underseal_abi::THIS_NODE`] or a peer's number, from 2 on.
    pub node: u32,
    /// Workload id, or 0.
    pub workload: u32,
    /// Host-side interface index of a workload that is present, or 0.
    pub ifindex: u32,
    /// The WireGuard device that leads there; `None`: the one with the addresses, or none at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<InterfaceName>,
    /// The device of the pair with this node's next key, if there is one: whoever comes by it has changed to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<InterfaceName>,
}

/// What the helper must know of a workload; see [`underseal_abi::Workload`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// `namespace/name`.
    pub name: WorkloadName,
    /// SPIFFE ID.
    pub spiffe_id: SpiffeId,
    /// Folder with `tls.crt`, `tls.key`, `ca.crt`.
    pub identity: AbsolutePath,
    /// Path of the network namespace.
    pub netns: AbsolutePath,
    /// Cipher to seal with.
    pub cipher: Cipher,
    /// How many seconds before its end the certificate is renewed; 0: that is a matter of the SPIRE agent.
    #[serde(default = "an_hour", skip_serializing_if = "is_an_hour")]
    pub renew_before: u32,
}

/// A workload of another node; see [`underseal_abi::PeerWorkload`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerWorkload {
    /// `namespace/name`.
    pub name: WorkloadName,
    /// SPIFFE ID.
    pub spiffe_id: SpiffeId,
}

/// Where a node's helper is reached; see [`underseal_abi::Node`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Its name.
    pub name: Label,
    /// IPv4 address inside of the tunnel.
    pub v4: Option<Ipv4Addr>,
    /// IPv6 address inside of the tunnel.
    pub v6: Option<Ipv6Addr>,
    /// TCP port.
    pub port: u16,
}

/// A workload's network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Namespace {
    /// Id of the workload that lives in it; 0: none, or it is being given back.
    pub workload: u32,
    /// Entry of the `NETNS` map; `None` if it has none.
    pub entry: Option<Saved>,
    /// What is set inside; `None` if the namespace is gone and only the entry is left.
    pub live: Option<Live>,
}

/// What `down` puts back in a namespace; see [`underseal_abi::Netns`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// `net.ipv4.tcp_notsent_lowat` as it was found.
    pub lowat: u32,
    /// MTU of both ends of the veth pair as it was found, bytes; 0 if it was left alone.
    pub mtu: u32,
    /// Whether the take-over of the sockets that were open is finished.
    pub taken_over: bool,
}

/// Settings of a namespace that exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Live {
    /// Path of the namespace.
    pub path: AbsolutePath,
    /// `net.ipv4.tcp_notsent_lowat`, bytes.
    pub lowat: u32,
    /// The workload's interface and its host side; `None` if they do not exist yet.
    pub veth: Option<Veth>,
}

/// A veth pair that connects a namespace with the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Veth {
    /// The workload's interface inside.
    pub interface: InterfaceName,
    /// Its MTU, bytes.
    pub mtu: u32,
    /// The interface on the host side.
    pub host: Link,
    /// Its MTU, bytes.
    pub host_mtu: u32,
}

/// An interface that exists.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Its name.
    pub name: InterfaceName,
    /// Its index.
    pub index: u32,
}
