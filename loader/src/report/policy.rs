//! What `underseal policy` and `underseal ipcache` have to tell.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;
use serde::Serialize;
use underseal_abi::{ANYBODY, Direction, Tally};

use super::{HEAD, NOTE};
use crate::config::pki::DnsName;
use crate::policy::{Numbered, word};
use crate::state::{Datapath, Grant, Named, Policies};

/// The rules of a configuration.
#[derive(Debug, Serialize)]
pub struct Listed {
    /// Whether just these are in force in the kernel, as far as that may be seen.
    pub in_force: bool,
    /// The rules, by number.
    pub rules: Vec<Rule>,
}

/// A rule.
#[derive(Debug, Serialize)]
pub struct Rule {
    /// Its number.
    pub number: u32,
    /// Its policy.
    pub policy: String,
    /// `ingress` or `egress`.
    pub direction: &'static str,
    /// Whom its policy selects.
    pub select: String,
    /// Whom it names; empty: anybody.
    pub peers: Vec<String>,
    /// What it allows; empty: everything.
    pub ports: Vec<String>,
    /// What it demands of mTLS.
    pub mtls: String,
    /// Packets that it has let pass since the rules were put in force; `None` if they are not.
    pub packets: Option<u64>,
    /// Bytes of those.
    pub bytes: Option<u64>,
}

impl Rule {
    /// Of the configuration, with what has been counted by number.
    #[must_use]
    pub fn of(it: &Numbered<'_>, counters: Option<&BTreeMap<u32, Tally>>) -> Self {
        let tally = counters.map(|all| all.get(&it.number).copied().unwrap_or_default());
        let peers = it.rule.peers.iter().flatten();
        let ports = it.rule.ports.iter().flatten();
        Self {
            number: it.number,
            policy: it.policy.to_string(),
            direction: word(it.direction),
            select: it.policy.select.to_string(),
            peers: peers.map(ToString::to_string).collect(),
            ports: ports.map(ToString::to_string).collect(),
            mtls: it.rule.mtls.to_string(),
            packets: tally.map(|it| it.packets),
            bytes: tally.map(|it| it.bytes),
        }
    }
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or = |list: &[String], none: &str| match list {
            [] => none.to_owned(),
            list => list.join(" or "),
        };
        for rule in &self.rules {
            let direction = rule.direction;
            let (peers, ports) = (or(&rule.peers, "anybody"), or(&rule.ports, "everything"));
            writeln!(
                f,
                "{HEAD}{} {} {direction}{HEAD:#}  of {}: {peers}; {ports}; mtls {}",
                rule.number, rule.policy, rule.select, rule.mtls
            )?;
            if let (Some(packets), Some(bytes)) = (rule.packets, rule.bytes) {
                writeln!(f, "  {packets} packets, {bytes} bytes")?;
            }
        }
        if self.in_force {
            Ok(())
        } else {
            writeln!(f, "{NOTE}not seen to be in force{NOTE:#}: no counters")
        }
    }
}

/// What the programs look up.
#[derive(Debug, Serialize)]
pub struct Dump {
    /// As the maps have it; `None`: there are no policies.
    pub policies: Option<Policies>,
    /// Names of workloads by number, where they are known.
    pub names: BTreeMap<u32, String>,
    /// DNS names that certificates must have, by workload.
    pub dns_names: BTreeMap<String, BTreeSet<DnsName>>,
}

impl Dump {
    /// Of what was read.
    #[must_use]
    pub fn of(datapath: &Datapath) -> Self {
        let own = datapath.workloads.iter();
        let mut names: BTreeMap<u32, String> =
            own.map(|(id, it)| (*id, it.name.to_string())).collect();
        let numbers = datapath.policies.iter().flat_map(|it| &it.peers);
        for (net, number) in numbers {
            let peer = datapath.peer_workloads.get(&net.addr());
            let name = peer.filter(|_| net.prefix_len() == net.max_prefix_len());
            let name = name.map_or_else(|| net.to_string(), |it| it.name.to_string());
            names.entry(*number).or_insert(name);
        }
        let whose = |it: &Named| match it {
            Named::Own(id) => datapath.workloads.get(id).map(|it| it.name.to_string()),
            Named::Other(ip) => {
                let peer = datapath.peer_workloads.get(ip);
                peer.map(|it| format!("{} at {ip}", it.name))
            }
        };
        let dns_names = datapath.dns_names.iter();
        let dns_names = dns_names
            .map(|(it, names)| (whose(it).unwrap_or_else(|| it.to_string()), names.clone()));
        Self {
            policies: datapath.policies.clone(),
            dns_names: dns_names.collect(),
            names,
        }
    }

    fn name(&self, number: u32) -> String {
        match self.names.get(&number) {
            _ if number == ANYBODY => "anybody".to_owned(),
            _ if number == underseal_abi::WORLD => "world".to_owned(),
            Some(name) => name.clone(),
            None => format!("number {number}"),
        }
    }

    fn grant(&self, it: &Grant) -> String {
        let (own, peer) = (self.name(it.subject), self.name(it.peer));
        let (from, to) = if it.direction == Direction::Egress as u8 {
            (own, peer)
        } else {
            (peer, own)
        };
        let protocol = match it.protocol {
            None => "everything".to_owned(),
            Some(6) => "tcp".to_owned(),
            Some(17) => "udp".to_owned(),
            Some(132) => "sctp".to_owned(),
            Some(1) => "icmp".to_owned(),
            Some(number) => format!("protocol {number}"),
        };
        let last = it.port | u16::MAX.checked_shr(it.port_bits.into()).unwrap_or(0);
        let ports = match it.port_bits {
            0 => String::new(),
            16 => format!(" {}", it.port),
            _ => format!(" {}-{last}", it.port),
        };
        let word = if it.direction == Direction::Egress as u8 {
            "egress"
        } else {
            "ingress"
        };
        format!(
            "{word} {from} -> {to} {protocol}{ports}: rule {}, mtls {}",
            it.rule, it.mtls
        )
    }
}

impl fmt::Display for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(policies) = &self.policies else {
            return writeln!(f, "{NOTE}no network policies are in force{NOTE:#}");
        };
        writeln!(f, "{HEAD}workloads{HEAD:#}")?;
        for (id, selected) in &policies.subjects {
            let denied = |direction: Direction| match selected & (1 << direction as u32) {
                0 => "open",
                _ => "denied by default",
            };
            writeln!(
                f,
                "  {id} {}: ingress {}, egress {}",
                self.name(*id),
                denied(Direction::Ingress),
                denied(Direction::Egress)
            )?;
        }
        writeln!(f, "{HEAD}peers{HEAD:#}")?;
        for (net, number) in &policies.peers {
            writeln!(f, "  {number} {net}")?;
        }
        if !self.dns_names.is_empty() {
            writeln!(f, "{HEAD}certificates must have{HEAD:#}")?;
        }
        for (who, names) in &self.dns_names {
            let names: Vec<&str> = names.iter().map(DnsName::as_str).collect();
            writeln!(f, "  {who}: {}", names.join(", "))?;
        }
        writeln!(f, "{HEAD}allowed{HEAD:#}")?;
        let mut grants = policies.grants.iter();
        grants.try_for_each(|it| writeln!(f, "  {}", self.grant(it)))
    }
}

/// Whose an address is.
#[derive(Debug, Serialize)]
pub struct Address {
    /// The network, or the address.
    pub network: IpNet,
    /// The node's name, or its number.
    pub node: String,
    /// The workload, if one is known.
    pub workload: Option<String>,
    /// The number that rules have for it; `None` if there are no policies.
    pub number: Option<u32>,
}

impl Address {
    /// All that the programs know, where `node` names nodes.
    pub fn all(datapath: &Datapath, node: impl Fn(u32) -> String) -> Vec<Self> {
        let policies = datapath.policies.as_ref();
        let own = datapath.ipcache.iter().map(|(net, endpoint)| {
            let workload = datapath.workloads.get(&endpoint.workload);
            let number = match endpoint.workload {
                0 => policies.and_then(|it| it.peers.get(net).copied()),
                id => policies.map(|_| id),
            };
            Self {
                network: *net,
                node: node(endpoint.node),
                workload: workload.map(|it| it.name.to_string()),
                number,
            }
        });
        let peers = datapath.peer_workloads.iter().map(|(ip, it)| {
            let network = IpNet::from(*ip);
            let around = datapath.ipcache.iter().filter(|(net, _)| net.contains(ip));
            let around = around.max_by_key(|(net, _)| net.prefix_len());
            Self {
                network,
                node: around.map_or_else(String::new, |(_, endpoint)| node(endpoint.node)),
                workload: Some(it.name.to_string()),
                number: policies.and_then(|it| it.peers.get(&network).copied()),
            }
        });
        let mut all: Vec<Self> = own.chain(peers).collect();
        all.sort_by_key(|it| it.network);
        all
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let workload = self.workload.as_deref().unwrap_or("no known workload");
        write!(f, "{} of {}: {workload}", self.network, self.node)?;
        match self.number {
            Some(number) => write!(f, ", number {number}"),
            None => Ok(()),
        }
    }
}
