//! The maps `WORKLOADS`, `NODES`, `BUNDLES` and `PEER_WORKLOADS`: who is known to the helper.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use underseal_abi::{self as abi, names};

use super::{delete, entries, insert, key_of, padded, strange, text};
use crate::config::choice::Cipher;
use crate::kernel::error::Error;
use crate::state::{Bundle, Node, PeerWorkload, Workload};

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
