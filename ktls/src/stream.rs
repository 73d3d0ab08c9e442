//! A handshake over a connected socket, with any peer that speaks TLS 1.3.
//!
//! Not a byte is read beyond the record that ends the handshake, so that whatever the peer sends
//! next, the kernel finds it whole. The peer may send session tickets and alerts: read with
//! [`crate::record::RecordReader`], write to the socket itself, and end with
//! [`crate::record::close_notify`].

use crate::{
    install::{InstallError, attach_ulp, install_rx, install_tx},
    party::{self, HandshakeError, Party, Role},
    secrets::{Cipher, SocketKeys},
};
use rustls::{ConnectionCommon, SideData};
use std::{
    io::{self, ErrorKind, Read},
    net::TcpStream,
    os::fd::AsFd,
};

/// Shakes hands as client and gives the keys to the kernel. The socket must block; a timeout on
/// it limits each step.
///
/// # Errors
///
/// A [`SealError`]; the socket is of no use afterwards. A server that refuses our certificate
/// says so only later: the first read then fails with its alert, or with a reset if it closed
/// its end before it had read what we sent.
pub fn seal_client(stream: &TcpStream, party: Party<'_>, cipher: Cipher) -> Result<(), SealError> {
    install(stream, &handshake_client(stream, party, cipher)?)
}

/// Shakes hands as server and gives the keys to the kernel. The socket must block; a timeout on
/// it limits each step.
///
/// # Errors
///
/// A [`SealError`]; the socket is of no use afterwards.
pub fn seal_server(stream: &TcpStream, party: Party<'_>, cipher: Cipher) -> Result<(), SealError> {
    install(stream, &handshake_server(stream, party, cipher)?)
}

/// The first half of [`seal_client`]: the keys, not yet in the kernel.
///
/// # Errors
///
/// As [`seal_client`].
pub fn handshake_client(
    stream: &TcpStream,
    party: Party<'_>,
    cipher: Cipher,
) -> Result<SocketKeys, SealError> {
    let mut connection = party.client(cipher)?;
    drive(stream, &mut connection, Role::Client)?;
    let secrets = connection.dangerous_extract_secrets();
    Ok(party::keys(secrets, Role::Client)?)
}

/// The first half of [`seal_server`]: the keys, not yet in the kernel.
///
/// # Errors
///
/// As [`seal_server`].
pub fn handshake_server(
    stream: &TcpStream,
    party: Party<'_>,
    cipher: Cipher,
) -> Result<SocketKeys, SealError> {
    let mut connection = party.server(cipher)?;
    drive(stream, &mut connection, Role::Server)?;
    let secrets = connection.dangerous_extract_secrets();
    Ok(party::keys(secrets, Role::Server)?)
}

/// Why a socket could not be sealed. Each message is one complete line.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The connection broke during the handshake.
    #[error("the connection broke during the handshake: {0}")]
    Io(#[from] io::Error),
    /// What the peer sent is not TLS.
    #[error("the peer does not speak TLS: it sent a record that begins with {0:02x?}")]
    NotTls([u8; HEADER]),
    /// The handshake failed.
    #[error("{0}")]
    Handshake(#[from] HandshakeError),
    /// The kernel did not take the keys.
    #[error("{0}")]
    Install(#[from] InstallError),
}

fn install(stream: &TcpStream, keys: &SocketKeys) -> Result<(), SealError> {
    attach_ulp(stream.as_fd())?;
    install_rx(stream.as_fd(), &keys.rx)?;
    install_tx(stream.as_fd(), &keys.tx)?;
    Ok(())
}

fn drive<D: SideData>(
    stream: &TcpStream,
    connection: &mut ConnectionCommon<D>,
    role: Role,
) -> Result<(), SealError> {
    let mut record = Vec::new();
    loop {
        flush(stream, connection)?;
        if !connection.is_handshaking() {
            return Ok(());
        }
        read_record(stream, &mut record)?;
        if let Err(error) = party::feed(connection, &record, role) {
            // The alert tells the peer why. If it cannot be sent, the first error still counts.
            let _ = flush(stream, connection);
            return Err(error.into());
        }
    }
}

fn flush<D>(mut stream: &TcpStream, connection: &mut ConnectionCommon<D>) -> io::Result<()> {
    while connection.wants_write() {
        if connection.write_tls(&mut stream)? == 0 {
            return Err(ErrorKind::WriteZero.into());
        }
    }
    Ok(())
}

/// Reads exactly one record, header included.
fn read_record(mut stream: impl Read, record: &mut Vec<u8>) -> Result<(), SealError> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header)?;
    let [kind, major, _, high, low] = header;
    let len = usize::from(u16::from_be_bytes([high, low]));
    // Without this a peer of another protocol would be waited for until it sent what looks like
    // a length.
    if !RECORD_TYPES.contains(&kind) || major != 3 || len > MAX_RECORD {
        return Err(SealError::NotTls(header));
    }
    record.clear();
    record.extend_from_slice(&header);
    record.resize(HEADER + len, 0);
    stream.read_exact(&mut record[HEADER..])?;
    Ok(())
}

const HEADER: usize = 5;
/// change_cipher_spec to application_data, RFC 8446 section 5.1.
const RECORD_TYPES: std::ops::RangeInclusive<u8> = 20..=23;
/// 2^14 bytes and 256 for the expansion, RFC 8446 section 5.2.
const MAX_RECORD: usize = (1 << 14) + 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        identity::Identity,
        spiffe::SpiffeId,
        testing::{Ca, identity},
    };
    use std::{
        io::Write,
        net::{Shutdown, TcpListener},
        thread,
    };

    const CART: &str = "spiffe://example.org/ns/shop/sa/cart";
    const TILL: &str = "spiffe://example.org/ns/shop/sa/till";

    fn sockets() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    type Outcome = Result<SocketKeys, SealError>;

    fn shake(client: &Identity, server: &Identity, server_expects: &str) -> (Outcome, Outcome) {
        let (near, mut far) = sockets();
        let (till, expects): (SpiffeId, SpiffeId) =
            (TILL.parse().unwrap(), server_expects.parse().unwrap());
        thread::scope(|scope| {
            let serving = scope.spawn(|| {
                let party = Party {
                    identity: server,
                    expects: (&expects).into(),
                };
                let outcome = handshake_server(&far, party, Cipher::Aes256Gcm);
                far.write_all(b"next").unwrap();
                far.shutdown(Shutdown::Write).unwrap();
                let mut rest = Vec::new();
                far.read_to_end(&mut rest).unwrap();
                assert_eq!(rest, b"after");
                outcome
            });
            let party = Party {
                identity: client,
                expects: (&till).into(),
            };
            let ours = handshake_client(&near, party, Cipher::Aes256Gcm);
            (&near).write_all(b"after").unwrap();
            near.shutdown(Shutdown::Write).unwrap();
            let mut rest = Vec::new();
            (&near).read_to_end(&mut rest).unwrap();
            assert!(rest.ends_with(b"next"));
            // A server that refuses has sent its alert by now; otherwise nothing precedes.
            assert_eq!(rest.len() == 4, server_expects == CART);
            (ours, serving.join().unwrap())
        })
    }

    #[test]
    fn both_ends_get_the_same_keys_and_nothing_more_is_read() {
        let ca = Ca::new("ca");
        let (cart, till) = (identity(&ca, CART), identity(&ca, TILL));
        let (client, server) = shake(&cart, &till, CART);
        let (client, server) = (client.unwrap(), server.unwrap());
        for (tx, rx) in [(&client.tx, &server.rx), (&server.tx, &client.rx)] {
            assert_eq!(tx.cipher(), Cipher::Aes256Gcm);
            assert_eq!(tx.dangerous_key(), rx.dangerous_key());
            assert_eq!((tx.sequence(), rx.sequence()), (0, 0));
        }
    }

    #[test]
    fn a_refusal_names_its_reason_and_the_peer_gets_an_alert() {
        let ca = Ca::new("ca");
        let (cart, till) = (identity(&ca, CART), identity(&ca, TILL));
        let (_, server) = shake(&cart, &till, TILL);
        match server.unwrap_err() {
            SealError::Handshake(error) => assert_eq!(error.as_str(), "not-allowed"),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_peer_of_another_protocol_is_found_out_at_once() {
        let ca = Ca::new("ca");
        let cart = identity(&ca, CART);
        let (near, mut far) = sockets();
        far.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").unwrap();
        let party = Party {
            identity: &cart,
            expects: cart.id().into(),
        };
        let error = seal_client(&near, party, Cipher::Aes128Gcm).unwrap_err();
        assert!(error.to_string().contains("does not speak TLS"), "{error}");
    }

    #[test]
    fn a_peer_that_hangs_up_is_an_error() {
        let ca = Ca::new("ca");
        let cart = identity(&ca, CART);
        let (near, far) = sockets();
        far.shutdown(Shutdown::Write).unwrap();
        let party = Party {
            identity: &cart,
            expects: cart.id().into(),
        };
        let error = seal_client(&near, party, Cipher::Aes128Gcm).unwrap_err();
        assert!(matches!(error, SealError::Io(_)), "{error}");
    }
}
