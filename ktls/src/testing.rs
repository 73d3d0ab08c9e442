//! A small CA for the tests: certificates good and bad, in cert-manager's layout.

use crate::identity::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use std::{fs, ops::Range, path::Path};
use time::{Duration, OffsetDateTime};

pub(crate) struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// The certificates between a leaf and the root, leaf side first.
    intermediates: String,
    root: String,
}

/// What a leaf certificate is to hold.
pub(crate) struct Leaf {
    pub(crate) uris: Vec<&'static str>,
    /// Seconds from now.
    pub(crate) valid: Range<i64>,
    pub(crate) usages: Vec<ExtendedKeyUsagePurpose>,
    pub(crate) dns_names: Vec<&'static str>,
    /// None: random.
    pub(crate) serial: Option<u64>,
}

/// The contents of the three files.
pub(crate) struct Issued {
    certificate: String,
    key: String,
    bundle: String,
    lists: String,
}

/// A good identity named `id`.
pub(crate) fn identity(ca: &Ca, id: &'static str) -> Identity {
    ca.issue(&Leaf::of(id)).load()
}

impl Leaf {
    pub(crate) fn of(id: &'static str) -> Self {
        Self {
            uris: vec![id],
            valid: -60..3600,
            usages: vec![
                ExtendedKeyUsagePurpose::ClientAuth,
                ExtendedKeyUsagePurpose::ServerAuth,
            ],
            dns_names: Vec::new(),
            serial: None,
        }
    }
}

impl Ca {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::self_signed(authority(name, -7200..7200), key).unwrap();
        let root = issuer.pem();
        Self {
            issuer,
            intermediates: String::new(),
            root,
        }
    }

    pub(crate) fn subordinate(&self, name: &str) -> Self {
        self.subordinate_valid(name, -60..7200)
    }

    pub(crate) fn subordinate_valid(&self, name: &str, valid: Range<i64>) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = authority(name, valid);
        let issuer = CertifiedIssuer::signed_by(params, key, &self.issuer).unwrap();
        Self {
            intermediates: issuer.pem() + &self.intermediates,
            issuer,
            root: self.root.clone(),
        }
    }

    /// The root, PEM.
    pub(crate) fn root(&self) -> &str {
        &self.root
    }

    /// A revocation list that revokes the leaves with these serial numbers, valid in these seconds from now.
    pub(crate) fn revoke(&self, serials: &[u64], valid: Range<i64>) -> String {
        let now = OffsetDateTime::now_utc();
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: now + Duration::seconds(valid.start),
            next_update: now + Duration::seconds(valid.end),
            crl_number: 1u64.into(),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    /// The CA's own certificate, as if it were a leaf.
    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.issuer.der().clone()]
    }

    pub(crate) fn issue(&self, leaf: &Leaf) -> Issued {
        let mut params = CertificateParams::default();
        params.subject_alt_names = leaf
            .uris
            .iter()
            .map(|uri| SanType::URI((*uri).try_into().unwrap()))
            .chain(
                leaf.dns_names
                    .iter()
                    .map(|name| SanType::DnsName((*name).try_into().unwrap())),
            )
            .collect();
        params.serial_number = leaf.serial.map(Into::into);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages.clone_from(&leaf.usages);
        set_validity(&mut params, &leaf.valid);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Issued {
            certificate: certificate.pem() + &self.intermediates,
            key: key.serialize_pem(),
            bundle: self.root.clone(),
            lists: String::new(),
        }
    }
}

impl Issued {
    pub(crate) fn trusting(mut self, other: &Ca) -> Self {
        self.bundle += &other.root;
        self
    }

    pub(crate) fn revoking(mut self, list: &str) -> Self {
        self.lists += list;
        self
    }

    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(self.certificate.as_bytes())
            .map(Result::unwrap)
            .collect()
    }

    pub(crate) fn write(&self, directory: &Path) {
        fs::write(directory.join("tls.crt"), &self.certificate).unwrap();
        fs::write(directory.join("tls.key"), &self.key).unwrap();
        fs::write(directory.join("ca.crt"), &self.bundle).unwrap();
        if !self.lists.is_empty() {
            fs::write(directory.join("ca.crl"), &self.lists).unwrap();
        }
    }

    pub(crate) fn load(&self) -> Identity {
        let directory = tempfile::tempdir().unwrap();
        self.write(directory.path());
        Identity::load(directory.path()).unwrap()
    }
}

fn authority(name: &str, valid: Range<i64>) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, &valid);
    params
}

fn set_validity(params: &mut CertificateParams, valid: &Range<i64>) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now + Duration::seconds(valid.start);
    params.not_after = now + Duration::seconds(valid.end);
}
