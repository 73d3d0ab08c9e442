//! Sections `[[network_policy]]`: who may talk to whom.

use std::fmt;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use underseal_ktls::pattern;

use super::{
    Config,
    check::Checker,
    choice::choice,
    label::{self, NAMESPACE, Selector},
    pki::DnsName,
    value::{Invalid, Label, SpiffeId, by_text},
};

by_text! { Mtls Place Protocol Entity }

/// What a policy allows those that it selects; all else is denied them in the directions that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Its name.
    pub name: Label,
    /// The only namespace in which it selects; `None`: it selects in all of them.
    pub namespace: Option<Label>,
    /// Whom it selects.
    pub select: Selector,
    /// Who may connect to them; `None`: it says nothing of that.
    pub ingress: Option<Vec<Rule>>,
    /// To whom they may connect; `None`: it says nothing of that.
    pub egress: Option<Vec<Rule>>,
}

/// Something that is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// With whom; `None`: with anybody.
    pub peers: Option<Vec<Peer>>,
    /// What; `None`: everything.
    pub ports: Option<Vec<Ports>>,
    /// What is demanded of mTLS.
    pub mtls: Mtls,
}

/// Whom a rule names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Workloads by their labels, and by where they are.
    Workloads {
        /// Their labels.
        select: Selector,
        /// Where they are; `None`: anywhere.
        node: Option<Place>,
    },
    /// Workloads whose SPIFFE ID fits.
    Spiffe(SpiffePattern),
    /// Workloads that have a DNS name which fits.
    Dns(DnsPattern),
    /// Addresses that are no workload.
    Cidr {
        /// These.
        cidr: Cidr,
        /// But for these.
        except: Vec<Cidr>,
    },
    /// One of a few words.
    Entity(Entity),
}

/// Ports of a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// `None`: TCP, UDP and SCTP.
    pub protocol: Option<Protocol>,
    /// First and last; `None`: all.
    pub range: Option<(u16, u16)>,
}

choice! {
    /// What a rule demands of mTLS.
    Mtls, "`mtls`":
    /// As `seal.mode` says.
    #[default]
    Permitted = "permitted",
    /// Nothing passes that is not sealed.
    Required = "required",
    /// Plaintext where the mode would seal inside a node.
    Off = "off",
}

impl Mtls {
    /// The datapath's word for it.
    #[must_use]
    pub const fn raw(self) -> underseal_abi::Mtls {
        match self {
            Self::Permitted => underseal_abi::Mtls::Permitted,
            Self::Required => underseal_abi::Mtls::Required,
            Self::Off => underseal_abi::Mtls::Off,
        }
    }
}

choice! {
    /// Where a workload is.
    Place, "`node`":
    /// On this node.
    #[default]
    Same = "same",
    /// On another one.
    Other = "other",
}

choice! {
    /// A protocol that rules can name.
    Protocol, "a protocol":
    /// TCP.
    #[default]
    Tcp = "tcp",
    /// UDP.
    Udp = "udp",
    /// SCTP.
    Sctp = "sctp",
    /// ICMP, and ICMPv6.
    Icmp = "icmp",
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Tcp, Self::Udp, Self::Sctp, Self::Icmp];

    /// Its number in the IP header.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
            Self::Icmp => 1,
        }
    }
}

choice! {
    /// Whom a word means.
    Entity, "an entity":
    /// All addresses that are no workload.
    #[default]
    World = "world",
    /// This node's own addresses.
    Host = "host",
    /// All workloads.
    Workloads = "workloads",
    /// Everybody.
    All = "all",
}

/// A SPIFFE ID in which a segment may be `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpiffePattern(String);

impl SpiffePattern {
    /// Whether an ID fits.
    #[must_use]
    pub fn fits(&self, id: &SpiffeId) -> bool {
        let id = id.as_str().parse();
        id.is_ok_and(|id| pattern::spiffe_id(&self.0, &id))
    }
}

impl FromStr for SpiffePattern {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        // Whatever the pattern is, it must be an ID once each `*` is a name.
        let as_id = text
            .split('/')
            .map(|part| if part == "*" { "x" } else { part });
        let as_id: Vec<&str> = as_id.collect();
        let domain = as_id
            .get(2)
            .is_some_and(|_| text.split('/').nth(2) != Some("*"));
        if !domain || as_id.join("/").parse::<SpiffeId>().is_err() {
            return Err(Invalid(
                "a pattern is `spiffe://<trust domain>/ns/<namespace>/sa/<account>`, where `*` may stand for a namespace or \
                 an account"
                    .to_owned(),
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for SpiffePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A DNS name whose first label may be `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsPattern(String);

impl DnsPattern {
    /// Whether a name fits.
    #[must_use]
    pub fn fits(&self, name: &DnsName) -> bool {
        pattern::dns_name(&self.0, name.as_str())
    }
}

impl FromStr for DnsPattern {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let rest = text.strip_prefix("*.").unwrap_or(text);
        if rest.parse::<DnsName>().is_err() {
            return Err(Invalid(
                "a pattern is a DNS name in lower case, whose first label may be `*`".to_owned(),
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for DnsPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A network of addresses that are no workload's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cidr(pub IpNet);

impl FromStr for Cidr {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let net: IpNet = text.parse().map_err(|_| {
            Invalid("not a network; write `address/prefix length`, e.g. 192.0.2.0/24".to_owned())
        })?;
        if net != net.trunc() {
            let meant = net.trunc();
            return Err(Invalid(format!(
                "the address has bits beyond the prefix; did you mean {meant}?"
            )));
        }
        let mapped = Ipv6Net::new_assert(Ipv4Net::default().addr().to_ipv6_mapped(), 96);
        if let IpNet::V6(v6) = net
            && mapped.contains(&v6)
        {
            return Err(Invalid(
                "IPv4-mapped addresses; write them as IPv4".to_owned(),
            ));
        }
        Ok(Self(net))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl NetworkPolicy {
    /// Its rules for a direction; `None`: it says nothing of that.
    #[must_use]
    pub fn rules(&self, direction: underseal_abi::Direction) -> Option<&[Rule]> {
        match direction {
            underseal_abi::Direction::Ingress => self.ingress.as_deref(),
            underseal_abi::Direction::Egress => self.egress.as_deref(),
        }
    }

    /// Whether it selects a workload with these labels.
    #[must_use]
    pub fn selects(&self, labels: &label::Labels) -> bool {
        let namespace = labels.get(NAMESPACE).map(String::as_str);
        let here = self.namespace.as_ref();
        here.is_none_or(|own| Some(own.as_str()) == namespace) && self.select.fits(labels)
    }
}

impl fmt::Display for NetworkPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => self.name.fmt(f),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workloads { select, node: None } => write!(f, "workloads with {select}"),
            Self::Workloads {
                select,
                node: Some(place),
            } => write!(f, "workloads on the {place} node with {select}"),
            Self::Spiffe(pattern) => pattern.fmt(f),
            Self::Dns(pattern) => write!(f, "the DNS name {pattern}"),
            Self::Cidr { cidr, except } => {
                write!(f, "{cidr}")?;
                for except in except {
                    write!(f, " except {except}")?;
                }
                Ok(())
            }
            Self::Entity(entity) => entity.fmt(f),
        }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.range {
            None => f.write_str("all ports")?,
            Some((first, last)) if first == last => write!(f, "port {first}")?,
            Some((first, last)) => write!(f, "ports {first}-{last}")?,
        }
        match self.protocol {
            None => f.write_str(" of TCP, UDP and SCTP"),
            Some(protocol) => write!(f, " of {protocol}"),
        }
    }
}

/// A section as the file has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
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
    pub(super) fn network_policies(&mut self, raw: &[Raw]) -> Vec<NetworkPolicy> {
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
    pub(super) fn rules(&mut self, config: &Config) {
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
