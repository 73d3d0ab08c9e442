//! The files of an identity: reads them, and tells whether they have changed meanwhile. Nothing here writes one.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use rustls::{
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use zeroize::{Zeroize, Zeroizing};

use super::{Bundle, IdentityError};
use crate::trust::Trust;

/// What `read` makes of the files, none of which has changed meanwhile.
pub(super) fn unchanged<T>(
    directory: &Path,
    bundles: &[Bundle],
    read: impl Fn(&Stamp) -> Result<T, IdentityError>,
) -> Result<T, IdentityError> {
    for _ in 0..LOAD_ATTEMPTS {
        let stamp = Stamp::take(directory, bundles);
        let made = read(&stamp);
        if Stamp::take(directory, bundles) == stamp {
            return made;
        }
    }
    Err(IdentityError::Changing {
        path: directory.to_owned(),
    })
}

pub(super) fn read_trust(
    directory: &Path,
    domain: &str,
    bundles: &[Bundle],
) -> Result<Trust, IdentityError> {
    let mut trust = read_own_trust(directory, domain)?;
    for bundle in bundles {
        add_bundle(&mut trust, bundle)?;
    }
    Ok(trust)
}

/// The same with a bundle less, or that of `old`, for each that is unusable; and what is wrong with those.
pub(super) fn read_trust_without(
    directory: &Path,
    domain: &str,
    bundles: &[Bundle],
    old: Option<&Trust>,
) -> Result<(Trust, Vec<IdentityError>), IdentityError> {
    let mut trust = read_own_trust(directory, domain)?;
    let mut faults = Vec::new();
    for bundle in bundles {
        let Err(reason) = add_bundle(&mut trust, bundle) else {
            continue;
        };
        let trust_domain = bundle.trust_domain.clone();
        let kept = old.is_some_and(|old| trust.keep(&trust_domain, old));
        faults.push(IdentityError::Bundle {
            trust_domain,
            reason: Box::new(reason),
            serves: if kept {
                "the old one serves on"
            } else {
                "nobody of it is accepted"
            },
        });
    }
    Ok((trust, faults))
}

fn add_bundle(trust: &mut Trust, bundle: &Bundle) -> Result<(), IdentityError> {
    let Bundle { trust_domain, file } = bundle;
    trust
        .add(trust_domain, read_certificates(file)?)
        .map_err(|reason| bad_certificate(file, reason))
}

fn bad_certificate(path: &Path, reason: String) -> IdentityError {
    IdentityError::BadCertificate {
        path: path.to_owned(),
        reason,
    }
}

/// What the folder itself says: bundle of the own trust domain, and revocation lists.
fn read_own_trust(directory: &Path, domain: &str) -> Result<Trust, IdentityError> {
    let own = directory.join(BUNDLE);
    let mut trust = Trust::new(domain, read_certificates(&own)?)
        .map_err(|reason| bad_certificate(&own, reason))?;
    let path = directory.join(LISTS);
    for list in read_lists(&path)? {
        trust
            .revoke(&list)
            .map_err(|reason| IdentityError::BadList {
                path: path.clone(),
                reason,
            })?;
    }
    Ok(trust)
}

/// The revocation lists in the file; none if there is no file. A file without a list is a mistake: an empty file would
/// make everything good that was revoked.
fn read_lists(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, IdentityError> {
    let bad = |reason: String| IdentityError::BadList {
        path: path.to_owned(),
        reason,
    };
    let pem = match fs::read(path) {
        Ok(pem) => pem,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(path, error)),
    };
    let lists = CertificateRevocationListDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| bad(error.to_string()))?;
    if lists.is_empty() {
        return Err(bad("there is none in it".to_owned()));
    }
    Ok(lists)
}

/// The certificates in the file, at least one.
pub(super) fn read_certificates(
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let pem = fs::read(path).map_err(|reason| unreadable(path, reason))?;
    let certificates = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| IdentityError::BadCertificate {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
    if certificates.is_empty() {
        return Err(IdentityError::NoCertificate {
            path: path.to_owned(),
        });
    }
    Ok(certificates)
}

pub(super) fn read_key(
    directory: &Path,
    chain: Vec<CertificateDer<'static>>,
) -> Result<CertifiedKey, IdentityError> {
    let path = directory.join(KEY);
    let pem = Zeroizing::new(fs::read(&path).map_err(|reason| unreadable(&path, reason))?);
    // The parsers' own errors stay out of ours: they may quote the file.
    let Ok(mut der) = PrivateKeyDer::from_pem_slice(&pem) else {
        return Err(IdentityError::BadKey { path });
    };
    let signer = any_supported_type(&der);
    der.zeroize();
    let Ok(signer) = signer else {
        return Err(IdentityError::BadKey { path });
    };
    let key = CertifiedKey::new(chain, signer);
    match key.keys_match() {
        Ok(()) => Ok(key),
        Err(_) => Err(IdentityError::KeyMismatch { path }),
    }
}

fn unreadable(path: &Path, reason: io::Error) -> IdentityError {
    IdentityError::Unreadable {
        path: path.to_owned(),
        reason,
    }
}

/// What tells one state of the files from another without reading them. A file that is not there is a state too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp(Vec<Option<FileStamp>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    // A copy may keep the old modification time (cp -p); nothing can keep this one.
    changed: (i64, i64),
}

impl Stamp {
    pub(crate) fn take(directory: &Path, bundles: &[Bundle]) -> Self {
        let own = [CERTIFICATE, KEY, BUNDLE, LISTS].map(|name| directory.join(name));
        let others = bundles.iter().map(|bundle| bundle.file.clone());
        Self(
            own.into_iter()
                .chain(others)
                .map(|path| FileStamp::take(&path))
                .collect(),
        )
    }
}

impl FileStamp {
    fn take(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        Some(Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

pub(crate) const CERTIFICATE: &str = "tls.crt";
pub(super) const KEY: &str = "tls.key";
pub(super) const BUNDLE: &str = "ca.crt";
pub(super) const LISTS: &str = "ca.crl";

/// A renewal replaces the files once; to meet one in each of three loads takes a broken writer.
const LOAD_ATTEMPTS: usize = 3;
