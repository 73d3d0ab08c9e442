//! Values that are one of a few words.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::value::{Invalid, by_text};

by_text! { Cipher Mode Existing Access }

/// Defines an enum whose variants are words, with its `FromStr` and `Display`.
macro_rules! choice {
    (
        $(#[$doc:meta])* $name:ident, $what:literal:
        $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)*
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl FromStr for $name {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    _ => Err(Invalid(format!(
                        "{} is one of: {}", $what, [$($word),*].join(", ")
                    ))),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $word,)* })
            }
        }
    };
}

pub(super) use choice;

choice! {
    /// Cipher suite of sealed connections.
    Cipher, "a cipher":
    /// `TLS_AES_128_GCM_SHA256`.
    #[default]
    Aes128Gcm = "aes-128-gcm",
    /// `TLS_AES_256_GCM_SHA384`.
    Aes256Gcm = "aes-256-gcm",
    /// `TLS_CHACHA20_POLY1305_SHA256`.
    ChaCha20Poly1305 = "chacha20-poly1305",
}

impl Cipher {
    /// Every cipher with its number in `linux/tls.h`, `TLS_CIPHER_*`.
    const NUMBERS: [(Self, u32); 3] = [
        (Self::Aes128Gcm, 51),
        (Self::Aes256Gcm, 52),
        (Self::ChaCha20Poly1305, 54),
    ];

    /// The kernel's number, `TLS_CIPHER_*`.
    #[must_use]
    pub const fn number(self) -> u32 {
        Self::NUMBERS[self as usize].1
    }

    /// The cipher that the kernel calls `number`.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        let (cipher, _) = Self::NUMBERS.iter().find(|(_, n)| *n == number)?;
        Some(*cipher)
    }
}

choice! {
    /// When connections are sealed by mTLS; see [`underseal_abi::Mode`].
    Mode, "a mode":
    /// Between workloads of one node.
    #[default]
    SameNode = "same-node",
    /// Between all workloads; between nodes inside of WireGuard.
    Always = "always",
    /// Between workloads of different nodes alone, inside of WireGuard.
    CrossNode = "cross-node",
    /// Never; only WireGuard encrypts.
    Never = "never",
}

impl Mode {
    /// The datapath's word for it.
    #[must_use]
    pub const fn raw(self) -> underseal_abi::Mode {
        match self {
            Self::SameNode => underseal_abi::Mode::SameNode,
            Self::Always => underseal_abi::Mode::Always,
            Self::CrossNode => underseal_abi::Mode::CrossNode,
            Self::Never => underseal_abi::Mode::Never,
        }
    }

    /// Whether some connection is sealed that `before` let pass in plaintext.
    #[must_use]
    pub const fn seals_more_than(self, before: Self) -> bool {
        let (new, old) = (self.raw(), before.raw());
        (new.seals_same_node() && !old.seals_same_node())
            || (new.seals_between_nodes() && !old.seals_between_nodes())
    }
}

impl From<underseal_abi::Mode> for Mode {
    fn from(raw: underseal_abi::Mode) -> Self {
        match raw {
            underseal_abi::Mode::SameNode => Self::SameNode,
            underseal_abi::Mode::Always => Self::Always,
            underseal_abi::Mode::CrossNode => Self::CrossNode,
            underseal_abi::Mode::Never => Self::Never,
        }
    }
}

choice! {
    /// What happens to connections between workloads of this node that are open in plaintext when
    /// a namespace is taken over.
    Existing, "`existing`":
    /// They are reset, so that the applications connect again and are sealed.
    #[default]
    Reset = "reset",
    /// They go on in plaintext until they end.
    Keep = "keep",
}

choice! {
    /// Whether something may pass.
    Access, "access":
    /// It may.
    Allow = "allow",
    /// It is dropped and counted.
    #[default]
    Deny = "deny",
}
