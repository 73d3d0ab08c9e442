//! How full the maps are that something depends on having room in. Arrays have no entries to run out of, and what is
//! least used makes room in `REPLIES` by itself.

use std::collections::BTreeMap;

use aya::maps::MapInfo;
use underseal_abi::{Chain, Seal, Sleeper, names};

use super::{maps, pin};
use crate::kernel::error::Error;
use crate::state::Datapath;

/// Entries in use and entries that there is room for, by the map's name. Of the maps of network policies, which must
/// have room for two generations, half of the room counts. `conns` is how many entries `CONNS` has.
///
/// # Errors
/// A map cannot be read.
pub fn fill(
    datapath: &Datapath,
    conns: usize,
) -> Result<BTreeMap<&'static str, (usize, u32)>, Error> {
    let policies = datapath.policies.clone().unwrap_or_default();
    let used = [
        (names::IPCACHE, datapath.ipcache.len(), 1),
        (names::NETNS, maps::namespaces()?.len(), 1),
        (names::WORKLOADS, datapath.workloads.len(), 1),
        (names::NODES, datapath.nodes.len(), 1),
        (names::BUNDLES, datapath.bundles.len(), 1),
        (names::PEER_WORKLOADS, datapath.peer_workloads.len(), 1),
        (names::DNS_NAMES, datapath.dns_names.len(), 1),
        (names::SUBJECTS, policies.subjects.len(), 2),
        (names::PEERS, policies.peers.len(), 2),
        (names::GRANTS, policies.grants.len(), 2),
        (names::CONNS, conns, 1),
        (names::SLEEPERS, count::<Sleeper, u64>(names::SLEEPERS)?, 1),
        (names::SEALS, count::<u64, Seal>(names::SEALS)?, 1),
        (names::CHAINS, count::<[u8; 32], Chain>(names::CHAINS)?, 1),
    ];
    let mut fill = BTreeMap::new();
    for (name, used, generations) in used {
        let info = MapInfo::from_pin(pin::path(names::MAPS, name))
            .map_err(|error| maps::cannot("look at map", name, error))?;
        fill.insert(name, (used, info.max_entries() / generations));
    }
    Ok(fill)
}

fn count<K: aya::Pod, V: aya::Pod>(name: &str) -> Result<usize, Error> {
    Ok(maps::pairs::<K, V>(name)?.len())
}
