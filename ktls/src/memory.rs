//! A mutual handshake between two ends that live in this process, without a socket.
//!
//! The helper holds both sockets of a connection inside one node. It runs both state machines, so
//! that no handshake byte ever enters the TCP stream, and each end still verifies the other.

use crate::{
    party::{self, HandshakeError, Party, Role},
    secrets::{Cipher, SocketKeys},
};
use rustls::{ConnectionCommon, SideData};

/// The keys of both ends of one connection.
#[derive(Debug)]
pub struct Keys {
    /// For the socket that connected.
    pub client: SocketKeys,
    /// For the socket that accepted.
    pub server: SocketKeys,
}

/// Runs a mutual TLS 1.3 handshake with `cipher` and yields its traffic keys.
///
/// No session ticket is sent, so both directions begin at record 0.
///
/// # Errors
///
/// [`HandshakeError::Refused`] if one end does not accept the other, and says which.
pub fn handshake(
    client: Party<'_>,
    server: Party<'_>,
    cipher: Cipher,
) -> Result<Keys, HandshakeError> {
    let mut client = client.client(cipher)?;
    let mut server = server.server(cipher)?;
    converse(&mut client, &mut server)?;
    Ok(Keys {
        client: party::keys(client.dangerous_extract_secrets(), Role::Client)?,
        server: party::keys(server.dangerous_extract_secrets(), Role::Server)?,
    })
}

fn converse<C: SideData, S: SideData>(
    client: &mut ConnectionCommon<C>,
    server: &mut ConnectionCommon<S>,
) -> Result<(), HandshakeError> {
    let mut flight = Vec::with_capacity(FLIGHT);
    while client.is_handshaking() || server.is_handshaking() {
        let sent = carry(client, server, &mut flight, Role::Server)?;
        let answered = carry(server, client, &mut flight, Role::Client)?;
        if sent + answered == 0 {
            return Err(HandshakeError::Stalled);
        }
    }
    Ok(())
}

/// Carries what one end has to send to the other, which is `receiver`; returns the bytes moved.
fn carry<S: SideData, R: SideData>(
    from: &mut ConnectionCommon<S>,
    to: &mut ConnectionCommon<R>,
    flight: &mut Vec<u8>,
    receiver: Role,
) -> Result<usize, HandshakeError> {
    flight.clear();
    while from.wants_write() {
        from.write_tls(flight)
            .expect("writing to a vector does not fail");
    }
    party::feed(to, flight, receiver)?;
    Ok(flight.len())
}

/// A server flight with a hybrid key share and two certificates takes about 3 kB.
const FLIGHT: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        identity::Identity,
        spiffe::SpiffeId,
        testing::{Ca, Leaf, identity},
        verify::Refusal,
    };

    const CART: &str = "spiffe://example.org/ns/shop/sa/cart";
    const TILL: &str = "spiffe://example.org/ns/shop/sa/till";

    fn try_pair(client: &Identity, server: &Identity) -> Result<Keys, HandshakeError> {
        pair_expecting(client, TILL, server, CART)
    }

    fn pair_expecting(
        client: &Identity,
        client_expects: &str,
        server: &Identity,
        server_expects: &str,
    ) -> Result<Keys, HandshakeError> {
        let parse = |id: &str| -> SpiffeId { id.parse().unwrap() };
        let (by_client, by_server) = (parse(client_expects), parse(server_expects));
        let client = Party {
            identity: client,
            expects: (&by_client).into(),
        };
        let server = Party {
            identity: server,
            expects: (&by_server).into(),
        };
        handshake(client, server, Cipher::Aes128Gcm)
    }

    fn refusal(result: Result<Keys, HandshakeError>) -> (Role, Refusal) {
        match result.unwrap_err() {
            HandshakeError::Refused { by, refusal } => (by, refusal),
            other => panic!("not a refusal: {other}"),
        }
    }

    #[test]
    fn the_keys_of_both_ends_fit_for_every_cipher() {
        let ca = Ca::new("ca");
        let (cart, till) = (identity(&ca, CART), identity(&ca, TILL));
        let (cart_id, till_id) = (cart.id().clone(), till.id().clone());
        for cipher in Cipher::ALL {
            let client = Party {
                identity: &cart,
                expects: (&till_id).into(),
            };
            let server = Party {
                identity: &till,
                expects: (&cart_id).into(),
            };
            let keys = handshake(client, server, cipher).unwrap();
            for (tx, rx) in [
                (&keys.client.tx, &keys.server.rx),
                (&keys.server.tx, &keys.client.rx),
            ] {
                assert_eq!((tx.cipher(), rx.cipher()), (cipher, cipher));
                assert_eq!((tx.sequence(), rx.sequence()), (0, 0));
                assert_eq!(tx.dangerous_key(), rx.dangerous_key());
                assert_eq!(tx.dangerous_iv(), rx.dangerous_iv());
            }
            assert_ne!(
                keys.client.tx.dangerous_key(),
                keys.client.rx.dangerous_key()
            );
            let again = handshake(client, server, cipher).unwrap();
            assert_ne!(
                keys.client.tx.dangerous_key(),
                again.client.tx.dangerous_key()
            );
        }
    }

    #[test]
    fn the_key_exchange_is_post_quantum_hybrid_with_every_cipher() {
        let ca = Ca::new("ca");
        let (cart, till) = (identity(&ca, CART), identity(&ca, TILL));
        let (cart_id, till_id) = (cart.id().clone(), till.id().clone());
        let party = |identity, expects| Party { identity, expects };
        for cipher in Cipher::ALL {
            let mut client = party(&cart, (&till_id).into()).client(cipher).unwrap();
            let mut server = party(&till, (&cart_id).into()).server(cipher).unwrap();
            converse(&mut client, &mut server).unwrap();
            let group = client.negotiated_key_exchange_group().unwrap();
            assert_eq!(group.name(), rustls::NamedGroup::X25519MLKEM768);
        }
    }

    #[test]
    fn debug_of_keys_shows_no_key() {
        let ca = Ca::new("ca");
        let keys = try_pair(&identity(&ca, CART), &identity(&ca, TILL)).unwrap();
        let shown = format!("{keys:?}");
        for part in [&keys.client.tx, &keys.client.rx] {
            let key = format!("{:?}", part.dangerous_key());
            assert!(!shown.contains(key.trim_matches(['[', ']'])), "{shown}");
        }
        assert!(!shown.contains('['), "{shown}");
    }

    #[test]
    fn an_intermediate_in_the_chain_is_followed() {
        let root = Ca::new("root");
        let issuer = root.subordinate("issuer");
        let (cart, till) = (identity(&issuer, CART), identity(&root, TILL));
        try_pair(&cart, &till).unwrap();
    }

    #[test]
    fn another_workload_is_not_allowed_by_either_end() {
        let ca = Ca::new("ca");
        let (cart, till) = (identity(&ca, CART), identity(&ca, TILL));
        let (by, why) = refusal(pair_expecting(&cart, CART, &till, CART));
        assert_eq!((by, why.as_str()), (Role::Client, "not-allowed"));
        let (by, why) = refusal(pair_expecting(&cart, TILL, &till, TILL));
        assert_eq!((by, why.as_str()), (Role::Server, "not-allowed"));
        assert_eq!(
            why.to_string(),
            format!("it is `{CART}`, expected `{TILL}`")
        );
    }

    #[test]
    fn another_trust_domain_under_the_same_ca_is_refused() {
        let ca = Ca::new("ca");
        let stranger = identity(&ca, "spiffe://example.com/ns/shop/sa/cart");
        let (by, why) = refusal(try_pair(&stranger, &identity(&ca, TILL)));
        // The client would be the next to refuse it, but neither has a bundle of the other's domain.
        assert_eq!((by, why.as_str()), (Role::Client, "wrong-trust-domain"));
    }

    #[test]
    fn an_unknown_ca_is_refused_by_whoever_does_not_know_it() {
        let (ours, theirs) = (Ca::new("ours"), Ca::new("theirs"));
        let (by, why) = refusal(try_pair(&identity(&ours, CART), &identity(&theirs, TILL)));
        assert_eq!((by, why), (Role::Client, Refusal::UnknownAuthority));
        let knows_both = ours.issue(&Leaf::of(CART)).trusting(&theirs).load();
        let (by, why) = refusal(try_pair(&knows_both, &identity(&theirs, TILL)));
        assert_eq!((by, why), (Role::Server, Refusal::UnknownAuthority));
    }

    #[test]
    fn a_ca_of_the_same_name_with_another_key_is_told_apart() {
        let (ours, theirs) = (Ca::new("ca"), Ca::new("ca"));
        let (by, why) = refusal(try_pair(&identity(&ours, CART), &identity(&theirs, TILL)));
        assert_eq!((by, why), (Role::Client, Refusal::BadSignature));
    }

    #[test]
    fn certificates_that_ended_after_they_were_loaded_are_refused() {
        let ca = Ca::new("ca");
        let mut leaf = Leaf::of(CART);
        leaf.valid = -3600..1;
        let cart = ca.issue(&leaf).load();
        std::thread::sleep(std::time::Duration::from_millis(2100));
        let (by, why) = refusal(try_pair(&cart, &identity(&ca, TILL)));
        assert_eq!((by, why), (Role::Server, Refusal::Expired));
    }

    #[test]
    fn an_issuer_that_is_not_valid_yet_is_refused() {
        let root = Ca::new("root");
        let early = root.subordinate_valid("early", 3600..7200);
        let (by, why) = refusal(try_pair(&identity(&early, CART), &identity(&root, TILL)));
        assert_eq!((by, why), (Role::Server, Refusal::NotYetValid));
    }

    #[test]
    fn a_certificate_for_servers_only_is_no_client_certificate() {
        let ca = Ca::new("ca");
        let mut leaf = Leaf::of(CART);
        leaf.usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        let (by, why) = refusal(try_pair(&ca.issue(&leaf).load(), &identity(&ca, TILL)));
        assert_eq!((by, why), (Role::Server, Refusal::WrongUsage));
    }
}
