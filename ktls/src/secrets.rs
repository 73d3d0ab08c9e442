//! Ciphers and traffic keys: what a handshake yields and the kernel takes.
//!
//! Keys live on the heap, are wiped when dropped, and never show in `Debug`. Whatever hands out
//! their bytes is named `dangerous_*`.

use rustls::{CipherSuite, ConnectionTrafficSecrets, ExtractedSecrets};
use std::{fmt, str::FromStr};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A cipher that both TLS 1.3 and the kernel's TLS know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cipher {
    /// `TLS_AES_128_GCM_SHA256`.
    Aes128Gcm,
    /// `TLS_AES_256_GCM_SHA384`.
    Aes256Gcm,
    /// `TLS_CHACHA20_POLY1305_SHA256`.
    ChaCha20Poly1305,
}

impl Cipher {
    /// Every cipher, once.
    pub const ALL: [Self; 3] = [Self::Aes128Gcm, Self::Aes256Gcm, Self::ChaCha20Poly1305];

    /// The name in configuration files and messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Aes128Gcm => "aes-128-gcm",
            Self::Aes256Gcm => "aes-256-gcm",
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
        }
    }

    /// The kernel's number, `TLS_CIPHER_*` of `linux/tls.h`.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::Aes128Gcm => 51,
            Self::Aes256Gcm => 52,
            Self::ChaCha20Poly1305 => 54,
        }
    }

    /// The cipher that the kernel calls `number`, if it is one of ours.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.number() == number)
    }

    /// The kernel modules that implement it, as `modprobe` knows them.
    #[must_use]
    pub const fn modules(self) -> &'static str {
        match self {
            Self::Aes128Gcm | Self::Aes256Gcm => "gcm (on x86 better: aesni-intel)",
            // The first is a template; the stream cipher under it is the second's, whose name depends
            // on the kernel (Debian's 6.1 and 6.12, and 7.3).
            Self::ChaCha20Poly1305 => "chacha20poly1305 (and chacha20-x86_64 or chacha)",
        }
    }

    /// How many bytes one key may encrypt, those of headers and tags included; `None`: as many as there are record
    /// numbers.
    ///
    /// For AES-GCM RFC 8446 §5.5 says 2^24.5 records of full size, which are 2^38.5 bytes.
    #[must_use]
    pub const fn most_bytes(self) -> Option<u64> {
        match self {
            Self::Aes128Gcm | Self::Aes256Gcm => Some(1 << 38),
            Self::ChaCha20Poly1305 => None,
        }
    }

    pub(crate) const fn suite(self) -> CipherSuite {
        match self {
            Self::Aes128Gcm => CipherSuite::TLS13_AES_128_GCM_SHA256,
            Self::Aes256Gcm => CipherSuite::TLS13_AES_256_GCM_SHA384,
            Self::ChaCha20Poly1305 => CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
        }
    }

    const fn key_len(self) -> usize {
        match self {
            Self::Aes128Gcm => 16,
            Self::Aes256Gcm | Self::ChaCha20Poly1305 => 32,
        }
    }
}

impl fmt::Display for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Cipher {
    type Err = UnknownCipher;

    fn from_str(name: &str) -> Result<Self, UnknownCipher> {
        Self::ALL
            .into_iter()
            .find(|c| c.as_str() == name)
            .ok_or_else(|| UnknownCipher(name.to_owned()))
    }
}

/// A name that is no [`Cipher`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown cipher `{0}` (known: aes-128-gcm, aes-256-gcm, chacha20-poly1305)")]
pub struct UnknownCipher(pub String);

/// The keys of one end of a connection.
#[derive(Debug)]
pub struct SocketKeys {
    /// For what this end sends.
    pub tx: TrafficKeys,
    /// For what this end receives.
    pub rx: TrafficKeys,
}

impl SocketKeys {
    /// `None` if the secrets belong to a cipher that the kernel does not know.
    pub(crate) fn from_rustls(secrets: ExtractedSecrets) -> Option<Self> {
        Some(Self {
            tx: TrafficKeys::from_rustls(secrets.tx)?,
            rx: TrafficKeys::from_rustls(secrets.rx)?,
        })
    }
}

/// The key, IV and record number of one direction.
pub struct TrafficKeys {
    cipher: Cipher,
    sequence: u64,
    // Boxed, so that moving the value leaves no copy of the key behind.
    secret: Box<Secret>,
}

#[derive(Zeroize, ZeroizeOnDrop)]
struct Secret {
    key: [u8; 32],
    iv: [u8; 12],
}

impl TrafficKeys {
    /// The cipher they are for.
    #[must_use]
    pub const fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// The number of the next record under them.
    #[must_use]
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The key in clear, as long as the cipher wants it.
    #[must_use]
    pub fn dangerous_key(&self) -> &[u8] {
        &self.secret.key[..self.cipher.key_len()]
    }

    /// The 12-byte IV in clear; the kernel calls the first four bytes of a GCM IV the salt.
    #[must_use]
    pub fn dangerous_iv(&self) -> &[u8; 12] {
        &self.secret.iv
    }

    /// Keys that protect nothing, for asking the kernel whether it would take real ones.
    pub(crate) fn worthless(cipher: Cipher) -> Self {
        Self {
            cipher,
            sequence: 0,
            secret: Box::new(Secret {
                key: [0; 32],
                iv: [0; 12],
            }),
        }
    }

    fn from_rustls((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Option<Self> {
        let (cipher, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Cipher::Aes128Gcm, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Cipher::Aes256Gcm, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
                (Cipher::ChaCha20Poly1305, key, iv)
            }
            _ => return None,
        };
        let mut keys = Self::worthless(cipher);
        keys.sequence = sequence;
        keys.secret.key[..cipher.key_len()].copy_from_slice(key.as_ref());
        keys.secret.iv.copy_from_slice(iv.as_ref());
        Some(keys)
    }
}

impl fmt::Debug for TrafficKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrafficKeys")
            .field("cipher", &self.cipher)
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_come_back() {
        for cipher in Cipher::ALL {
            assert_eq!(cipher.as_str().parse(), Ok(cipher));
            assert_eq!(Cipher::from_number(cipher.number()), Some(cipher));
        }
        assert_eq!(Cipher::from_number(53), None);
        let error = "rc4".parse::<Cipher>().unwrap_err().to_string();
        for cipher in Cipher::ALL {
            assert!(error.contains(cipher.as_str()), "{error}");
        }
    }

    #[test]
    fn debug_shows_no_key() {
        let mut keys = TrafficKeys::worthless(Cipher::Aes256Gcm);
        keys.secret.key = [0xab; 32];
        keys.secret.iv = [0xcd; 12];
        let shown = format!("{keys:?} {keys:#?}");
        for form in ["171", "205", "ab", "cd", "AB"] {
            assert!(!shown.contains(form), "{shown}");
        }
    }
}
