//! One end of a handshake whose bytes the caller carries: to a peer that is reached in some other
//! way than over the socket that is to be sealed.
//!
//! The caller gives what arrived to [`Relay::take`] and sends what it returns. Nothing here waits.

use crate::{
    party::{self, HandshakeError, Party, Role},
    secrets::{Cipher, SocketKeys},
};
use rustls::{
    ClientConnection, ConnectionCommon, ServerConnection, SideData, pki_types::CertificateDer,
};

/// A handshake under way.
pub struct Relay {
    end: End,
}

enum End {
    Client(Box<ClientConnection>),
    Server(Box<ServerConnection>),
}

/// How far a handshake has come.
#[must_use]
pub struct Progress {
    /// What the peer must get now; may be empty.
    pub send: Vec<u8>,
    /// Whether this end is finished: its keys can be had.
    pub finished: bool,
}

impl Relay {
    /// Begins as `role`. No session ticket is sent, so both directions begin at record 0.
    ///
    /// # Errors
    /// The identity does not fit.
    pub fn new(party: Party<'_>, role: Role, cipher: Cipher) -> Result<Self, HandshakeError> {
        let end = match role {
            Role::Client => End::Client(Box::new(party.client(cipher)?)),
            Role::Server => End::Server(Box::new(party.server(cipher)?)),
        };
        Ok(Self { end })
    }

    /// Takes what the peer has sent; nothing, to begin.
    ///
    /// # Errors
    /// This end refuses the peer, or the peer has broken the protocol.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Progress, HandshakeError> {
        match &mut self.end {
            End::Client(connection) => advance(connection, bytes, Role::Client),
            End::Server(connection) => advance(connection, bytes, Role::Server),
        }
    }

    /// The chain that the peer has presented, leaf first; empty before it has.
    #[must_use]
    pub fn peer_chain(&self) -> Vec<CertificateDer<'static>> {
        let chain = match &self.end {
            End::Client(c) => c.peer_certificates(),
            End::Server(c) => c.peer_certificates(),
        };
        let chain = chain.unwrap_or_default().iter();
        chain.map(|one| one.clone().into_owned()).collect()
    }

    /// The keys of this end.
    ///
    /// # Errors
    /// It is not finished.
    pub fn keys(self) -> Result<SocketKeys, HandshakeError> {
        match self.end {
            End::Client(c) => party::keys(c.dangerous_extract_secrets(), Role::Client),
            End::Server(c) => party::keys(c.dangerous_extract_secrets(), Role::Server),
        }
    }
}

fn advance<D: SideData>(
    connection: &mut ConnectionCommon<D>,
    bytes: &[u8],
    role: Role,
) -> Result<Progress, HandshakeError> {
    party::feed(connection, bytes, role)?;
    let mut send = Vec::new();
    while connection.wants_write() {
        connection
            .write_tls(&mut send)
            .expect("writing to a vector does not fail");
    }
    Ok(Progress {
        send,
        finished: !connection.is_handshaking(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        identity::Identity,
        party::Expects,
        testing::{Ca, identity},
    };

    const CART: &str = "spiffe://example.org/ns/shop/sa/cart";
    const TILL: &str = "spiffe://example.org/ns/shop/sa/till";
    const THIEF: &str = "spiffe://example.com/ns/shop/sa/thief";

    fn party(identity: &Identity) -> Party<'_> {
        Party {
            identity,
            expects: Expects::AnyOfDomainOf(identity.id()),
        }
    }

    fn shake(client: &Identity, server: &Identity) -> Result<[SocketKeys; 2], HandshakeError> {
        let mut client = Relay::new(party(client), Role::Client, Cipher::Aes128Gcm)?;
        let mut server = Relay::new(party(server), Role::Server, Cipher::Aes128Gcm)?;
        let mut flight = Vec::new();
        for _ in 0..4 {
            let there = client.take(&flight)?;
            let back = server.take(&there.send)?;
            if there.finished && back.finished {
                return Ok([client.keys()?, server.keys()?]);
            }
            flight = back.send;
        }
        Err(HandshakeError::Stalled)
    }

    #[test]
    fn any_workload_of_the_trust_domain_and_nobody_else() {
        let ca = Ca::new("ca");
        let [cart, till, thief] = [CART, TILL, THIEF].map(|id| identity(&ca, id));
        let [client, server] = shake(&cart, &till).unwrap();
        assert_eq!(client.tx.dangerous_key(), server.rx.dangerous_key());
        assert_eq!(client.rx.dangerous_key(), server.tx.dangerous_key());
        for (client, server) in [(&cart, &thief), (&thief, &cart)] {
            let error = shake(client, server).unwrap_err();
            assert_eq!(error.as_str(), "wrong-trust-domain");
        }
    }

    #[test]
    fn keys_of_an_unfinished_handshake_are_refused() {
        let ca = Ca::new("ca");
        let cart = identity(&ca, CART);
        let mut relay = Relay::new(party(&cart), Role::Client, Cipher::Aes128Gcm).unwrap();
        assert!(!relay.take(&[]).unwrap().finished);
        relay.keys().unwrap_err();
    }
}
