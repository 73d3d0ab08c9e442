//! Which cipher connections are sealed with.

use std::str::FromStr;

use super::{choice::Cipher, value::Invalid};

/// A certain cipher, or whichever is the fastest on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CipherChoice {
    /// This one.
    Fixed(Cipher),
    /// One of [`CipherChoice::CANDIDATES`].
    Auto,
}

impl CipherChoice {
    /// What is chosen from, the preferred one first. AES-256-GCM is slower than AES-128-GCM everywhere.
    pub const CANDIDATES: [Cipher; 2] = [Cipher::Aes128Gcm, Cipher::ChaCha20Poly1305];

    /// The cipher; `found` is what the machine has come up with.
    #[must_use]
    pub fn cipher(self, found: Option<Cipher>) -> Cipher {
        match self {
            Self::Fixed(cipher) => cipher,
            Self::Auto => found.unwrap_or_default(),
        }
    }

    /// How many bytes a key may encrypt at most, whichever it is.
    #[must_use]
    pub fn most_bytes(self) -> Option<u64> {
        match self {
            Self::Fixed(cipher) => cipher.most_bytes(),
            Self::Auto => Self::CANDIDATES
                .into_iter()
                .filter_map(Cipher::most_bytes)
                .min(),
        }
    }
}

impl FromStr for CipherChoice {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let cipher = text.parse::<Cipher>();
        cipher
            .map(Self::Fixed)
            .map_err(|Invalid(why)| Invalid(format!("{why}, auto")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_is_what_was_found() {
        let auto: CipherChoice = "auto".parse().unwrap();
        let found = Some(Cipher::ChaCha20Poly1305);
        assert_eq!(auto.cipher(found), Cipher::ChaCha20Poly1305);
        assert_eq!(auto.most_bytes(), Cipher::Aes128Gcm.most_bytes());
        let fixed: CipherChoice = "aes-256-gcm".parse().unwrap();
        assert_eq!(fixed.cipher(found), Cipher::Aes256Gcm);
        let error = "rc4".parse::<CipherChoice>().unwrap_err();
        assert!(error.0.ends_with("chacha20-poly1305, auto"), "{}", error.0);
    }
}
