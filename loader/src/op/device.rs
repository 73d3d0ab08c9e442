//! Steps of the host's interfaces: the WireGuard device, its peers and routes, and the MTU of
//! workloads' host-side interfaces.

use std::fmt;

use ipnet::IpNet;
use serde::Serialize;

use crate::{
    config::value::{AbsolutePath, InterfaceName, PublicKey},
    state::{Peer, ROUTE_PROTOCOL, Route, State, Wireguard},
};

/// A step of an interface.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceOp {
    /// The interface.
    pub interface: InterfaceName,
    /// What is done to it.
    pub change: DeviceChange,
}

/// What is done to an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceChange {
    /// A private key is made for it.
    GenerateKey(AbsolutePath),
    /// It is created as a WireGuard device, switched off.
    Add,
    /// It is deleted.
    Delete,
    /// It gets the private key in a file.
    SetPrivateKey(AbsolutePath),
    /// It loses its private key.
    ClearPrivateKey,
    /// It gets a UDP port.
    SetPort(u16),
    /// It gets an MTU, bytes.
    SetMtu(u32),
    /// It gets an address.
    AddAddress(IpNet),
    /// It loses an address.
    DeleteAddress(IpNet),
    /// It gets a peer, or the peer becomes what is said here.
    SetPeer(PublicKey, Peer),
    /// It loses a peer.
    DeletePeer(PublicKey),
    /// It is switched on.
    Up,
    /// It is switched off.
    Down,
    /// A route leads through it.
    AddRoute(IpNet),
    /// The route no longer does.
    DeleteRoute(IpNet),
    /// A peer is told to come by it from now on.
    Switch(Switch),
    /// Nothing comes from these peers by it any more.
    Drain(Vec<Moved>),
}

/// A peer that comes by another device now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Moved {
    /// Its public key where it came from until now.
    pub peer: PublicKey,
    /// The device that it has been told to come by.
    pub to: InterfaceName,
    /// From and to which networks it was told.
    pub pairs: Vec<(IpNet, IpNet)>,
}

/// A peer that is to come by another device than before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Switch {
    /// Its public key there.
    pub peer: PublicKey,
    /// From and to which networks it is told.
    pub pairs: Vec<(IpNet, IpNet)>,
    /// By what device and under what key it has come so far: while that works, it must answer before anything else is done.
    /// `None`: it is told, and that is all.
    pub before: Option<(InterfaceName, PublicKey)>,
}

impl DeviceOp {
    /// The same, if it is a [`DeviceChange::Switch`], without what comes before it.
    pub(crate) fn again(&self) -> Self {
        let change = match &self.change {
            DeviceChange::Switch(switch) => DeviceChange::Switch(Switch {
                before: None,
                ..switch.clone()
            }),
            other => other.clone(),
        };
        Self {
            interface: self.interface.clone(),
            change,
        }
    }

    /// See [`super::Op::inverse`]. A key that was made stays: it is used next time. Devices and their private keys are
    /// deleted in the last steps ([`super::Op::is_last`]). A private key before is no part of a state.
    pub(super) fn inverse(&self, before: &State) -> Vec<Self> {
        use DeviceChange as C;
        let device = before.device(&self.interface);
        let mut veths = before
            .namespaces
            .values()
            .filter_map(|n| n.live.as_ref()?.veth.as_ref());
        let host = veths
            .find(|veth| veth.host.name == self.interface)
            .map(|veth| veth.host_mtu);
        let routes = before
            .routes
            .iter()
            .filter(|route| route.interface == self.interface);
        let changes = match &self.change {
            C::SetPrivateKey(_) if device.is_some_and(|d| d.key.public.is_none()) => {
                vec![C::ClearPrivateKey]
            }
            C::GenerateKey(_)
            | C::Delete
            | C::SetPrivateKey(_)
            | C::ClearPrivateKey
            | C::Drain(_) => Vec::new(),
            C::Switch(switch) => return switch.back(),
            C::Add => vec![C::Delete],
            C::SetPort(_) => device.map(|d| C::SetPort(d.port)).into_iter().collect(),
            C::SetMtu(_) => {
                let mtu = device.map(|d| d.mtu).or(host);
                mtu.map(C::SetMtu).into_iter().collect()
            }
            C::AddAddress(net) => with_routes(C::DeleteAddress(*net), net, routes),
            C::DeleteAddress(net) => with_routes(C::AddAddress(*net), net, routes),
            C::SetPeer(key, peer) => {
                // A network that another peer had was taken from that.
                let others = device.into_iter().flat_map(|d| &d.peers);
                let robbed = others.filter(|(other, before)| {
                    *other != key && !before.networks.is_disjoint(&peer.networks)
                });
                let robbed = robbed.map(|(key, peer)| C::SetPeer(*key, peer.clone()));
                std::iter::once(peer_before(device, key))
                    .chain(robbed)
                    .collect()
            }
            C::DeletePeer(key) => vec![peer_before(device, key)],
            C::Up => vec![C::Down],
            // The kernel forgets the routes of a device that is switched off.
            C::Down => std::iter::once(C::Up)
                .chain(routes.map(|route| C::AddRoute(route.destination)))
                .collect(),
            C::AddRoute(net) => vec![C::DeleteRoute(*net)],
            C::DeleteRoute(net) => vec![C::AddRoute(*net)],
        };
        let same = |change| Self {
            interface: self.interface.clone(),
            change,
        };
        changes.into_iter().map(same).collect()
    }

    /// See [`super::Op::closes`]. What leads into the tunnel does not lead past it; but another node may be let in.
    pub(super) const fn closes(&self) -> bool {
        use DeviceChange as C;
        match &self.change {
            C::GenerateKey(_)
            | C::Add
            | C::SetPrivateKey(_)
            | C::SetPort(_)
            | C::SetMtu(_)
            | C::AddAddress(_)
            | C::Up
            | C::AddRoute(_)
            | C::Switch(_)
            | C::Drain(_) => true,
            C::Delete
            | C::ClearPrivateKey
            | C::DeleteAddress(_)
            | C::SetPeer(..)
            | C::DeletePeer(_)
            | C::Down
            | C::DeleteRoute(_) => false,
        }
    }
}

/// What takes back a change of an address, with the routes that were there. With its last IPv4 address a device loses
/// them (net/ipv4/fib_frontend.c, `fib_disable_ip`), whether that is deleted now or was before.
fn with_routes<'a>(
    address: DeviceChange,
    net: &IpNet,
    routes: impl Iterator<Item = &'a Route>,
) -> Vec<DeviceChange> {
    let lost = routes.filter(|route| net.addr().is_ipv4() && route.destination.addr().is_ipv4());
    let again = lost.map(|route| DeviceChange::AddRoute(route.destination));
    std::iter::once(address).chain(again).collect()
}

/// What makes a peer of a device what it was.
fn peer_before(device: Option<&Wireguard>, key: &PublicKey) -> DeviceChange {
    match device.and_then(|device| device.peers.get(key)) {
        Some(peer) => DeviceChange::SetPeer(*key, peer.clone()),
        None => DeviceChange::DeletePeer(*key),
    }
}

impl Switch {
    /// The peer is told to come as before.
    fn back(&self) -> Vec<DeviceOp> {
        let step = |(interface, peer): &(InterfaceName, PublicKey)| DeviceOp {
            interface: interface.clone(),
            change: DeviceChange::Switch(Self {
                peer: *peer,
                pairs: self.pairs.clone(),
                before: None,
            }),
        };
        self.before.iter().map(step).collect()
    }
}

impl fmt::Display for DeviceOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use DeviceChange as C;
        let name = &self.interface;
        match &self.change {
            C::GenerateKey(file) => write!(f, "(umask 077; wg genkey > {file})"),
            C::Add => write!(f, "ip link add dev {name} type wireguard"),
            C::Delete => write!(f, "ip link delete dev {name}"),
            C::SetPrivateKey(file) => write!(f, "wg set {name} private-key {file}"),
            C::ClearPrivateKey => write!(f, "wg set {name} private-key /dev/null"),
            C::SetPort(port) => write!(f, "wg set {name} listen-port {port}"),
            C::SetMtu(mtu) => write!(f, "ip link set dev {name} mtu {mtu}"),
            C::AddAddress(net) => write!(f, "ip address add {net} dev {name}"),
            C::DeleteAddress(net) => write!(f, "ip address delete {net} dev {name}"),
            C::SetPeer(key, peer) => write!(f, "wg set {name} peer {key}{}", Settings(peer)),
            C::DeletePeer(key) => write!(f, "wg set {name} peer {key} remove"),
            C::Up => write!(f, "ip link set dev {name} up"),
            C::Down => write!(f, "ip link set dev {name} down"),
            C::AddRoute(net) => {
                write!(f, "ip route add {net} dev {name} proto {ROUTE_PROTOCOL}")
            }
            C::DeleteRoute(net) => {
                write!(f, "ip route delete {net} dev {name} proto {ROUTE_PROTOCOL}")
            }
            C::Switch(Switch { peer, .. }) => {
                write!(f, "# peer {peer} is told to come by {name}, and answers")
            }
            C::Drain(peers) => {
                let peers: Vec<String> = peers.iter().map(|it| it.peer.to_string()).collect();
                let peers = peers.join(", ");
                write!(f, "# nothing comes by {name} any more from peer {peers}")
            }
        }
    }
}

/// What follows `wg set DEVICE peer KEY`.
struct Settings<'a>(&'a Peer);

impl fmt::Display for Settings<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Peer {
            endpoint,
            networks,
            persistent_keepalive,
            preshared_key,
        } = self.0;
        match preshared_key.as_ref().map(|key| &key.file) {
            // wg's own way to say "none".
            None => write!(f, " preshared-key /dev/null")?,
            Some(Some(file)) => write!(f, " preshared-key {file}")?,
            // Only when a step is taken back: it stays as it is.
            Some(None) => {}
        }
        if let Some(endpoint) = endpoint {
            write!(f, " endpoint {endpoint}")?;
        }
        let networks: Vec<String> = networks.iter().map(ToString::to_string).collect();
        write!(
            f,
            " persistent-keepalive {persistent_keepalive} allowed-ips {}",
            networks.join(",")
        )
    }
}
