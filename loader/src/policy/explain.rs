//! Which rule decides about something, and why: `underseal policy test`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::Serialize;
use underseal_abi::{Direction, Ruling, Way};

use super::outcome::{Outcome, outcome};
use super::table::Question;
use super::who::{self, Kind, Who};
use super::{Numbered, compile, ids, names, rules, word};
use crate::config::Config;
use crate::config::network_policy::{Peer as RulePeer, Place, Protocol, Rule};
use crate::config::value::Invalid;

/// What somebody wants to do: a protocol and, if it has them, a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Port {
    /// The protocol.
    pub protocol: Protocol,
    /// The port; 0 for a protocol without.
    pub port: u16,
}

impl FromStr for Port {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = || {
            Invalid(
                "a port is a number from 1 to 65535, with `/tcp`, `/udp` or `/sctp`; or `icmp`"
                    .to_owned(),
            )
        };
        if text == "icmp" {
            return Ok(Self {
                protocol: Protocol::Icmp,
                port: 0,
            });
        }
        let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = protocol.parse().map_err(|_| wrong())?;
        let port = port.parse().ok().filter(|port| *port != 0);
        match (protocol, port) {
            (Protocol::Icmp, _) | (_, None) => Err(wrong()),
            (protocol, Some(port)) => Ok(Self { protocol, port }),
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            Protocol::Icmp => f.write_str("icmp"),
            protocol => write!(f, "{}/{protocol}", self.port),
        }
    }
}

/// The outcome, and what has decided.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// Who begins.
    pub from: String,
    /// With whom.
    pub to: String,
    /// What.
    pub port: Port,
    /// What becomes of it.
    pub outcome: Outcome,
    /// What the rules for who begins say.
    pub egress: End,
    /// What the rules for the other one say.
    pub ingress: End,
    /// DNS names that certificates must have, because rules rely on them; only of what is sealed.
    pub proven: Vec<Proven>,
    /// What else there is to know.
    pub notes: Vec<String>,
}

/// DNS names that the certificate of a workload must have.
#[derive(Clone, Debug, Serialize)]
pub struct Proven {
    /// The workload.
    pub workload: String,
    /// The names.
    pub dns_names: Vec<String>,
}

/// What the rules for one end say.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case", tag = "by")]
pub enum End {
    /// It is no workload of this node: its own node judges it, or nobody does.
    Elsewhere,
    /// Both ends are one.
    Itself,
    /// No policy selects it in this direction.
    Nothing,
    /// A rule allows it.
    Rule {
        /// Its number.
        number: u32,
        /// Its policy.
        policy: String,
        /// Which of the policy's rules for the direction it is, from 1 on.
        index: usize,
        /// What of the rule fits.
        why: String,
        /// Whether that is a DNS name of the other end.
        by_dns_name: bool,
    },
    /// Policies select it, and no rule allows this.
    Default {
        /// Their names.
        policies: Vec<String>,
    },
}

/// Answers what becomes of it, by the configuration alone. `from` and `to` are workloads (`namespace/name`), addresses,
/// `host` or `world`.
///
/// # Errors
/// Somebody is not known, or neither is a workload of this node.
pub fn explain(config: &Config, from: &str, to: &str, port: Port) -> Result<Answer, String> {
    let ids = ids(config);
    let all = who::all(config, &ids);
    let (client, server) = (find(&all, from)?, find(&all, to)?);
    if ![client, server]
        .iter()
        .any(|who| matches!(who.kind, Kind::Own(_)))
    {
        return Err(format!(
            "neither {client} nor {server} is a workload of this node; its policies do not judge that"
        ));
    }
    let way = way(config, (client, server), port.protocol);
    let question = Question {
        client: client.number,
        server: server.number,
        protocol: port.protocol.number(),
        port: port.port,
    };
    let table = compile(config, &ids).unwrap_or_default();
    let ruling = if config.network_policies.is_empty() {
        Ruling::Pass
    } else {
        table.ruling(question, way)
    };
    let end = |own: &Who<'_>, peer: &Who<'_>, direction| {
        if own.number == peer.number {
            return End::Itself;
        }
        let rule = table.side(question, direction).rule();
        judged(config, (own, peer, direction), rule, port)
    };
    let outcome = outcome(config, (client, server), port.protocol, (ruling, way));
    let egress = end(client, server, Direction::Egress);
    let ingress = end(server, client, Direction::Ingress);
    let mut notes = Vec::new();
    let by_name = [&egress, &ingress].iter().any(|end| end.is_by_dns_name());
    if !outcome.is_sealed() && !outcome.is_denied() && by_name {
        let why = "a DNS name decides, which no certificate proves: the configuration alone says whose it is";
        notes.push(why.to_owned());
    }
    Ok(Answer {
        from: client.to_string(),
        to: server.to_string(),
        port,
        proven: if outcome.is_sealed() {
            proven(config, &[client, server])
        } else {
            Vec::new()
        },
        outcome,
        egress,
        ingress,
        notes,
    })
}

fn proven(config: &Config, ends: &[&Who<'_>]) -> Vec<Proven> {
    let all = ends.iter().map(|who| Proven {
        workload: who.to_string(),
        dns_names: names::of(config, who.dns_names())
            .iter()
            .map(ToString::to_string)
            .collect(),
    });
    all.filter(|it| !it.dns_names.is_empty()).collect()
}

fn find<'a, 'b>(all: &'b [Who<'a>], text: &str) -> Result<&'b Who<'a>, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        let unknown = || format!("nobody has {address}");
        return who::at(all, address.to_canonical()).ok_or_else(unknown);
    }
    let is_meant = |who: &&Who<'_>| match who.kind {
        Kind::Own(_) | Kind::Other(_) | Kind::Host | Kind::World => who.to_string() == text,
        Kind::Unnamed(_) | Kind::Outside(_) => false,
    };
    let unknown = || {
        format!(
            "`{text}` is not known; name a workload as `namespace/name`, an address, `host` or `world`"
        )
    };
    all.iter().find(is_meant).ok_or_else(unknown)
}

fn way(config: &Config, (client, server): (&Who<'_>, &Who<'_>), protocol: Protocol) -> Way {
    let mode = config.seal.mode.raw();
    let both = [client.place(), server.place()];
    match both {
        _ if protocol != Protocol::Tcp => Way::Plain,
        [Some(Place::Same), Some(Place::Same)] if mode.seals_same_node() => Way::SealedInside,
        [Some(Place::Same), Some(Place::Other)] | [Some(Place::Other), Some(Place::Same)]
            if mode.seals_between_nodes() =>
        {
            Way::SealedBetween
        }
        _ => Way::Plain,
    }
}

/// What has decided at one end; `rule` is what the table says.
fn judged(
    config: &Config,
    (own, peer, direction): (&Who<'_>, &Who<'_>, Direction),
    rule: Option<u32>,
    port: Port,
) -> End {
    let Kind::Own(workload) = own.kind else {
        return End::Elsewhere;
    };
    let selecting = config.network_policies.iter();
    let selecting =
        selecting.filter(|it| it.selects(&workload.labels) && it.rules(direction).is_some());
    let policies: Vec<String> = selecting.map(ToString::to_string).collect();
    let rules = rules(config);
    match rules.iter().find(|it| Some(it.number) == rule) {
        Some(it) => End::Rule {
            number: it.number,
            policy: it.policy.to_string(),
            index: it.index,
            why: why(it, peer, port),
            by_dns_name: matches!(fitting(it, peer), Some(RulePeer::Dns(_))),
        },
        None if policies.is_empty() => End::Nothing,
        None => End::Default { policies },
    }
}

/// The first peer of a rule that means somebody.
fn fitting<'a>(it: &Numbered<'a>, who: &Who<'_>) -> Option<&'a RulePeer> {
    let mut peers = it.rule.peers.iter().flatten();
    peers.find(|peer| who.is(peer, it.policy))
}

/// What of a rule fits.
fn why(it: &Numbered<'_>, who: &Who<'_>, port: Port) -> String {
    let Rule { peers, ports, .. } = it.rule;
    let peer = match peers {
        None => "anybody".to_owned(),
        Some(_) => fitting(it, who).map_or_else(String::new, ToString::to_string),
    };
    let fits = |ports: &&crate::config::network_policy::Ports| {
        let protocol = match ports.protocol {
            None => port.protocol != Protocol::Icmp,
            Some(protocol) => protocol == port.protocol,
        };
        let within = |(first, last): (u16, u16)| (first..=last).contains(&port.port);
        protocol && ports.range.is_none_or(within)
    };
    let ports = match ports {
        None => "everything".to_owned(),
        Some(ports) => ports
            .iter()
            .find(fits)
            .map_or_else(String::new, ToString::to_string),
    };
    format!("{peer}; {ports}; mtls {}", it.rule.mtls)
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            from,
            to,
            port,
            outcome,
            ..
        } = self;
        writeln!(f, "{from} -> {to} {port}: {outcome}")?;
        for (direction, who, end) in [
            (Direction::Egress, &self.from, &self.egress),
            (Direction::Ingress, &self.to, &self.ingress),
        ] {
            writeln!(f, "  {} of {who}: {end}", word(direction))?;
        }
        for Proven {
            workload,
            dns_names,
        } in &self.proven
        {
            let names = dns_names.join(", ");
            writeln!(
                f,
                "  the certificate of {workload} must have the DNS name {names}"
            )?;
        }
        self.notes
            .iter()
            .try_for_each(|note| writeln!(f, "  but {note}"))
    }
}

impl End {
    const fn is_by_dns_name(&self) -> bool {
        matches!(
            self,
            Self::Rule {
                by_dns_name: true,
                ..
            }
        )
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elsewhere => f.write_str("not judged here, it is no workload of this node"),
            Self::Itself => f.write_str("not judged, it is its own"),
            Self::Nothing => f.write_str("no policy selects it"),
            Self::Rule {
                number,
                policy,
                index,
                why,
                ..
            } => write!(
                f,
                "rule {number} (number {index} of policy {policy}): {why}"
            ),
            Self::Default { policies } => {
                write!(
                    f,
                    "no rule allows it; it is selected by {}",
                    policies.join(", ")
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        let parse = |text: &str| text.parse::<Port>().map(|port| port.to_string());
        assert_eq!(parse("80").unwrap(), "80/tcp");
        assert_eq!(parse("53/udp").unwrap(), "53/udp");
        assert_eq!(parse("icmp").unwrap(), "icmp");
        for wrong in ["", "0", "65536", "80/gre", "80/icmp", "/tcp", "-1"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
