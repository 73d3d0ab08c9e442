//! Addresses and networks, stricter than the standard library: what BPF maps, routes and
//! WireGuard would understand differently is refused.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use ipnet::{IpNet, Ipv6Net};

use super::value::Invalid;

/// A network of workloads: no host bits, nothing that is not unicast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Network(pub IpNet);

impl Network {
    /// Whether the two have addresses in common.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.0.contains(&other.0) || other.0.contains(&self.0)
    }

    /// Whether it is an IPv6 network.
    #[must_use]
    pub const fn is_ipv6(&self) -> bool {
        matches!(self.0, IpNet::V6(_))
    }
}

impl FromStr for Network {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let net: IpNet = text.parse().map_err(|_| {
            Invalid("not a network; write `address/prefix length`, e.g. 10.1.0.0/24".to_owned())
        })?;
        if net != net.trunc() {
            return Err(Invalid(format!(
                "the address has bits beyond the prefix; did you mean {}?",
                net.trunc()
            )));
        }
        if let IpNet::V6(v6) = net
            && (v6.contains(&mapped_ipv4()) || mapped_ipv4().contains(&v6))
        {
            return Err(Invalid(
                "the network contains the IPv4-mapped addresses ::ffff:0:0/96; write IPv4 \
                 networks in their own form"
                    .to_owned(),
            ));
        }
        if net.prefix_len() > 0 {
            unicast(net.addr())?;
        }
        Ok(Self(net))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The address of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address(pub IpAddr);

impl FromStr for Address {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let address: IpAddr = text.parse().map_err(|_| {
            Invalid("not an IP address; write e.g. 10.1.0.10 or fd00:1::10".to_owned())
        })?;
        if address.is_unspecified() {
            return Err(Invalid("the unspecified address names no host".to_owned()));
        }
        unicast(address)?;
        Ok(Self(address))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An address with its prefix length, as it is put on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceAddress(pub IpNet);

impl FromStr for DeviceAddress {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let net: IpNet = text.parse().map_err(|_| {
            Invalid("not an address with prefix length; write e.g. 10.1.0.1/32".to_owned())
        })?;
        Address::from_str(&net.addr().to_string())?;
        Ok(Self(net))
    }
}

/// Where a WireGuard peer is reached: an address and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerEndpoint(pub SocketAddr);

impl FromStr for PeerEndpoint {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let endpoint: SocketAddr = text.parse().map_err(|_| {
            Invalid(
                "not an endpoint; write `address:port` or `[IPv6 address]:port`, no host name"
                    .to_owned(),
            )
        })?;
        if endpoint.port() == 0 {
            return Err(Invalid("an endpoint's port must not be 0".to_owned()));
        }
        Address::from_str(&endpoint.ip().to_string())?;
        Ok(Self(endpoint))
    }
}

impl fmt::Display for PeerEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Refuses what cannot be a workload's or a node's own address.
fn unicast(address: IpAddr) -> Result<(), Invalid> {
    let fault = match address {
        _ if address.is_multicast() => "a multicast address names no single host",
        _ if address.is_loopback() => "a loopback address is not reachable from elsewhere",
        IpAddr::V4(v4) if v4.is_link_local() || v4.is_broadcast() => {
            "a link-local or broadcast address cannot be routed"
        }
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "a link-local address cannot be routed",
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            "an IPv4-mapped address; write it as IPv4"
        }
        _ => return Ok(()),
    };
    Err(Invalid(fault.to_owned()))
}

/// `::ffff:0:0/96`: how BPF maps store IPv4 addresses.
fn mapped_ipv4() -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96)
}
