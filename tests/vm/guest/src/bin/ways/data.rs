//! What is sent: pseudo-random bytes that both ends can make, and their comparison.

use anyhow::{Result, bail, ensure};

/// In everything that is sent: found in a recording, it was readable.
const MARKER: &[u8] = b"marker-that-only-plaintext-contains";

/// The first `length` bytes of the stream with this number.
pub(crate) fn stream(number: u64, length: usize) -> Vec<u8> {
    let mut bytes = MARKER.to_vec();
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while bytes.len() < length {
        // xorshift64 (Marsaglia, 2003)
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Fails at the first byte that differs.
pub(crate) fn compare(sent: &[u8], received: &[u8]) -> Result<()> {
    if let Some(at) = sent.iter().zip(received).position(|(a, b)| a != b) {
        let end = (at + 16).min(sent.len()).min(received.len());
        bail!(
            "byte {at} differs: {:02x?} instead of {:02x?}",
            &received[at..end],
            &sent[at..end]
        );
    }
    ensure!(
        sent.len() == received.len(),
        "{} bytes instead of {}",
        received.len(),
        sent.len()
    );
    Ok(())
}
