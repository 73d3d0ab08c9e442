//! The maps of network policies. They hold two generations, of which one is in force: another one is written beside it,
//! then the programs are told, all of them at once.

use std::collections::BTreeMap;

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Map, MapError, PerCpuArray, PerCpuValues};
use ipnet::IpNet;
use underseal_abi::{self as abi, Config, Direction, Subject, SubjectKey, Tally, names};

use super::maps;
use crate::config::network_policy::Mtls;
use crate::kernel::error::Error;
use crate::state::{Grant, Policies};

/// Bits that a generation has in a key.
const GENERATION: u32 = 32;

/// What is in force; `None` if `generation` is 0, which stands for no policies.
///
/// # Errors
/// A map cannot be read, or holds something that this version does not write.
pub fn read(generation: u32) -> Result<Option<Policies>, Error> {
    if generation == 0 {
        return Ok(None);
    }
    let mut policies = Policies::default();
    for (key, subject) in maps::entries::<SubjectKey, Subject>(names::SUBJECTS)? {
        if key.generation == generation {
            policies.subjects.insert(key.workload, subject.selected);
        }
    }
    for (bits, key, number) in trie::<20, u32>(names::PEERS)? {
        if let Some(net) = network(bits, key, generation)? {
            policies.peers.insert(net, number);
        }
    }
    for (bits, key, raw) in trie::<16, abi::Grant>(names::GRANTS)? {
        policies.grants.extend(grant(bits, key, raw, generation));
    }
    Ok(Some(policies))
}

/// Puts other policies in force, at once and as a whole. Counters of rules start anew. Returns why those before could not
/// be removed, if so: nobody looks at them any more, and they are removed before there are others in their place.
///
/// # Errors
/// A map cannot be written; what was in force still is.
pub fn replace(policies: Option<&Policies>) -> Result<Option<Error>, Error> {
    let old = maps::config()?.unwrap_or_default();
    let next = match policies {
        None => 0,
        Some(_) if old.policy == 1 => 2,
        Some(_) => 1,
    };
    if let Some(policies) = policies {
        // What an apply has left that was interrupted.
        clear(next)?;
        if let Err(error) = write(next, policies) {
            clear(next)?;
            return Err(error);
        }
        clear_counters(next)?;
    }
    let config = Config {
        policy: next,
        ..old
    };
    maps::set_config(&config)?;
    if old.policy == 0 || old.policy == next {
        return Ok(None);
    }
    Ok(clear(old.policy).err())
}

/// What each rule of the generation that is in force has let pass, by its number; none that has nothing.
///
/// # Errors
/// The map cannot be read.
pub fn counters() -> Result<BTreeMap<u32, Tally>, Error> {
    let generation = maps::config()?.map_or(0, |config| config.policy);
    let Some(map) = maps::open(names::RULES)?.filter(|_| generation != 0) else {
        return Ok(BTreeMap::new());
    };
    let fail = |error| maps::cannot("read map", names::RULES, error);
    let map = PerCpuArray::<_, Tally>::try_from(Map::PerCpuArray(map)).map_err(fail)?;
    let mut counters = BTreeMap::new();
    for rule in 1..names::RULES_HALF {
        let values = map.get(&(half(generation) + rule), 0).map_err(fail)?;
        let sum = values.iter().fold(Tally::default(), |sum, one| Tally {
            packets: sum.packets.wrapping_add(one.packets),
            bytes: sum.bytes.wrapping_add(one.bytes),
        });
        if sum != Tally::default() {
            counters.insert(rule, sum);
        }
    }
    Ok(counters)
}

const fn half(generation: u32) -> u32 {
    if generation & 1 == 1 {
        0
    } else {
        names::RULES_HALF
    }
}

fn clear_counters(generation: u32) -> Result<(), Error> {
    let fail = |error| maps::cannot("write map", names::RULES, error);
    let map = maps::writable(names::RULES)?;
    let mut map = PerCpuArray::<_, Tally>::try_from(Map::PerCpuArray(map)).map_err(fail)?;
    for rule in 0..names::RULES_HALF {
        let index = half(generation) + rule;
        let old = map.get(&index, 0).map_err(fail)?;
        if old.iter().any(|it| *it != Tally::default()) {
            let zeros = vec![Tally::default(); old.len()];
            let zeros =
                PerCpuValues::try_from(zeros).map_err(|error| fail(MapError::IoError(error)))?;
            map.set(index, zeros, 0).map_err(fail)?;
        }
    }
    Ok(())
}

fn write(generation: u32, policies: &Policies) -> Result<(), Error> {
    for (workload, selected) in &policies.subjects {
        let key = SubjectKey {
            generation,
            workload: *workload,
        };
        let subject = Subject {
            selected: *selected,
        };
        maps::insert(names::SUBJECTS, key, subject)?;
    }
    let mut peers = open::<20, u32>(names::PEERS)?;
    for (net, number) in &policies.peers {
        let (bits, ip) = maps::key_of(*net);
        let key = Key::new(GENERATION + bits, abi::peer_key(generation, &ip));
        let write = peers.insert(&key, *number, 0);
        write.map_err(|error| maps::cannot("write map", names::PEERS, error))?;
    }
    let mut grants = open::<16, abi::Grant>(names::GRANTS)?;
    for it in &policies.grants {
        let direction = if it.direction == Direction::Egress as u8 {
            Direction::Egress
        } else {
            Direction::Ingress
        };
        let what = (it.protocol.unwrap_or(0), it.port);
        let key = abi::grant_key(generation, (it.subject, direction), it.peer, what);
        let raw = abi::Grant {
            rule: it.rule,
            mtls: it.mtls.raw() as u32,
        };
        let write = grants.insert(&Key::new(it.bits(), key), raw, 0);
        write.map_err(|error| maps::cannot("write map", names::GRANTS, error))?;
    }
    Ok(())
}

/// Deletes all that is of a generation.
fn clear(generation: u32) -> Result<(), Error> {
    for (key, _) in maps::entries::<SubjectKey, Subject>(names::SUBJECTS)? {
        if key.generation == generation {
            maps::delete::<SubjectKey, Subject>(names::SUBJECTS, key)?;
        }
    }
    clear_trie::<20, u32>(names::PEERS, generation)?;
    clear_trie::<16, abi::Grant>(names::GRANTS, generation)
}

fn clear_trie<const N: usize, V: Pod>(name: &str, generation: u32) -> Result<(), Error> {
    let mut map = None;
    for (bits, key, _) in trie::<N, V>(name)? {
        if key[..4] != generation.to_be_bytes() {
            continue;
        }
        let map = match &mut map {
            Some(map) => map,
            none => none.insert(open::<N, V>(name)?),
        };
        let removed = map.remove(&Key::new(bits, key));
        maps::absent_is_fine(name, removed)?;
    }
    Ok(())
}

fn open<const N: usize, V: Pod>(
    name: &str,
) -> Result<LpmTrie<aya::maps::MapData, [u8; N], V>, Error> {
    LpmTrie::try_from(Map::LpmTrie(maps::writable(name)?))
        .map_err(|error| maps::cannot("open map", name, error))
}

/// All entries of a trie: bits that count, key, value.
fn trie<const N: usize, V: Pod>(name: &str) -> Result<Vec<(u32, [u8; N], V)>, Error> {
    let Some(map) = maps::open(name)? else {
        return Ok(Vec::new());
    };
    let fail = |error| maps::cannot("read map", name, error);
    let map = LpmTrie::<_, [u8; N], V>::try_from(Map::LpmTrie(map)).map_err(fail)?;
    let entries = map.iter().map(|entry| {
        let (key, value) = entry.map_err(fail)?;
        Ok((key.prefix_len(), key.data(), value))
    });
    entries.collect()
}

/// The network of a key; `None` if it is of another generation.
fn network(bits: u32, key: [u8; 20], generation: u32) -> Result<Option<IpNet>, Error> {
    let [a, b, c, d, ip @ ..] = key;
    if [a, b, c, d] != generation.to_be_bytes() {
        return Ok(None);
    }
    let net = bits
        .checked_sub(GENERATION)
        .and_then(|bits| maps::net_of(bits, ip));
    let strange = || maps::strange(names::PEERS, format_args!("a key of {bits} bits"));
    net.ok_or_else(strange).map(Some)
}

/// The grant of a key; `None` if it is of another generation.
fn grant(bits: u32, key: [u8; 16], raw: abi::Grant, generation: u32) -> Option<Grant> {
    let [
        g0,
        g1,
        g2,
        g3,
        s0,
        s1,
        s2,
        s3,
        p0,
        p1,
        p2,
        p3,
        direction,
        protocol,
        port0,
        port1,
    ] = key;
    (generation == u32::from_be_bytes([g0, g1, g2, g3])).then(|| Grant {
        subject: u32::from_be_bytes([s0, s1, s2, s3]),
        direction,
        peer: u32::from_be_bytes([p0, p1, p2, p3]),
        protocol: (bits > abi::ANY_PROTOCOL).then_some(protocol),
        port: u16::from_be_bytes([port0, port1]),
        port_bits: u8::try_from(bits.saturating_sub(abi::ANY_PORT)).unwrap_or(u8::MAX),
        rule: raw.rule,
        mtls: match abi::Mtls::from_raw(raw.mtls) {
            abi::Mtls::Permitted => Mtls::Permitted,
            abi::Mtls::Required => Mtls::Required,
            abi::Mtls::Off => Mtls::Off,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_is_read_as_it_is_written() {
        for (protocol, port, port_bits) in [(None, 0, 0), (Some(6), 0, 0), (Some(17), 0x1400, 6)] {
            let it = Grant {
                subject: 7,
                direction: Direction::Egress as u8,
                peer: abi::ANYBODY,
                protocol,
                port,
                port_bits,
                rule: 3,
                mtls: Mtls::Required,
            };
            let what = (protocol.unwrap_or(0), port);
            let key = abi::grant_key(2, (7, Direction::Egress), it.peer, what);
            let raw = abi::Grant { rule: 3, mtls: 1 };
            assert_eq!(grant(it.bits(), key, raw, 2), Some(it));
            assert_eq!(grant(it.bits(), key, raw, 1), None);
        }
    }

    #[test]
    fn a_network_is_read_as_it_is_written() {
        for text in ["0.0.0.0/0", "192.0.2.0/24", "::/0", "2001:db8::/32"] {
            let net: IpNet = text.parse().unwrap();
            let (bits, ip) = maps::key_of(net);
            let key = abi::peer_key(1, &ip);
            assert_eq!(network(GENERATION + bits, key, 1).unwrap(), Some(net));
            assert_eq!(network(GENERATION + bits, key, 2).unwrap(), None);
        }
    }
}
