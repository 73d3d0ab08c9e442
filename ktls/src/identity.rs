//! A workload's identity: certificate chain, private key and trust bundle.
//!
//! [`Identity::load`] reads a directory in the layout of a cert-manager Secret: `tls.crt` (leaf
//! first, then intermediates), `tls.key` (PKCS#8, SEC1 or PKCS#1) and `ca.crt` (the bundle that
//! peers are verified against), all PEM; and, if it is there, `ca.crl`, any number of revocation
//! lists. Bundles of other trust domains are files of their own ([`Bundle`]). Nothing here contacts
//! a CA or writes a file.

use crate::{
    spiffe::SpiffeId,
    svid::{Svid, SvidError},
    trust::Trust,
};
use rustls::{
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject},
    sign::{CertifiedKey, SingleCertAndKey},
};
use std::{
    fmt, fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use x509_parser::time::ASN1Time;
use zeroize::{Zeroize, Zeroizing};

/// The trust bundle of another trust domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// The domain that it alone vouches for.
    pub trust_domain: String,
    /// Its certificates, PEM.
    pub file: PathBuf,
}

/// A workload's certificate chain, private key and trust bundle, loaded and checked.
pub struct Identity {
    directory: PathBuf,
    bundles: Vec<Bundle>,
    chain: Vec<CertificateDer<'static>>,
    svid: Svid,
    pub(crate) key: Arc<SingleCertAndKey>,
    pub(crate) trust: Arc<Trust>,
    stamp: Stamp,
}

impl Identity {
    /// Loads the identity in `directory`.
    ///
    /// A symbolic link that is swapped meanwhile, as the kubelet does on renewal, cannot mix old
    /// files with new ones: such a load is begun again.
    ///
    /// # Errors
    ///
    /// Each [`IdentityError`] names the file; a certificate outside its validity is one of them.
    pub fn load(directory: &Path) -> Result<Self, IdentityError> {
        Self::load_with(directory, &[])
    }

    /// Loads the identity in `directory`; peers of other trust domains are verified against `bundles`.
    ///
    /// # Errors
    ///
    /// As [`Identity::load`].
    pub fn load_with(directory: &Path, bundles: &[Bundle]) -> Result<Self, IdentityError> {
        unchanged(directory, bundles, |stamp| {
            let trust = |domain: &str| read_trust(directory, domain, bundles);
            Self::read(directory, bundles, stamp, trust)
        })
    }

    /// The same, though a bundle of another trust domain may be unusable: then that of `old` serves on, if it has one, or
    /// nobody of that domain is accepted. What is wrong with bundles is returned, too.
    pub(crate) fn load_without(
        directory: &Path,
        bundles: &[Bundle],
        old: Option<&Trust>,
    ) -> Result<(Self, Vec<IdentityError>), IdentityError> {
        unchanged(directory, bundles, |stamp| {
            let mut faults = Vec::new();
            let identity = Self::read(directory, bundles, stamp, |domain| {
                let (trust, found) = read_trust_without(directory, domain, bundles, old)?;
                faults = found;
                Ok(trust)
            })?;
            Ok((identity, faults))
        })
    }

    /// The chain that it presents, leaf first.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// What it holds peers against.
    #[must_use]
    pub fn trust(&self) -> &Arc<Trust> {
        &self.trust
    }

    /// The directory it was loaded from.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The SPIFFE ID of the leaf certificate.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.svid.id
    }

    /// When the leaf certificate ends.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        let seconds = u64::try_from(self.svid.not_after).unwrap_or(0);
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// Whether the files were changed, replaced or removed since they were loaded.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        Stamp::take(&self.directory, &self.bundles) != self.stamp
    }

    /// When the leaf certificate ends, as text.
    #[must_use]
    pub fn end(&self) -> String {
        date(self.svid.not_after)
    }

    /// Whether the leaf certificate should have been renewed by `now`: less than an hour is left,
    /// or less than a quarter of its life if that is shorter.
    #[must_use]
    pub fn is_due(&self, now: SystemTime) -> bool {
        let life = self.svid.not_after.saturating_sub(self.svid.not_before);
        let left = self.not_after().duration_since(now).unwrap_or_default();
        left < DUE.min(Duration::from_secs(u64::try_from(life / 4).unwrap_or(0)))
    }

    /// The same if it is known how long before its end the certificate is renewed. Of one that lives no longer than that
    /// it is not: somebody else has made it.
    #[must_use]
    pub fn is_due_within(&self, renew_before: Duration, now: SystemTime) -> bool {
        let life = self.svid.not_after.saturating_sub(self.svid.not_before);
        let life = Duration::from_secs(u64::try_from(life).unwrap_or(0));
        if renew_before.is_zero() || renew_before >= life {
            return self.is_due(now);
        }
        self.not_after().duration_since(now).unwrap_or_default() < renew_before
    }

    /// Checks that the leaf certificate is valid now.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Expired`] or [`IdentityError::NotYetValid`].
    pub fn check_validity(&self) -> Result<(), IdentityError> {
        check_validity(&self.svid, &self.directory.join(CERTIFICATE))
    }

    fn read(
        directory: &Path,
        bundles: &[Bundle],
        stamp: &Stamp,
        trust: impl FnOnce(&str) -> Result<Trust, IdentityError>,
    ) -> Result<Self, IdentityError> {
        let path = directory.join(CERTIFICATE);
        let chain = read_certificates(&path)?;
        let svid = Svid::parse(&chain[0]).map_err(|reason| IdentityError::Svid {
            path: path.clone(),
            reason,
        })?;
        check_validity(&svid, &path)?;
        let key = read_key(directory, chain.clone())?;
        let trust = trust(svid.id.trust_domain())?;
        Ok(Self {
            directory: directory.to_owned(),
            bundles: bundles.to_vec(),
            chain,
            svid,
            key: Arc::new(key.into()),
            trust: Arc::new(trust),
            stamp: stamp.clone(),
        })
    }
}

impl Trust {
    /// Loads what a workload of `domain` with its identity in `directory` holds peers against; neither certificate nor
    /// key is looked at.
    ///
    /// # Errors
    ///
    /// As [`Identity::load`].
    pub fn load(directory: &Path, domain: &str, bundles: &[Bundle]) -> Result<Self, IdentityError> {
        unchanged(directory, bundles, |_| {
            read_trust(directory, domain, bundles)
        })
    }

    /// The same, with what `old` has where a bundle of another trust domain is unusable; see [`Identity::load_without`].
    #[cfg(feature = "helper")]
    pub(crate) fn load_without(
        directory: &Path,
        domain: &str,
        bundles: &[Bundle],
        old: Option<&Self>,
    ) -> Result<Self, IdentityError> {
        unchanged(directory, bundles, |_| {
            read_trust_without(directory, domain, bundles, old).map(|(trust, _)| trust)
        })
    }
}

/// What `read` makes of the files, none of which has changed meanwhile.
fn unchanged<T>(
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

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("id", &self.svid.id)
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

/// Why an identity cannot be used. Each message is one complete line that names the file.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read.
    #[error("cannot read `{}`: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
    /// The files were replaced each time while they were being read.
    #[error("the files in `{}` keep changing while they are read", path.display())]
    Changing {
        /// The directory.
        path: PathBuf,
    },
    /// A file holds no certificate.
    #[error("`{}` holds no certificate in PEM", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// A file holds something that is no certificate.
    #[error("`{}` holds a bad certificate: {reason}", path.display())]
    BadCertificate {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The key file holds no private key, or one of an unknown kind.
    #[error(
        "`{}` holds no usable private key (wanted: PKCS#8, SEC1 or PKCS#1 in PEM; ECDSA, Ed25519 \
         or RSA)",
        path.display()
    )]
    BadKey {
        /// The file.
        path: PathBuf,
    },
    /// The file of revocation lists holds something else, or nothing.
    #[error("`{}` holds a bad revocation list: {reason}", path.display())]
    BadList {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The private key is not that of the certificate.
    #[error("the key in `{}` does not belong to the certificate beside it", path.display())]
    KeyMismatch {
        /// The key file.
        path: PathBuf,
    },
    /// The leaf certificate is no X.509-SVID: no SPIFFE ID, several, an ill-formed one, or a CA.
    #[error("`{}`: {reason}", path.display())]
    Svid {
        /// The certificate file.
        path: PathBuf,
        /// What is wrong with the leaf.
        reason: SvidError,
    },
    /// The bundle of another trust domain cannot be used.
    #[error("the bundle of the trust domain `{trust_domain}`: {reason}; {serves}")]
    Bundle {
        /// The domain.
        trust_domain: String,
        /// What is wrong with the file.
        reason: Box<Self>,
        /// What becomes of peers of that domain.
        serves: &'static str,
    },
    /// The leaf certificate has expired.
    #[error("the certificate in `{}` expired at {since}: renew it", path.display())]
    Expired {
        /// The certificate file.
        path: PathBuf,
        /// Its `notAfter`.
        since: String,
    },
    /// The leaf certificate ends soon.
    #[error("the certificate in `{}` ends at {until} and has not been renewed", path.display())]
    Due {
        /// The certificate file.
        path: PathBuf,
        /// Its `notAfter`.
        until: String,
    },
    /// The leaf certificate is not valid yet.
    #[error("the certificate in `{}` is valid only from {from}: check the clock", path.display())]
    NotYetValid {
        /// The certificate file.
        path: PathBuf,
        /// Its `notBefore`.
        from: String,
    },
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

fn read_trust(directory: &Path, domain: &str, bundles: &[Bundle]) -> Result<Trust, IdentityError> {
    let mut trust = read_own_trust(directory, domain)?;
    for bundle in bundles {
        add_bundle(&mut trust, bundle)?;
    }
    Ok(trust)
}

/// The same with a bundle less, or that of `old`, for each that is unusable; and what is wrong with those.
fn read_trust_without(
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
fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
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

fn read_key(
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

fn check_validity(svid: &Svid, path: &Path) -> Result<(), IdentityError> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
        });
    if now > svid.not_after {
        return Err(IdentityError::Expired {
            path: path.to_owned(),
            since: date(svid.not_after),
        });
    }
    if now < svid.not_before {
        return Err(IdentityError::NotYetValid {
            path: path.to_owned(),
            from: date(svid.not_before),
        });
    }
    Ok(())
}

fn date(timestamp: i64) -> String {
    ASN1Time::from_timestamp(timestamp).map_or_else(|_| timestamp.to_string(), |t| t.to_string())
}

fn unreadable(path: &Path, reason: io::Error) -> IdentityError {
    IdentityError::Unreadable {
        path: path.to_owned(),
        reason,
    }
}

pub(crate) const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const BUNDLE: &str = "ca.crt";
const LISTS: &str = "ca.crl";
/// By then whoever renews has had its chance.
const DUE: Duration = Duration::from_secs(3600);

/// A renewal replaces the files once; to meet one in each of three loads takes a broken writer.
const LOAD_ATTEMPTS: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Ca, Leaf};
    use std::os::unix::fs::symlink;

    const CART: &str = "spiffe://example.org/ns/shop/sa/cart";

    fn issued(change: impl FnOnce(&mut Leaf)) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let mut leaf = Leaf::of(CART);
        change(&mut leaf);
        Ca::new("ca").issue(&leaf).write(directory.path());
        directory
    }

    fn error_of(directory: &Path) -> String {
        Identity::load(directory).unwrap_err().to_string()
    }

    #[test]
    fn a_good_directory_loads() {
        let directory = issued(|_| {});
        let identity = Identity::load(directory.path()).unwrap();
        assert_eq!(identity.id().as_str(), CART);
        assert!(identity.not_after() > SystemTime::now());
        assert!(!identity.is_stale());
        let shown = format!("{identity:?}");
        assert!(shown.contains(CART) && shown.len() < 200, "{shown}");
    }

    #[test]
    fn a_missing_file_is_named() {
        for name in [CERTIFICATE, KEY, BUNDLE] {
            let directory = issued(|_| {});
            fs::remove_file(directory.path().join(name)).unwrap();
            let error = error_of(directory.path());
            assert!(error.contains(&format!("/{name}`")), "{error}");
            assert!(error.contains("No such file"), "{error}");
        }
    }

    #[test]
    fn wrong_contents_are_told_apart() {
        let directory = issued(|_| {});
        let write = |name, text: &str| fs::write(directory.path().join(name), text).unwrap();
        let read = |name| fs::read_to_string(directory.path().join(name)).unwrap();
        let (certificate, key, bundle) = (read(CERTIFICATE), read(KEY), read(BUNDLE));

        for (name, text, expected) in [
            (CERTIFICATE, "", "tls.crt` holds no certificate"),
            (CERTIFICATE, &*key, "tls.crt` holds no certificate"),
            (BUNDLE, "", "ca.crt` holds no certificate"),
            (KEY, "", "tls.key` holds no usable private key"),
            (KEY, &*certificate, "tls.key` holds no usable private key"),
            (
                CERTIFICATE,
                "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
                "tls.crt` holds a bad certificate",
            ),
            (CERTIFICATE, &*bundle, "is that of a CA"),
        ] {
            let good = read(name);
            write(name, text);
            let error = error_of(directory.path());
            assert!(error.contains(expected), "{error}");
            write(name, &good);
        }
        Identity::load(directory.path()).unwrap();
    }

    #[test]
    fn a_foreign_key_is_refused() {
        let (one, other) = (issued(|_| {}), issued(|_| {}));
        fs::copy(other.path().join(KEY), one.path().join(KEY)).unwrap();
        let error = error_of(one.path());
        assert!(error.contains("tls.key` does not belong"), "{error}");
    }

    #[test]
    fn revocation_lists_are_read_if_they_are_there_and_must_be_some() {
        let ca = Ca::new("ca");
        let mut leaf = Leaf::of(CART);
        leaf.serial = Some(7);
        let directory = tempfile::tempdir().unwrap();
        let lists = ca.revoke(&[7], -60..60) + &ca.revoke(&[], -60..60);
        ca.issue(&leaf).revoking(&lists).write(directory.path());
        let identity = Identity::load(directory.path()).unwrap();
        let now = rustls::pki_types::UnixTime::now();
        let verdict = identity
            .trust()
            .still_accepts(&identity.chain()[0], &[], now);
        assert_eq!(verdict, Err(crate::Refusal::Revoked));
        let path = directory.path().join(LISTS);
        fs::write(&path, "").unwrap();
        assert!(identity.is_stale());
        let error = error_of(directory.path());
        assert!(
            error.contains("ca.crl` holds a bad revocation list"),
            "{error}"
        );
        fs::remove_file(&path).unwrap();
        Identity::load(directory.path()).unwrap();
    }

    #[test]
    fn a_certificate_is_due_an_hour_before_its_end_or_a_quarter_of_its_life() {
        let due = |valid| {
            let directory = issued(|leaf| leaf.valid = valid);
            let identity = Identity::load(directory.path()).unwrap();
            identity.is_due(SystemTime::now())
        };
        assert!(!due(-60..86_400) && !due(-82_000..4000) && due(-83_000..3400));
        assert!(!due(-60..600) && due(-600..60));
    }

    #[test]
    fn a_certificate_is_due_when_its_renewal_is() {
        let due = |valid, before| {
            let directory = issued(|leaf| leaf.valid = valid);
            let identity = Identity::load(directory.path()).unwrap();
            identity.is_due_within(Duration::from_secs(before), SystemTime::now())
        };
        assert!(due(-60..86_000, 86_050) && !due(-60..86_000, 3600));
        assert!(!due(-82_000..4000, 3600) && !due(-83_000..3400, 600));
        // Not known, or of somebody else.
        assert!(due(-83_000..3400, 0) && !due(-60..600, 3600) && due(-600..60, 3600));
    }

    #[test]
    fn spiffe_ids_that_do_not_serve() {
        for (uris, expected) in [
            (vec![], "no URI name"),
            (vec![CART, CART], "2 URI names"),
            (vec!["https://example.org/"], "is no SPIFFE ID"),
            (vec!["spiffe://example.org/a/"], "empty segment"),
            (vec!["spiffe://example.org"], "names a trust domain"),
        ] {
            let directory = issued(|leaf| leaf.uris = uris);
            let error = error_of(directory.path());
            assert!(error.contains("tls.crt`: "), "{error}");
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn validity_is_checked() {
        let old = issued(|leaf| leaf.valid = -7200..-3600);
        let error = error_of(old.path());
        assert!(error.contains("tls.crt` expired at "), "{error}");
        let early = issued(|leaf| leaf.valid = 3600..7200);
        let error = error_of(early.path());
        assert!(error.contains("valid only from "), "{error}");
    }

    #[test]
    fn a_symlink_swap_makes_it_stale() {
        let (old, new) = (issued(|_| {}), issued(|_| {}));
        let mount = tempfile::tempdir().unwrap();
        let data = mount.path().join("..data");
        symlink(old.path(), &data).unwrap();
        for name in [CERTIFICATE, KEY, BUNDLE] {
            symlink(Path::new("..data").join(name), mount.path().join(name)).unwrap();
        }
        let identity = Identity::load(mount.path()).unwrap();
        assert!(!identity.is_stale());

        let next = mount.path().join("..next");
        symlink(new.path(), &next).unwrap();
        fs::rename(&next, &data).unwrap();
        assert!(identity.is_stale());
        assert!(!Identity::load(mount.path()).unwrap().is_stale());
    }
}
