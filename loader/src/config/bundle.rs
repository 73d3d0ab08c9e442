//! Trust bundles of other trust domains.

use super::value::{AbsolutePath, TrustDomain};
use serde::Deserialize;

/// A section `[[trust_bundle]]` as the file has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    pub(super) trust_domain: String,
    pub(super) file: Option<String>,
    #[serde(default)]
    pub(super) spire: bool,
}

/// Whom workloads of another trust domain are verified against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustBundle {
    /// The domain.
    pub trust_domain: TrustDomain,
    /// Its certificates, PEM.
    pub file: AbsolutePath,
    /// Whether the SPIRE agent says which ones: then `underseal-spire` writes the file.
    pub spire: bool,
}
