//! What [`super::Renewals`] asks for: of this node, about its own ends, at once; and of whoever calls it, afterwards.

use rustls::pki_types::CertificateDer;
use underseal_abi::{Conn, HelperCounter};

use crate::{
    Relay, Role, SocketKeys,
    helper::{
        drain::{Opened, Sent},
        exchange::LinkId,
        handover::Failure,
        message::Letter,
        table::Key,
    },
};

/// This node, and what is done to its ends.
pub(in crate::helper) trait Node<S> {
    /// Begins a handshake as the workload of `conn`, for the cipher that its socket has.
    fn relay(&self, conn: &Conn, socket: &S, role: Role) -> anyhow::Result<Relay>;
    /// Whether this kernel replaces keys.
    fn replaces_keys(&mut self) -> bool;
    /// Notes with what certificates the peer was accepted now.
    fn note(&mut self, conn: &Conn, peer: &[CertificateDer<'static>]) -> anyhow::Result<()>;
    /// Counts.
    fn count(&mut self, counter: HelperCounter);
    /// Holds a sender: state `Pausing`.
    fn hold(&mut self, conn: &Conn, socket: &S) -> Result<(), Failure>;
    /// Holds it again, and says what it has sent.
    fn sent(&mut self, socket: &S) -> Result<Sent, Failure>;
    /// Lets it go on while nothing of it is unsent.
    fn pulse(&mut self, socket: &S) -> Result<(), Failure>;
    /// State `Replacing`.
    fn replacing(&mut self, conn: &Conn, socket: &S) -> Result<(), Failure>;
    /// What a receiver has opened.
    fn opened(&self, socket: &S) -> Result<Opened, Failure>;
    /// Its new key.
    fn receive_with(&mut self, socket: &S, keys: &SocketKeys) -> Result<(), Failure>;
    /// The sender's new key, and how much that may encrypt.
    fn send_with(&mut self, conn: &Conn, socket: &S, keys: &SocketKeys) -> Result<(), Failure>;
    /// State `Sealed`, and leave to send.
    fn release(&mut self, conn: &Conn, socket: &S) -> Result<(), Failure>;
}

/// What is to be done.
#[derive(Debug)]
pub(in crate::helper) enum Effect {
    /// This is to be sent.
    Send(LinkId, Letter),
    /// A sealed end is to be found; [`super::Renewals::found`] is told.
    Find(Search),
    /// The connection must end.
    Reset(Conn, HelperCounter, String),
    /// A link to this node is needed.
    Reach(u32),
}

/// An end that is looked for.
#[derive(Clone, Copy, Debug)]
pub(in crate::helper) struct Search {
    pub(super) link: LinkId,
    pub(super) id: u64,
    pub(in crate::helper) sought: Sought,
}

/// Which one.
#[derive(Clone, Copy, Debug)]
pub(in crate::helper) enum Sought {
    /// One that this node begins with.
    Own(Conn),
    /// One that another node has named, and whether that one's kernel replaces keys.
    Named(Key, bool),
}
