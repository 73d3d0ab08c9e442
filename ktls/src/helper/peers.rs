//! The two workloads of a connection, and the handshake between them.
//!
//! A handshake needs nothing of the connection that it is for. So when a pair of workloads has
//! talked, the next handshake between the two is carried out ahead, while nobody waits for it. Its
//! keys serve one connection, only as long as identities and configuration are what they were, and
//! for a minute at most.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use underseal_abi::{Conn, Named, Workload};

use super::{controls::Controls, maps::Maps, names::text};
use crate::{
    Bundle, Cipher, Expects, HandshakeError, Identity, IdentityError, IdentityStore, Party, Relay,
    Role, SpiffeId, identity::CERTIFICATE, memory,
};

/// How long keys that nobody has used yet stay in memory.
const SHELF_LIFE: Duration = Duration::from_secs(60);

/// Workload ids of client and server.
type Pair = (u32, u32);

/// The identities in use, and what has been made ahead with them.
pub(super) struct Peers {
    store: IdentityStore,
    ahead: HashMap<Pair, Ahead>,
    wanted: HashSet<Pair>,
    asks_names: bool,
}

/// A handshake without a connection.
struct Ahead {
    terms: Terms,
    keys: memory::Keys,
    made: Instant,
}

/// A handshake that has been carried out: its keys, and who has proved to be whom.
pub(super) struct Handshake {
    pub(super) keys: memory::Keys,
    pub(super) client: Arc<Identity>,
    pub(super) server: Arc<Identity>,
}

/// Everything that a handshake depends on.
struct Terms {
    client: (Arc<Identity>, Claim),
    server: (Arc<Identity>, Claim),
    cipher: Cipher,
}

/// Whom a workload must prove to be.
#[derive(PartialEq, Eq)]
struct Claim {
    id: SpiffeId,
    /// Those that network policies rely on.
    dns_names: Vec<String>,
}

impl Claim {
    fn expects(&self) -> Expects<'_> {
        Expects::Named {
            id: &self.id,
            dns_names: &self.dns_names,
        }
    }
}

impl Peers {
    pub(super) fn new(controls: &Controls) -> Self {
        Self {
            store: IdentityStore::new(),
            ahead: HashMap::new(),
            wanted: HashSet::new(),
            asks_names: !controls.no_dns_names,
        }
    }

    /// The keys of a mutual handshake for the connection whose client end is `conn`: each side has
    /// proved its own identity and accepted exactly the other's.
    pub(super) fn handshake(&mut self, maps: &Maps, conn: &Conn) -> Result<Handshake> {
        let pair = (conn.workload, conn.peer);
        let terms = self.terms(maps, pair)?;
        self.wanted.insert(pair);
        let ahead = self.ahead.remove(&pair);
        let ahead = ahead.filter(|a| a.terms.are(&terms) && a.made.elapsed() < SHELF_LIFE);
        Ok(Handshake {
            keys: match ahead {
                Some(ahead) => ahead.keys,
                None => terms.handshake()?,
            },
            client: terms.client.0,
            server: terms.server.0,
        })
    }

    /// The same for a connection that is open and has `cipher`: never what was made ahead.
    pub(super) fn fresh(&self, maps: &Maps, conn: &Conn, cipher: Cipher) -> Result<Handshake> {
        let terms = self.terms(maps, (conn.workload, conn.peer))?;
        let terms = Terms { cipher, ..terms };
        Ok(Handshake {
            keys: terms.handshake()?,
            client: terms.client.0,
            server: terms.server.0,
        })
    }

    /// Peers of other trust domains are verified against these bundles from now on.
    pub(super) fn configure(&mut self, bundles: Vec<Bundle>) {
        self.store.set_bundles(bundles);
    }

    /// The identity in a folder, as the next handshake would have it.
    pub(super) fn load(&self, folder: &Path) -> Result<Arc<Identity>, IdentityError> {
        self.store.identity(folder)
    }

    /// Whether an older certificate serves, because the files cannot be used.
    pub(super) fn is_broken(&self, folder: &Path) -> bool {
        self.store.is_broken(folder)
    }

    /// What could not be used, each told of once.
    pub(super) fn take_complaints(&self) -> Vec<(PathBuf, IdentityError)> {
        self.store.take_complaints()
    }

    /// The DNS names that the certificate of a workload must have.
    pub(super) fn dns_names(&self, maps: &Maps, whose: &Named) -> Result<Vec<String>> {
        if self.asks_names {
            maps.dns_names(whose)
        } else {
            Ok(Vec::new())
        }
    }

    /// Begins a handshake as the workload of `conn`, with a workload of another node. If the configuration knows whose
    /// the address is, none but that will do; else any of the trust domain.
    pub(super) fn relay(&self, maps: &Maps, conn: &Conn, role: Role) -> Result<Relay> {
        self.relay_with(maps, conn, role, None)
    }

    /// The same for a connection that is open: its socket has a cipher, and takes no other.
    pub(super) fn relay_with(
        &self,
        maps: &Maps,
        conn: &Conn,
        role: Role,
        has: Option<Cipher>,
    ) -> Result<Relay> {
        let workload = maps.workload(conn.workload)?;
        let (identity, id) = (self.identity(&workload)?, spiffe_id(&workload)?);
        // The other side cannot tell one workload of this node from another; so this side must.
        ensure!(
            *identity.id() == id,
            "the certificate of {} is that of {}, expected {id}",
            text(&workload.name),
            identity.id()
        );
        let peer = maps.peer_workload(&conn.tuple.remote);
        let peer = peer.map(|it| -> Result<Claim> {
            let id = text(&it.spiffe_id).parse::<SpiffeId>();
            Ok(Claim {
                id: id.with_context(|| format!("SPIFFE ID of {}", text(&it.name)))?,
                dns_names: self.dns_names(maps, &named(conn))?,
            })
        });
        let peer = peer.transpose()?;
        let party = Party {
            identity: &identity,
            expects: peer
                .as_ref()
                .map_or(Expects::AnyOfDomainOf(&id), Claim::expects),
        };
        let cipher = has.map_or_else(|| cipher(&workload), Ok)?;
        let relay = Relay::new(party, role, cipher);
        relay.with_context(|| format!("handshake of {id} with the other node"))
    }

    /// Whether there is a handshake to carry out ahead.
    pub(super) fn has_work(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// Carries out one handshake ahead. One that fails is forgotten: it fails again, and is told
    /// of, when a connection needs it.
    pub(super) fn work_ahead(&mut self, maps: &Maps) {
        let Some(pair) = self.wanted.iter().next().copied() else {
            return;
        };
        self.wanted.remove(&pair);
        let made = |terms: Terms| terms.handshake().map(|keys| (terms, keys));
        if let Ok((terms, keys)) = self.terms(maps, pair).and_then(made) {
            let made = Instant::now();
            self.ahead.insert(pair, Ahead { terms, keys, made });
        }
    }

    /// Wipes what has been lying about for too long; returns when there will be more of that.
    pub(super) fn clear_shelf(&mut self) -> Option<Duration> {
        self.ahead
            .retain(|_, ahead| ahead.made.elapsed() < SHELF_LIFE);
        let left = |ahead: &Ahead| SHELF_LIFE.saturating_sub(ahead.made.elapsed());
        self.ahead.values().map(left).min()
    }

    /// Who talks to whom over `conn`, whose other end is on another node, and what this end shows of itself.
    pub(super) fn about(&self, maps: &Maps, conn: &Conn) -> About {
        let own = maps.workload(conn.workload).ok();
        let own = own.as_ref();
        let peer = maps.peer_workload(&conn.tuple.remote);
        let peer = peer.map(|it| text(&it.name).to_owned());
        let remote = std::net::Ipv6Addr::from(conn.tuple.remote).to_canonical();
        About {
            own: own.map_or("?", |it| text(&it.name)).to_owned(),
            peer: peer.unwrap_or_else(|| remote.to_string()),
            certificate: own.map_or_else(PathBuf::new, |it| {
                Path::new(text(&it.identity)).join(CERTIFICATE)
            }),
        }
    }

    fn terms(&self, maps: &Maps, (client, server): Pair) -> Result<Terms> {
        let end = |id| -> Result<_> {
            let workload = maps.workload(id)?;
            let claim = Claim {
                id: spiffe_id(&workload)?,
                dns_names: self.dns_names(maps, &Named::own(id))?,
            };
            Ok(((self.identity(&workload)?, claim), cipher(&workload)))
        };
        let ((client, _), (server, cipher)) = (end(client)?, end(server)?);
        Ok(Terms {
            client,
            server,
            cipher: cipher?,
        })
    }

    fn identity(&self, workload: &Workload) -> Result<Arc<Identity>> {
        let folder = text(&workload.identity);
        let identity = self.store.identity(Path::new(folder));
        identity.with_context(|| format!("identity of {}", text(&workload.name)))
    }
}

impl Terms {
    /// Whether nothing has changed. The store gives out the same value until files change.
    fn are(&self, others: &Self) -> bool {
        let same = |a: &(Arc<Identity>, Claim), b: &(Arc<Identity>, Claim)| {
            Arc::ptr_eq(&a.0, &b.0) && a.1 == b.1
        };
        same(&self.client, &others.client)
            && same(&self.server, &others.server)
            && self.cipher == others.cipher
    }

    fn handshake(&self) -> Result<memory::Keys> {
        let ((client, of_client), (server, of_server)) = (&self.client, &self.server);
        let client = Party {
            identity: client,
            expects: of_server.expects(),
        };
        let server = Party {
            identity: server,
            expects: of_client.expects(),
        };
        memory::handshake(client, server, self.cipher).map_err(|error| {
            let files = match &error {
                HandshakeError::Refused { by, .. } => self.files(*by),
                _ => String::new(),
            };
            let (client, server) = (&of_client.id, &of_server.id);
            let attempt = format!("handshake of {client} with {server}{files}");
            anyhow::Error::new(error).context(attempt)
        })
    }

    /// Which files a refusal by one end is about.
    fn files(&self, by: Role) -> String {
        let (by, other) = match by {
            Role::Client => (&self.client.0, &self.server.0),
            Role::Server => (&self.server.0, &self.client.0),
        };
        format!(
            ", {}/tls.crt against {}/ca.crt",
            other.directory().display(),
            by.directory().display()
        )
    }
}

/// Both ends of a connection with another node, as people read them.
pub(super) struct About {
    pub(super) own: String,
    pub(super) peer: String,
    pub(super) certificate: PathBuf,
}

/// Whose the other end of a connection is, as the map of DNS names knows it.
pub(super) fn named(conn: &Conn) -> Named {
    match conn.peer {
        0 => Named::other(conn.tuple.remote),
        workload => Named::own(workload),
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
