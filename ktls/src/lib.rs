//! Mutual TLS 1.3 whose records the kernel encrypts.
//!
//! The library carries out handshakes and gives their keys to the kernel. A handshake runs either
//! between two state machines [in memory](memory), for two sockets of one machine, or over [a
//! connected socket](stream), with any peer that speaks TLS 1.3, or one [flight at a time](Relay). Both ends prove who they are with
//! X.509-SVIDs, and each accepts exactly the SPIFFE ID that its caller names, or its trust domain.
//!
//! It does not move application data (the kernel does), choose who may talk to whom (the caller
//! does), or renew certificates: it notices that files were replaced and uses the new ones for the
//! next handshake.
#![deny(unsafe_code)]

#[cfg(feature = "diag")]
pub mod diag;
#[cfg(feature = "helper")]
pub mod helper;
pub mod identity;
pub mod install;
pub mod memory;
mod party;
pub mod pattern;
pub mod probe;
pub mod record;
mod relay;
pub mod secrets;
pub mod speed;
pub mod spiffe;
pub mod store;
pub mod stream;
mod svid;
mod sys;
#[cfg(test)]
mod testing;
pub mod trust;
pub mod verify;

pub use identity::{Bundle, Identity, IdentityError};
pub use party::{Expects, HandshakeError, Party, Role};
pub use relay::Relay;
pub use secrets::{Cipher, SocketKeys, TrafficKeys};
pub use spiffe::{SpiffeId, SpiffeIdError};
pub use store::IdentityStore;
pub use svid::{Svid, SvidError};
#[cfg(feature = "maps")]
pub use sys::map_entries;
pub use sys::{cookie, set_notsent_lowat};
pub use trust::{Trust, check_bundle};
pub use verify::{PeerVerifier, Refusal};
