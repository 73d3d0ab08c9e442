//! Connections whose other end is on another node: what is said to that node's helper, and what is
//! done here, in an order in which no end sends before the other has its keys. Pure but for the
//! handshake's own state: letters and events come in, [`Effect`]s go out; `S` stands for a socket.
//!
//! The client's helper opens a link to the server's and names the connection ([`Message::Open`]).
//! When the server's helper has its socket too, it answers [`Message::Begin`]; until then nothing
//! is kept but that. They shake hands, each as its workload. Each puts its keys into its own
//! socket, and says [`Message::Ready`]; whoever is ready and has heard the other say so gives its
//! end leave to send. So no record arrives where there are no keys.
//!
//! `Ready` is not part of the TLS session, whose secrets have left the state machine by then. It
//! needs no more protection than the link has, which is WireGuard's: a node that lies about being
//! ready harms its own end alone.
//!
//! A link that breaks: ends without keys begin again over the next one; an end with keys is reset,
//! because nobody can tell whether the other end has come as far.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use rustls::pki_types::CertificateDer;
use underseal_abi::{Conn, HelperCounter, Role as End};

use super::{
    message::{Letter, Message, Refused},
    peers::About,
    table::{Key, key},
};
use crate::{Relay, Role, SocketKeys};

mod steps;
#[cfg(test)]
mod tests;

/// Names a link; never used twice.
pub(super) type LinkId = u64;

/// Handshakes that this node, as server, lets run at once: each takes some 40 kB.
const MOST_HANDSHAKES: usize = 32;
/// Connections that other nodes may name before this one has seen them.
const MOST_WANTED: usize = 131_072;
/// How long the other node may take for a step, or a connection that it has named may take to
/// arrive here.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a server's end waits to be named before its helper asks, and asks again.
const FIRST_ASK: Duration = Duration::from_secs(1);
const NEXT_ASK: Duration = Duration::from_secs(5);

/// Which side opened a link. The one that did holds the clients' ends of what is named on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// This node.
    Out,
    /// The other one.
    In,
}

/// What the exchange needs to know of its node.
pub(super) trait Surroundings {
    /// Begins a handshake as the workload of `conn`.
    ///
    /// # Errors
    /// Its identity cannot be used.
    fn relay(&self, conn: &Conn, role: Role) -> anyhow::Result<Relay>;
    /// Both ends of `conn`, as people read them.
    fn about(&self, conn: &Conn) -> About;
    /// Whether new connections between nodes are sealed.
    fn seals(&self) -> bool;
    /// Whether a workload of this node has the address.
    fn is_workload(&self, address: &[u8; 16]) -> bool;
    /// The node that the address belongs to.
    fn node_of(&self, address: &[u8; 16]) -> Option<u32>;
    /// Whether this node's end of the connection is held, and its socket being looked for.
    fn is_held(&self, key: &Key) -> bool;
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Effect<S> {
    /// This is to be sent.
    Send(LinkId, Letter),
    /// The keys of this end ([`Exchange::keys`]) go in; [`Exchange::primed`] is told.
    Prime(u64),
    /// Both ends are ready: this one may send.
    Release(Conn, S),
    /// Both nodes let the connection pass in plaintext.
    LetGo(Conn, S),
    /// The connection must end.
    Reset(Conn, HelperCounter, String),
    /// Something else is to be counted.
    Count(HelperCounter),
    /// A link to this node is needed.
    Reach(u32),
}

struct Ending<S> {
    conn: Conn,
    socket: S,
    /// Over which link it is being talked of, and as what number.
    link: Option<(LinkId, u64)>,
    stage: Stage,
    since: Instant,
    ask: Instant,
}

enum Stage {
    Waiting,
    /// Server: the client's hello is to come.
    Begun,
    Shaking(Relay),
    Keyed {
        keys: Option<SocketKeys>,
        peer: Vec<CertificateDer<'static>>,
        other_ready: bool,
    },
    Primed,
}

struct Wanted {
    link: LinkId,
    id: u64,
    since: Instant,
}

/// All of them.
pub(super) struct Exchange<S> {
    ends: HashMap<u64, Ending<S>>,
    by_key: HashMap<Key, u64>,
    links: HashMap<LinkId, (u32, Direction)>,
    wanted: HashMap<Key, Wanted>,
    by_id: HashMap<(LinkId, u64), Key>,
    /// Servers' ends that may begin, and those that have.
    queue: VecDeque<u64>,
    busy: HashSet<u64>,
    /// What is to be done, in this order.
    pub(super) effects: VecDeque<Effect<S>>,
}

impl<S> Exchange<S> {
    pub(super) fn new() -> Self {
        Self {
            ends: HashMap::new(),
            by_key: HashMap::new(),
            links: HashMap::new(),
            wanted: HashMap::new(),
            by_id: HashMap::new(),
            queue: VecDeque::new(),
            busy: HashSet::new(),
            effects: VecDeque::new(),
        }
    }

    /// With what certificates the peer of this end was accepted, once that is so.
    pub(super) fn peer(&self, cookie: u64) -> Option<&[CertificateDer<'static>]> {
        match &self.ends.get(&cookie)?.stage {
            Stage::Keyed { peer, .. } => Some(peer),
            _ => None,
        }
    }

    /// How many ends wait.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The ends that are here.
    pub(super) fn conns(&self) -> impl Iterator<Item = &Conn> {
        self.ends.values().map(|end| &end.conn)
    }

    /// Whether the end with this cookie is here.
    pub(super) fn has(&self, cookie: u64) -> bool {
        self.ends.contains_key(&cookie)
    }

    /// The socket of an end.
    pub(super) fn socket(&self, cookie: u64) -> Option<(&Conn, &S)> {
        self.ends.get(&cookie).map(|end| (&end.conn, &end.socket))
    }

    /// Takes in an end that is held and whose socket was found.
    pub(super) fn add(&mut self, conn: Conn, socket: S, now: Instant) {
        let key = key(&conn);
        let end = Ending {
            conn,
            socket,
            link: None,
            stage: Stage::Waiting,
            since: now,
            ask: now + FIRST_ASK,
        };
        self.ends.insert(conn.cookie, end);
        self.by_key.insert(key, conn.cookie);
        if conn.role == End::Client as u32 {
            self.open(conn.cookie);
        } else if self.wanted.contains_key(&key) {
            self.attach(conn.cookie, &key);
        }
        self.begin(now);
    }

    /// An end is gone, or is given up for this reason: the other node is told.
    pub(super) fn forget(&mut self, conn: &Conn, why: Refused, text: &str) {
        let is_client = conn.role == End::Client as u32;
        if let Some(end) = self.remove(conn.cookie) {
            if let Some((link, id)) = end.link {
                let message = match why {
                    Refused::Unknown if is_client => Message::Cancel,
                    why => Message::Refuse(why, text.to_owned()),
                };
                self.send(link, id, message);
            }
        } else if !is_client && let Some(wanted) = self.unwant(&key(conn)) {
            let message = Message::Refuse(why, text.to_owned());
            self.send(wanted.link, wanted.id, message);
        }
    }

    /// A link is there.
    pub(super) fn link_up(&mut self, link: LinkId, node: u32, direction: Direction) {
        self.links.insert(link, (node, direction));
        if direction == Direction::Out {
            let waits = |end: &&Ending<S>| end.conn.node == node && end.link.is_none();
            let cookies: Vec<_> = self.ends.values().filter(waits).map(|e| e.conn).collect();
            for conn in cookies.iter().filter(|c| c.role == End::Client as u32) {
                self.open(conn.cookie);
            }
        }
    }

    /// A link is gone, and what it was talking of begins again or is reset.
    pub(super) fn link_down(&mut self, link: LinkId) {
        self.links.remove(&link);
        self.wanted.retain(|_, wanted| wanted.link != link);
        self.by_id.retain(|(of, _), _| *of != link);
        let over = |end: &&Ending<S>| end.link.is_some_and(|(over, _)| over == link);
        let conns: Vec<Conn> = self.ends.values().filter(over).map(|e| e.conn).collect();
        for conn in conns {
            self.begin_again(&conn);
        }
    }

    /// Whether something waits for a link to this node.
    pub(super) fn needs(&self, node: u32) -> bool {
        let mut ends = self.ends.values();
        ends.any(|end| end.conn.node == node && end.link.is_none())
    }

    /// The keys of an end whose handshake is finished; once.
    pub(super) fn keys(&mut self, cookie: u64) -> Option<SocketKeys> {
        match &mut self.ends.get_mut(&cookie)?.stage {
            Stage::Keyed { keys, .. } => keys.take(),
            _ => None,
        }
    }

    /// The keys of an end are in, and nobody sleeps in its old code.
    pub(super) fn primed(&mut self, cookie: u64, now: Instant) {
        let Some(end) = self.ends.get_mut(&cookie) else {
            return;
        };
        let Stage::Keyed { other_ready, .. } = end.stage else {
            return;
        };
        (end.stage, end.since) = (Stage::Primed, now);
        if let Some((link, id)) = end.link {
            self.send(link, id, Message::Ready);
        }
        if other_ready {
            self.release(cookie);
        }
    }

    /// An end must not go on.
    pub(super) fn fail(&mut self, cookie: u64, why: Refused, counter: HelperCounter, text: &str) {
        let Some((conn, _)) = self.socket(cookie) else {
            return;
        };
        let conn = *conn;
        self.forget(&conn, why, text);
        self.effects
            .push_back(Effect::Reset(conn, counter, text.to_owned()));
    }

    /// A letter has arrived.
    pub(super) fn receive(
        &mut self,
        link: LinkId,
        letter: Letter,
        here: &impl Surroundings,
        now: Instant,
    ) {
        let Some((node, direction)) = self.links.get(&link).copied() else {
            return;
        };
        let Letter { id, message } = letter;
        let cookie = match direction {
            // The number is the cookie of an end of this node: a client's, or one that was asked for.
            Direction::Out => self.ends.contains_key(&id).then_some(id),
            Direction::In => self.named(link, id),
        };
        match (message, cookie) {
            (Message::Open(key), _) if direction == Direction::In => {
                self.opened(&key, (link, id, node), here, now);
            }
            (Message::Ask(key), _) if direction == Direction::In => {
                self.asked(&key, (link, id), here);
            }
            (Message::Begin, Some(cookie)) if direction == Direction::Out => {
                self.shake(cookie, None, here, now);
            }
            (Message::Tls(bytes), Some(cookie)) => self.shake(cookie, Some(&bytes), here, now),
            (Message::Ready, Some(cookie)) => self.other_ready(cookie),
            (Message::Refuse(why, text), cookie) => {
                self.disown(link, id);
                if let Some(cookie) = cookie {
                    self.refused(cookie, why, &text, here);
                }
            }
            (Message::Cancel, _) if direction == Direction::In => {
                self.disown(link, id);
                if let Some(cookie) = cookie {
                    self.cancelled(cookie);
                }
            }
            // Of an end that is gone; or the other side breaks the protocol, to its own harm.
            _ => {}
        }
        self.begin(now);
    }

    /// Does what is due: asks, and gives up what has taken too long.
    pub(super) fn due(&mut self, here: &impl Surroundings, now: Instant) {
        let late: Vec<u64> = self
            .ends
            .iter()
            .filter(|(_, end)| end.deadline().is_some_and(|at| at <= now))
            .map(|(cookie, _)| *cookie)
            .collect();
        for cookie in late {
            let text = "the other node's helper did not go on in time";
            self.fail(cookie, Refused::Failed, HelperCounter::ResetNode, text);
        }
        let asking: Vec<Conn> = self
            .ends
            .values()
            .filter(|end| end.asks_at().is_some_and(|at| at <= now))
            .map(|end| end.conn)
            .collect();
        for conn in asking {
            self.ask(&conn, now);
        }
        self.expire(here, now);
        self.begin(now);
    }

    /// When something is due next.
    pub(super) fn next_due(&self, now: Instant) -> Option<Duration> {
        let ends = self.ends.values();
        let ends = ends.flat_map(|end| [end.deadline(), end.asks_at()]);
        let unseen = self
            .wanted
            .iter()
            .filter(|(k, _)| !self.by_key.contains_key(*k));
        let wanted = unseen.map(|(_, wanted)| Some(wanted.since + PATIENCE));
        let next = ends.chain(wanted).flatten().min()?;
        Some(next.saturating_duration_since(now))
    }
}

impl<S> Ending<S> {
    /// When the other side must have gone on.
    fn deadline(&self) -> Option<Instant> {
        match self.stage {
            Stage::Waiting => None,
            _ => Some(self.since + PATIENCE),
        }
    }

    /// When the other side is asked whether it knows the connection.
    fn asks_at(&self) -> Option<Instant> {
        let alone = self.link.is_none() && self.conn.role == End::Server as u32;
        alone.then_some(self.ask)
    }
}
