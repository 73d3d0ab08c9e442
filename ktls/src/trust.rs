//! Whose certificates count: bundles by trust domain, and revocation lists.
//!
//! A chain must lead to the bundle of the leaf's own trust domain, and to no other: a partner's CA cannot vouch for this
//! domain's workloads. Every certificate of the chain is looked up in the lists of its issuer. A list that has expired
//! refuses all certificates of its issuer, because nobody knows what has been revoked since. An issuer without a list
//! revokes nothing, and a list whose issuer is in no chain is never asked. Nothing here reads a file.

use crate::{
    party,
    svid::{Svid, SvidError},
    verify::Refusal,
};
use rustls::{
    RootCertStore,
    crypto::WebPkiSupportedAlgorithms,
    pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime},
};
use std::{collections::BTreeMap, fmt};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList,
    RevocationCheckDepth, RevocationOptions, RevocationOptionsBuilder, UnknownStatusPolicy,
};

/// What a peer's chain is held against: made once for each state of the files.
pub struct Trust {
    own: String,
    bundles: BTreeMap<String, RootCertStore>,
    lists: Vec<CertRevocationList<'static>>,
    pub(crate) algorithms: WebPkiSupportedAlgorithms,
}

/// What a certificate is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Usage {
    /// The peer is the client.
    Client,
    /// The peer is the server.
    Server,
    /// It has served already, as either.
    Any,
}

/// Whether a list that has expired still counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lists {
    /// It refuses all certificates of its issuer.
    Fresh,
    /// What it says is revoked is; the rest is not.
    AsTheyAre,
}

impl Trust {
    /// Trusts `bundle` for workloads of the trust domain `own`.
    ///
    /// # Errors
    /// The reason why one of the certificates cannot be a trust anchor.
    pub(crate) fn new(own: &str, bundle: Vec<CertificateDer<'static>>) -> Result<Self, String> {
        let mut trust = Self {
            own: own.to_owned(),
            bundles: BTreeMap::new(),
            lists: Vec::new(),
            algorithms: party::any_provider().signature_verification_algorithms,
        };
        trust.add(own, bundle)?;
        Ok(trust)
    }

    /// Trusts `bundle` for workloads of one more trust domain.
    ///
    /// # Errors
    /// As [`Trust::new`]; a second bundle for one domain is an error too.
    pub(crate) fn add(
        &mut self,
        domain: &str,
        bundle: Vec<CertificateDer<'static>>,
    ) -> Result<(), String> {
        let mut roots = RootCertStore::empty();
        for certificate in bundle {
            roots.add(certificate).map_err(|error| error.to_string())?;
        }
        if roots.is_empty() {
            return Err("it is empty".to_owned());
        }
        match self.bundles.insert(domain.to_owned(), roots) {
            None => Ok(()),
            Some(_) => Err(format!("there is another bundle for `{domain}`")),
        }
    }

    /// Goes on with the bundle that `old` has for a trust domain; false if it has none.
    pub(crate) fn keep(&mut self, domain: &str, old: &Self) -> bool {
        let kept = old.bundles.get(domain).cloned();
        let kept = kept.map(|roots| self.bundles.insert(domain.to_owned(), roots));
        kept.is_some()
    }

    /// Takes in a revocation list.
    ///
    /// # Errors
    /// The reason why it is none.
    pub(crate) fn revoke(&mut self, list: &CertificateRevocationListDer<'_>) -> Result<(), String> {
        let list = OwnedCertRevocationList::from_der(list).map_err(|error| error.to_string())?;
        self.lists.push(list.into());
        Ok(())
    }

    /// Whether there is a bundle for this trust domain.
    #[must_use]
    pub fn knows(&self, domain: &str) -> bool {
        self.bundles.contains_key(domain)
    }

    /// Checks that `leaf` is an X.509-SVID of a workload and that its chain leads to the bundle of its own domain.
    pub(crate) fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: Usage,
    ) -> Result<Svid, Refusal> {
        self.judge((leaf, intermediates), now, usage, Lists::Fresh)
    }

    /// Whether a chain that was accepted at `then` would have to be refused today for any other reason than time: a CA
    /// that is trusted no longer, or a revocation. `leaf` and `intermediates` are what the peer had presented.
    ///
    /// # Errors
    /// The reason.
    pub fn still_accepts(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        then: UnixTime,
    ) -> Result<(), Refusal> {
        let chain = (leaf, intermediates);
        let svid = self.judge(chain, then, Usage::Any, Lists::AsTheyAre)?;
        if self.knows(svid.id.trust_domain()) {
            return Ok(());
        }
        Err(Refusal::UnknownAuthority)
    }

    fn judge(
        &self,
        (leaf, intermediates): (&CertificateDer<'_>, &[CertificateDer<'_>]),
        now: UnixTime,
        usage: Usage,
        lists: Lists,
    ) -> Result<Svid, Refusal> {
        let svid = Svid::parse(leaf);
        // Named before the chain: path building refuses a CA as leaf too, but says it less plainly.
        if let Err(error @ SvidError::Authority) = svid {
            return Err(Refusal::Svid(error));
        }
        // Of a domain without a bundle the caller says that it is the wrong one, if the chain fits at all.
        let domain = svid.as_ref().map(|svid| svid.id.trust_domain());
        let domain = domain.ok().filter(|domain| self.knows(domain));
        let roots = &self.bundles[domain.unwrap_or(&self.own)];
        let parsed = EndEntityCert::try_from(leaf)
            .map_err(|error| Refusal::Svid(SvidError::Malformed(error.to_string())))?;
        let path = |usage| {
            let known: Vec<&CertRevocationList<'_>> = self.lists.iter().collect();
            let checked = parsed.verify_for_usage(
                self.algorithms.all,
                &roots.roots,
                intermediates,
                now,
                usage,
                revocation(&known, lists),
                None,
            );
            checked.map(drop)
        };
        let chain = match usage {
            Usage::Client => path(KeyUsage::client_auth()),
            Usage::Server => path(KeyUsage::server_auth()),
            Usage::Any => path(KeyUsage::client_auth()).or_else(|_| path(KeyUsage::server_auth())),
        };
        chain.map_err(Refusal::from_webpki)?;
        svid.map_err(Refusal::Svid)
    }
}

/// Whether these certificates, DER, can be the bundle of a trust domain.
///
/// # Errors
/// The reason why not.
pub fn check_bundle(domain: &str, certificates: &[&[u8]]) -> Result<(), String> {
    let certificates = certificates.iter();
    let certificates = certificates.map(|der| CertificateDer::from(der.to_vec()));
    Trust::new(domain, certificates.collect()).map(drop)
}

fn revocation<'a>(
    known: &'a [&'a CertRevocationList<'a>],
    lists: Lists,
) -> Option<RevocationOptions<'a>> {
    let expiration = match lists {
        Lists::Fresh => ExpirationPolicy::Enforce,
        Lists::AsTheyAre => ExpirationPolicy::Ignore,
    };
    // Fails if there are none: then nothing is revoked.
    let options = RevocationOptionsBuilder::new(known).ok()?;
    let options = options
        .with_depth(RevocationCheckDepth::Chain)
        .with_status_policy(UnknownStatusPolicy::Allow)
        .with_expiration_policy(expiration);
    Some(options.build())
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust")
            .field("domains", &self.bundles.keys())
            .field("revocation_lists", &self.lists.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Ca, Issued, Leaf};
    use rustls::pki_types::pem::PemObject;

    const CART: &str = "spiffe://example.org/ns/shop/sa/cart";
    const PARTNER: &str = "spiffe://partner.test/ns/shop/sa/cart";

    fn anchors(ca: &Ca) -> Vec<CertificateDer<'static>> {
        vec![CertificateDer::from_pem_slice(ca.root().as_bytes()).unwrap()]
    }

    fn trusting(ca: &Ca, lists: &[String]) -> Trust {
        let mut trust = Trust::new("example.org", anchors(ca)).unwrap();
        for list in lists {
            let list = CertificateRevocationListDer::from_pem_slice(list.as_bytes()).unwrap();
            trust.revoke(&list).unwrap();
        }
        trust
    }

    fn numbered(ca: &Ca, id: &'static str, serial: u64) -> Issued {
        let mut leaf = Leaf::of(id);
        leaf.serial = Some(serial);
        ca.issue(&leaf)
    }

    fn verdict(trust: &Trust, issued: &Issued) -> Result<(), &'static str> {
        let chain = issued.chain();
        let (leaf, rest) = chain.split_first().unwrap();
        let verdicts = [Usage::Client, Usage::Server].map(|usage| {
            let verdict = trust.verify(leaf, rest, UnixTime::now(), usage);
            verdict.map(drop).map_err(|refusal| refusal.as_str())
        });
        assert_eq!(verdicts[0], verdicts[1]);
        verdicts[0]
    }

    fn later(trust: &Trust, issued: &Issued) -> Result<(), &'static str> {
        let chain = issued.chain();
        let (leaf, rest) = chain.split_first().unwrap();
        let verdict = trust.still_accepts(leaf, rest, UnixTime::now());
        verdict.map_err(|refusal| refusal.as_str())
    }

    #[test]
    fn what_is_revoked_is_refused_and_nothing_else() {
        let ca = Ca::new("ca");
        let trust = trusting(&ca, &[ca.revoke(&[7], -60..3600)]);
        assert_eq!(verdict(&trust, &numbered(&ca, CART, 7)), Err("revoked"));
        assert_eq!(verdict(&trust, &numbered(&ca, CART, 8)), Ok(()));
        assert_eq!(
            verdict(&trusting(&ca, &[]), &numbered(&ca, CART, 7)),
            Ok(())
        );
    }

    #[test]
    fn a_list_that_has_expired_refuses_its_issuer_alone() {
        let (root, other) = (Ca::new("root"), Ca::new("other"));
        let issuer = root.subordinate("issuer");
        let trust = trusting(&root, &[issuer.revoke(&[7], -60..-30)]);
        let cart = numbered(&issuer, CART, 8);
        assert_eq!(verdict(&trust, &cart), Err("revocation-list-expired"));
        assert_eq!(verdict(&trust, &numbered(&root, CART, 8)), Ok(()));
        // Of a connection that is open already only what is revoked counts.
        assert_eq!(later(&trust, &cart), Ok(()));
        assert_eq!(later(&trust, &numbered(&issuer, CART, 7)), Err("revoked"));
        let stranger = trusting(&root, &[other.revoke(&[8], -60..-30)]);
        assert_eq!(verdict(&stranger, &cart), Ok(()), "a list of a stranger");
    }

    #[test]
    fn a_list_in_the_name_of_the_issuer_with_another_key_refuses() {
        let (ours, theirs) = (Ca::new("ca"), Ca::new("ca"));
        let trust = trusting(&ours, &[theirs.revoke(&[], -60..3600)]);
        let cart = numbered(&ours, CART, 8);
        assert_eq!(verdict(&trust, &cart), Err("bad-revocation-list"));
    }

    #[test]
    fn each_domain_has_its_own_bundle() {
        let (ours, theirs) = (Ca::new("ours"), Ca::new("theirs"));
        let mut trust = trusting(&ours, &[]);
        assert_eq!(
            verdict(&trust, &theirs.issue(&Leaf::of(PARTNER))),
            Err("unknown-ca")
        );
        trust.add("partner.test", anchors(&theirs)).unwrap();
        assert_eq!(verdict(&trust, &theirs.issue(&Leaf::of(PARTNER))), Ok(()));
        assert_eq!(verdict(&trust, &ours.issue(&Leaf::of(CART))), Ok(()));
        for forged in [
            theirs.issue(&Leaf::of(CART)),
            ours.issue(&Leaf::of(PARTNER)),
        ] {
            assert_eq!(verdict(&trust, &forged), Err("unknown-ca"));
        }
        assert!(trust.add("partner.test", anchors(&theirs)).is_err());
        assert!(trust.add("empty.test", Vec::new()).is_err());
    }

    #[test]
    fn an_open_connection_ends_with_its_ca_but_not_with_its_certificate() {
        let (old, new) = (Ca::new("old"), Ca::new("new"));
        let mut leaf = Leaf::of(CART);
        leaf.valid = -3600..-1800;
        let (ended, chain) = (old.issue(&leaf), old.issue(&leaf).chain());
        let then = UnixTime::since_unix_epoch(
            UnixTime::now()
                .as_secs()
                .checked_sub(2000)
                .map(std::time::Duration::from_secs)
                .unwrap(),
        );
        let asked = |trust: &Trust| {
            let verdict = trust.still_accepts(&chain[0], &chain[1..], then);
            verdict.map_err(|refusal| refusal.as_str())
        };
        assert_eq!(verdict(&trusting(&old, &[]), &ended), Err("expired"));
        // The test's CA is younger than its leaf: what counts is that the leaf itself does not matter.
        assert_eq!(asked(&trusting(&old, &[])), Ok(()));
        assert_eq!(asked(&trusting(&new, &[])), Err("unknown-ca"));
    }
}
