//! What this kernel can do, found out by trying it on connections to itself.

use crate::{
    install::{InstallError, attach_ulp, install_rx, install_tx},
    secrets::{Cipher, TrafficKeys},
};
use std::{
    io,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::AsFd,
};

/// Which ciphers the kernel's TLS takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Support {
    refused: Vec<(Cipher, InstallError)>,
}

impl Support {
    /// Checks that sockets can be sealed with `cipher`.
    ///
    /// # Errors
    ///
    /// What the kernel said; a missing module is named.
    pub fn require(&self, cipher: Cipher) -> Result<(), InstallError> {
        match self.refused.iter().find(|(refused, _)| *refused == cipher) {
            Some((_, error)) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// The ciphers that work.
    pub fn ciphers(&self) -> impl Iterator<Item = Cipher> {
        Cipher::ALL
            .into_iter()
            .filter(|cipher| self.require(*cipher).is_ok())
    }
}

/// Why nothing could be found out, or nothing is there.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No connection over the loopback device came about.
    #[error("cannot connect to 127.0.0.1 to try the kernel's TLS (is `lo` up?): {0}")]
    Loopback(io::Error),
    /// The kernel has no TLS at all.
    #[error("{0}")]
    Kernel(InstallError),
}

/// Tries the kernel's TLS and each cipher, both directions, on connections over the loopback
/// device of the caller's network namespace. Keys that protect nothing are used; no byte is sent.
///
/// The kernel may load modules for it, as it would for real keys.
///
/// # Errors
///
/// [`ProbeError::Kernel`] with [`InstallError::NoTls`] if the kernel has no TLS. A cipher that it
/// lacks is no error here: see [`Support::require`].
pub fn probe() -> Result<Support, ProbeError> {
    let listener = listener().map_err(ProbeError::Loopback)?;
    let mut refused = Vec::new();
    for cipher in Cipher::ALL {
        let (client, _server) = connection(&listener).map_err(ProbeError::Loopback)?;
        attach_ulp(client.as_fd()).map_err(ProbeError::Kernel)?;
        let keys = TrafficKeys::worthless(cipher);
        let taken =
            install_rx(client.as_fd(), &keys).and_then(|()| install_tx(client.as_fd(), &keys));
        if let Err(error) = taken {
            refused.push((cipher, error));
        }
    }
    Ok(Support { refused })
}

/// Whether the kernel's TLS takes other keys for a connection that has some, in both directions.
///
/// # Errors
///
/// As [`probe`]; and if it does not even take the first ones.
pub fn replaces_keys() -> Result<bool, ProbeError> {
    let listener = listener().map_err(ProbeError::Loopback)?;
    let (client, _server) = connection(&listener).map_err(ProbeError::Loopback)?;
    attach_ulp(client.as_fd()).map_err(ProbeError::Kernel)?;
    let keys = TrafficKeys::worthless(Cipher::Aes128Gcm);
    let put_in =
        || install_rx(client.as_fd(), &keys).and_then(|()| install_tx(client.as_fd(), &keys));
    put_in().map_err(ProbeError::Kernel)?;
    match put_in() {
        Ok(()) => Ok(true),
        Err(InstallError::AlreadyKeyed { .. }) => Ok(false),
        Err(error) => Err(ProbeError::Kernel(error)),
    }
}

pub(crate) fn listener() -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
}

pub(crate) fn connection(listener: &TcpListener) -> io::Result<(TcpStream, TcpStream)> {
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    Ok((client, server))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_clear_on_any_kernel() {
        match probe() {
            Ok(support) => {
                for cipher in support.ciphers() {
                    support.require(cipher).unwrap();
                }
            }
            Err(error) => assert!(error.to_string().contains("modprobe tls"), "{error}"),
        }
    }

    #[test]
    fn a_refused_cipher_is_required_in_vain() {
        let cipher = Cipher::ChaCha20Poly1305;
        let support = Support {
            refused: vec![(cipher, InstallError::NoCipher { cipher })],
        };
        let error = support.require(cipher).unwrap_err().to_string();
        assert!(error.contains("chacha20poly1305"), "{error}");
        assert_eq!(
            support.ciphers().collect::<Vec<_>>(),
            [Cipher::Aes128Gcm, Cipher::Aes256Gcm]
        );
    }
}
