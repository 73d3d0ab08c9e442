//! The pinned maps: typed reads and writes, without the object.
//!
//! What is not pinned reads as empty and cannot be written. What cannot be understood (an address
//! that is no canonical network, a name that is no name) is an error: it is not ours to interpret.

mod ipcache;
mod parties;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::str::FromStr;

use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use underseal_abi::{self as abi, Config, Conn, Netns, Tally, names};
use underseal_ktls::map_entries;

pub use self::ipcache::{delete_endpoint, ipcache, set_endpoint};
pub(super) use self::ipcache::{key_of, net_of};
pub use self::parties::{
    bundles, delete_bundle, delete_node, delete_peer_workload, delete_workload, nodes,
    peer_workloads, set_bundle, set_node, set_peer_workload, set_workload, workloads,
};
use super::pin;
use crate::kernel::error::Error;

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
    fn texts_are_never_cut() {
        assert_eq!(padded::<4>("X", &"abc").unwrap(), *b"abc\0");
        assert_eq!(padded::<4>("X", &"abcd").unwrap(), *b"abcd");
        assert!(padded::<4>("X", &"abcde").is_err());
        assert_eq!(text::<String>("X", b"abc\0").unwrap(), "abc");
        assert!(text::<crate::config::value::WorkloadName>("X", b"no slash\0").is_err());
    }
}
