//! How much one key may encrypt. The guard counts and tells (`bpf/src/guard.rs`); here it is said what the limits are.

use std::{io, os::fd::BorrowedFd};

use underseal_abi::KeyLimit;

use super::maps::Maps;
use crate::Cipher;

/// A socket is about to get its first key, or has got another one before it sends anything.
pub(super) fn begin(maps: &Maps, socket: BorrowedFd<'_>, cipher: Cipher) -> io::Result<()> {
    let used = maps.used(socket)?;
    maps.set_key_limit(socket, limit(used, maps.rekey_after(), cipher))
}

/// The limit of a key that is used from `used` on. At `configured` bytes it should be replaced, and it must not be used
/// for more than twice as many; 0 stands for half of what the cipher bears.
pub(super) fn limit(used: u64, configured: u64, cipher: Cipher) -> KeyLimit {
    let most = cipher.most_bytes().unwrap_or(u64::MAX);
    match (configured, cipher.most_bytes()) {
        (0, None) => KeyLimit::NONE,
        (0, Some(most)) => KeyLimit::from(used, most / 2, most),
        (soft, _) => KeyLimit::from(used, soft.min(most / 2), soft.saturating_mul(2).min(most)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_the_ciphers_unless_smaller_ones_are_configured() {
        let of = |configured, cipher| {
            let limit = limit(1000, configured, cipher);
            (limit.soft, limit.hard)
        };
        assert_eq!(of(0, Cipher::ChaCha20Poly1305), (u64::MAX, u64::MAX));
        assert_eq!(
            of(0, Cipher::Aes128Gcm),
            ((1 << 37) + 1000, (1 << 38) + 1000)
        );
        for cipher in Cipher::ALL {
            assert_eq!(of(4096, cipher), (5096, 9192));
        }
        assert_eq!(
            of(u64::MAX, Cipher::Aes256Gcm),
            ((1 << 37) + 1000, (1 << 38) + 1000)
        );
    }
}
