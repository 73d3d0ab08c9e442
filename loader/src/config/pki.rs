//! The section `[pki]`: where the built-in CA keeps its files and what it issues; and the DNS names
//! of workloads, which certificates carry.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    check::Checker,
    value::{AbsolutePath, Invalid, Label, by_text},
};

by_text! { DnsName }

/// How this node's own CA works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pki {
    /// Where it keeps its files.
    pub directory: AbsolutePath,
    /// How long a certificate is valid.
    pub lifetime: Span,
    /// How long before its end it is renewed.
    pub renew_before: Span,
    /// Of what kind new keys are.
    pub key: KeyKind,
}

/// What serde reads.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    directory: Option<String>,
    lifetime: Option<String>,
    renew_before: Option<String>,
    key: Option<String>,
}

/// A span of time: a number and `s`, `m`, `h` or `d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(Duration);

impl Span {
    /// Its length in seconds.
    #[must_use]
    pub const fn seconds(self) -> i64 {
        // At most 90 days: it fits.
        self.0.as_secs().cast_signed()
    }
}

impl FromStr for Span {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        const LONGEST: u64 = 90 * 86400;
        let wrong = || {
            Invalid("a span of time is a number and `s`, `m`, `h` or `d`, such as `24h`".to_owned())
        };
        let unit = text.chars().last().ok_or_else(wrong)?;
        let factor = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86400,
            _ => return Err(wrong()),
        };
        let digits = &text[..text.len() - 1];
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong());
        }
        let seconds = digits
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(factor))
            .filter(|seconds| (1..=LONGEST).contains(seconds))
            .ok_or_else(|| Invalid("must be from 1 second to 90 days".to_owned()))?;
        Ok(Self(Duration::from_secs(seconds)))
    }
}

/// A kind of key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// ECDSA on P-256.
    P256,
    /// Ed25519.
    Ed25519,
}

impl FromStr for KeyKind {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "p256" => Ok(Self::P256),
            "ed25519" => Ok(Self::Ed25519),
            _ => Err(Invalid("must be `p256` or `ed25519`".to_owned())),
        }
    }
}

/// A DNS name in lower case, without a final dot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DnsName(String);

impl DnsName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DnsName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.len() > 253 || text.split('.').any(|label| Label::from_str(label).is_err()) {
            return Err(Invalid(
                "a DNS name consists of labels of a-z, 0-9 and `-`, joined by dots".to_owned(),
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Checker {
    pub(super) fn pki(&mut self, raw: &Raw) -> Option<Pki> {
        let directory = self.or(
            "pki.directory",
            raw.directory.as_deref(),
            "/var/lib/underseal/pki",
        );
        let lifetime: Option<Span> = self.or("pki.lifetime", raw.lifetime.as_deref(), "24h");
        let before: Option<Span> = self.or("pki.renew_before", raw.renew_before.as_deref(), "1h");
        let key = self.or("pki.key", raw.key.as_deref(), "p256");
        let (lifetime, renew_before) = (lifetime?, before?);
        if renew_before >= lifetime {
            let at = raw
                .renew_before
                .as_ref()
                .map_or("pki.lifetime", |_| "pki.renew_before");
            self.fault(at, "`renew_before` must be shorter than `lifetime`");
        }
        Some(Pki {
            directory: directory?,
            lifetime,
            renew_before,
            key: key?,
        })
    }

    /// The names that a workload always has, and `more`.
    pub(super) fn dns_names(
        &mut self,
        at: &str,
        name: &Label,
        namespace: &Label,
        more: &[String],
    ) -> Vec<DnsName> {
        let always = [
            format!("{name}.{namespace}.svc.cluster.local"),
            name.to_string(),
        ];
        let mut names: Vec<DnsName> = always.iter().filter_map(|n| n.parse().ok()).collect();
        names.extend(self.list::<DnsName>(&format!("{at}.dns_names"), more));
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans() {
        let seconds = |text: &str| text.parse().map(Span::seconds).map_err(|Invalid(why)| why);
        assert_eq!(seconds("24h"), Ok(86400));
        assert_eq!(seconds("90m"), Ok(5400));
        assert_eq!(seconds("7d"), Ok(604_800));
        for wrong in [
            "",
            "h",
            "24",
            "-1h",
            "1 h",
            "1w",
            "0s",
            "91d",
            "9999999999999999999d",
            "1é",
        ] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
