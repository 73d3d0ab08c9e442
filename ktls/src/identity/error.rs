//! Why an identity cannot be used.

use std::{io, path::PathBuf};

use crate::svid::SvidError;

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
