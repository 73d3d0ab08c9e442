//! A workload's identity: certificate chain, private key and trust bundle.
//!
//! [`Identity::load`] reads a directory in the layout of a cert-manager Secret: `tls.crt` (leaf
//! first, then intermediates), `tls.key` (PKCS#8, SEC1 or PKCS#1) and `ca.crt` (the bundle that
//! peers are verified against), all PEM; and, if it is there, `ca.crl`, any number of revocation
//! lists. Bundles of other trust domains are files of their own ([`Bundle`]). Nothing here contacts
//! a CA or writes a file.

use crate::{spiffe::SpiffeId, svid::Svid, trust::Trust};
use rustls::{pki_types::CertificateDer, sign::SingleCertAndKey};
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use x509_parser::time::ASN1Time;

mod error;
mod files;
#[cfg(test)]
mod tests;

pub use error::IdentityError;
pub(crate) use files::{CERTIFICATE, Stamp};
use files::{read_certificates, read_key, read_trust, read_trust_without, unchanged};

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

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("id", &self.svid.id)
            .field("directory", &self.directory)
            .finish_non_exhaustive()
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

/// By then whoever renews has had its chance.
const DUE: Duration = Duration::from_secs(3600);
