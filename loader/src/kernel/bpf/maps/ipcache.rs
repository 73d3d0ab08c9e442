//! The map `IPCACHE`: whose each network is.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use aya::maps::Map;
use aya::maps::lpm_trie::{Key, LpmTrie};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use underseal_abi::{self as abi, names};

use super::{absent_is_fine, cannot, open, strange, writable};
use crate::config::value::InterfaceName;
use crate::kernel::error::Error;
use crate::kernel::link;
use crate::state::Endpoint;

/// Whose each network is.
///
/// # Errors
/// The map cannot be read, or has a key that is no network.
pub fn ipcache() -> Result<BTreeMap<IpNet, Endpoint>, Error> {
    let Some(map) = open(names::IPCACHE)? else {
        return Ok(BTreeMap::new());
    };
    let fail = |error| cannot("read map", names::IPCACHE, error);
    let map = LpmTrie::<_, [u8; 16], abi::Endpoint>::try_from(Map::LpmTrie(map)).map_err(fail)?;
    let mut endpoints = BTreeMap::new();
    let names = Devices::read()?;
    for entry in map.iter() {
        let (key, endpoint) = entry.map_err(fail)?;
        let net = net_of(key.prefix_len(), key.data()).ok_or_else(|| {
            strange(
                names::IPCACHE,
                format_args!("a key of {} bits", key.prefix_len()),
            )
        })?;
        endpoints.insert(net, names.endpoint(endpoint));
    }
    Ok(endpoints)
}

/// Says whose a network is.
///
/// # Errors
/// The map cannot be written.
pub fn set_endpoint(net: IpNet, endpoint: &Endpoint) -> Result<(), Error> {
    let index = |name: &Option<InterfaceName>| name.as_ref().map_or(Ok(0), index_of);
    let value = abi::Endpoint {
        node: endpoint.node,
        workload: endpoint.workload,
        ifindex: match endpoint.node {
            abi::THIS_NODE => endpoint.ifindex,
            _ => index(&endpoint.device)?,
        },
        next: index(&endpoint.next)?,
    };
    let (prefix, address) = key_of(net);
    let map = writable(names::IPCACHE)?;
    let write = LpmTrie::try_from(Map::LpmTrie(map))
        .and_then(|mut map| map.insert(&Key::new(prefix, address), value, 0));
    write.map_err(|error| cannot("write map", names::IPCACHE, error))
}

/// The index of a device. One that is gone has a name from [`Devices::name`], when a step is taken back.
fn index_of(name: &InterfaceName) -> Result<u32, Error> {
    let gone = name.as_str().strip_prefix('?');
    match gone.and_then(|index| index.parse().ok()) {
        Some(index) => Ok(index),
        None => Ok(link::named(name.as_str())?.index),
    }
}

/// Names of interfaces, for the indices that the map has.
struct Devices(BTreeMap<u32, String>);

impl Devices {
    fn read() -> Result<Self, Error> {
        let links = link::list()?.into_iter();
        Ok(Self(links.map(|link| (link.index, link.name)).collect()))
    }

    fn endpoint(&self, raw: abi::Endpoint) -> Endpoint {
        let other = raw.node != abi::THIS_NODE;
        Endpoint {
            node: raw.node,
            workload: raw.workload,
            ifindex: if other { 0 } else { raw.ifindex },
            device: self.name(if other { raw.ifindex } else { 0 }),
            next: self.name(raw.next),
        }
    }

    /// `None` for 0. A device that is gone has a name that none has.
    fn name(&self, index: u32) -> Option<InterfaceName> {
        let gone = || format!("?{index}").parse().ok();
        match (index, self.0.get(&index)) {
            (0, _) => None,
            (_, Some(name)) => name.parse().ok().or_else(gone),
            (_, None) => gone(),
        }
    }
}

/// Forgets whose a network is; nothing if that is not known.
///
/// # Errors
/// The map cannot be written.
pub fn delete_endpoint(net: IpNet) -> Result<(), Error> {
    let (prefix, address) = key_of(net);
    let map = writable(names::IPCACHE)?;
    let write = LpmTrie::<_, _, abi::Endpoint>::try_from(Map::LpmTrie(map))
        .and_then(|mut map| map.remove(&Key::new(prefix, address)));
    absent_is_fine(names::IPCACHE, write)
}

/// Bits that an IPv4-mapped address has in front of the IPv4 address.
const MAPPED: u32 = 96;

/// The key of a network: prefix length, and the address in [`abi::ip_key`] form.
pub(in crate::kernel::bpf) fn key_of(net: IpNet) -> (u32, [u8; 16]) {
    match net {
        IpNet::V4(net) => (
            MAPPED + u32::from(net.prefix_len()),
            abi::ip_key(net.network().octets()),
        ),
        IpNet::V6(net) => (u32::from(net.prefix_len()), net.network().octets()),
    }
}

/// The network that a key stands for; `None` if it is no network, or not the way [`key_of`] writes it.
pub(in crate::kernel::bpf) fn net_of(prefix: u32, address: [u8; 16]) -> Option<IpNet> {
    let address = Ipv6Addr::from(address);
    let net = match address.to_canonical() {
        IpAddr::V4(v4) if prefix >= MAPPED => {
            IpNet::V4(Ipv4Net::new(v4, u8::try_from(prefix - MAPPED).ok()?).ok()?)
        }
        _ => IpNet::V6(Ipv6Net::new(address, u8::try_from(prefix).ok()?).ok()?),
    };
    (net.addr() == net.network()).then_some(net)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_gone_keeps_its_index() {
        let devices = Devices(BTreeMap::from([(1, "lo".to_owned())]));
        let gone = devices.name(u32::MAX).unwrap();
        assert_eq!(index_of(&gone).unwrap(), u32::MAX);
        // Control: what has a name is looked up.
        let none: InterfaceName = "nobody7".parse().unwrap();
        assert!(index_of(&none).is_err());
    }

    #[test]
    fn networks_and_keys() {
        for text in [
            "10.1.0.0/24",
            "10.1.0.10/32",
            "0.0.0.0/0",
            "fd00:1::/64",
            "fd00:1::10/128",
            "::/0",
        ] {
            let net: IpNet = text.parse().unwrap();
            let (prefix, address) = key_of(net);
            assert_eq!(net_of(prefix, address), Some(net), "{text}");
        }
        assert_eq!(key_of("10.1.0.0/24".parse().unwrap()).0, 120);
        // What only looks like a network: too long, and with bits behind the prefix.
        assert_eq!(net_of(129, [0; 16]), None);
        assert_eq!(net_of(120, abi::ip_key([10, 1, 0, 1])), None);
        // All of ::ffff:0:0/95 is no IPv4 network.
        assert_eq!(net_of(64, [0; 16]), Some("::/64".parse().unwrap()));
    }
}
