//! What an X.509-SVID must look like, for our own leaf and for a peer's alike.
//!
//! The rules are those of the X.509-SVID specification, sections 2 to 5:
//! <https://github.com/spiffe/spiffe/blob/v1.0.0/standards/X509-SVID.md>. Signatures and validity
//! are not looked at here.

use crate::{
    pattern,
    spiffe::{SpiffeId, SpiffeIdError},
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Why a certificate is no X.509-SVID of a workload.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SvidError {
    /// It is not an X.509 certificate, or an extension in it is broken.
    #[error("the certificate is malformed: {0}")]
    Malformed(String),
    /// It may sign certificates or revocation lists.
    #[error("the certificate is that of a CA, not of a workload")]
    Authority,
    /// It holds no URI name.
    #[error("the certificate has no URI name, so no SPIFFE ID")]
    NoId,
    /// It holds more than one URI name; which one counts would be a guess.
    #[error("the certificate has {0} URI names; exactly one, the SPIFFE ID, is allowed")]
    ManyIds(usize),
    /// Its URI name is no SPIFFE ID.
    #[error("the certificate's URI name `{name}` is no SPIFFE ID: {reason}")]
    IllFormedId {
        /// The name as the certificate has it.
        name: String,
        /// What is wrong with it.
        reason: SpiffeIdError,
    },
    /// Its SPIFFE ID has no path: it names a trust domain, not a workload.
    #[error("the certificate's SPIFFE ID `{0}` names a trust domain, not a workload")]
    NoPath(SpiffeId),
}

/// The parts of a leaf certificate that count.
#[derive(Clone, Debug)]
pub struct Svid {
    pub(crate) id: SpiffeId,
    /// In lower case.
    dns_names: Vec<String>,
    /// Seconds since the epoch.
    pub(crate) not_before: i64,
    /// Seconds since the epoch.
    pub(crate) not_after: i64,
}

impl Svid {
    /// Reads a leaf certificate. Nothing about it is verified.
    ///
    /// # Errors
    /// It is no X.509-SVID of a workload.
    pub fn parse(der: &[u8]) -> Result<Self, SvidError> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(malformed)?;
        if !rest.is_empty() {
            return Err(SvidError::Malformed("bytes follow it".to_owned()));
        }
        if is_authority(&certificate)? {
            return Err(SvidError::Authority);
        }
        Ok(Self {
            id: only_id(&certificate)?,
            dns_names: dns_names(&certificate)?,
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
        })
    }

    /// The workload's SPIFFE ID.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The DNS names in it, in lower case.
    pub fn dns_names(&self) -> impl Iterator<Item = &str> {
        self.dns_names.iter().map(String::as_str)
    }

    /// Whether it is good for this DNS name, by RFC 9525, section 6.3: the name is in it, or a name whose whole first
    /// label is `*`, which stands for one label. The subject is never looked at.
    #[must_use]
    pub fn has_dns_name(&self, name: &str) -> bool {
        self.dns_names().any(|own| pattern::dns_name(own, name))
    }

    /// Whether a DNS name in it fits a pattern; see [`pattern::dns_name`].
    #[must_use]
    pub fn matches_dns_name(&self, pattern: &str) -> bool {
        self.dns_names()
            .any(|name| pattern::dns_name(pattern, name))
    }

    /// Whether its SPIFFE ID fits a pattern; see [`pattern::spiffe_id`].
    #[must_use]
    pub fn matches_id(&self, pattern: &str) -> bool {
        pattern::spiffe_id(pattern, &self.id)
    }
}

fn dns_names(certificate: &X509Certificate<'_>) -> Result<Vec<String>, SvidError> {
    let names = certificate.subject_alternative_name().map_err(malformed)?;
    let names = names.iter().flat_map(|n| &n.value.general_names);
    Ok(names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        })
        .collect())
}

fn is_authority(certificate: &X509Certificate<'_>) -> Result<bool, SvidError> {
    let constraints = certificate.basic_constraints().map_err(malformed)?;
    let usage = certificate.key_usage().map_err(malformed)?;
    Ok(constraints.is_some_and(|c| c.value.ca)
        || usage.is_some_and(|u| u.value.key_cert_sign() || u.value.crl_sign()))
}

fn only_id(certificate: &X509Certificate<'_>) -> Result<SpiffeId, SvidError> {
    let names = certificate.subject_alternative_name().map_err(malformed)?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    let name = match uris[..] {
        [] => return Err(SvidError::NoId),
        [name] => name,
        _ => return Err(SvidError::ManyIds(uris.len())),
    };
    let id: SpiffeId = name.parse().map_err(|reason| SvidError::IllFormedId {
        name: name.to_owned(),
        reason,
    })?;
    if id.path().is_empty() {
        return Err(SvidError::NoPath(id));
    }
    Ok(id)
}

fn malformed(error: impl std::fmt::Display) -> SvidError {
    SvidError::Malformed(error.to_string())
}
