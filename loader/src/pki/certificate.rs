//! What the CA signs: what a certificate must contain, and the facts read back from one. Pure, but
//! for random numbers.

use std::fmt::Write as _;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, string::Ia5String,
};
use time::OffsetDateTime;
use x509_parser::{extensions::GeneralName, parse_x509_certificate, pem::Pem};
use zeroize::Zeroizing;

use super::Error;
use crate::config::pki::KeyKind;

/// Backdated, so that a node whose clock is a little behind accepts it.
const BACKDATED: i64 = 60;
/// Ten years; `rotate-ca` ends it earlier.
const CA_LIFETIME: i64 = 3650 * 86400;

/// What a certificate says about its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The SPIFFE ID.
    pub spiffe_id: String,
    /// The DNS names.
    pub dns: Vec<String>,
}

/// What is read back from a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Lower-case hexadecimal.
    pub serial: String,
    /// Seconds since the epoch.
    pub not_before: i64,
    /// Seconds since the epoch.
    pub not_after: i64,
    /// URI and DNS names.
    pub names: Names,
}

/// A new key.
///
/// # Errors
/// There is no randomness.
pub fn new_key(kind: KeyKind) -> Result<KeyPair, Error> {
    let algorithm = match kind {
        KeyKind::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
        KeyKind::Ed25519 => &rcgen::PKCS_ED25519,
    };
    KeyPair::generate_for(algorithm).map_err(Error::make("a key"))
}

/// A key as its file has it: not for anything else.
#[must_use]
pub fn dangerous_pem(key: &KeyPair) -> Zeroizing<String> {
    Zeroizing::new(key.serialize_pem())
}

/// A CA's own certificate, for a trust domain.
///
/// # Errors
/// It cannot be signed.
pub fn authority(key: &KeyPair, domain: &str, now: i64) -> Result<String, Error> {
    let serial = random_serial()?;
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    // Never the same twice: who looks for an issuer by its name finds one.
    let name = format!("Underseal CA {}", &hex(serial.as_ref())[..8]);
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    params.serial_number = Some(serial);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.subject_alt_names = vec![SanType::URI(ascii(&format!("spiffe://{domain}"))?)];
    params.not_before = date(now - BACKDATED)?;
    params.not_after = date(now + CA_LIFETIME)?;
    let certificate = params.self_signed(key).map_err(Error::make("a CA"))?;
    Ok(certificate.pem())
}

/// The contents of a workload's certificate.
///
/// # Errors
/// A name is not ASCII, or the time is beyond what certificates can say.
pub fn workload(
    names: &Names,
    key: &impl PublicKeyData,
    now: i64,
    not_after: i64,
) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    // No subject: the names are those of the extension, which is critical then (RFC 5280 §4.1.2.6).
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(random_serial()?);
    params.subject_alt_names = vec![SanType::URI(ascii(&names.spiffe_id)?)];
    for name in &names.dns {
        params
            .subject_alt_names
            .push(SanType::DnsName(ascii(name)?));
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    if can_encipher(key) {
        params.key_usages.push(KeyUsagePurpose::KeyEncipherment);
    }
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    params.not_before = date(now - BACKDATED)?;
    params.not_after = date(not_after)?;
    Ok(params)
}

/// Signs the contents.
///
/// # Errors
/// It cannot be signed.
pub fn sign(
    params: &CertificateParams,
    key: &impl PublicKeyData,
    issuer: &Issuer<'_, KeyPair>,
) -> Result<String, Error> {
    let certificate = params.signed_by(key, issuer);
    Ok(certificate.map_err(Error::make("a certificate"))?.pem())
}

/// Reads the first certificate of a PEM text; what is wrong with it, if it is none.
///
/// # Errors
/// It holds none, or one that is malformed.
pub fn facts(pem: &str) -> Result<Facts, String> {
    let pem = Pem::iter_from_buffer(pem.as_bytes())
        .next()
        .ok_or("it holds no certificate in PEM")?
        .map_err(|error| error.to_string())?;
    let (_, parsed) = parse_x509_certificate(&pem.contents).map_err(|error| error.to_string())?;
    let alternative = parsed.subject_alternative_name();
    let alternative = alternative.map_err(|error| error.to_string())?;
    let mut names = Names {
        spiffe_id: String::new(),
        dns: Vec::new(),
    };
    for name in alternative
        .iter()
        .flat_map(|names| &names.value.general_names)
    {
        match name {
            GeneralName::URI(uri) => (*uri).clone_into(&mut names.spiffe_id),
            GeneralName::DNSName(name) => names.dns.push((*name).to_owned()),
            _ => {}
        }
    }
    Ok(Facts {
        serial: hex(parsed.raw_serial()),
        not_before: parsed.validity().not_before.timestamp(),
        not_after: parsed.validity().not_after.timestamp(),
        names,
    })
}

/// Lower-case hexadecimal; a leading zero octet, which only keeps a number positive, is left out.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let bytes = bytes.strip_prefix(&[0]).unwrap_or(bytes);
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The number that [`hex`] has written.
#[must_use]
pub fn serial(hex: &str) -> Option<SerialNumber> {
    let bytes: Option<Vec<u8>> = (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok())
        .collect();
    Some(SerialNumber::from_slice(&bytes?))
}

/// A point in time as rcgen wants it.
///
/// # Errors
/// It is thousands of years away.
pub fn date(seconds: i64) -> Result<OffsetDateTime, Error> {
    OffsetDateTime::from_unix_timestamp(seconds)
        .map_err(|_| Error::Refused(format!("{seconds} is no date: check the clock")))
}

/// A date as people read it.
#[must_use]
pub fn date_text(seconds: i64) -> String {
    OffsetDateTime::from_unix_timestamp(seconds).map_or_else(
        |_| seconds.to_string(),
        |at| {
            let (year, month, day) = at.to_calendar_date();
            let (hour, minute, second) = at.to_hms();
            let month = u8::from(month);
            format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
        },
    )
}

/// 127 random bits; the first octet is neither zero nor negative, so that it is always the same
/// length.
fn random_serial() -> Result<SerialNumber, Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::Refused(format!("cannot get random numbers: {error}")))?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Only RSA keys can; the others agree on keys, which TLS 1.3 does not use certificates for.
fn can_encipher(key: &impl PublicKeyData) -> bool {
    [
        &rcgen::PKCS_RSA_SHA256,
        &rcgen::PKCS_RSA_SHA384,
        &rcgen::PKCS_RSA_SHA512,
    ]
    .contains(&key.algorithm())
}

fn ascii(text: &str) -> Result<Ia5String, Error> {
    Ia5String::try_from(text).map_err(Error::make("a name"))
}
