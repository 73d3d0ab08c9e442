//! Replacing WireGuard keys: who still uses which one, and what a change would cost. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::value::{InterfaceName, PublicKey};
use crate::config::{self, Config};
use crate::desired::ways;
use crate::plan::notices;
use crate::state::{Facts, State, Wireguard};

/// After how many seconds without a handshake a session is over (`REJECT_AFTER_TIME` of WireGuard).
pub const LIVE: u64 = 180;

/// A peer, and how it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contact {
    /// The device that has the addresses.
    pub face: InterfaceName,
    /// The device of the pair with this node's present key.
    pub present: InterfaceName,
    /// That of the pair with its next key.
    pub next: Option<InterfaceName>,
    /// From and to which networks it is spoken to.
    pub pairs: Vec<(IpNet, IpNet)>,
}

impl Contact {
    /// Whether an address is one that the peer is spoken to at.
    #[must_use]
    pub fn is_at(&self, address: IpAddr) -> bool {
        self.pairs
            .iter()
            .any(|(_, theirs)| theirs.network() == address)
    }
}

/// The peers as they are reached, if keys have ever been replaced; else nobody need be told anything.
#[must_use]
pub fn contacts(config: &Config) -> Vec<Contact> {
    let Some(own) = config
        .wireguard
        .as_ref()
        .filter(|_| config.has_generations())
    else {
        return Vec::new();
    };
    let networks = |list: &[config::network::Network]| -> Vec<IpNet> {
        list.iter().map(|net| net.0).collect()
    };
    let own_networks = networks(&config.node.networks);
    let contact = |peer: &config::Peer| {
        let (present, next) = ways(config, peer);
        Some(Contact {
            face: own.interface.clone(),
            present: present?,
            next,
            pairs: notices(&own_networks, &networks(&peer.networks)),
        })
    };
    config.peers.iter().filter_map(contact).collect()
}

/// Peers that would be cut off: they use a key of this node that is to go, and the session is alive. With the reason.
#[must_use]
pub fn cut_off(config: &Config, facts: &Facts, desired: &State, observed: &State) -> Vec<String> {
    let kept: BTreeSet<PublicKey> = desired.devices().filter_map(|d| d.key.public).collect();
    let retired = |device: &&Wireguard| {
        let wanted = desired.device(&device.interface);
        let gone = wanted.is_none_or(|wanted| wanted.key.file.is_none());
        gone && device.key.public.is_some_and(|key| !kept.contains(&key))
    };
    let mut found = Vec::new();
    for device in observed.devices().filter(retired) {
        for peer in &config.peers {
            let uses = leads_to(facts, peer) == Some(&device.interface);
            let ages = facts.sessions.get(&device.interface);
            let age = ages.and_then(|ages| ages.get(&peer.public_key));
            if let Some(age) = age.filter(|age| uses && **age < LIVE)
                && let Some(key) = device.key.public
            {
                found.push(format!(
                    "{} still uses this node's key {key} (handshake {age} s ago)",
                    peer.name
                ));
            }
        }
    }
    found
}

/// What an apply would lose packets by, and how it would not.
#[must_use]
pub fn warnings(desired: &State, observed: &State) -> Vec<String> {
    let mut warnings = Vec::new();
    for found in observed.devices() {
        let Some(wanted) = desired.device(&found.interface) else {
            continue;
        };
        if let (Some(old), Some(new)) = (found.key.public, wanted.key.public)
            && old != new
            && !found.peers.is_empty()
        {
            warnings.push(format!(
                "this node's key is exchanged at once: it is cut off from each node that has {old} in its file; keep the \
                 key, name the new one in [wireguard.next], and no packet is lost"
            ));
        }
        let gone = found
            .peers
            .iter()
            .filter(|(key, _)| !wanted.peers.contains_key(key));
        for (old, peer) in gone {
            let mut new = wanted
                .peers
                .iter()
                .filter(|(key, _)| !found.peers.contains_key(key));
            if let Some((new, _)) = new.find(|(_, new)| !new.networks.is_disjoint(&peer.networks)) {
                warnings.push(format!(
                    "peer {old} becomes {new} at once, and packets under way are lost; if that node has the new key as its \
                     [wireguard.next], raise the peer's `generation` with the key, and none is"
                ));
            }
        }
    }
    warnings
}

/// The generation of this node's key in the pair with `peer` that lives on `device`; `None` if none does.
#[must_use]
pub fn own_generation(config: &Config, peer: &config::Peer, device: &Wireguard) -> Option<u32> {
    let own = config.wireguard.as_ref()?;
    let (present, next) = ways(config, peer);
    if present.as_ref() == Some(&device.interface) {
        Some(own.generation)
    } else if next.as_ref() == Some(&device.interface) {
        Some(own.generation + 1)
    } else {
        None
    }
}

/// The device that leads to a peer.
#[must_use]
pub fn leads_to<'a>(facts: &'a Facts, peer: &config::Peer) -> Option<&'a InterfaceName> {
    let mut networks = peer.networks.iter();
    networks.find_map(|net| facts.leading.get(&net.0))
}
