//! Sections `[[network_policy]]`: what serde reads, and the checks.

use serde::Deserialize;

use super::{Cidr, NetworkPolicy, Peer, Ports, Protocol, Rule};
use crate::config::{Config, check::Checker, label};

/// A section as the file has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Raw {
    name: String,
    namespace: Option<String>,
    #[serde(default)]
    select: label::Raw,
    ingress: Option<Vec<RawRule>>,
    egress: Option<Vec<RawRule>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    peers: Option<Vec<RawPeer>>,
    ports: Option<Vec<RawPorts>>,
    mtls: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPeer {
    select: Option<label::Raw>,
    node: Option<String>,
    spiffe: Option<String>,
    dns: Option<String>,
    cidr: Option<String>,
    except: Option<Vec<String>>,
    entity: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPorts {
    port: Option<u16>,
    end_port: Option<u16>,
    protocol: Option<String>,
}

impl Checker {
    pub(in crate::config) fn network_policies(&mut self, raw: &[Raw]) -> Vec<NetworkPolicy> {
        let mut policies: Vec<NetworkPolicy> = Vec::new();
        for (i, raw) in raw.iter().enumerate() {
            let at = format!("network_policy.{i}");
            let Some(policy) = self.network_policy(&at, raw) else {
                continue;
            };
            let is_same = |other: &NetworkPolicy| {
                (&other.name, &other.namespace) == (&policy.name, &policy.namespace)
            };
            if policies.iter().any(is_same) {
                self.fault(
                    format!("{at}.name"),
                    format!("there is another policy `{policy}`"),
                );
            }
            policies.push(policy);
        }
        policies
    }

    fn network_policy(&mut self, at: &str, raw: &Raw) -> Option<NetworkPolicy> {
        let name = self.value(format!("{at}.name"), &raw.name);
        let namespace = match &raw.namespace {
            None => Some(None),
            Some(text) => self.value(format!("{at}.namespace"), text).map(Some),
        };
        let select = self.selector(&format!("{at}.select"), &raw.select);
        let mut rules = |key: &str, raw: &Option<Vec<RawRule>>| -> Option<Vec<Rule>> {
            let rules = raw.as_ref()?.iter().enumerate();
            let rules = rules.map(|(i, raw)| self.rule(&format!("{at}.{key}.{i}"), raw));
            Some(rules.collect())
        };
        let (ingress, egress) = (rules("ingress", &raw.ingress), rules("egress", &raw.egress));
        if raw.ingress.is_none() && raw.egress.is_none() {
            let why = "has neither `ingress` nor `egress`: it would change nothing";
            self.fault(at, why);
        }
        Some(NetworkPolicy {
            name: name?,
            namespace: namespace?,
            select,
            ingress,
            egress,
        })
    }

    fn rule(&mut self, at: &str, raw: &RawRule) -> Rule {
        let mtls = self.or(format!("{at}.mtls"), raw.mtls.as_deref(), "permitted");
        let peers = raw.peers.as_ref().map(|peers| {
            let peers = peers.iter().enumerate();
            let peers = peers.filter_map(|(i, raw)| self.named(&format!("{at}.peers.{i}"), raw));
            peers.collect()
        });
        let ports = raw.ports.as_ref().map(|ports| {
            let ports = ports.iter().enumerate();
            let ports = ports.filter_map(|(i, raw)| self.ports(&format!("{at}.ports.{i}"), raw));
            ports.collect()
        });
        Rule {
            peers,
            ports,
            mtls: mtls.unwrap_or_default(),
        }
    }

    /// A peer of a rule; each names one kind.
    fn named(&mut self, at: &str, raw: &RawPeer) -> Option<Peer> {
        let by_labels = raw.select.is_some() || raw.node.is_some();
        let others = [&raw.spiffe, &raw.dns, &raw.cidr, &raw.entity];
        let kinds = others.iter().filter(|it| it.is_some()).count() + usize::from(by_labels);
        if kinds != 1 {
            let why = "names one of: `select` and `node`, `spiffe`, `dns`, `cidr`, `entity`";
            self.fault(at, format!("a peer {why}"));
            return None;
        }
        if raw.except.is_some() && raw.cidr.is_none() {
            self.fault(format!("{at}.except"), "`except` goes with `cidr`");
        }
        if let Some(text) = &raw.spiffe {
            return self.value(format!("{at}.spiffe"), text).map(Peer::Spiffe);
        }
        if let Some(text) = &raw.dns {
            return self.value(format!("{at}.dns"), text).map(Peer::Dns);
        }
        if let Some(text) = &raw.entity {
            return self.value(format!("{at}.entity"), text).map(Peer::Entity);
        }
        if let Some(text) = &raw.cidr {
            return self.cidr(at, text, raw.except.as_deref().unwrap_or_default());
        }
        let node = match &raw.node {
            None => None,
            Some(text) => Some(self.value(format!("{at}.node"), text)?),
        };
        let nothing = label::Raw::default();
        let select = raw.select.as_ref().unwrap_or(&nothing);
        Some(Peer::Workloads {
            select: self.selector(&format!("{at}.select"), select),
            node,
        })
    }

    fn cidr(&mut self, at: &str, text: &str, except: &[String]) -> Option<Peer> {
        let cidr: Cidr = self.value(format!("{at}.cidr"), text)?;
        let except: Vec<Cidr> = self.list(&format!("{at}.except"), except);
        for (i, it) in except.iter().enumerate() {
            if !cidr.0.contains(&it.0) || it == &cidr {
                self.fault(format!("{at}.except.{i}"), format!("is no part of {cidr}"));
            }
        }
        Some(Peer::Cidr { cidr, except })
    }

    fn ports(&mut self, at: &str, raw: &RawPorts) -> Option<Ports> {
        let protocol = match &raw.protocol {
            None => None,
            Some(text) => Some(self.value(format!("{at}.protocol"), text)?),
        };
        if raw.port == Some(0) {
            self.fault(
                format!("{at}.port"),
                "a port must not be 0; leave it out for all",
            );
        }
        let range = match (raw.port, raw.end_port) {
            (None, None) => None,
            (None, Some(_)) => {
                self.fault(format!("{at}.end_port"), "`end_port` goes with `port`");
                None
            }
            (Some(port), last) => Some((port, last.unwrap_or(port))),
        };
        if range.is_some_and(|(first, last)| last < first) {
            self.fault(format!("{at}.end_port"), "is lower than `port`");
        }
        if protocol == Some(Protocol::Icmp) && range.is_some() {
            self.fault(format!("{at}.port"), "ICMP has no ports");
        }
        Some(Ports { protocol, range })
    }

    /// Networks that rules name are of addresses that are no workload.
    pub(in crate::config) fn rules(&mut self, config: &Config) {
        for (i, policy) in config.network_policies.iter().enumerate() {
            let at = format!("network_policy.{i}");
            for (key, rules) in [("ingress", &policy.ingress), ("egress", &policy.egress)] {
                let rules = rules.iter().flatten().enumerate();
                for (r, rule) in rules {
                    let peers = rule.peers.iter().flatten().enumerate();
                    for (p, peer) in peers {
                        if let Peer::Cidr { cidr, .. } = peer {
                            self.outside(config, format!("{at}.{key}.{r}.peers.{p}.cidr"), cidr);
                        }
                    }
                }
            }
        }
    }

    fn outside(&mut self, config: &Config, at: String, cidr: &Cidr) {
        let peers = config.peers.iter().flat_map(|peer| &peer.networks);
        let mut networks = config.node.networks.iter().chain(peers);
        if let Some(net) = networks.find(|net| net.0.contains(&cidr.0)) {
            let why = "name workloads by labels, and this node by `entity = \"host\"`";
            self.fault(at, format!("lies in {net}, the network of a node: {why}"));
        }
    }
}
