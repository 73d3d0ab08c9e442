//! The two workloads of a connection, and the handshake between them.

use std::path::Path;

use anyhow::{Context, Result};
use underseal_abi::{Conn, Workload};

use super::{maps::Maps, names::text};
use crate::{Cipher, IdentityStore, Party, SpiffeId, memory};

/// The identities in use.
pub(super) struct Peers {
    store: IdentityStore,
}

impl Peers {
    pub(super) fn new() -> Self {
        Self {
            store: IdentityStore::new(),
        }
    }

    /// A mutual handshake for the connection whose client end is `conn`: each side proves its own
    /// identity and accepts exactly the other's.
    pub(super) fn handshake(&self, maps: &Maps, conn: &Conn) -> Result<memory::Keys> {
        let (from, to) = (maps.workload(conn.workload)?, maps.workload(conn.peer)?);
        let (client_id, server_id) = (spiffe_id(&from)?, spiffe_id(&to)?);
        let (client, server) = (self.identity(&from)?, self.identity(&to)?);
        let cipher = cipher(&to)?;
        let keys = memory::handshake(
            Party {
                identity: &client,
                expects: &server_id,
            },
            Party {
                identity: &server,
                expects: &client_id,
            },
            cipher,
        );
        keys.with_context(|| format!("handshake of {client_id} with {server_id}"))
    }

    fn identity(&self, workload: &Workload) -> Result<std::sync::Arc<crate::Identity>> {
        let folder = text(&workload.identity);
        let identity = self.store.identity(Path::new(folder));
        identity.with_context(|| format!("identity of {}", text(&workload.name)))
    }
}

fn spiffe_id(workload: &Workload) -> Result<SpiffeId> {
    text(&workload.spiffe_id)
        .parse()
        .with_context(|| format!("SPIFFE ID of {}", text(&workload.name)))
}

fn cipher(workload: &Workload) -> Result<Cipher> {
    let number = u16::try_from(workload.cipher)
        .ok()
        .and_then(Cipher::from_number);
    number.with_context(|| {
        format!(
            "{} has the unknown cipher {}",
            text(&workload.name),
            workload.cipher
        )
    })
}
