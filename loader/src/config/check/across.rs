//! What sections demand of each other: networks, peers and devices.

use super::{Checker, Unique};
use crate::config::{Config, cipher::CipherChoice, network::Network};

/// Smallest MTU that IPv6 can live with (RFC 8200 §5).
const IPV6_MIN_MTU: u32 = 1280;
/// Smallest MTU that is of any use for IPv4 (RFC 791: every host accepts this).
const IPV4_MIN_MTU: u32 = 576;
/// Largest MTU that the kernel gives a WireGuard device (`drivers/net/wireguard/device.c`).
const MAX_MTU: u32 = 65_440;

impl Checker {
    /// No address may belong to two networks.
    pub(super) fn networks(&mut self, config: &Config) {
        if config.node.networks.is_empty() {
            self.fault("node.networks", "a node needs a network for its workloads");
        }
        let own = config.node.networks.iter().enumerate();
        let mut seen: Vec<(String, Network, String)> = Vec::new();
        let all = own
            .map(|(i, net)| (format!("node.networks.{i}"), *net, "this node".to_owned()))
            .chain(config.peers.iter().enumerate().flat_map(|(p, peer)| {
                peer.networks.iter().enumerate().map(move |(i, net)| {
                    let owner = format!("peer `{}`", peer.name);
                    (format!("peer.{p}.networks.{i}"), *net, owner)
                })
            }));
        for (path, net, owner) in all {
            if let Some((_, other, whose)) = seen.iter().find(|(_, other, _)| net.overlaps(other)) {
                self.fault(path.clone(), format!("overlaps {other} of {whose}"));
            }
            seen.push((path, net, owner));
        }
    }

    pub(super) fn peers(&mut self, config: &Config) {
        if !config.peers.is_empty() && config.node.uplinks.is_empty() {
            self.fault(
                "node",
                "`uplinks` is missing: there are peers, so name the interfaces that lead to them",
            );
        }
        let mut names = Unique::from(("node.name".to_owned(), config.node.name.to_string()));
        let mut keys = Unique::default();
        for (i, peer) in config.peers.iter().enumerate() {
            self.once(&mut names, format!("peer.{i}.name"), peer.name.to_string());
            self.once(
                &mut keys,
                format!("peer.{i}.public_key"),
                peer.public_key.to_string(),
            );
            let inside = config
                .peers
                .iter()
                .flat_map(|p| &p.networks)
                .chain(&config.node.networks)
                .find(|net| net.0.contains(&peer.endpoint.0.ip()));
            if let Some(net) = inside {
                self.fault(
                    format!("peer.{i}.endpoint"),
                    format!("lies in {net}, which is itself reached through WireGuard"),
                );
            }
        }
    }

    /// Where the nodes' helpers reach each other: optional, but for modes that need it.
    pub(super) fn helpers(&mut self, config: &Config) {
        let own = |v6: bool| {
            let mut addresses = config.wireguard.iter().flat_map(|w| &w.addresses);
            addresses.any(|address| address.0.addr().is_ipv6() == v6)
        };
        let mode = config.seal.mode;
        let needs = mode.raw().seals_between_nodes();
        if needs && config.seal.cipher == CipherChoice::Auto {
            self.fault(
                "seal.cipher",
                format!(
                    "`auto` is this machine's own choice, and with mode `{mode}` all nodes need the same \
                     cipher: name one"
                ),
            );
        }
        let mut first: Option<usize> = None;
        for (i, peer) in config.peers.iter().enumerate() {
            let Some(address) = peer.address else {
                if needs {
                    self.fault(
                        format!("peer.{i}"),
                        format!(
                            "`address` is missing: with mode `{mode}` the helpers of two nodes \
                             talk; name the one that this node has in its own \
                             `wireguard.addresses`"
                        ),
                    );
                }
                continue;
            };
            if !peer.networks.iter().any(|net| net.0.contains(&address.0)) {
                self.fault(
                    format!("peer.{i}.address"),
                    "lies in none of the peer's `networks`: WireGuard would not carry it",
                );
            }
            if !own(address.0.is_ipv6()) {
                first.get_or_insert(i);
            }
        }
        if let Some(i) = first {
            let family = config.peers[i].address.map_or("", |address| {
                if address.0.is_ipv6() { "IPv6" } else { "IPv4" }
            });
            self.fault(
                format!("peer.{i}.address"),
                format!(
                    "this node has no {family} address to reach it from: add one of \
                     `node.networks` to `wireguard.addresses`"
                ),
            );
        }
        self.own_addresses(config);
    }

    /// Other nodes accept a helper by its address, and the tunnel carries this node's networks
    /// alone.
    fn own_addresses(&mut self, config: &Config) {
        if !config.peers.iter().any(|peer| peer.address.is_some()) {
            return;
        }
        let addresses = config.wireguard.iter().flat_map(|w| &w.addresses);
        for (i, address) in addresses.enumerate() {
            let mut networks = config.node.networks.iter();
            if !networks.any(|net| net.0.contains(&address.0.addr())) {
                self.fault(
                    format!("wireguard.addresses.{i}"),
                    "lies in none of `node.networks`: other nodes could not reach the helper there",
                );
            }
        }
    }

    pub(super) fn devices(&mut self, config: &Config) {
        let mut uplinks = Unique::default();
        for (i, uplink) in config.node.uplinks.iter().enumerate() {
            self.once(
                &mut uplinks,
                format!("node.uplinks.{i}"),
                uplink.to_string(),
            );
        }
        let Some(wireguard) = &config.wireguard else {
            return;
        };
        if uplinks.0.contains_key(wireguard.interface.as_str()) {
            self.fault(
                "wireguard.interface",
                "is also an uplink; the strict check would stop what WireGuard delivers",
            );
        }
        let mut networks = config
            .peers
            .iter()
            .flat_map(|p| &p.networks)
            .chain(&config.node.networks);
        let least = if networks.any(Network::is_ipv6) {
            IPV6_MIN_MTU
        } else {
            IPV4_MIN_MTU
        };
        if let Some(mtu) = wireguard.mtu
            && !(least..=MAX_MTU).contains(&mtu)
        {
            let why = if least == IPV6_MIN_MTU {
                " with IPv6 networks"
            } else {
                ""
            };
            self.fault(
                "wireguard.mtu",
                format!("must be {least} to {MAX_MTU}{why}"),
            );
        }
    }
}
