//! What the agent has said, and the files that follow from it. No I/O.
//!
//! Both streams name bundles and revocation lists. Of each trust domain the message counts that came last.

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use underseal::pki::{authority::Bundle, folder::Set};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::{Zeroize, Zeroizing};

use crate::{
    line,
    workload::{X509BundlesResponse, X509svid, X509svidResponse},
};

/// Everything that the agent has said last.
#[derive(Default)]
pub struct Told {
    svids: Option<Vec<X509svid>>,
    with_svids: Trusted,
    alone: Trusted,
    /// Whether the last message was one of bundles alone.
    alone_is_newer: bool,
}

/// What one message says of trust.
#[derive(Default)]
struct Trusted {
    /// Certificates, DER in a row, by trust domain.
    bundles: BTreeMap<String, Vec<u8>>,
    /// Revocation lists, DER.
    lists: Vec<Vec<u8>>,
}

impl Told {
    /// Takes in a message with SVIDs, which names all of them.
    pub fn svids(&mut self, message: X509svidResponse) {
        let federated = message.federated_bundles.into_iter();
        let own = message.svids.iter();
        let own = own.map(|svid| (svid.spiffe_id.clone(), svid.bundle.clone()));
        self.with_svids = Trusted::new(federated.chain(own), message.crl);
        self.alone_is_newer = false;
        self.forget_keys();
        self.svids = Some(message.svids);
    }

    /// Takes in a message with bundles alone, which names all of them.
    pub fn bundles(&mut self, message: X509BundlesResponse) {
        self.alone = Trusted::new(message.bundles, message.crl);
        self.alone_is_newer = true;
    }

    /// Whether there has been a message with SVIDs.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.svids.is_some()
    }

    /// The files of the workload with this SPIFFE ID.
    ///
    /// # Errors
    /// Why there are none. Neither signatures nor validity are looked at.
    pub fn set(&self, id: &str) -> Result<Set, String> {
        let mut svids = self.svids.iter().flatten();
        // The first one is the default (Workload API, section 5.3).
        let svid = svids.find(|svid| svid.spiffe_id == id);
        let svid = svid.ok_or_else(|| {
            format!("the agent has no certificate for {id}: no registration entry names it")
        })?;
        let chain = certificates(&svid.x509_svid).map_err(|why| format!("its chain: {why}"))?;
        let leaf = chain
            .first()
            .ok_or("there is no certificate with its SPIFFE ID")?;
        check_leaf(leaf)?;
        Ok(Set {
            certificate: chain.iter().map(|der| pem("CERTIFICATE", der)).collect(),
            key: dangerous_pem(&svid.x509_svid_key),
            bundle: Bundle {
                certificates: self.bundle_with(svid)?,
                lists: self.lists().map(|der| pem("X509 CRL", der)).collect(),
            },
        })
    }

    /// The certificates of a trust domain's CAs, PEM.
    ///
    /// # Errors
    /// Why there are none.
    pub fn bundle(&self, domain: &str) -> Result<String, String> {
        let [newer, older] = self.newer_first();
        let der = newer
            .bundles
            .get(domain)
            .or_else(|| older.bundles.get(domain));
        let der = der.ok_or_else(|| format!("the agent has no bundle for {domain}"))?;
        bundle_pem(domain, der)
    }

    /// The bundle beside an SVID, unless the other stream has said another one since: what is wrong with the bundle of one
    /// SVID is no other's business.
    fn bundle_with(&self, svid: &X509svid) -> Result<String, String> {
        let domain = domain(&svid.spiffe_id);
        let since = self.alone.bundles.get(domain);
        let since = since.filter(|_| self.alone_is_newer);
        bundle_pem(domain, since.unwrap_or(&svid.bundle))
    }

    /// SPIFFE IDs with a certificate, apart from these.
    #[must_use]
    pub fn others(&self, known: &BTreeSet<&str>) -> BTreeSet<String> {
        let ids = self.svids.iter().flatten().map(|svid| &*svid.spiffe_id);
        ids.filter(|id| !known.contains(id)).map(line).collect()
    }

    /// Trust domains with a bundle.
    #[must_use]
    pub fn domains(&self) -> BTreeSet<&str> {
        let all = [&self.with_svids, &self.alone].into_iter();
        all.flat_map(|it| it.bundles.keys().map(String::as_str))
            .collect()
    }

    fn lists(&self) -> impl Iterator<Item = &Vec<u8>> {
        let [newer, older] = self.newer_first();
        // An agent may give them on one stream only.
        let says = if newer.lists.is_empty() { older } else { newer };
        says.lists.iter()
    }

    const fn newer_first(&self) -> [&Trusted; 2] {
        if self.alone_is_newer {
            [&self.alone, &self.with_svids]
        } else {
            [&self.with_svids, &self.alone]
        }
    }

    fn forget_keys(&mut self) {
        for svid in self.svids.iter_mut().flatten() {
            svid.x509_svid_key.zeroize();
        }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.forget_keys();
    }
}

impl Trusted {
    fn new(bundles: impl IntoIterator<Item = (String, Vec<u8>)>, lists: Vec<Vec<u8>>) -> Self {
        let bundles = bundles.into_iter();
        let by_domain = bundles.map(|(id, der)| (line(domain(&id)), der));
        Self {
            bundles: by_domain.collect(),
            lists,
        }
    }
}

/// The trust domain of a SPIFFE ID, of a workload or of the domain itself.
fn domain(id: &str) -> &str {
    let rest = id.strip_prefix("spiffe://").unwrap_or(id);
    rest.split('/').next().unwrap_or(rest)
}

/// The certificates that stand one after the other in `der`.
fn certificates(mut der: &[u8]) -> Result<Vec<&[u8]>, String> {
    let mut all = Vec::new();
    while !der.is_empty() {
        let (rest, _) = X509Certificate::from_der(der)
            .map_err(|error| format!("certificate {} is malformed: {error}", all.len() + 1))?;
        let (this, _) = der.split_at(der.len() - rest.len());
        all.push(this);
        der = rest;
    }
    Ok(all)
}

fn bundle_pem(domain: &str, der: &[u8]) -> Result<String, String> {
    let all = certificates(der).map_err(|why| format!("the bundle of {domain}: {why}"))?;
    if all.is_empty() {
        return Err(format!("the bundle of {domain} is empty"));
    }
    underseal_ktls::check_bundle(domain, &all)
        .map_err(|why| format!("the bundle of {domain}: {why}"))?;
    Ok(all.iter().map(|der| pem("CERTIFICATE", der)).collect())
}

/// What the X.509-SVID specification (sections 4.1 and 4.3) demands of a leaf beyond what every peer checks: without it
/// other implementations would refuse the workload.
fn check_leaf(der: &[u8]) -> Result<(), String> {
    let malformed =
        |error: &dyn std::fmt::Display| format!("its certificate is malformed: {error}");
    let (_, leaf) = X509Certificate::from_der(der).map_err(|error| malformed(&error))?;
    let constraints = leaf
        .basic_constraints()
        .map_err(|error| malformed(&error))?;
    match constraints {
        Some(constraints) if constraints.value.ca => {
            return Err("its certificate is that of a CA (basicConstraints)".to_owned());
        }
        Some(_) => {}
        None => {
            return Err(
                "its certificate does not say that it is no CA (basicConstraints)".to_owned(),
            );
        }
    }
    let usage = leaf.key_usage().map_err(|error| malformed(&error))?;
    if !usage.is_some_and(|usage| usage.value.digital_signature()) {
        return Err("its certificate is not for signatures (keyUsage)".to_owned());
    }
    Ok(())
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = Zeroizing::new(BASE64.encode(der));
    // Room for all of it: a string that grows leaves parts of a key behind.
    let mut pem =
        String::with_capacity(text.len() / LINE * (LINE + 1) + 2 * label.len() + LINE * 2);
    pem += "-----BEGIN ";
    pem += label;
    pem += "-----\n";
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (this, next) = rest.split_at(rest.len().min(LINE));
        pem += this;
        pem += "\n";
        rest = next;
    }
    pem += "-----END ";
    pem += label;
    pem += "-----\n";
    pem
}

/// A secret.
fn dangerous_pem(pkcs8: &[u8]) -> Zeroizing<String> {
    Zeroizing::new(pem("PRIVATE KEY", pkcs8))
}

/// Characters in a line of PEM (RFC 7468, section 2).
const LINE: usize = 64;

#[cfg(test)]
mod tests;
