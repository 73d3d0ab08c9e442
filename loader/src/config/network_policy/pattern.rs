//! Whom a rule means, as patterns: SPIFFE IDs, DNS names, networks.

use std::fmt;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use underseal_ktls::pattern;

use crate::config::{
    pki::DnsName,
    value::{Invalid, SpiffeId},
};

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
