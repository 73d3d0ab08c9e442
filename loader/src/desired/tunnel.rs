//! WireGuard devices, the keys and peers that live on each, and what leads to them.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    config::{
        self, Config,
        value::{AbsolutePath, Digest, InterfaceName, PublicKey},
    },
    generation::{Number, Pair},
    state::{Facts, Key, Peer, PresharedKey, Route, Wireguard},
};

/// Bytes that WireGuard adds at most: IPv6 header 40, UDP 8, WireGuard 32, padding to 16 bytes 15.
const WIREGUARD_OVERHEAD: u32 = 95;
/// Smallest MTU of an interface that carries IPv6 (RFC 8200 §5).
const LEAST_MTU: u32 = 1280;
/// MTU to reckon from if there is no uplink: Ethernet's.
const ETHERNET_MTU: u32 = 1500;

/// The device with the addresses, and those beside it that a pair of keys lives on.
pub(super) fn devices(
    config: &Config,
    facts: &Facts,
) -> (Option<Wireguard>, BTreeMap<InterfaceName, Wireguard>) {
    let Some((own, mtu)) = config.wireguard.as_ref().zip(tunnel_mtu(config, facts)) else {
        return (None, BTreeMap::new());
    };
    let device = |number: Number| {
        Some(Wireguard {
            interface: number.interface(&own.interface)?,
            up: true,
            mtu,
            port: number.port(own.port),
            key: Key {
                public: None,
                file: None,
            },
            addresses: BTreeSet::new(),
            peers: BTreeMap::new(),
        })
    };
    let mut devices: BTreeMap<Number, Wireguard> = BTreeMap::new();
    for identity in identities(own, facts) {
        for peer in &config.peers {
            let number = identity.pair(peer).here();
            let Some(device) = device(number) else {
                continue;
            };
            let device = devices.entry(number).or_insert(device);
            device.key = identity.key.clone();
            device.peers.insert(peer.public_key, identity.peer(peer));
        }
    }
    // Nobody has to be told of a key that nobody uses; but it is made with the device.
    if devices.is_empty()
        && let (Some(face), Some(identity)) = (device(Number::FACE), identities(own, facts).first())
    {
        let key = identity.key.clone();
        devices.insert(Number::FACE, Wireguard { key, ..face });
    }
    let face = devices
        .remove(&Number::FACE)
        .or_else(|| device(Number::FACE));
    let face = face.map(|face| Wireguard {
        addresses: own.addresses.iter().map(|address| address.0).collect(),
        ..face
    });
    let beside = devices.into_values();
    let beside = beside.map(|device| (device.interface.clone(), device));
    (face, beside.collect())
}

/// A key of this node, with what goes with it.
struct Identity<'a> {
    generation: u32,
    key: Key,
    preshared_keys: &'a BTreeMap<PublicKey, Digest>,
    preshared_key_file: fn(&config::Peer) -> Option<&AbsolutePath>,
}

impl Identity<'_> {
    fn pair(&self, peer: &config::Peer) -> Pair {
        Pair {
            own: self.generation,
            peer: peer.generation,
        }
    }

    fn peer(&self, peer: &config::Peer) -> Peer {
        let preshared_key = (self.preshared_key_file)(peer).and_then(|file| {
            Some(PresharedKey {
                digest: *self.preshared_keys.get(&peer.public_key)?,
                file: Some(file.clone()),
            })
        });
        let mut endpoint = peer.endpoint.0;
        endpoint.set_port(self.pair(peer).there().port(endpoint.port()));
        Peer {
            endpoint: Some(endpoint),
            networks: peer.networks.iter().map(|net| net.0).collect(),
            persistent_keepalive: peer.persistent_keepalive,
            preshared_key,
        }
    }
}

/// The present key and, if there is one, the next.
fn identities<'a>(own: &'a config::Wireguard, facts: &'a Facts) -> Vec<Identity<'a>> {
    let present = Identity {
        generation: own.generation,
        key: Key {
            public: facts.public_key,
            file: Some(own.private_key_file.clone()),
        },
        preshared_keys: &facts.preshared_keys,
        preshared_key_file: |peer| peer.preshared_key_file.as_ref(),
    };
    let next = own.next.as_ref().map(|next| Identity {
        generation: own.generation + 1,
        key: Key {
            public: facts.next_public_key,
            file: Some(next.private_key_file.clone()),
        },
        preshared_keys: &facts.next_preshared_keys,
        preshared_key_file: |peer| peer.next_preshared_key_file.as_ref(),
    });
    std::iter::once(present).chain(next).collect()
}

/// The devices that may lead to a peer: that of the present key, and that of the next, if there is one.
#[must_use]
pub fn ways(
    config: &Config,
    peer: &config::Peer,
) -> (Option<InterfaceName>, Option<InterfaceName>) {
    let Some(own) = &config.wireguard else {
        return (None, None);
    };
    let way = |generation| {
        let pair = Pair {
            own: generation,
            peer: peer.generation,
        };
        pair.here().interface(&own.interface)
    };
    let next = own.next.as_ref();
    (
        way(own.generation),
        next.and_then(|_| way(own.generation + 1)),
    )
}

/// MTU of the WireGuard device, bytes; `None` if there is no device.
pub(super) fn tunnel_mtu(config: &Config, facts: &Facts) -> Option<u32> {
    let device = config.wireguard.as_ref()?;
    let outer = facts
        .uplinks
        .values()
        .copied()
        .min()
        .unwrap_or(ETHERNET_MTU);
    let fitting = outer.saturating_sub(WIREGUARD_OVERHEAD).max(LEAST_MTU);
    Some(device.mtu.unwrap_or(fitting))
}

pub(super) fn routes(config: &Config) -> BTreeSet<Route> {
    let Some(device) = &config.wireguard else {
        return BTreeSet::new();
    };
    let networks = config.peers.iter().flat_map(|peer| &peer.networks);
    networks
        .map(|net| Route {
            destination: net.0,
            interface: device.interface.clone(),
        })
        .collect()
}
