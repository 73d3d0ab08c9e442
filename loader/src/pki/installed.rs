//! Whether the certificates in the workloads' folders, whoever has issued them, have the DNS names that rules rely on.
//! Connections of one that lacks a name are refused; this says so before.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use underseal_ktls::pattern;

use super::certificate;
use crate::config::Config;
use crate::config::pki::DnsName;
use crate::config::value::WorkloadName;
use crate::policy::names;

/// A certificate that lacks names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lacking {
    /// Whose it is.
    pub workload: WorkloadName,
    /// Its file.
    pub certificate: PathBuf,
    /// What it does not have.
    pub names: BTreeSet<DnsName>,
}

/// The certificates that lack names. Of a file that cannot be read, or holds none, the helper complains.
#[must_use]
pub fn lacking(config: &Config) -> Vec<Lacking> {
    let demanded = names::own(config).into_iter();
    let lacking = demanded.filter_map(|(workload, mut names)| {
        let certificate = workload.identity.as_path().join("tls.crt");
        let facts = certificate::facts(&fs::read_to_string(&certificate).ok()?).ok()?;
        let has = |name: &DnsName| {
            let mut own = facts.names.dns.iter();
            own.any(|own| pattern::dns_name(own, name.as_str()))
        };
        names.retain(|name| !has(name));
        (!names.is_empty()).then(|| Lacking {
            workload: workload.name.clone(),
            certificate,
            names,
        })
    });
    lacking.collect()
}

/// When the certificate in a workload's folder ends, seconds since the epoch; `None` if there is none that can be read.
#[must_use]
pub fn end(folder: &Path) -> Option<u64> {
    let facts = certificate::facts(&fs::read_to_string(folder.join("tls.crt")).ok()?).ok()?;
    u64::try_from(facts.not_after).ok()
}

impl fmt::Display for Lacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.names.iter().map(DnsName::as_str).collect();
        write!(
            f,
            "sealed connections of workload {} are refused: rules rely on its DNS name {}, which {} does not have; whoever \
             issues that certificate must put it in",
            self.workload,
            names.join(", "),
            self.certificate.display()
        )
    }
}
