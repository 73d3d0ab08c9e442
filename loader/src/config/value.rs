//! Newtypes of single values: each has one constructor, `FromStr`, which the configuration file,
//! the command line and the golden tests share. A value that exists is valid.

use std::{
    fmt,
    path::{Component, Path, PathBuf},
    str::FromStr,
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a value was refused: a sentence without the value itself and without a full stop.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct Invalid(pub String);

/// Lets serde read and write a newtype by its `FromStr` and `Display`.
macro_rules! by_text {
    ($($name:ident)*) => {$(
        impl TryFrom<String> for $name {
            type Error = $crate::config::value::Invalid;
            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    )*};
}

pub(crate) use by_text;

by_text! { InterfaceName Label PublicKey AbsolutePath WorkloadName SpiffeId Digest TrustDomain }

/// Name of a network interface, as the kernel accepts it (`dev_valid_name`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceName(String);

impl InterfaceName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        /// `IFNAMSIZ` of `linux/if.h` without the final zero.
        const LONGEST: usize = 15;
        let fault = if text.is_empty() {
            "an interface name must not be empty"
        } else if text.len() > LONGEST {
            "an interface name has at most 15 bytes"
        } else if text == "." || text == ".." {
            "`.` and `..` are no interface names"
        } else if text
            .bytes()
            .any(|b| !b.is_ascii_graphic() || matches!(b, b'/' | b':' | b'%' | b'@'))
        {
            "an interface name is printable ASCII without blanks, `/`, `:`, `%` and `@`"
        } else {
            return Ok(Self(text.to_owned()));
        };
        Err(Invalid(fault.to_owned()))
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Public key of a WireGuard device: a Curve25519 point, base64 as text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey(pub [u8; 32]);

impl FromStr for PublicKey {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let bytes = BASE64
            .decode(text)
            .map_err(|_| Invalid("a WireGuard key is 44 characters of base64".to_owned()))?;
        let key: [u8; 32] = bytes.try_into().map_err(|bytes: Vec<u8>| {
            Invalid(format!(
                "a WireGuard key has 32 bytes, this has {}",
                bytes.len()
            ))
        })?;
        if key == [0; 32] {
            return Err(Invalid("a WireGuard key must not be all zeros".to_owned()));
        }
        Ok(Self(key))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// First 16 bytes of a SHA-256, lower-case hexadecimal as text. Names an object file, or tells
/// whether two preshared keys are the same without showing either.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub [u8; 16]);

impl FromStr for Digest {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = || Invalid("a digest is 32 hexadecimal digits".to_owned());
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let number = u128::from_str_radix(text, 16).map_err(|_| wrong())?;
        Ok(Self(number.to_be_bytes()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An absolute path without `..`, in UTF-8, short enough for the `WORKLOADS` map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AbsolutePath(String);

impl AbsolutePath {
    /// The path for the file system.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AbsolutePath {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        /// A path in `underseal_abi::Workload`, without a final zero.
        const LONGEST: usize = 255;
        let path = PathBuf::from(text);
        let fault = if text.is_empty() {
            "a path must not be empty"
        } else if !path.is_absolute() {
            "a path must be absolute: it starts with `/`"
        } else if path.components().any(|c| c == Component::ParentDir) {
            "a path must not contain `..`"
        } else if text.len() > LONGEST {
            "a path has at most 255 bytes"
        } else if text.bytes().any(|b| b.is_ascii_control()) {
            "a path must not contain control characters"
        } else {
            return Ok(Self(text.to_owned()));
        };
        Err(Invalid(fault.to_owned()))
    }
}

impl fmt::Display for AbsolutePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `namespace/name` of a workload; each part is a DNS label (RFC 1123).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WorkloadName(String);

impl WorkloadName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for WorkloadName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let Some((namespace, name)) = text.split_once('/') else {
            return Err(Invalid("a workload is called `namespace/name`".to_owned()));
        };
        Label::from_str(namespace)?;
        Label::from_str(name)?;
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for WorkloadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A DNS label (RFC 1123): what a node, a peer, a workload, a namespace and a service account may
/// be called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label(String);

impl Label {
    /// The label as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Label {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let fault = if text.is_empty() {
            "a name must not be empty"
        } else if text.len() > 63 {
            "a name has at most 63 characters"
        } else if text
            .bytes()
            .any(|b| !(b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'))
        {
            "a name consists of a-z, 0-9 and `-`"
        } else if text.starts_with('-') || text.ends_with('-') {
            "a name starts and ends with a letter or a digit"
        } else {
            return Ok(Self(text.to_owned()));
        };
        Err(Invalid(fault.to_owned()))
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Trust domain of SPIFFE IDs (SPIFFE-ID §2.1: lower-case letters, digits, `.`, `-`, `_`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(String);

impl TrustDomain {
    /// The domain as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let fault = if text.is_empty() {
            "a trust domain must not be empty"
        } else if text.len() > 80 {
            // So that every SPIFFE ID built from it and two labels fits the `WORKLOADS` map.
            "a trust domain has at most 80 characters"
        } else if text.bytes().any(|b| {
            !(b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_'))
        }) {
            "a trust domain consists of a-z, 0-9, `.`, `-` and `_`"
        } else {
            return Ok(Self(text.to_owned()));
        };
        Err(Invalid(fault.to_owned()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId(String);

impl SpiffeId {
    /// The ID as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SpiffeId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = || {
            Invalid(
                "a SPIFFE ID is `spiffe://<trust domain>/ns/<namespace>/sa/<account>`".to_owned(),
            )
        };
        let rest = text.strip_prefix("spiffe://").ok_or_else(wrong)?;
        let parts: Vec<&str> = rest.split('/').collect();
        let [domain, "ns", namespace, "sa", account] = parts[..] else {
            return Err(wrong());
        };
        TrustDomain::from_str(domain)?;
        Label::from_str(namespace)?;
        Label::from_str(account)?;
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
