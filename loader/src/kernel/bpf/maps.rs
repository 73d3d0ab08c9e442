//! The pinned maps: typed reads and writes, without the object.
//!
//! What is not pinned reads as empty and cannot be written. What cannot be understood (an address
//! that is no canonical network, a name that is no name) is an error: it is not ours to interpret.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::AsFd;
use std::str::FromStr;

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use underseal_abi::{self as abi, Config, Conn, Netns, Tally, names};
use underseal_ktls::map_entries;

use super::pin;
use crate::config::choice::Cipher;
use crate::config::value::InterfaceName;
use crate::kernel::error::Error;
use crate::kernel::link;
use crate::state::{Bundle, Endpoint, Node, PeerWorkload, Workload};

/// The configuration of the datapath; `None` if there is no map. All zeros: never written.
///
/// # Errors
/// The map cannot be read.
pub fn config() -> Result<Option<Config>, Error> {
    let Some(map) = open(names::CONFIG)? else {
        return Ok(None);
    };
    let read = Array::<_, Config>::try_from(Map::Array(map)).and_then(|map| map.get(&0, 0));
    read.map(Some)
        .map_err(|error| cannot("read map", names::CONFIG, error))
}

/// Writes the configuration of the datapath, whole.
///
/// # Errors
/// The map cannot be written.
pub fn set_config(config: &Config) -> Result<(), Error> {
    let map = writable(names::CONFIG)?;
    let write =
        Array::<_, Config>::try_from(Map::Array(map)).and_then(|mut map| map.set(0, config, 0));
    write.map_err(|error| cannot("write map", names::CONFIG, error))
}

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
    let index = |name: &Option<InterfaceName>| match name {
        Some(name) => Ok(link::named(name.as_str())?.index),
        None => Ok(0),
    };
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

/// Network namespaces by cookie.
///
/// # Errors
/// The map cannot be read.
pub fn namespaces() -> Result<BTreeMap<u64, Netns>, Error> {
    let mut all: BTreeMap<u64, Netns> = entries(names::NETNS)?;
    // One that is there under both keys is still covered, so the other is what counts.
    let given_back = all.split_off(&Netns::GIVEN_BACK);
    for (key, netns) in given_back {
        all.entry(key & !Netns::GIVEN_BACK).or_insert(Netns {
            workload: 0,
            ..netns
        });
    }
    Ok(all)
}

/// Writes the entry of a network namespace. Without a workload it is written where the programs do not see it.
///
/// # Errors
/// The map cannot be written.
pub fn set_namespace(cookie: u64, netns: &Netns) -> Result<(), Error> {
    let (key, other) = match netns.workload {
        0 => (cookie | Netns::GIVEN_BACK, cookie),
        _ => (cookie, cookie | Netns::GIVEN_BACK),
    };
    insert(names::NETNS, key, *netns)?;
    delete::<u64, Netns>(names::NETNS, other)
}

/// Deletes the entry of a network namespace; nothing if there is none.
///
/// # Errors
/// The map cannot be written.
pub fn delete_namespace(cookie: u64) -> Result<(), Error> {
    delete::<u64, Netns>(names::NETNS, cookie)?;
    delete::<u64, Netns>(names::NETNS, cookie | Netns::GIVEN_BACK)
}

/// Workloads by id.
///
/// # Errors
/// The map cannot be read, or holds something that is no workload.
pub fn workloads() -> Result<BTreeMap<u32, Workload>, Error> {
    let raw: BTreeMap<u32, abi::Workload> = entries(names::WORKLOADS)?;
    raw.into_iter()
        .map(|(id, raw)| Ok((id, workload(&raw)?)))
        .collect()
}

/// Writes the entry of a workload.
///
/// # Errors
/// A text is longer than its place in the map, or the map cannot be written.
pub fn set_workload(id: u32, workload: &Workload) -> Result<(), Error> {
    let raw = abi::Workload {
        name: padded(names::WORKLOADS, &workload.name)?,
        spiffe_id: padded(names::WORKLOADS, &workload.spiffe_id)?,
        identity: padded(names::WORKLOADS, &workload.identity)?,
        netns: padded(names::WORKLOADS, &workload.netns)?,
        cipher: workload.cipher.number(),
        renew_before: workload.renew_before,
    };
    insert(names::WORKLOADS, id, raw)
}

/// Deletes the entry of a workload; nothing if there is none.
///
/// # Errors
/// The map cannot be written.
pub fn delete_workload(id: u32) -> Result<(), Error> {
    delete::<u32, abi::Workload>(names::WORKLOADS, id)
}

/// Where nodes' helpers are reached, by the node's number.
///
/// # Errors
/// The map cannot be read, or holds something that is no node.
pub fn nodes() -> Result<BTreeMap<u32, Node>, Error> {
    let raw: BTreeMap<u32, abi::Node> = entries(names::NODES)?;
    raw.into_iter()
        .map(|(number, raw)| Ok((number, node(&raw)?)))
        .collect()
}

/// Writes the entry of a node.
///
/// # Errors
/// The map cannot be written.
pub fn set_node(number: u32, node: &Node) -> Result<(), Error> {
    let raw = abi::Node {
        name: padded(names::NODES, &node.name)?,
        v4: node.v4.map_or([0; 16], |v4| abi::ip_key(v4.octets())),
        v6: node.v6.map_or([0; 16], |v6| v6.octets()),
        port: node.port.into(),
        reserved: 0,
    };
    insert(names::NODES, number, raw)
}

/// Deletes the entry of a node; nothing if there is none.
///
/// # Errors
/// The map cannot be written.
pub fn delete_node(number: u32) -> Result<(), Error> {
    delete::<u32, abi::Node>(names::NODES, number)
}

/// Trust bundles of other trust domains, by number.
///
/// # Errors
/// The map cannot be read, or holds something that is none.
pub fn bundles() -> Result<BTreeMap<u32, Bundle>, Error> {
    let raw: BTreeMap<u32, abi::Bundle> = entries(names::BUNDLES)?;
    let bundle = |raw: abi::Bundle| -> Result<Bundle, Error> {
        Ok(Bundle {
            trust_domain: text(names::BUNDLES, &raw.trust_domain)?,
            file: text(names::BUNDLES, &raw.file)?,
        })
    };
    raw.into_iter()
        .map(|(number, raw)| Ok((number, bundle(raw)?)))
        .collect()
}

/// Writes the entry of a trust bundle.
///
/// # Errors
/// The map cannot be written.
pub fn set_bundle(number: u32, bundle: &Bundle) -> Result<(), Error> {
    let raw = abi::Bundle {
        trust_domain: padded(names::BUNDLES, &bundle.trust_domain)?,
        file: padded(names::BUNDLES, &bundle.file)?,
    };
    insert(names::BUNDLES, number, raw)
}

/// Deletes the entry of a trust bundle; nothing if there is none.
///
/// # Errors
/// The map cannot be written.
pub fn delete_bundle(number: u32) -> Result<(), Error> {
    delete::<u32, abi::Bundle>(names::BUNDLES, number)
}

/// Workloads of other nodes, by address.
///
/// # Errors
/// The map cannot be read, or holds something that is none.
pub fn peer_workloads() -> Result<BTreeMap<IpAddr, PeerWorkload>, Error> {
    let raw: BTreeMap<[u8; 16], abi::PeerWorkload> = entries(names::PEER_WORKLOADS)?;
    let entry = |(ip, raw): ([u8; 16], abi::PeerWorkload)| -> Result<_, Error> {
        let workload = PeerWorkload {
            name: text(names::PEER_WORKLOADS, &raw.name)?,
            spiffe_id: text(names::PEER_WORKLOADS, &raw.spiffe_id)?,
        };
        Ok((Ipv6Addr::from(ip).to_canonical(), workload))
    };
    raw.into_iter().map(entry).collect()
}

/// Writes the entry of a workload of another node.
///
/// # Errors
/// The map cannot be written.
pub fn set_peer_workload(ip: IpAddr, workload: &PeerWorkload) -> Result<(), Error> {
    let raw = abi::PeerWorkload {
        name: padded(names::PEER_WORKLOADS, &workload.name)?,
        spiffe_id: padded(names::PEER_WORKLOADS, &workload.spiffe_id)?,
    };
    insert(names::PEER_WORKLOADS, key_of(ip.into()).1, raw)
}

/// Deletes the entry of a workload of another node; nothing if there is none.
///
/// # Errors
/// The map cannot be written.
pub fn delete_peer_workload(ip: IpAddr) -> Result<(), Error> {
    delete::<[u8; 16], abi::PeerWorkload>(names::PEER_WORKLOADS, key_of(ip.into()).1)
}

/// Ends of connections that are or shall be sealed, by socket cookie.
///
/// # Errors
/// The map cannot be read.
pub fn conns() -> Result<BTreeMap<u64, Conn>, Error> {
    entries(names::CONNS)
}

/// Every counter of the datapath with its name, summed over all CPUs.
///
/// # Errors
/// The map cannot be read.
pub fn counters() -> Result<Vec<(&'static str, Tally)>, Error> {
    let Some(map) = open(names::COUNTERS)? else {
        return Ok(Vec::new());
    };
    let fail = |error| cannot("read map", names::COUNTERS, error);
    let map = PerCpuArray::<_, Tally>::try_from(Map::PerCpuArray(map)).map_err(fail)?;
    let sum = |index: u32| {
        let values = map.get(&index, 0).map_err(fail)?;
        Ok(values.iter().fold(Tally::default(), |sum, one| Tally {
            packets: sum.packets.wrapping_add(one.packets),
            bytes: sum.bytes.wrapping_add(one.bytes),
        }))
    };
    abi::COUNTERS
        .iter()
        .map(|(counter, name)| Ok((*name, sum(*counter as u32)?)))
        .collect()
}

/// Every counter of the helper with its name.
///
/// # Errors
/// The map cannot be read.
pub fn helper_counters() -> Result<Vec<(&'static str, u64)>, Error> {
    let Some(map) = open(names::HELPER_COUNTERS)? else {
        return Ok(Vec::new());
    };
    let fail = |error| cannot("read map", names::HELPER_COUNTERS, error);
    let map = Array::<_, u64>::try_from(Map::Array(map)).map_err(fail)?;
    let read = |index: u32| map.get(&index, 0).map_err(fail);
    abi::HELPER_COUNTERS
        .iter()
        .map(|(counter, name)| Ok((*name, read(*counter as u32)?)))
        .collect()
}

/// The system error at the bottom of one of aya's, or its text.
pub(super) fn reason(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(error) => error.io_error,
        error => io::Error::other(error),
    }
}

pub(super) fn open(name: &str) -> Result<Option<MapData>, Error> {
    let Some(fd) = pin::open(&pin::path(names::MAPS, name))? else {
        return Ok(None);
    };
    MapData::from_fd(fd)
        .map(Some)
        .map_err(|error| cannot("open map", name, error))
}

pub(super) fn writable(name: &str) -> Result<MapData, Error> {
    open(name)?.ok_or_else(|| Error::new("write map", name, io::Error::other("there is none")))
}

pub(super) fn entries<K: Pod + Ord, V: Pod>(name: &str) -> Result<BTreeMap<K, V>, Error> {
    Ok(pairs(name)?.into_iter().collect())
}

/// The same for keys without an order.
pub(super) fn pairs<K: Pod, V: Pod>(name: &str) -> Result<Vec<(K, V)>, Error> {
    let Some(map) = pin::open(&pin::path(names::MAPS, name))? else {
        return Ok(Vec::new());
    };
    map_entries(map.as_fd()).map_err(|error| Error::new("read map", name, error))
}

pub(super) fn insert<K: Pod, V: Pod>(name: &str, key: K, value: V) -> Result<(), Error> {
    let write = HashMap::try_from(Map::HashMap(writable(name)?))
        .and_then(|mut map| map.insert(key, value, 0));
    write.map_err(|error| cannot("write map", name, error))
}

pub(super) fn delete<K: Pod, V: Pod>(name: &str, key: K) -> Result<(), Error> {
    let map = writable(name)?;
    let write =
        HashMap::<_, K, V>::try_from(Map::HashMap(map)).and_then(|mut map| map.remove(&key));
    absent_is_fine(name, write)
}

pub(super) fn absent_is_fine(name: &str, result: Result<(), MapError>) -> Result<(), Error> {
    match result {
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
            Ok(())
        }
        other => other.map_err(|error| cannot("write map", name, error)),
    }
}

pub(super) fn cannot(op: &'static str, name: &str, error: MapError) -> Error {
    Error::new(op, name, reason(error))
}

pub(super) fn strange(name: &str, what: impl fmt::Display) -> Error {
    Error::new(
        "understand map",
        name,
        io::Error::new(io::ErrorKind::InvalidData, format!("{what}")),
    )
}

/// Bits that an IPv4-mapped address has in front of the IPv4 address.
const MAPPED: u32 = 96;

/// The key of a network: prefix length, and the address in [`abi::ip_key`] form.
pub(super) fn key_of(net: IpNet) -> (u32, [u8; 16]) {
    match net {
        IpNet::V4(net) => (
            MAPPED + u32::from(net.prefix_len()),
            abi::ip_key(net.network().octets()),
        ),
        IpNet::V6(net) => (u32::from(net.prefix_len()), net.network().octets()),
    }
}

/// The network that a key stands for; `None` if it is no network, or not the way [`key_of`] writes it.
pub(super) fn net_of(prefix: u32, address: [u8; 16]) -> Option<IpNet> {
    let address = Ipv6Addr::from(address);
    let net = match address.to_canonical() {
        IpAddr::V4(v4) if prefix >= MAPPED => {
            IpNet::V4(Ipv4Net::new(v4, u8::try_from(prefix - MAPPED).ok()?).ok()?)
        }
        _ => IpNet::V6(Ipv6Net::new(address, u8::try_from(prefix).ok()?).ok()?),
    };
    (net.addr() == net.network()).then_some(net)
}

fn node(raw: &abi::Node) -> Result<Node, Error> {
    let address = |key: [u8; 16]| (key != [0; 16]).then(|| Ipv6Addr::from(key));
    let port = u16::try_from(raw.port)
        .map_err(|_| strange(names::NODES, format_args!("port {}", raw.port)))?;
    Ok(Node {
        name: text(names::NODES, &raw.name)?,
        v4: address(raw.v4).and_then(|v6| v6.to_ipv4_mapped()),
        v6: address(raw.v6),
        port,
    })
}

fn workload(raw: &abi::Workload) -> Result<Workload, Error> {
    let cipher = Cipher::from_number(raw.cipher)
        .ok_or_else(|| strange(names::WORKLOADS, format_args!("cipher {}", raw.cipher)))?;
    Ok(Workload {
        name: text(names::WORKLOADS, &raw.name)?,
        spiffe_id: text(names::WORKLOADS, &raw.spiffe_id)?,
        identity: text(names::WORKLOADS, &raw.identity)?,
        netns: text(names::WORKLOADS, &raw.netns)?,
        cipher,
        renew_before: raw.renew_before,
    })
}

pub(super) fn text<T: FromStr<Err: fmt::Display>>(map: &str, padded: &[u8]) -> Result<T, Error> {
    let end = padded
        .iter()
        .rposition(|&b| b != 0)
        .map_or(0, |last| last + 1);
    let text = String::from_utf8_lossy(&padded[..end]);
    text.parse()
        .map_err(|error| strange(map, format_args!("`{text}`: {error}")))
}

fn padded<const N: usize>(map: &str, value: &impl fmt::Display) -> Result<[u8; N], Error> {
    let text = value.to_string();
    let mut padded = [0; N];
    let place = padded.get_mut(..text.len()).ok_or_else(|| {
        let why = io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("`{text}` has more than {N} bytes"),
        );
        Error::new("put into map", map, why)
    })?;
    place.copy_from_slice(text.as_bytes());
    Ok(padded)
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn texts_are_never_cut() {
        assert_eq!(padded::<4>("X", &"abc").unwrap(), *b"abc\0");
        assert_eq!(padded::<4>("X", &"abcd").unwrap(), *b"abcd");
        assert!(padded::<4>("X", &"abcde").is_err());
        assert_eq!(text::<String>("X", b"abc\0").unwrap(), "abc");
        assert!(text::<crate::config::value::WorkloadName>("X", b"no slash\0").is_err());
    }
}
