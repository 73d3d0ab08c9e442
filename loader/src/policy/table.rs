//! What the maps are to have.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use underseal_abi::{self as abi, ANYBODY, Direction, Ruling, Side, Subject, Way};

use super::intervals::pieces;
use super::who::{self, Kind, Who};
use super::{Numbered, rules};
use crate::config::Config;
use crate::config::network_policy::{Entity, Peer};
use crate::config::value::WorkloadName;
use crate::state::{Grant, Policies};

/// The directions in which a policy can select.
pub const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// From a configuration with the ids of its workloads.
pub(super) fn of(config: &Config, ids: &BTreeMap<WorkloadName, u32>) -> Policies {
    let all = who::all(config, ids);
    let rules = rules(config);
    let mut table = Policies::default();
    for who in &all {
        // Later ones are named more exactly: a workload that has a network for itself.
        table
            .peers
            .extend(who.networks.iter().map(|net| (*net, who.number)));
        let Kind::Own(workload) = who.kind else {
            continue;
        };
        let mut selected = 0;
        for direction in DIRECTIONS {
            let policies = config.network_policies.iter();
            let mut policies = policies.filter(|policy| policy.selects(&workload.labels));
            if policies.any(|policy| policy.rules(direction).is_some()) {
                selected |= 1 << direction as u32;
            }
            let its = rules
                .iter()
                .filter(|it| it.direction == direction && it.policy.selects(&workload.labels));
            let its: Vec<&Numbered<'_>> = its.collect();
            grants((who.number, direction), &its, &all, &mut table.grants);
        }
        table.subjects.insert(who.number, selected);
    }
    table
}

fn grants(
    (subject, direction): (u32, Direction),
    rules: &[&Numbered<'_>],
    all: &[Who<'_>],
    into: &mut BTreeSet<Grant>,
) {
    let mut add = |peer: u32, rules: &[&Numbered<'_>]| {
        into.extend(pieces(rules).into_iter().map(|piece| {
            let it = rules[piece.rule];
            Grant {
                subject,
                direction: direction as u8,
                peer,
                protocol: piece.protocol,
                port: piece.ports.0,
                port_bits: piece.ports.1,
                rule: it.number,
                mtls: it.rule.mtls,
            }
        }));
    };
    let (anybody, some): (Vec<_>, Vec<_>) =
        rules.iter().copied().partition(|it| is_for_anybody(it));
    add(ANYBODY, &anybody);
    for who in all {
        let named = some.iter().copied().filter(|it| {
            let mut peers = it.rule.peers.iter().flatten();
            peers.any(|peer| who.is(peer, it.policy))
        });
        add(who.number, &named.collect::<Vec<_>>());
    }
}

fn is_for_anybody(it: &Numbered<'_>) -> bool {
    let mut peers = it.rule.peers.iter().flatten();
    it.rule.peers.is_none() || peers.any(|peer| matches!(peer, Peer::Entity(Entity::All)))
}

/// What is asked of a table: whether `client` may do something with `server`.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// Number of whoever begins.
    pub client: u32,
    /// Number of the other.
    pub server: u32,
    /// Protocol number.
    pub protocol: u8,
    /// Destination port.
    pub port: u16,
}

impl Policies {
    /// What the rules of one end say: what the programs would find.
    pub fn side(&self, question: Question, direction: Direction) -> Side {
        let (own, peer) = match direction {
            Direction::Egress => (question.client, question.server),
            Direction::Ingress => (question.server, question.client),
        };
        let subject = self.subjects.get(&own).map(|selected| Subject {
            selected: *selected,
        });
        let grant = |peer| {
            let fits = self.grants.iter().filter(|it| {
                (it.subject, it.direction, it.peer) == (own, direction as u8, peer)
                    && it.fits(question.protocol, question.port)
            });
            let longest = fits.max_by_key(|it| it.bits());
            longest.map(|it| abi::Grant {
                rule: it.rule,
                mtls: it.mtls.raw() as u32,
            })
        };
        Side::of(subject, direction, grant(peer), grant(ANYBODY))
    }

    /// What becomes of it, where each node judges its own end alone.
    pub fn ruling(&self, question: Question, way: Way) -> Ruling {
        if question.client == question.server {
            return Ruling::Pass;
        }
        let own = |number, direction| {
            if self.subjects.contains_key(&number) {
                self.side(question, direction)
            } else {
                Side::OPEN
            }
        };
        abi::ruling(
            own(question.client, Direction::Egress),
            own(question.server, Direction::Ingress),
            way,
        )
    }

    /// The number of an address that is no workload of this node.
    #[must_use]
    pub fn number(&self, address: IpAddr) -> u32 {
        let fits = self.peers.iter().filter(|(net, _)| net.contains(&address));
        let longest = fits.max_by_key(|(net, _)| IpNet::prefix_len(net));
        longest.map_or(abi::WORLD, |(_, number)| *number)
    }
}

impl Grant {
    /// Bits of its key that count.
    #[must_use]
    pub const fn bits(&self) -> u32 {
        match self.protocol {
            None => abi::ANY_PROTOCOL,
            Some(_) => abi::ANY_PORT + self.port_bits as u32,
        }
    }

    fn fits(&self, protocol: u8, port: u16) -> bool {
        let mask = u32::MAX << (16 - u32::from(self.port_bits).min(16));
        self.protocol.is_none_or(|own| own == protocol)
            && u32::from(port) & mask == u32::from(self.port)
    }
}
