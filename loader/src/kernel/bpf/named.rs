//! The map `DNS_NAMES`: which DNS names certificates must have.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv6Addr;

use underseal_abi::{self as abi, DnsNames, names::DNS_NAMES};

use super::maps;
use crate::config::pki::DnsName;
use crate::kernel::error::Error;
use crate::state::Named;

/// All names that certificates must have.
///
/// # Errors
/// The map cannot be read, or holds something that is no name.
pub fn read() -> Result<BTreeMap<Named, BTreeSet<DnsName>>, Error> {
    let raw: Vec<(abi::Named, DnsNames)> = maps::pairs(DNS_NAMES)?;
    raw.into_iter()
        .map(|(key, value)| Ok((named(key), unpack(&value)?)))
        .collect()
}

/// Writes the names of one workload as a whole; none: its entry is deleted, if there is one.
///
/// # Errors
/// There is no room for so many names, or the map cannot be written.
pub fn set(whose: Named, wanted: &BTreeSet<DnsName>) -> Result<(), Error> {
    if wanted.is_empty() {
        return maps::delete::<abi::Named, DnsNames>(DNS_NAMES, key(whose));
    }
    maps::insert(DNS_NAMES, key(whose), pack(wanted)?)
}

fn key(whose: Named) -> abi::Named {
    match whose {
        Named::Own(workload) => abi::Named::own(workload),
        Named::Other(ip) => abi::Named::other(maps::key_of(ip.into()).1),
    }
}

fn named(key: abi::Named) -> Named {
    match key.workload {
        0 => Named::Other(Ipv6Addr::from(key.address).to_canonical()),
        id => Named::Own(id),
    }
}

fn pack(wanted: &BTreeSet<DnsName>) -> Result<DnsNames, Error> {
    let text: String = wanted.iter().map(|it| format!("{it}\0")).collect();
    let mut names = [0; DnsNames::MAX_LEN];
    let place = names.get_mut(..text.len()).ok_or_else(|| {
        let why = format!("{} bytes of DNS names for one workload", text.len());
        let why = io::Error::new(io::ErrorKind::InvalidInput, why);
        Error::new("put into map", DNS_NAMES, why)
    })?;
    place.copy_from_slice(text.as_bytes());
    Ok(DnsNames { names })
}

fn unpack(value: &DnsNames) -> Result<BTreeSet<DnsName>, Error> {
    let names = value.iter();
    names.map(|name| maps::text(DNS_NAMES, name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_whole_or_not_at_all() {
        let name = |text: &str| text.parse::<DnsName>().unwrap();
        let some = BTreeSet::from([name("cart"), name("cart.shop.svc.cluster.local")]);
        assert_eq!(unpack(&pack(&some).unwrap()).unwrap(), some);
        let many: BTreeSet<_> = (0..200)
            .map(|i| name(&format!("n{i}.example.org")))
            .collect();
        let all = pack(&many).unwrap();
        assert_eq!(unpack(&all).unwrap(), many);
        let more: BTreeSet<_> = (0..400)
            .map(|i| name(&format!("n{i}.example.org")))
            .collect();
        assert!(pack(&more).is_err());
    }

    #[test]
    fn keys_come_back() {
        for whose in [
            Named::Own(7),
            Named::Other("10.2.0.12".parse().unwrap()),
            Named::Other("fd00:2::c".parse().unwrap()),
        ] {
            assert_eq!(named(key(whose)), whose);
            assert_eq!(whose.to_string().parse::<Named>().unwrap(), whose);
        }
    }
}
