//! A CA as SPIRE's server has one, and X.509-SVIDs good and bad, as an agent puts them into its messages.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SanType,
};
use time::{Duration, OffsetDateTime};

use super::workload::{X509svid, X509svidResponse};

pub(crate) struct Ca {
    root: CertifiedIssuer<'static, KeyPair>,
    /// Signs workloads, as a nested server's CA does.
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// What a leaf is to be like.
pub(crate) struct Leaf<'a> {
    pub(crate) id: &'a str,
    /// Seconds from now.
    pub(crate) valid: (i64, i64),
    pub(crate) is_ca: IsCa,
    pub(crate) usages: Vec<KeyUsagePurpose>,
}

impl<'a> Leaf<'a> {
    pub(crate) fn of(id: &'a str) -> Self {
        Self {
            id,
            valid: (-60, 4 * 3600),
            is_ca: IsCa::ExplicitNoCa,
            usages: vec![KeyUsagePurpose::DigitalSignature],
        }
    }
}

impl Ca {
    pub(crate) fn new() -> Self {
        let root = authority("root");
        let root = CertifiedIssuer::self_signed(root, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::signed_by(authority("nested"), key, &root).unwrap();
        Self { root, issuer }
    }

    /// The bundle of its trust domain, DER.
    pub(crate) fn bundle(&self) -> Vec<u8> {
        self.root.der().to_vec()
    }

    /// The same, PEM.
    pub(crate) fn bundle_pem(&self) -> String {
        self.root.pem().replace("\r\n", "\n")
    }

    pub(crate) fn svid(&self, id: &str) -> X509svid {
        self.make(&Leaf::of(id))
    }

    pub(crate) fn make(&self, leaf: &Leaf<'_>) -> X509svid {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(leaf.id.try_into().unwrap())];
        params.is_ca = leaf.is_ca;
        params.key_usages.clone_from(&leaf.usages);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let now = OffsetDateTime::now_utc();
        params.not_before = now + Duration::seconds(leaf.valid.0);
        params.not_after = now + Duration::seconds(leaf.valid.1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        X509svid {
            spiffe_id: leaf.id.to_owned(),
            x509_svid: [certificate.der().as_ref(), self.issuer.der().as_ref()].concat(),
            x509_svid_key: key.serialize_der(),
            bundle: self.bundle(),
            hint: String::new(),
        }
    }

    /// A revocation list of the CA that signs workloads, DER; it revokes somebody else.
    pub(crate) fn list(&self) -> Vec<u8> {
        let now = OffsetDateTime::now_utc();
        let params = CertificateRevocationListParams {
            this_update: now - Duration::hours(1),
            next_update: now + Duration::hours(1),
            crl_number: 1u64.into(),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: 4711u64.into(),
                revocation_time: now,
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().der().to_vec()
    }
}

/// A message with these SVIDs and nothing else.
pub(crate) fn message(svids: Vec<X509svid>) -> X509svidResponse {
    X509svidResponse {
        svids,
        ..X509svidResponse::default()
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}
