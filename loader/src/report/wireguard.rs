//! What `status` has to tell of WireGuard: devices, sessions, and who uses which key.

use std::fmt;
use std::net::SocketAddr;

use serde::Serialize;

use super::{BAD, HEAD, NOTE, Status};
use crate::config::value::{InterfaceName, Label, PublicKey};
use crate::state::Wireguard;

/// A WireGuard session.
#[derive(Debug, Serialize)]
pub struct Session {
    /// The peer.
    pub public_key: PublicKey,
    /// Its name, if the configuration has this key.
    pub name: Option<Label>,
    /// The device that it lives on.
    pub device: InterfaceName,
    /// Generation of this node's key; `None` if the configuration has no such pair.
    pub own_generation: Option<u32>,
    /// Generation of the peer's key, likewise.
    pub peer_generation: Option<u32>,
    /// Whether packets for the peer go there.
    pub in_use: bool,
    /// Where it was last heard from.
    pub endpoint: Option<SocketAddr>,
    /// Seconds since the last handshake; `None` if there was none.
    pub handshake_age: Option<u64>,
    /// Bytes received.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
}

/// How far a change to this node's next key has come.
#[derive(Debug, Serialize)]
pub struct Rotation {
    /// Peers that use the next key.
    pub changed: Vec<Label>,
    /// Peers that use the present one.
    pub waiting: Vec<Label>,
}

pub(super) fn show(f: &mut fmt::Formatter<'_>, status: &Status) -> fmt::Result {
    for wireguard in status.state.devices() {
        device(f, wireguard)?;
        let of_device = |session: &&Session| session.device == wireguard.interface;
        for session in status.peers.iter().filter(of_device) {
            writeln!(f, "  {session}")?;
        }
    }
    let Some(Rotation { changed, waiting }) = &status.rotation else {
        return Ok(());
    };
    let names = |list: &[Label]| match list {
        [] => "nobody".to_owned(),
        list => list
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", "),
    };
    writeln!(
        f,
        "{HEAD}next key{HEAD:#}  used by {}; the present one by {}",
        names(changed),
        names(waiting)
    )
}

fn device(f: &mut fmt::Formatter<'_>, device: &Wireguard) -> fmt::Result {
    let up = if device.up { "up" } else { "down" };
    let key = device.key.public;
    let key = key.map_or_else(|| "none".to_owned(), |key| key.to_string());
    writeln!(
        f,
        "{HEAD}wireguard{HEAD:#}  {} {up}, port {}, MTU {}, public key {key}",
        device.interface, device.port, device.mtu
    )
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("peer ")?;
        if let Some(name) = &self.name {
            write!(f, "{name} ")?;
        }
        write!(f, "{} at ", self.public_key)?;
        match self.endpoint {
            Some(endpoint) => write!(f, "{endpoint}: ")?,
            None => f.write_str("nowhere: ")?,
        }
        match self.handshake_age {
            Some(age) => write!(f, "handshake {age} s ago")?,
            None => write!(f, "{NOTE}no handshake yet{NOTE:#}")?,
        }
        write!(f, ", {} bytes received, {} sent", self.received, self.sent)?;
        if let (Some(own), Some(peer)) = (self.own_generation, self.peer_generation)
            && (own, peer) != (0, 0)
        {
            write!(f, ", generations {own} (own) and {peer}")?;
        }
        if self.in_use {
            Ok(())
        } else {
            write!(f, ", {BAD}not in use{BAD:#}")
        }
    }
}
