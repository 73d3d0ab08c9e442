//! Who is accepted as the peer of a handshake, and why not.
//!
//! A peer passes if its chain leads to the bundle of its own trust domain, nothing in it is revoked, its leaf is an
//! X.509-SVID of a workload, and the SPIFFE ID in it is exactly the one expected for this handshake, or at least of a
//! trusted domain. Where DNS names are asked for, the leaf must have all of them ([`Svid::has_dns_name`]).

use crate::{
    identity::Identity,
    party::Expects,
    spiffe::SpiffeId,
    svid::{Svid, SvidError},
    trust::{Trust, Usage},
};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::verify_tls13_signature,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use std::sync::Arc;

/// Accepts, as client and as server, the one peer that is expected.
///
/// It serves one handshake: the expectation is part of it. TLS 1.3 only.
#[derive(Debug)]
pub struct PeerVerifier {
    trust: Arc<Trust>,
    expected: SpiffeId,
    scope: Scope,
    dns_names: Vec<String>,
}

/// How much of an ID has to fit.
#[derive(Debug, PartialEq, Eq)]
enum Scope {
    Workload,
    TrustDomain,
}

impl PeerVerifier {
    /// A verifier that trusts what `identity` trusts and accepts what is expected alone.
    #[must_use]
    pub fn new<'a>(identity: &Identity, expects: impl Into<Expects<'a>>) -> Self {
        let (expected, scope, dns_names) = match expects.into() {
            Expects::Workload(id) => (id, Scope::Workload, &[][..]),
            Expects::Named { id, dns_names } => (id, Scope::Workload, dns_names),
            Expects::AnyOfDomainOf(id) => (id, Scope::TrustDomain, &[][..]),
        };
        Self {
            trust: Arc::clone(&identity.trust),
            expected: expected.clone(),
            scope,
            dns_names: dns_names.to_vec(),
        }
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: Usage,
    ) -> Result<(), Refusal> {
        self.admit(self.trust.verify(leaf, intermediates, now, usage)?)
    }

    /// Judges a peer whose chain is good.
    fn admit(&self, svid: Svid) -> Result<(), Refusal> {
        let domain = svid.id.trust_domain();
        let same_domain = domain == self.expected.trust_domain();
        let trusted = self.trust.knows(domain);
        if trusted && svid.id == self.expected {
            let missing = |name: &&String| !svid.has_dns_name(name);
            return match self.dns_names.iter().find(missing) {
                None => Ok(()),
                Some(name) => Err(Refusal::NameMissing(name.clone())),
            };
        }
        if trusted && self.scope == Scope::TrustDomain {
            return Ok(());
        }
        let (presented, expected) = (svid.id, self.expected.clone());
        Err(if same_domain && !trusted {
            Refusal::UntrustedDomain(presented)
        } else if same_domain {
            Refusal::NotAllowed {
                presented,
                expected,
            }
        } else {
            Refusal::WrongTrustDomain {
                presented,
                expected,
            }
        })
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        // Always the same placeholder; the peer's name is its SPIFFE ID.
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(end_entity, intermediates, now, Usage::Server)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(not_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.trust.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A workload has one certificate, so hints cannot help it to choose.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(end_entity, intermediates, now, Usage::Client)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(not_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.trust.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.algorithms.supported_schemes()
    }
}

/// Why a peer was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It presented no certificate.
    #[error("it presented no certificate")]
    NoCertificate,
    /// A certificate of its chain has expired.
    #[error("its certificate has expired")]
    Expired,
    /// A certificate of its chain is not valid yet.
    #[error("its certificate is not valid yet")]
    NotYetValid,
    /// Its chain does not lead to the trust bundle.
    #[error("its certificate is not issued by a CA of the trust bundle")]
    UnknownAuthority,
    /// It, or a CA of its chain, has been revoked.
    #[error("its certificate has been revoked")]
    Revoked,
    /// The revocation list of one of its issuers has expired.
    #[error("the revocation list of its issuer has expired: renew `ca.crl`")]
    ListExpired,
    /// A revocation list in the name of its issuer is not that issuer's.
    #[error("the revocation list in the name of its issuer is not signed by that issuer: {0}")]
    BadList(String),
    /// It does not have this DNS name.
    #[error("its certificate does not have the DNS name `{0}`, which is asked for")]
    NameMissing(String),
    /// A signature does not fit.
    #[error(
        "a signature on its certificate or handshake does not fit (is it issued by a CA of the \
         same name with another key?)"
    )]
    BadSignature,
    /// The extended key usage does not allow this role.
    #[error("its certificate may not be used for this role (extended key usage)")]
    WrongUsage,
    /// Its leaf is no X.509-SVID of a workload.
    #[error("{0}")]
    Svid(SvidError),
    /// It belongs to another trust domain.
    #[error(
        "its trust domain is `{}`, expected `{}`",
        presented.trust_domain(),
        expected.trust_domain()
    )]
    WrongTrustDomain {
        /// The ID in its certificate.
        presented: SpiffeId,
        /// The ID that was expected.
        expected: SpiffeId,
    },
    /// It is expected, but nothing here vouches for its trust domain.
    #[error("there is no trust bundle for the domain of `{0}`")]
    UntrustedDomain(SpiffeId),
    /// It is another workload of the right trust domain.
    #[error("it is `{presented}`, expected `{expected}`")]
    NotAllowed {
        /// The ID in its certificate.
        presented: SpiffeId,
        /// The ID that was expected.
        expected: SpiffeId,
    },
    /// Something rarer, in the words of the TLS library.
    #[error("its certificate is refused: {0}")]
    Other(String),
}

impl Refusal {
    /// A short name that stays the same, for counters.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no-certificate",
            Self::Expired => "expired",
            Self::NotYetValid => "not-yet-valid",
            Self::UnknownAuthority => "unknown-ca",
            Self::Revoked => "revoked",
            Self::ListExpired => "revocation-list-expired",
            Self::BadList(_) => "bad-revocation-list",
            Self::NameMissing(_) => "dns-name-missing",
            Self::BadSignature => "bad-signature",
            Self::WrongUsage => "wrong-usage",
            Self::Svid(SvidError::Malformed(_)) => "malformed",
            Self::Svid(SvidError::Authority) => "ca-certificate",
            Self::Svid(SvidError::NoId) => "no-spiffe-id",
            Self::Svid(SvidError::ManyIds(_)) => "many-spiffe-ids",
            Self::Svid(SvidError::IllFormedId { .. } | SvidError::NoPath(_)) => "bad-spiffe-id",
            Self::WrongTrustDomain { .. } | Self::UntrustedDomain(_) => "wrong-trust-domain",
            Self::NotAllowed { .. } => "not-allowed",
            Self::Other(_) => "other",
        }
    }

    /// The refusal behind an error of the TLS library, if it is one.
    pub(crate) fn from_rustls(error: &rustls::Error) -> Option<Self> {
        match error {
            rustls::Error::NoCertificatesPresented => Some(Self::NoCertificate),
            rustls::Error::InvalidCertificate(error) => Some(Self::from_certificate_error(error)),
            _ => None,
        }
    }

    fn from_certificate_error(error: &CertificateError) -> Self {
        use CertificateError::{BadEncoding, BadSignature, Other};
        match error {
            BadSignature => Self::BadSignature,
            BadEncoding => Self::Svid(SvidError::Malformed(error.to_string())),
            Other(OtherError(inner)) => match inner.downcast_ref::<Self>() {
                Some(ours) => ours.clone(),
                None => Self::Other(inner.to_string()),
            },
            other => Self::Other(other.to_string()),
        }
    }

    pub(crate) fn from_webpki(error: webpki::Error) -> Self {
        use webpki::Error as E;
        match error {
            E::CertExpired { .. } | E::InvalidCertValidity => Self::Expired,
            E::CertNotValidYet { .. } => Self::NotYetValid,
            E::UnknownIssuer => Self::UnknownAuthority,
            E::CertRevoked => Self::Revoked,
            E::CrlExpired { .. } => Self::ListExpired,
            E::InvalidCrlSignatureForPublicKey
            | E::IssuerNotCrlSigner
            | E::UnsupportedCrlSignatureAlgorithmContext(_)
            | E::UnsupportedCrlSignatureAlgorithmForPublicKeyContext(_) => {
                Self::BadList(error.to_string())
            }
            E::InvalidSignatureForPublicKey => Self::BadSignature,
            E::RequiredEkuNotFoundContext(_) => Self::WrongUsage,
            E::BadDer | E::BadDerTime | E::TrailingData(_) => {
                Self::Svid(SvidError::Malformed(error.to_string()))
            }
            other => Self::Other(other.to_string()),
        }
    }
}

impl From<Refusal> for rustls::Error {
    fn from(refusal: Refusal) -> Self {
        CertificateError::Other(OtherError(Arc::new(refusal))).into()
    }
}

fn not_tls12() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is not spoken here".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Ca, Leaf, identity};

    const CART: &str = "spiffe://example.org/ns/shop/sa/cart";
    const TILL: &str = "spiffe://example.org/ns/shop/sa/till";

    /// What an end that expects `CART` says to `chain`, as client and as server.
    fn verdicts(ca: &Ca, chain: &[CertificateDer<'_>]) -> [Result<(), &'static str>; 2] {
        let verifier = PeerVerifier::new(&identity(ca, TILL), &CART.parse::<SpiffeId>().unwrap());
        let now = UnixTime::now();
        let name = ServerName::try_from("peer.invalid").unwrap();
        let (leaf, rest) = chain.split_first().unwrap();
        let short = |error| Refusal::from_rustls(&error).unwrap().as_str();
        [
            verifier
                .verify_server_cert(leaf, rest, &name, &[], now)
                .map_or_else(|error| Err(short(error)), |_| Ok(())),
            verifier
                .verify_client_cert(leaf, rest, now)
                .map_or_else(|error| Err(short(error)), |_| Ok(())),
        ]
    }

    #[test]
    fn dns_names_that_are_asked_for_must_all_be_there() {
        let ca = Ca::new("ca");
        let mut leaf = Leaf::of(CART);
        leaf.dns_names = vec!["cart.example.org", "Cart"];
        let chain = ca.issue(&leaf).chain();
        let id: SpiffeId = CART.parse().unwrap();
        let asked = |names: &[&str]| {
            let dns_names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let expects = Expects::Named {
                id: &id,
                dns_names: &dns_names,
            };
            let verifier = PeerVerifier::new(&identity(&ca, TILL), expects);
            let verdict = verifier.verify_client_cert(&chain[0], &[], UnixTime::now());
            verdict
                .map(drop)
                .map_err(|error| Refusal::from_rustls(&error).unwrap().as_str())
        };
        assert_eq!(asked(&[]), Ok(()));
        assert_eq!(asked(&["cart", "cart.example.org"]), Ok(()));
        assert_eq!(asked(&["cart", "till"]), Err("dns-name-missing"));
    }

    #[test]
    fn a_wildcard_in_a_certificate_stands_for_one_whole_label() {
        let ca = Ca::new("ca");
        let id: SpiffeId = CART.parse().unwrap();
        let says = |has: &'static str, name: &str| {
            let mut leaf = Leaf::of(CART);
            leaf.dns_names = vec![has];
            let chain = ca.issue(&leaf).chain();
            let dns_names = [name.to_owned()];
            let expects = Expects::Named {
                id: &id,
                dns_names: &dns_names,
            };
            let verifier = PeerVerifier::new(&identity(&ca, TILL), expects);
            let name = ServerName::try_from("peer.invalid").unwrap();
            let now = UnixTime::now();
            let both = [
                verifier
                    .verify_server_cert(&chain[0], &[], &name, &[], now)
                    .is_ok(),
                verifier.verify_client_cert(&chain[0], &[], now).is_ok(),
            ];
            assert_eq!(both[0], both[1]);
            both[0]
        };
        assert!(says("*.shop.example.org", "cart.shop.example.org"));
        assert!(says("*.Shop.example.org", "cart.shop.example.org"));
        for (has, name) in [
            ("*.shop.example.org", "a.cart.shop.example.org"),
            ("*.shop.example.org", "shop.example.org"),
            ("c*.shop.example.org", "cart.shop.example.org"),
            ("cart.*.example.org", "cart.shop.example.org"),
            ("*", "cart"),
        ] {
            assert!(!says(has, name), "{has} for {name}");
        }
    }

    #[test]
    fn every_refusal_has_its_name_in_both_roles() {
        let ca = Ca::new("ca");
        let stranger = Ca::new("stranger");
        let with = |issuer: &Ca, change: &dyn Fn(&mut Leaf)| {
            let mut leaf = Leaf::of(CART);
            change(&mut leaf);
            verdicts(&ca, &issuer.issue(&leaf).chain())
        };
        assert_eq!(with(&ca, &|_| {}), [Ok(()); 2]);
        for (verdicts, name) in [
            (with(&ca, &|leaf| leaf.uris = vec![]), "no-spiffe-id"),
            (with(&ca, &|leaf| leaf.uris.push(TILL)), "many-spiffe-ids"),
            (
                with(&ca, &|leaf| leaf.uris = vec!["spiffe://example.org/%"]),
                "bad-spiffe-id",
            ),
            (
                with(&ca, &|leaf| leaf.uris = vec!["spiffe://example.org"]),
                "bad-spiffe-id",
            ),
            (with(&ca, &|leaf| leaf.uris = vec![TILL]), "not-allowed"),
            (
                with(&ca, &|leaf| leaf.uris = vec!["spiffe://example.com/a"]),
                "wrong-trust-domain",
            ),
            (with(&ca, &|leaf| leaf.valid = -200..-100), "expired"),
            (with(&ca, &|leaf| leaf.valid = 100..200), "not-yet-valid"),
            (
                with(&ca, &|leaf| {
                    leaf.usages = vec![rcgen::ExtendedKeyUsagePurpose::CodeSigning];
                }),
                "wrong-usage",
            ),
            (with(&stranger, &|_| {}), "unknown-ca"),
            (with(&stranger, &|leaf| leaf.uris = vec![]), "unknown-ca"),
            (verdicts(&ca, &ca.chain()), "ca-certificate"),
            (verdicts(&ca, &[vec![0x30, 0].into()]), "malformed"),
        ] {
            assert_eq!(verdicts, [Err(name); 2]);
        }
    }
}
