//! DNS names that certificates must have, because rules rely on them.
//!
//! A rule by DNS name means workloads by what the configuration says of them. For that to be true of whoever is at the
//! other end of a sealed connection, its certificate must have the name, too: the helper asks for every configured name
//! of a workload that a DNS pattern of any policy fits. Of a workload without such names none is asked for.

use std::collections::{BTreeMap, BTreeSet};

use underseal_abi::DnsNames;

use super::rules;
use crate::config::network_policy::{DnsPattern, Peer};
use crate::config::pki::DnsName;
use crate::config::value::WorkloadName;
use crate::config::{Config, Workload};
use crate::state::Named;

/// What the map `DNS_NAMES` is to have; `ids` has all workloads of this node.
#[must_use]
pub fn demanded(
    config: &Config,
    ids: &BTreeMap<WorkloadName, u32>,
) -> BTreeMap<Named, BTreeSet<DnsName>> {
    let own = own(config).into_iter();
    let own = own.map(|(it, names)| (Named::Own(ids[&it.name]), names));
    let patterns = patterns(config);
    let others = config.peers.iter().flat_map(|peer| &peer.workloads);
    let others = others.flat_map(|it| {
        let names = fitting(&patterns, &it.dns_names);
        let addresses = it.addresses.iter();
        addresses.map(move |ip| (Named::Other(ip.0), names.clone()))
    });
    let others = others.filter(|(_, names)| !names.is_empty());
    own.chain(others).collect()
}

/// Workloads of this node whose certificates must have names, with those.
#[must_use]
pub fn own(config: &Config) -> Vec<(&Workload, BTreeSet<DnsName>)> {
    let patterns = patterns(config);
    let all = config.workloads.iter();
    let all = all.map(|it| (it, fitting(&patterns, &it.dns_names)));
    all.filter(|(_, names)| !names.is_empty()).collect()
}

/// Names of a workload that rules rely on.
#[must_use]
pub fn of(config: &Config, names: &[DnsName]) -> BTreeSet<DnsName> {
    fitting(&patterns(config), names)
}

/// How many bytes the largest set has, if that is more than there is room for.
pub(super) fn too_long(demanded: &BTreeMap<Named, BTreeSet<DnsName>>) -> Option<usize> {
    let len = |names: &BTreeSet<DnsName>| names.iter().map(|it| it.as_str().len() + 1).sum();
    let longest = demanded.values().map(len).max()?;
    (longest > DnsNames::MAX_LEN).then_some(longest)
}

fn patterns(config: &Config) -> Vec<DnsPattern> {
    let rules = rules(config);
    let peers = rules.iter().flat_map(|it| it.rule.peers.iter().flatten());
    peers
        .filter_map(|peer| match peer {
            Peer::Dns(pattern) => Some(pattern.clone()),
            _ => None,
        })
        .collect()
}

fn fitting(patterns: &[DnsPattern], names: &[DnsName]) -> BTreeSet<DnsName> {
    let relied_on = |name: &&DnsName| patterns.iter().any(|it| it.fits(name));
    names.iter().filter(relied_on).cloned().collect()
}
