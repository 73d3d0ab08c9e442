//! Which cipher is the fastest in this kernel on this machine: its own TLS is measured, as traffic would use it.
//!
//! Names of drivers and their priorities say which implementation of one cipher is the better one, and nothing of two
//! ciphers. A measurement outside of the kernel would be of other code.

use crate::{
    install::{attach_ulp, install_rx, install_tx},
    probe::{ProbeError, connection, listener},
    secrets::{Cipher, TrafficKeys},
};
use std::{
    io::{self, Read, Write},
    net::TcpListener,
    os::fd::AsFd,
    time::{Duration, Instant},
};

/// How long one cipher is measured at a time, and how often: what disturbs the machine for a moment disturbs one round.
const SPAN: Duration = Duration::from_millis(10);
const ROUNDS: usize = 3;
/// A record of full size.
const RECORD: usize = 16 << 10;
/// How much faster, in percent, another cipher must be than one that comes before it.
const MARGIN: u128 = 10;

/// The fastest of `ciphers` that the kernel has; one that comes first is preferred to one that is a tenth faster at most.
/// `None` if it has none of them. Takes some 30 ms for each, on connections over the loopback device, with keys that
/// protect nothing.
///
/// # Errors
///
/// [`ProbeError::Loopback`] if no connection over the loopback device comes about.
pub fn fastest(ciphers: &[Cipher]) -> Result<Option<Cipher>, ProbeError> {
    let listener = listener().map_err(ProbeError::Loopback)?;
    let mut best = vec![0; ciphers.len()];
    for _ in 0..ROUNDS {
        for (cipher, best) in ciphers.iter().zip(&mut best) {
            // One that the kernel does not have stays at zero.
            let speed = measure(&listener, *cipher).unwrap_or(0);
            *best = speed.max(*best);
        }
    }
    Ok(choose(ciphers, &best))
}

fn choose(ciphers: &[Cipher], speeds: &[u128]) -> Option<Cipher> {
    let mut chosen: Option<(Cipher, u128)> = None;
    for (cipher, speed) in ciphers.iter().zip(speeds).filter(|(_, speed)| **speed > 0) {
        if chosen.is_none_or(|(_, best)| speed * 100 > best * (100 + MARGIN)) {
            chosen = Some((*cipher, *speed));
        }
    }
    chosen.map(|(cipher, _)| cipher)
}

/// Bytes in a second, encrypted and decrypted.
fn measure(listener: &TcpListener, cipher: Cipher) -> io::Result<u128> {
    let (mut sender, mut receiver) = connection(listener)?;
    let keys = TrafficKeys::worthless(cipher);
    attach_ulp(sender.as_fd()).map_err(io::Error::other)?;
    attach_ulp(receiver.as_fd()).map_err(io::Error::other)?;
    install_rx(receiver.as_fd(), &keys).map_err(io::Error::other)?;
    install_tx(sender.as_fd(), &keys).map_err(io::Error::other)?;
    // Whatever goes wrong, it ends.
    receiver.set_read_timeout(Some(Duration::from_secs(1)))?;
    sender.set_write_timeout(Some(Duration::from_secs(1)))?;
    let mut record = vec![0; RECORD];
    let mut bytes = 0;
    let started = Instant::now();
    while started.elapsed() < SPAN {
        sender.write_all(&record)?;
        receiver.read_exact(&mut record)?;
        bytes += RECORD as u128;
    }
    Ok(bytes * 1_000_000 / started.elapsed().as_micros().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Cipher::{Aes128Gcm, ChaCha20Poly1305};

    #[test]
    fn the_first_is_preferred_unless_another_is_clearly_faster() {
        let both = [Aes128Gcm, ChaCha20Poly1305];
        assert_eq!(choose(&both, &[100, 110]), Some(Aes128Gcm));
        assert_eq!(choose(&both, &[100, 111]), Some(ChaCha20Poly1305));
        assert_eq!(choose(&both, &[0, 1]), Some(ChaCha20Poly1305));
        assert_eq!(choose(&both, &[0, 0]), None);
    }

    #[test]
    fn a_kernel_without_tls_has_none() {
        let found = fastest(&[Aes128Gcm, ChaCha20Poly1305]).unwrap();
        assert_eq!(found.is_some(), crate::probe::probe().is_ok());
    }
}
