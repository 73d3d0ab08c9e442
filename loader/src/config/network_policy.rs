//! Network policies: who may talk to whom.

mod pattern;
mod sections;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{
    choice::choice,
    label::{self, NAMESPACE, Selector},
    value::{Invalid, Label, by_text},
};

pub use self::pattern::{Cidr, DnsPattern, SpiffePattern};
pub(super) use self::sections::Raw;

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
