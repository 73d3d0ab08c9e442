//! Certificates for workloads: SVIDs, made anew for each run.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber, string::Ia5String,
};
use time::{Duration, OffsetDateTime};

use crate::vm::Vm;

/// A certificate authority.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// The next serial number.
    last: AtomicU64,
}

/// Key and certificate of a workload with the authority to trust, all PEM, as in a cert-manager Secret.
pub struct Identity {
    /// `tls.crt`
    pub certificate: String,
    /// `tls.key`
    pub key: String,
    /// `ca.crt`
    pub authority: String,
    /// The certificate's serial number.
    pub serial: SerialNumber,
}

/// When a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// Since an hour ago and for a day.
    Now,
    /// It ended an hour ago.
    Expired,
    /// It begins in a day.
    Future,
    /// Since an hour ago and for so many seconds.
    Seconds(u32),
}

impl Authority {
    /// An authority with a new key.
    ///
    /// # Errors
    /// When the key cannot be made.
    pub fn new(name: &str) -> Result<Self> {
        let mut parameters = CertificateParams::new(Vec::new())?;
        parameters
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        limit(&mut parameters, Validity::Now);
        Ok(Self {
            last: AtomicU64::new(1),
            issuer: CertifiedIssuer::self_signed(parameters, KeyPair::generate()?)?,
        })
    }

    /// Its own certificate, PEM.
    pub fn certificate(&self) -> String {
        self.issuer.pem()
    }

    /// A list, PEM, that revokes these, valid for a day.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn revoke(&self, identities: &[&Identity]) -> Result<String> {
        let now = OffsetDateTime::now_utc();
        let revoked = |identity: &&Identity| RevokedCertParams {
            serial_number: identity.serial.clone(),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let parameters = CertificateRevocationListParams {
            this_update: now - Duration::HOUR,
            next_update: now + Duration::DAY,
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: identities.iter().map(revoked).collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        Ok(parameters.signed_by(&self.issuer)?.pem()?)
    }

    /// An identity with this SPIFFE ID, such as `spiffe://example.org/ns/shop/sa/cart`, and no DNS name.
    ///
    /// # Errors
    /// When the ID is not ASCII.
    pub fn issue(&self, spiffe_id: &str, validity: Validity) -> Result<Identity> {
        self.issue_named(spiffe_id, &[], validity)
    }

    /// The same with DNS names.
    ///
    /// # Errors
    /// When ID or names are not ASCII.
    pub fn issue_named(
        &self,
        spiffe_id: &str,
        dns_names: &[&str],
        validity: Validity,
    ) -> Result<Identity> {
        let mut parameters = CertificateParams::new(Vec::new())?;
        let mut names = vec![SanType::URI(Ia5String::try_from(spiffe_id)?)];
        for name in dns_names {
            names.push(SanType::DnsName(Ia5String::try_from(*name)?));
        }
        parameters.subject_alt_names = names;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        parameters.use_authority_key_identifier_extension = true;
        limit(&mut parameters, validity);
        let serial = SerialNumber::from(self.last.fetch_add(1, Ordering::Relaxed));
        parameters.serial_number = Some(serial.clone());
        let key = KeyPair::generate()?;
        let certificate = parameters.signed_by(&key, &self.issuer)?.pem();
        Ok(Identity {
            serial,
            certificate,
            key: key.serialize_pem(),
            authority: self.certificate(),
        })
    }
}

impl Identity {
    /// Puts the three files into a folder of the guest, the key readable by root only.
    ///
    /// # Errors
    /// When the guest cannot.
    pub fn put(&self, vm: &Vm, folder: &str) -> Result<()> {
        vm.put(
            &format!("{folder}/tls.crt"),
            self.certificate.as_bytes(),
            0o644,
        )?;
        vm.put(&format!("{folder}/tls.key"), self.key.as_bytes(), 0o600)?;
        vm.put(
            &format!("{folder}/ca.crt"),
            self.authority.as_bytes(),
            0o644,
        )
    }
}

fn limit(parameters: &mut CertificateParams, validity: Validity) {
    let now = OffsetDateTime::now_utc();
    let (from, to) = match validity {
        Validity::Now => (-Duration::HOUR, Duration::DAY),
        Validity::Expired => (-Duration::DAY, -Duration::HOUR),
        Validity::Future => (Duration::DAY, Duration::DAY * 2),
        Validity::Seconds(count) => (-Duration::HOUR, Duration::seconds(count.into())),
    };
    (parameters.not_before, parameters.not_after) = (now + from, now + to);
}
