//! The edge of [`super::exchange`]: links to other nodes' helpers, and what is done to sockets.
//!
//! Links run between addresses inside of the tunnel alone, and only with configured nodes: whoever
//! else connects is turned away at once. Which node speaks is WireGuard's to know.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::TcpListener,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags};
use tracing::{debug, info, warn};
use underseal_abi::{Conn, HelperCounter};

use super::{
    controls::Controls,
    exchange::{Direction, Effect, Exchange, LinkId, Surroundings},
    handover::{self, Failure, Priming},
    link::{self, Link},
    maps::Maps,
    message::{Message, RENEWALS, Refused, Stop},
    nodes::Nodes,
    peers::{About, Peers},
    renewal::Renewals,
    table::{Key, Table},
};
use crate::{Relay, Role};

mod renewals;

/// How long until a node that could not be reached is tried again, at first and at most.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(2);

/// What has become of a connection.
#[derive(Debug)]
pub(super) enum Outcome {
    /// This end is sealed.
    Sealed(Conn),
    /// It goes on in plaintext, as both nodes are configured now.
    LetGo(Conn),
    /// It has to be reset.
    Reset(Conn, HelperCounter, String),
}

/// Connections with other nodes.
pub(super) struct Remote {
    exchange: Exchange<OwnedFd>,
    renewals: Renewals<OwnedFd>,
    /// Whether this kernel replaces keys, once that is known.
    replaces: Option<bool>,
    nodes: Nodes,
    listeners: Vec<TcpListener>,
    links: BTreeMap<LinkId, Open>,
    troubles: HashMap<u32, Trouble>,
    last: LinkId,
    outcomes: Vec<Outcome>,
}

struct Open {
    link: Link,
    node: u32,
    direction: Direction,
}

/// A node that could not be reached.
struct Trouble {
    due: Instant,
    wait: Duration,
}

/// What the rest of the helper lends for a turn.
pub(super) struct Lent<'a> {
    pub(super) maps: &'a mut Maps,
    pub(super) peers: &'a Peers,
    pub(super) table: &'a Table<OwnedFd>,
    pub(super) controls: &'a Controls,
}

impl Remote {
    pub(super) fn new() -> Self {
        Self {
            exchange: Exchange::new(),
            renewals: Renewals::new(),
            replaces: None,
            nodes: Nodes::default(),
            listeners: Vec::new(),
            links: BTreeMap::new(),
            troubles: HashMap::new(),
            last: 0,
            outcomes: Vec::new(),
        }
    }

    /// Takes in where the nodes are now. Links to nodes that are gone or have moved are closed.
    pub(super) fn configure(&mut self, nodes: Nodes, lent: &mut Lent<'_>) {
        if nodes == self.nodes {
            return;
        }
        if nodes.own() != self.nodes.own() {
            self.listeners.clear();
            for address in nodes.own() {
                match link::listener(*address) {
                    Ok(listener) => self.listeners.push(listener),
                    Err(error) => warn!(
                        "cannot listen on {address}: {error}; no other node can reach this helper there"
                    ),
                }
            }
        }
        let moved = |open: &Open| nodes.way_to(open.node) != self.nodes.way_to(open.node);
        let closed = self.links.iter().filter(|(_, open)| moved(open));
        let closed: Vec<LinkId> = closed.map(|(id, _)| *id).collect();
        self.nodes = nodes;
        self.troubles.clear();
        for id in closed {
            self.close(id, &io::Error::other("the configuration has changed"), lent);
        }
    }

    /// How many ends wait.
    pub(super) fn len(&self) -> usize {
        self.exchange.len()
    }

    /// The ends that are here.
    pub(super) fn conns(&self) -> impl Iterator<Item = &Conn> {
        self.exchange.conns()
    }

    /// Whether the end with this cookie is here.
    pub(super) fn has(&self, cookie: u64) -> bool {
        self.exchange.has(cookie)
    }

    /// Takes in an end that is held.
    pub(super) fn add(&mut self, conn: Conn, socket: OwnedFd) {
        self.exchange.add(conn, socket, Instant::now());
    }

    /// An end is gone.
    pub(super) fn closed(&mut self, conn: &Conn) {
        let text = "its end is gone";
        self.exchange.forget(conn, Refused::Unknown, text);
        self.renewals.forget(conn, Stop::Later, text);
    }

    /// An end is being reset for this reason.
    pub(super) fn gave_up(&mut self, conn: &Conn, why: &str) {
        self.exchange.forget(conn, Refused::Failed, why);
        self.renewals.forget(conn, Stop::Failed, why);
    }

    /// What to wait for, in an order that [`Remote::turn`] expects again.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = PollFd<'_>> {
        let listeners = self.listeners.iter().map(AsFd::as_fd);
        let listeners = listeners.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let links = self.links.values();
        let links = links.map(|open| PollFd::new(open.link.as_fd(), open.link.interest()));
        listeners.chain(links)
    }

    /// How long until there is something to do even if nothing arrives.
    pub(super) fn next_due(&self, now: Instant) -> Option<Duration> {
        let troubles = self.troubles.iter();
        let waits = |node: u32| self.needs(node) && !self.has_way_to(node);
        let troubles = troubles.filter(|(node, _)| waits(**node));
        let troubles = troubles.map(|(_, t)| t.due.saturating_duration_since(now));
        let due = [self.exchange.next_due(now), self.renewals.next_due(now)];
        troubles.chain(due.into_iter().flatten()).min()
    }

    /// Whether something waits for a link to this node.
    fn needs(&self, node: u32) -> bool {
        self.exchange.needs(node) || self.renewals.needs(node)
    }

    /// Goes on with everything. `ready` says which descriptors are; empty if nobody has looked.
    pub(super) fn turn(&mut self, ready: &[bool], lent: &mut Lent<'_>) -> Vec<Outcome> {
        let now = Instant::now();
        let listeners = self.listeners.len();
        if ready.iter().take(listeners).any(|ready| *ready) {
            self.accept(lent);
        }
        // Links that were accepted just now have higher numbers: they come in the next turn.
        let ids: Vec<LinkId> = self.links.keys().copied().collect();
        let arrived = ids.iter().zip(ready.iter().skip(listeners));
        for (id, _) in arrived.filter(|(_, ready)| **ready) {
            self.read(*id, lent, now);
        }
        self.exchange.due(&lent.here(), now);
        self.turn_renewals(lent, now);
        let is_due = |node: u32, t: &Trouble| t.due <= now && self.needs(node);
        let due = self.troubles.iter().filter(|(node, t)| is_due(**node, t));
        let due: Vec<u32> = due.map(|(node, _)| *node).collect();
        for node in due {
            self.connect(node, lent, now);
        }
        self.carry_out(lent, now);
        std::mem::take(&mut self.outcomes)
    }

    fn accept(&mut self, lent: &mut Lent<'_>) {
        let mut accepted = Vec::new();
        for listener in &self.listeners {
            while let Ok((stream, from)) = listener.accept() {
                accepted.push((stream, from.ip().to_canonical()));
            }
        }
        for (stream, from) in accepted {
            let Some(node) = self.nodes.at(from) else {
                lent.maps.count(HelperCounter::LinkRefused, 1);
                debug!("{from} is no node's helper; turned away");
                continue;
            };
            // A node has one helper: an older link of it is dead, and only this side does not know.
            let mut older = self.links.iter();
            let older = older.find(|(_, o)| (o.node, o.direction) == (node, Direction::In));
            if let Some(id) = older.map(|(id, _)| *id) {
                self.close(id, &io::Error::other("there is a newer one"), lent);
            }
            if let Ok(link) = Link::accepted(stream) {
                let id = self.keep(link, node, Direction::In);
                self.exchange.link_up(id, node, Direction::In);
                self.renewals.link_up(id, node, Direction::In);
            }
        }
    }

    /// Begins to connect to a node's helper, unless that is under way or was tried just now.
    fn connect(&mut self, node: u32, lent: &mut Lent<'_>, now: Instant) {
        let waits = self.troubles.get(&node).is_some_and(|t| t.due > now);
        if waits || self.has_way_to(node) {
            return;
        }
        let way = self.nodes.way_to(node);
        let link = way
            .ok_or_else(|| io::Error::other("the configuration does not say where it is"))
            .and_then(|(from, to)| Link::connect(from, to));
        match link {
            Ok(link) => drop(self.keep(link, node, Direction::Out)),
            Err(error) => self.trouble(node, &error, lent, now),
        }
    }

    /// Whether a link to this node is there, or being made.
    fn has_way_to(&self, node: u32) -> bool {
        let mut links = self.links.values();
        links.any(|open| (open.node, open.direction) == (node, Direction::Out))
    }

    fn keep(&mut self, link: Link, node: u32, direction: Direction) -> LinkId {
        self.last += 1;
        let open = Open {
            link,
            node,
            direction,
        };
        self.links.insert(self.last, open);
        self.last
    }

    /// Tells of a node that cannot be reached, once until it can, and tries again later.
    fn trouble(&mut self, node: u32, error: &io::Error, lent: &mut Lent<'_>, now: Instant) {
        lent.maps.count(HelperCounter::NodeUnreachable, 1);
        let trouble = self.troubles.entry(node).or_insert_with(|| {
            warn!(
                "cannot reach the helper of {}: {error}; connections with its workloads wait",
                self.nodes.name(node)
            );
            Trouble {
                due: now,
                wait: FIRST_RETRY,
            }
        });
        trouble.due = now + trouble.wait;
        trouble.wait = (trouble.wait * 2).min(LAST_RETRY);
    }

    fn read(&mut self, id: LinkId, lent: &mut Lent<'_>, now: Instant) {
        let Some(open) = self.links.get_mut(&id) else {
            return;
        };
        let (letters, end) = open.link.receive();
        for letter in letters {
            match letter.message {
                Message::Speaks(what) if what == RENEWALS => self.renewals.speaks(id),
                Message::Renewal(said) => self.hear((id, letter.id), said, lent, now),
                _ => self.exchange.receive(id, letter, &lent.here(), now),
            }
        }
        if let Err(error) = end {
            self.broken(id, &error, lent, now);
        }
    }

    fn broken(&mut self, id: LinkId, error: &io::Error, lent: &mut Lent<'_>, now: Instant) {
        let Some(open) = self.links.get(&id) else {
            return;
        };
        let (node, direction) = (open.node, open.direction);
        self.close(id, error, lent);
        if direction == Direction::Out {
            self.trouble(node, error, lent, now);
        }
    }

    fn close(&mut self, id: LinkId, error: &io::Error, lent: &mut Lent<'_>) {
        if let Some(open) = self.links.remove(&id) {
            debug!("link with {} ended: {error}", self.nodes.name(open.node));
            self.exchange.link_down(id);
            self.renewals_without(id, lent);
        }
    }

    /// Carries out what the exchange asks for, until it asks for nothing more.
    fn carry_out(&mut self, lent: &mut Lent<'_>, now: Instant) {
        loop {
            let mut primes = Vec::new();
            while let Some(effect) = self.exchange.effects.pop_front() {
                match effect {
                    Effect::Send(id, letter) => {
                        if let Some(open) = self.links.get_mut(&id) {
                            open.link.queue(&letter);
                        }
                    }
                    Effect::Prime(cookie) => primes.push(cookie),
                    Effect::Count(counter) => lent.maps.count(counter, 1),
                    Effect::Reach(node) => self.connect(node, lent, now),
                    Effect::Release(conn, socket) => self.release(&conn, &socket, lent),
                    Effect::LetGo(conn, socket) => self.let_go(&conn, &socket, lent),
                    Effect::Reset(conn, counter, why) => {
                        self.outcomes.push(Outcome::Reset(conn, counter, why));
                    }
                }
            }
            self.prime(&primes, lent, now);
            self.carry_out_renewals(lent, now);
            self.flush(lent, now);
            if self.exchange.effects.is_empty() && self.renewals.effects.is_empty() {
                return;
            }
        }
    }

    fn flush(&mut self, lent: &mut Lent<'_>, now: Instant) {
        let mut broken = Vec::new();
        for (id, open) in &mut self.links {
            let was_connected = open.link.is_connected();
            match open.link.flush() {
                Err(error) => broken.push((*id, error)),
                Ok(()) if open.direction == Direction::In || was_connected => {}
                Ok(()) if open.link.is_connected() => {
                    if self.troubles.remove(&open.node).is_some() {
                        info!("reached the helper of {}", self.nodes.name(open.node));
                    }
                    self.exchange.link_up(*id, open.node, Direction::Out);
                    self.renewals.link_up(*id, open.node, Direction::Out);
                }
                Ok(()) => {}
            }
        }
        for (id, error) in broken {
            self.broken(id, &error, lent, now);
        }
    }

    /// Before the keys: no end is sealed of which it is not known with whom. One that cannot be noted stays held, and
    /// is given up like any other whose peer does not go on.
    fn note(&self, cookie: u64, lent: &mut Lent<'_>) -> bool {
        let peer = self.exchange.peer(cookie);
        let conn = self.exchange.socket(cookie).map(|(conn, _)| *conn);
        let noted = conn
            .zip(peer)
            .map(|(conn, peer)| lent.maps.note_seal(&conn, peer));
        match noted {
            Some(Err(error)) => {
                warn!("cannot note with whom a connection is sealed: {error}");
                false
            }
            _ => true,
        }
    }

    fn prime(&mut self, cookies: &[u64], lent: &mut Lent<'_>, now: Instant) {
        let cookies = cookies.iter().filter(|cookie| self.note(**cookie, lent));
        let cookies: Vec<u64> = cookies.copied().collect();
        let keyed = cookies.iter().filter_map(|cookie| {
            let keys = self.exchange.keys(*cookie)?;
            Some((*cookie, keys))
        });
        let keyed: Vec<_> = keyed.collect();
        let ends = keyed.iter().filter_map(|(cookie, keys)| {
            let (conn, socket) = self.exchange.socket(*cookie)?;
            Some(Priming {
                conn,
                socket: socket.as_fd(),
                keys,
            })
        });
        let ends: Vec<_> = ends.collect();
        if ends.is_empty() {
            return;
        }
        let results = handover::prime(lent.maps, &ends, lent.controls);
        drop(ends);
        for ((cookie, _), result) in keyed.iter().zip(results) {
            match result {
                Ok(()) => self.exchange.primed(*cookie, now),
                Err(failure) => self.exchange.fail(
                    *cookie,
                    Refused::Failed,
                    failure.counter(),
                    &failure.to_string(),
                ),
            }
        }
    }

    fn release(&mut self, conn: &Conn, socket: &OwnedFd, lent: &mut Lent<'_>) {
        let released = handover::release_end(lent.maps, conn, socket.as_fd());
        self.outcomes.push(match released {
            Ok(()) => Outcome::Sealed(*conn),
            Err(failure) => reset(conn, &failure),
        });
    }

    fn let_go(&mut self, conn: &Conn, socket: &OwnedFd, lent: &mut Lent<'_>) {
        let gone = handover::let_go(lent.maps, conn, socket.as_fd());
        self.outcomes.push(match gone {
            Ok(()) => Outcome::LetGo(*conn),
            Err(failure) => reset(conn, &failure),
        });
    }
}

fn reset(conn: &Conn, failure: &Failure) -> Outcome {
    Outcome::Reset(*conn, failure.counter(), failure.to_string())
}

impl Lent<'_> {
    fn here(&self) -> Here<'_> {
        Here {
            maps: self.maps,
            peers: self.peers,
            table: self.table,
        }
    }
}

/// This node, as the exchange sees it.
struct Here<'a> {
    maps: &'a Maps,
    peers: &'a Peers,
    table: &'a Table<OwnedFd>,
}

impl Surroundings for Here<'_> {
    fn relay(&self, conn: &Conn, role: Role) -> anyhow::Result<Relay> {
        self.peers.relay(self.maps, conn, role)
    }

    fn about(&self, conn: &Conn) -> About {
        self.peers.about(self.maps, conn)
    }

    fn seals(&self) -> bool {
        self.maps.mode().seals_between_nodes()
    }

    fn is_workload(&self, address: &[u8; 16]) -> bool {
        let endpoint = self.maps.endpoint(address);
        endpoint.is_some_and(|e| e.node == underseal_abi::THIS_NODE && e.workload != 0)
    }

    fn node_of(&self, address: &[u8; 16]) -> Option<u32> {
        self.maps.endpoint(address).map(|e| e.node)
    }

    fn is_held(&self, key: &Key) -> bool {
        self.table.has(key)
    }
}
