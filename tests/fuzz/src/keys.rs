//! WireGuard key files.

use underseal::kernel::key::PrivateKey;

/// A key file holds 44 characters of base64 and white space behind them, or it is refused.
///
/// # Panics
/// Something else is accepted, or the refusal shows what the file holds.
pub fn wireguard_key(mut bytes: &[u8]) {
    let whole = bytes;
    match PrivateKey::from_reader(&mut bytes) {
        Ok(key) => {
            assert_eq!(whole.trim_ascii_end().len(), 44, "more than a key");
            assert_eq!(key.public().to_string().len(), 44);
        }
        Err(error) => assert_eq!(
            error.to_string(),
            "it holds no WireGuard key, which is 44 characters of base64"
        ),
    }
}
