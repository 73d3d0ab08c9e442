//! Keys into sockets: from here on the kernel encrypts and decrypts.
//!
//! The order is the caller's: [`attach_ulp`] as soon as the socket is at hand (a socket that was
//! shut down since can still take keys then), the keys when the handshake is over. Receive keys
//! of a socket must be in before anyone reads from it, send keys before anyone writes.

use crate::secrets::{Cipher, TrafficKeys};
use nix::{
    errno::Errno,
    sys::socket::{
        setsockopt,
        sockopt::{TcpTlsRx, TcpTlsTx, TcpUlp, TlsCryptoInfo},
    },
};
use std::{fmt, os::fd::BorrowedFd};
use zeroize::Zeroize;

/// Attaches the kernel's TLS to a connected TCP socket, still without keys.
///
/// # Errors
///
/// [`InstallError::AlreadyAttached`] if the socket has an upper protocol already, TLS or another;
/// [`InstallError::NoTls`] if the kernel has no TLS; otherwise the kernel's reason.
pub fn attach_ulp(socket: BorrowedFd<'_>) -> Result<(), InstallError> {
    setsockopt(&socket, TcpUlp::default(), b"tls").map_err(|errno| match errno {
        Errno::EEXIST => InstallError::AlreadyAttached,
        Errno::ENOENT => InstallError::NoTls,
        Errno::ENOTCONN => InstallError::NotConnected,
        reason => InstallError::Attach { reason },
    })
}

/// Installs the keys that decrypt what the socket receives.
///
/// # Errors
///
/// [`InstallError::NoCipher`], [`InstallError::AlreadyKeyed`] (kernels without rekeying), or the
/// kernel's reason.
pub fn install_rx(socket: BorrowedFd<'_>, keys: &TrafficKeys) -> Result<(), InstallError> {
    let info = CryptoInfo::new(keys);
    setsockopt(&socket, TcpTlsRx, &info.0).map_err(|errno| refused(errno, Direction::Receive, keys))
}

/// Installs the keys that encrypt what the socket sends.
///
/// # Errors
///
/// As [`install_rx`].
pub fn install_tx(socket: BorrowedFd<'_>, keys: &TrafficKeys) -> Result<(), InstallError> {
    let info = CryptoInfo::new(keys);
    setsockopt(&socket, TcpTlsTx, &info.0).map_err(|errno| refused(errno, Direction::Send, keys))
}

/// Why the kernel did not take TLS or its keys. Each message is one complete line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InstallError {
    /// The kernel has no TLS.
    #[error(
        "this kernel offers no TLS for sockets (TCP_ULP `tls`): load the module `tls` (modprobe \
         tls), or use a kernel built with CONFIG_TLS"
    )]
    NoTls,
    /// The socket has an upper protocol already.
    #[error("the socket already has an upper protocol (TCP_ULP)")]
    AlreadyAttached,
    /// The socket is not connected, or no longer.
    #[error("cannot attach TLS to the socket (TCP_ULP): it is not connected")]
    NotConnected,
    /// Attaching failed for another reason.
    #[error("cannot attach TLS to the socket (TCP_ULP): {reason}")]
    Attach {
        /// The kernel's reason.
        reason: Errno,
    },
    /// The kernel cannot load the cipher.
    #[error(
        "this kernel cannot encrypt with {cipher}: load the module {modules}",
        modules = cipher.modules()
    )]
    NoCipher {
        /// The cipher that it was asked for.
        cipher: Cipher,
    },
    /// The direction has keys already and the kernel does not replace them.
    #[error("the socket already has keys for what it {direction}s")]
    AlreadyKeyed {
        /// Which way.
        direction: Direction,
    },
    /// Installing failed for another reason.
    #[error("cannot install the {cipher} keys for what the socket {direction}s: {reason}")]
    Keys {
        /// Which way.
        direction: Direction,
        /// The cipher of the keys.
        cipher: Cipher,
        /// The kernel's reason.
        reason: Errno,
    },
}

/// A direction of traffic, as the socket sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// `TLS_TX`.
    Send,
    /// `TLS_RX`.
    Receive,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Send => "send",
            Self::Receive => "receive",
        })
    }
}

fn refused(reason: Errno, direction: Direction, keys: &TrafficKeys) -> InstallError {
    let cipher = keys.cipher();
    match reason {
        // The crypto layer found no implementation; the socket itself was found.
        Errno::ENOENT => InstallError::NoCipher { cipher },
        Errno::EBUSY => InstallError::AlreadyKeyed { direction },
        reason => InstallError::Keys {
            direction,
            cipher,
            reason,
        },
    }
}

/// Keys as the kernel wants them. It is wiped when dropped, and it has no `Debug`, because that of
/// the type inside prints the key.
struct CryptoInfo(Box<TlsCryptoInfo>);

impl CryptoInfo {
    fn new(keys: &TrafficKeys) -> Self {
        let info = libc::tls_crypto_info {
            version: libc::TLS_1_3_VERSION,
            cipher_type: keys.cipher().number(),
        };
        let mut made = Self(Box::new(Self::blank(keys.cipher(), info)));
        made.fill(keys);
        made
    }

    const fn blank(cipher: Cipher, info: libc::tls_crypto_info) -> TlsCryptoInfo {
        match cipher {
            Cipher::Aes128Gcm => TlsCryptoInfo::Aes128Gcm(libc::tls12_crypto_info_aes_gcm_128 {
                info,
                iv: [0; 8],
                key: [0; 16],
                salt: [0; 4],
                rec_seq: [0; 8],
            }),
            Cipher::Aes256Gcm => TlsCryptoInfo::Aes256Gcm(libc::tls12_crypto_info_aes_gcm_256 {
                info,
                iv: [0; 8],
                key: [0; 32],
                salt: [0; 4],
                rec_seq: [0; 8],
            }),
            Cipher::ChaCha20Poly1305 => {
                TlsCryptoInfo::Chacha20Poly1305(libc::tls12_crypto_info_chacha20_poly1305 {
                    info,
                    iv: [0; 12],
                    key: [0; 32],
                    salt: [],
                    rec_seq: [0; 8],
                })
            }
        }
    }

    /// Copies the secrets straight to where they stay, so that no move leaves one on the stack.
    fn fill(&mut self, keys: &TrafficKeys) {
        let (key, iv) = (keys.dangerous_key(), keys.dangerous_iv());
        let sequence = keys.sequence().to_be_bytes();
        match &mut *self.0 {
            TlsCryptoInfo::Aes128Gcm(info) => {
                info.key.copy_from_slice(key);
                info.salt.copy_from_slice(&iv[..4]);
                info.iv.copy_from_slice(&iv[4..]);
                info.rec_seq = sequence;
            }
            TlsCryptoInfo::Aes256Gcm(info) => {
                info.key.copy_from_slice(key);
                info.salt.copy_from_slice(&iv[..4]);
                info.iv.copy_from_slice(&iv[4..]);
                info.rec_seq = sequence;
            }
            TlsCryptoInfo::Chacha20Poly1305(info) => {
                info.key.copy_from_slice(key);
                info.iv.copy_from_slice(iv);
                info.rec_seq = sequence;
            }
        }
    }
}

impl Drop for CryptoInfo {
    fn drop(&mut self) {
        match &mut *self.0 {
            TlsCryptoInfo::Aes128Gcm(info) => {
                info.key.zeroize();
                info.salt.zeroize();
                info.iv.zeroize();
            }
            TlsCryptoInfo::Aes256Gcm(info) => {
                info.key.zeroize();
                info.salt.zeroize();
                info.iv.zeroize();
            }
            TlsCryptoInfo::Chacha20Poly1305(info) => {
                info.key.zeroize();
                info.iv.zeroize();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        net::{TcpListener, TcpStream},
        os::fd::AsFd,
    };

    #[test]
    fn the_numbers_are_the_kernels() {
        for (cipher, number) in [
            (Cipher::Aes128Gcm, libc::TLS_CIPHER_AES_GCM_128),
            (Cipher::Aes256Gcm, libc::TLS_CIPHER_AES_GCM_256),
            (Cipher::ChaCha20Poly1305, libc::TLS_CIPHER_CHACHA20_POLY1305),
        ] {
            assert_eq!(cipher.number(), number);
        }
    }

    #[test]
    fn a_message_names_the_module_to_load() {
        assert!(InstallError::NoTls.to_string().contains("modprobe tls"));
        for (cipher, module) in [
            (Cipher::Aes128Gcm, "gcm"),
            (Cipher::ChaCha20Poly1305, "chacha20poly1305"),
        ] {
            let message = InstallError::NoCipher { cipher }.to_string();
            assert!(message.contains(&format!("module {module}")), "{message}");
        }
        let keys = TrafficKeys::worthless(Cipher::Aes128Gcm);
        let message = refused(Errno::EINVAL, Direction::Send, &keys).to_string();
        assert!(message.contains("aes-128-gcm keys for what the socket sends"));
    }

    #[test]
    fn a_socket_that_is_not_connected_takes_no_tls() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let error = attach_ulp(listener.as_fd()).unwrap_err();
        assert!(
            matches!(error, InstallError::NotConnected | InstallError::NoTls),
            "{error}"
        );
    }

    #[test]
    fn cookies_tell_sockets_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let duplicate = client.try_clone().unwrap();
        let cookie = |socket: BorrowedFd<'_>| crate::cookie(socket).unwrap();
        assert_eq!(cookie(client.as_fd()), cookie(duplicate.as_fd()));
        assert_ne!(cookie(client.as_fd()), cookie(listener.as_fd()));
        crate::set_notsent_lowat(client.as_fd(), u32::MAX).unwrap();
    }
}
