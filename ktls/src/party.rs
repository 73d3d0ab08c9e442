//! One end of a handshake: who it is, whom it expects, and the TLS state machine that follows.

use crate::{
    identity::Identity,
    secrets::{Cipher, SocketKeys},
    spiffe::SpiffeId,
    verify::{PeerVerifier, Refusal},
};
use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, ServerConfig, ServerConnection, SideData,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{DnsName, ServerName},
    server::NoServerSessionStorage,
    version::TLS13,
};
use std::{
    fmt, io,
    sync::{Arc, LazyLock},
};

/// One end of a handshake, as its caller sees it.
#[derive(Clone, Copy, Debug)]
pub struct Party<'a> {
    /// Who this end is.
    pub identity: &'a Identity,
    /// Whom it accepts as peer.
    pub expects: Expects<'a>,
}

/// Whom an end accepts as peer.
#[derive(Clone, Copy, Debug)]
pub enum Expects<'a> {
    /// This workload alone.
    Workload(&'a SpiffeId),
    /// This workload alone, and its certificate must have all of these DNS names.
    Named {
        /// Its SPIFFE ID.
        id: &'a SpiffeId,
        /// In lower case, without a trailing dot.
        dns_names: &'a [String],
    },
    /// Any workload of the trust domain that this ID belongs to, or of another domain that the identity has a bundle
    /// for. For a peer on another node, whose workloads this one does not know.
    AnyOfDomainOf(&'a SpiffeId),
}

impl<'a> From<&'a SpiffeId> for Expects<'a> {
    fn from(id: &'a SpiffeId) -> Self {
        Self::Workload(id)
    }
}

impl Party<'_> {
    pub(crate) fn client(self, cipher: Cipher) -> Result<ClientConnection, HandshakeError> {
        let mut config = ClientConfig::builder_with_provider(provider(cipher))
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| HandshakeError::new(Role::Client, error))?
            .dangerous()
            .with_custom_certificate_verifier(self.verifier())
            .with_client_cert_resolver(self.identity.key.clone());
        config.enable_secret_extraction = true;
        config.enable_sni = false;
        // A resumed session would skip the verifier: expiry and policy would not be looked at.
        config.resumption = Resumption::disabled();
        ClientConnection::new(Arc::new(config), placeholder())
            .map_err(|error| HandshakeError::new(Role::Client, error))
    }

    pub(crate) fn server(self, cipher: Cipher) -> Result<ServerConnection, HandshakeError> {
        let mut config = ServerConfig::builder_with_provider(provider(cipher))
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| HandshakeError::new(Role::Server, error))?
            .with_client_cert_verifier(self.verifier())
            .with_cert_resolver(self.identity.key.clone());
        config.enable_secret_extraction = true;
        // The kernel gives EIO to an application for any record that is not data.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        ServerConnection::new(Arc::new(config))
            .map_err(|error| HandshakeError::new(Role::Server, error))
    }

    fn verifier(self) -> Arc<PeerVerifier> {
        Arc::new(PeerVerifier::new(self.identity, self.expects))
    }
}

/// The two ends of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The end that opened the connection.
    Client,
    /// The end that accepted it.
    Server,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Server => "server",
        })
    }
}

/// Why a handshake failed. Each message is one complete line.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// One end refused the other.
    #[error("the {by} refused its peer: {refusal}")]
    Refused {
        /// The end that refused.
        by: Role,
        /// Its reason.
        refusal: Refusal,
    },
    /// One end met an error of the protocol, or an alert of its peer.
    #[error("the handshake failed at the {at}: {reason}")]
    Failed {
        /// The end that saw it.
        at: Role,
        /// What it saw.
        reason: rustls::Error,
    },
    /// Both ends wait for each other.
    #[error("the handshake stalled: both ends wait for the other")]
    Stalled,
}

impl HandshakeError {
    /// A short name that stays the same, for counters.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Refused { refusal, .. } => refusal.as_str(),
            Self::Failed { .. } => "handshake-failed",
            Self::Stalled => "handshake-stalled",
        }
    }

    pub(crate) fn new(at: Role, reason: rustls::Error) -> Self {
        match Refusal::from_rustls(&reason) {
            Some(refusal) => Self::Refused { by: at, refusal },
            None => Self::Failed { at, reason },
        }
    }
}

/// Gives `bytes`, all of them, to the state machine of the end `at`.
pub(crate) fn feed<D: SideData>(
    connection: &mut ConnectionCommon<D>,
    mut bytes: &[u8],
    at: Role,
) -> Result<(), HandshakeError> {
    while !bytes.is_empty() {
        // Reading from memory fails only if the library's own buffer is full.
        let read = connection
            .read_tls(&mut bytes)
            .map_err(|error| HandshakeError::new(at, general(&error)))?;
        connection
            .process_new_packets()
            .map_err(|error| HandshakeError::new(at, error))?;
        if read == 0 {
            break;
        }
    }
    Ok(())
}

/// The keys behind a finished handshake; `extracted` comes from `dangerous_extract_secrets`.
pub(crate) fn keys(
    extracted: Result<rustls::ExtractedSecrets, rustls::Error>,
    at: Role,
) -> Result<SocketKeys, HandshakeError> {
    extracted
        .and_then(|secrets| {
            SocketKeys::from_rustls(secrets)
                .ok_or_else(|| rustls::Error::General("a cipher that was not offered".to_owned()))
        })
        .map_err(|error| HandshakeError::new(at, error))
}

/// A provider for what does not depend on the cipher: signatures and key loading.
pub(crate) fn any_provider() -> Arc<CryptoProvider> {
    provider(Cipher::Aes128Gcm)
}

/// The provider that knows one cipher suite. Key exchange is in the library's order: the hybrid
/// of X25519 and ML-KEM-768 first, then X25519 alone.
fn provider(cipher: Cipher) -> Arc<CryptoProvider> {
    static PROVIDERS: LazyLock<[Arc<CryptoProvider>; 3]> = LazyLock::new(|| {
        Cipher::ALL.map(|cipher| {
            let mut provider = aws_lc_rs::default_provider();
            provider
                .cipher_suites
                .retain(|suite| suite.suite() == cipher.suite());
            Arc::new(provider)
        })
    });
    Arc::clone(&PROVIDERS[cipher as usize])
}

/// The state machine insists on a name; peers are known by their SPIFFE IDs.
fn placeholder() -> ServerName<'static> {
    const NAME: &str = "peer.invalid";
    ServerName::DnsName(DnsName::try_from_str(NAME).expect("the name is a constant"))
}

fn general(error: &io::Error) -> rustls::Error {
    rustls::Error::General(error.to_string())
}
