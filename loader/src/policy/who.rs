//! Everybody that rules can tell from others, each with a number.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use underseal_abi::WORLD;

use crate::config::label::{Labels, NAMESPACE, NODE};
use crate::config::network_policy::{Cidr, Entity, NetworkPolicy, Peer, Place};
use crate::config::pki::DnsName;
use crate::config::value::{SpiffeId, WorkloadName};
use crate::config::{self, Config, PeerWorkload, Workload};

/// Somebody.
#[derive(Clone, Debug)]
pub struct Who<'a> {
    /// As the maps have it.
    pub number: u32,
    /// What it is.
    pub kind: Kind<'a>,
    /// Its addresses; of a workload of this node none, the ipcache has those.
    pub networks: Vec<IpNet>,
    /// Labels, if it is a workload.
    labels: Labels,
}

/// What somebody is.
#[derive(Clone, Copy, Debug)]
pub enum Kind<'a> {
    /// A workload of this node.
    Own(&'a Workload),
    /// A workload of another node that the file names.
    Other(&'a PeerWorkload),
    /// A workload of this node that the file does not name.
    Unnamed(&'a config::Peer),
    /// This node itself.
    Host,
    /// A network that a rule names, without those in it that rules name, too.
    Outside(IpNet),
    /// All other addresses.
    World,
}

impl Who<'_> {
    /// Whether a peer of a rule of this policy means it.
    #[must_use]
    pub fn is(&self, peer: &Peer, policy: &NetworkPolicy) -> bool {
        match peer {
            Peer::Workloads { select, node } => {
                let (Some(place), Some(labels)) = (self.place(), self.labels()) else {
                    return false;
                };
                // Without a word about namespaces, a policy of one means that one.
                let here = policy
                    .namespace
                    .as_ref()
                    .filter(|_| !select.names(NAMESPACE));
                let namespace = labels.get(NAMESPACE).map(String::as_str);
                node.is_none_or(|wanted| wanted == place)
                    && here.is_none_or(|here| namespace == Some(here.as_str()))
                    && select.fits(labels)
            }
            Peer::Spiffe(pattern) => self.spiffe_id().is_some_and(|id| pattern.fits(id)),
            Peer::Dns(pattern) => self.dns_names().iter().any(|name| pattern.fits(name)),
            Peer::Cidr { cidr, except } => match self.kind {
                Kind::Outside(net) => is_in(cidr, net) && !except.iter().any(|it| is_in(it, net)),
                _ => false,
            },
            Peer::Entity(Entity::World) => self.place().is_none(),
            Peer::Entity(Entity::Host) => matches!(self.kind, Kind::Host),
            Peer::Entity(Entity::Workloads) => self.place().is_some(),
            Peer::Entity(Entity::All) => true,
        }
    }

    /// Where it is, if it is a workload.
    #[must_use]
    pub const fn place(&self) -> Option<Place> {
        match self.kind {
            Kind::Own(_) => Some(Place::Same),
            Kind::Other(_) | Kind::Unnamed(_) => Some(Place::Other),
            _ => None,
        }
    }

    fn labels(&self) -> Option<&Labels> {
        match self.kind {
            Kind::Own(it) => Some(&it.labels),
            Kind::Other(it) => Some(&it.labels),
            Kind::Unnamed(_) => Some(&self.labels),
            _ => None,
        }
    }

    const fn spiffe_id(&self) -> Option<&SpiffeId> {
        match self.kind {
            Kind::Own(it) => Some(&it.spiffe_id),
            Kind::Other(it) => Some(&it.spiffe_id),
            _ => None,
        }
    }

    /// Its DNS names, if it is a workload that has some.
    #[must_use]
    pub fn dns_names(&self) -> &[DnsName] {
        match self.kind {
            Kind::Own(it) => &it.dns_names,
            Kind::Other(it) => &it.dns_names,
            _ => &[],
        }
    }
}

impl fmt::Display for Who<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Own(it) => it.name.fmt(f),
            Kind::Other(it) => it.name.fmt(f),
            Kind::Unnamed(peer) => write!(f, "other workloads of {}", peer.name),
            Kind::Host => f.write_str("host"),
            Kind::Outside(net) => net.fmt(f),
            Kind::World => f.write_str("world"),
        }
    }
}

/// Everybody; the first one is the rest of the world.
#[must_use]
pub fn all<'a>(config: &'a Config, ids: &BTreeMap<WorkloadName, u32>) -> Vec<Who<'a>> {
    let mut all = Vec::new();
    let mut add = |number, kind, networks, labels| {
        all.push(Who {
            number,
            kind,
            networks,
            labels,
        });
    };
    let none = Labels::new;
    add(WORLD, Kind::World, Vec::new(), none());
    for workload in &config.workloads {
        add(ids[&workload.name], Kind::Own(workload), Vec::new(), none());
    }
    let mut next = ids.values().max().map_or(1, |id| id + 1);
    let mut number = || {
        next += 1;
        next - 1
    };
    add(number(), Kind::Host, host(config), none());
    for peer in &config.peers {
        let node = (NODE.to_owned(), peer.name.to_string());
        let networks = peer.networks.iter().map(|net| net.0).collect();
        add(number(), Kind::Unnamed(peer), networks, [node].into());
        for workload in &peer.workloads {
            let addresses = workload.addresses.iter().map(|ip| IpNet::from(ip.0));
            add(number(), Kind::Other(workload), addresses.collect(), none());
        }
    }
    for net in named(config) {
        add(number(), Kind::Outside(net), vec![net], none());
    }
    all
}

/// Who has an address.
#[must_use]
pub fn at<'a, 'b>(all: &'b [Who<'a>], address: IpAddr) -> Option<&'b Who<'a>> {
    let own = all.iter().find(|who| match who.kind {
        Kind::Own(it) => it.addresses.iter().any(|ip| ip.0 == address),
        _ => false,
    });
    let longest = || {
        let fits = all.iter().flat_map(|who| {
            let fitting = who.networks.iter().filter(|net| net.contains(&address));
            fitting.map(move |net| (net.prefix_len(), who))
        });
        // Of two with one length (a network of a single address) the later one is the one that is named.
        fits.max_by_key(|(bits, _)| *bits).map(|(_, who)| who)
    };
    let world = || all.iter().find(|who| matches!(who.kind, Kind::World));
    own.or_else(longest).or_else(world)
}

/// This node's own addresses, as far as the file knows them.
fn host(config: &Config) -> Vec<IpNet> {
    let device = config.wireguard.iter().flat_map(|it| &it.addresses);
    let device = device.map(|address| IpNet::from(address.0.addr()));
    let networks = config.node.networks.iter().map(|net| net.0);
    networks.chain(device).collect()
}

/// The networks that rules name, without those inside of a node's network: who is there has a number already.
fn named(config: &Config) -> BTreeSet<IpNet> {
    let rules = super::rules(config);
    let peers = rules.iter().flat_map(|it| it.rule.peers.iter().flatten());
    let cidrs = peers.flat_map(|peer| match peer {
        Peer::Cidr { cidr, except } => [&[*cidr][..], &except[..]].concat(),
        _ => Vec::new(),
    });
    let mut named: BTreeSet<IpNet> = cidrs.map(|cidr| cidr.0).collect();
    let nodes = config.peers.iter().flat_map(|peer| &peer.networks);
    for net in config.node.networks.iter().chain(nodes) {
        named.retain(|it| !net.0.contains(it));
    }
    // IPv4 addresses are IPv6 addresses to the maps: without this, a rule about `::/0` would mean them, too.
    if named
        .iter()
        .any(|net| matches!(net, IpNet::V6(v6) if v6.prefix_len() < 96))
    {
        named.insert(Ipv4Net::default().into());
    }
    named
}

fn is_in(cidr: &Cidr, net: IpNet) -> bool {
    cidr.0.contains(&net)
}
