//! Connections that are open, and whose other end is on another node: certificates are verified again, and keys replaced
//! where both kernels do that. The other node's helper is told, over the same links that [`super::exchange`] uses; what
//! is done to this node's own end is asked of a [`Node`], at once. Pure otherwise: `S` stands for a socket.
//!
//! Either node may begin, with [`Renewal::Ask`], over the link that it has opened. They shake hands, each as its
//! workload, with the files of now. Whoever refuses says so, and both ends are reset. Else the keys that come out of it
//! go in for one direction after the other, first for what whoever has begun sends:
//!
//! | sender's helper | receiver's helper |
//! |---|---|
//! | holds its end (state `Pausing`); `Drain` | says what is opened, as often as it changes: `Opened` |
//! | all that was sent is opened: state `Replacing`; `Replace` | has a look itself; the new key for receiving; `Replaced` |
//! | the new key for sending; state `Sealed`, leave to send; `Turn` | |
//!
//! A link that breaks, or a helper that is killed: a sender that is pausing goes on under its old key, because nothing
//! is replaced before `Replace` is said. One that is replacing is reset, by this helper or the next, because the other
//! end may have the new key. A receiver keeps nothing that anybody must know.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::{Duration, Instant},
};

use rustls::pki_types::CertificateDer;
use tracing::{debug, warn};
use underseal_abi::{Conn, HelperCounter, Role as End};

use super::{
    drain::{Opened, Pause},
    exchange::{Direction, LinkId},
    handover::Failure,
    message::{Letter, Message, Renewal, Stop},
    names::Route,
    refusal,
    table::key,
};
use crate::{Relay, SocketKeys};

mod node;
mod steps;
#[cfg(test)]
mod tests;

pub(super) use node::{Effect, Node, Search, Sought};

/// How many connections this node has under way at once, of those that it has begun with. Others may have begun with as
/// many again.
const MOST: usize = 32;
/// How long the other node may take for a step.
const PATIENCE: Duration = Duration::from_secs(30);

struct Way {
    node: u32,
    direction: Direction,
    /// Whether the other side understands these letters.
    speaks: bool,
}

/// A connection that is under way.
struct Open<S> {
    conn: Conn,
    socket: S,
    link: LinkId,
    id: u64,
    /// Whether this node has begun.
    begun: bool,
    /// Whether both kernels replace keys.
    replaces: bool,
    keys: Option<SocketKeys>,
    stage: Stage,
    since: Instant,
}

enum Stage {
    /// Whoever has begun: an answer is to come.
    Asked,
    /// Server: the client's hello is to come.
    Hello,
    Shaking(Relay),
    /// Client: it has accepted the server, whose verdict is to come.
    Unconfirmed(Vec<CertificateDer<'static>>),
    /// Nothing is to be done here before the other node's letter.
    Waiting,
    /// This end is held as sender.
    Draining(Draining),
    /// As receiver.
    Watching(Watching),
    /// As sender: the other end may have the new key. The number of the next record.
    Replacing(u64),
}

struct Draining {
    begun: Instant,
    /// Once the other node has said anything.
    heard: Option<(Opened, Pause)>,
    due: Instant,
}

struct Watching {
    told: Option<Opened>,
    looks: u32,
    due: Instant,
}

/// All of them.
pub(super) struct Renewals<S> {
    /// Ends that this node is to begin with.
    waiting: BTreeMap<u64, Conn>,
    /// Some of these have not been looked at.
    fresh: bool,
    under_way: BTreeMap<u64, Open<S>>,
    links: HashMap<LinkId, Way>,
    by_id: HashMap<(LinkId, u64), u64>,
    /// What is to be done, in this order.
    pub(super) effects: VecDeque<Effect>,
}

impl<S> Renewals<S> {
    pub(super) fn new() -> Self {
        Self {
            waiting: BTreeMap::new(),
            fresh: false,
            under_way: BTreeMap::new(),
            links: HashMap::new(),
            by_id: HashMap::new(),
            effects: VecDeque::new(),
        }
    }

    /// This end's connection is to be verified again, and to get new keys.
    pub(super) fn ask(&mut self, conn: &Conn) {
        if !self.under_way.contains_key(&conn.cookie) {
            self.waiting.insert(conn.cookie, *conn);
            self.fresh = true;
        }
    }

    /// Whether something waits for a link to this node.
    pub(super) fn needs(&self, node: u32) -> bool {
        self.waiting.values().any(|conn| conn.node == node)
    }

    /// A link is there.
    pub(super) fn link_up(&mut self, link: LinkId, node: u32, direction: Direction) {
        let way = Way {
            node,
            direction,
            speaks: false,
        };
        self.links.insert(link, way);
    }

    /// The other side understands these letters.
    pub(super) fn speaks(&mut self, link: LinkId) {
        if let Some(way) = self.links.get_mut(&link) {
            way.speaks = true;
        }
    }

    /// A link is gone.
    pub(super) fn link_down(&mut self, link: LinkId, here: &mut impl Node<S>) {
        self.links.remove(&link);
        let over = self.under_way.values().filter(|open| open.link == link);
        let cookies: Vec<u64> = over.map(|open| open.conn.cookie).collect();
        for cookie in cookies {
            if let Some(open) = self.take_out(cookie) {
                self.abandon(open, here, "the link to the other node's helper broke");
            }
        }
    }

    /// An end is gone, or is being reset.
    pub(super) fn forget(&mut self, conn: &Conn, why: Stop, text: &str) {
        self.waiting.remove(&conn.cookie);
        if let Some(open) = self.take_out(conn.cookie) {
            self.say(open.link, open.id, Renewal::Stop(why, text.to_owned()));
        }
    }

    /// A letter has arrived.
    pub(super) fn receive(
        &mut self,
        (link, id): (LinkId, u64),
        said: Renewal,
        here: &mut impl Node<S>,
        now: Instant,
    ) {
        let Some(way) = self.links.get(&link) else {
            return;
        };
        let cookie = match (&said, way.direction) {
            (Renewal::Ask(key, able), Direction::In) => {
                let sought = Sought::Named(*key, *able);
                let search = Search { link, id, sought };
                return self.effects.push_back(Effect::Find(search));
            }
            (_, Direction::Out) => Some(id),
            (_, Direction::In) => self.by_id.get(&(link, id)).copied(),
        };
        let is_this = |open: &&Open<S>| (open.link, open.id) == (link, id);
        let open = cookie.and_then(|cookie| self.under_way.get(&cookie));
        // Else of one that is over.
        if let Some(cookie) = open.filter(is_this).map(|open| open.conn.cookie) {
            self.step(cookie, here, |open, here, letters| {
                open.since = now;
                open.hear(said, here, letters, now)
            });
        }
    }

    /// What has come of a search. `found` is an end in state `Sealed`.
    pub(super) fn found(
        &mut self,
        search: &Search,
        found: Option<(Conn, S)>,
        here: &mut impl Node<S>,
        now: Instant,
    ) {
        let Search { link, id, sought } = *search;
        let node = self.links.get(&link).map(|way| way.node);
        let found = found.filter(|(conn, _)| Some(conn.node) == node);
        match (sought, found) {
            (Sought::Own(conn), Some((_, socket))) => {
                debug!("asks the other node again about {}", Route(&conn));
                let able = here.replaces_keys();
                self.say(link, id, Renewal::Ask(key(&conn), able));
                self.put_in(Open::new(conn, socket, (link, id), able, now), true);
            }
            // It is gone, or its keys are just being replaced: then it is verified, too.
            (Sought::Own(_), None) => {}
            (Sought::Named(..), None) => {
                self.stop(link, id, "there is no such sealed connection");
            }
            (Sought::Named(_, able), Some((conn, socket))) => {
                if !self.yields(&conn) {
                    return self.stop(link, id, "it is under way already, or too many are");
                }
                let own = here.replaces_keys();
                self.say(link, id, Renewal::Agree(own));
                let open = Open::new(conn, socket, (link, id), own && able, now);
                let cookie = open.conn.cookie;
                self.put_in(open, false);
                self.step(cookie, here, |open, here, letters| {
                    open.agreed(here, letters)
                });
            }
        }
    }

    /// Whether another node may begin with this end. If both have begun, the client's goes on.
    fn yields(&mut self, conn: &Conn) -> bool {
        match self.under_way.get(&conn.cookie) {
            None if self.under_way.len() >= 2 * MOST => false,
            None => {
                self.waiting.remove(&conn.cookie);
                true
            }
            Some(own) => {
                let yields = matches!(own.stage, Stage::Asked) && conn.role == End::Server as u32;
                if yields {
                    self.take_out(conn.cookie);
                }
                yields
            }
        }
    }

    /// Goes on with everything.
    pub(super) fn turn(&mut self, here: &mut impl Node<S>, now: Instant) {
        self.begin();
        let due = self.under_way.values().filter(|open| open.due() <= now);
        let due: Vec<u64> = due.map(|open| open.conn.cookie).collect();
        for cookie in due {
            self.step(cookie, here, |open, here, letters| {
                open.look(here, letters, now)
            });
        }
    }

    /// When something is due next.
    pub(super) fn next_due(&self, now: Instant) -> Option<Duration> {
        let fresh = self.fresh.then_some(now);
        let next = self.under_way.values().map(Open::due).chain(fresh).min()?;
        Some(next.saturating_duration_since(now))
    }

    /// This process ends: nobody stays held whose keys are whole.
    pub(super) fn end(&mut self, here: &mut impl Node<S>) {
        self.waiting.clear();
        for (_, open) in std::mem::take(&mut self.under_way) {
            self.abandon(open, here, "the helper ends");
        }
    }

    /// Begins with those for which there is a link, and room: with many at once, because processes are read for them.
    fn begin(&mut self) {
        self.fresh = false;
        let begun = self.under_way.values().filter(|open| open.begun).count();
        let mut room = MOST.saturating_sub(begun);
        if room < MOST / 2 && room < self.waiting.len() {
            return;
        }
        let mut wanted = Vec::new();
        for (cookie, conn) in std::mem::take(&mut self.waiting) {
            let mut links = self.links.iter();
            let is_way = |way: &Way| (way.node, way.direction) == (conn.node, Direction::Out);
            match links.find(|(_, way)| is_way(way)) {
                Some((link, way)) if way.speaks && room > 0 => {
                    room -= 1;
                    let (link, id, sought) = (*link, cookie, Sought::Own(conn));
                    let search = Search { link, id, sought };
                    self.effects.push_back(Effect::Find(search));
                    continue;
                }
                Some(_) => {}
                None if wanted.contains(&conn.node) => {}
                None => wanted.push(conn.node),
            }
            self.waiting.insert(cookie, conn);
        }
        self.effects.extend(wanted.into_iter().map(Effect::Reach));
    }

    fn put_in(&mut self, mut open: Open<S>, begun: bool) {
        open.begun = begun;
        self.by_id.insert((open.link, open.id), open.conn.cookie);
        self.under_way.insert(open.conn.cookie, open);
    }

    fn take_out(&mut self, cookie: u64) -> Option<Open<S>> {
        let open = self.under_way.remove(&cookie)?;
        self.by_id.remove(&(open.link, open.id));
        Some(open)
    }

    /// Goes a step with one of them, and does what follows.
    fn step<N: Node<S>>(
        &mut self,
        cookie: u64,
        here: &mut N,
        go: impl FnOnce(&mut Open<S>, &mut N, &mut Vec<Renewal>) -> Result<Next, Broken>,
    ) {
        let Some(mut open) = self.take_out(cookie) else {
            return;
        };
        let mut letters = Vec::new();
        let next = go(&mut open, here, &mut letters);
        for letter in letters {
            self.say(open.link, open.id, letter);
        }
        match next {
            Ok(Next::Go) => {
                let begun = open.begun;
                self.put_in(open, begun);
            }
            Ok(Next::Done) => {}
            Err(broken) => self.broken(open, broken, here),
        }
    }

    fn broken(&mut self, open: Open<S>, broken: Broken, here: &mut impl Node<S>) {
        let (link, id, conn) = (open.link, open.id, open.conn);
        match broken {
            Broken::Failed(failure) => {
                let text = failure.to_string();
                self.say(link, id, Renewal::Stop(Stop::Failed, text.clone()));
                self.reset(&conn, failure.counter(), text);
            }
            Broken::Refused(error) if refusal::is_final(&error) => {
                let text = format!("{error:#}");
                self.say(link, id, Renewal::Stop(Stop::Refused, text.clone()));
                refusal::counter(&error)
                    .into_iter()
                    .for_each(|c| here.count(c));
                self.refused(&conn, text, here);
            }
            Broken::Refused(error) => {
                warn!("not verified again: {}: {error:#}", Route(&conn));
                let text = format!("{error:#}");
                self.stop(link, id, &text);
            }
            Broken::Told(Stop::Refused, text) => {
                self.refused(&conn, format!("the other node refuses it: {text}"), here);
            }
            Broken::Told(Stop::Failed, text) => {
                let text = format!("the other node has reset it: {text}");
                self.reset(&conn, HelperCounter::ResetNode, text);
            }
            Broken::Told(Stop::Later, text) => self.abandon(open, here, &text),
            Broken::Late => {
                self.stop(link, id, LATE);
                self.abandon(open, here, LATE);
            }
        }
    }

    fn refused(&mut self, conn: &Conn, text: String, here: &mut impl Node<S>) {
        here.count(HelperCounter::RefusedRecheck);
        self.reset(conn, HelperCounter::ResetRefused, text);
    }

    /// Ends it where it is: who is held goes on under the key that it has, unless the other end may have another.
    fn abandon(&mut self, open: Open<S>, here: &mut impl Node<S>, why: &str) {
        let conn = open.conn;
        debug!("not gone on with: {}: {why}", Route(&conn));
        let released = match open.stage {
            Stage::Draining(_) => here.release(&conn, &open.socket),
            Stage::Replacing(_) => Err(Failure::Rekey(
                "it is not known whether the other end has its new key",
            )),
            _ => Ok(()),
        };
        if let Err(failure) = released {
            let text = failure.to_string();
            self.say(
                open.link,
                open.id,
                Renewal::Stop(Stop::Failed, text.clone()),
            );
            self.reset(&conn, failure.counter(), text);
        }
    }

    fn stop(&mut self, link: LinkId, id: u64, text: &str) {
        self.say(link, id, Renewal::Stop(Stop::Later, text.to_owned()));
    }

    fn reset(&mut self, conn: &Conn, counter: HelperCounter, text: String) {
        self.effects.push_back(Effect::Reset(*conn, counter, text));
    }

    fn say(&mut self, link: LinkId, id: u64, said: Renewal) {
        if self.links.contains_key(&link) {
            let message = Message::Renewal(said);
            self.effects
                .push_back(Effect::Send(link, Letter { id, message }));
        }
    }
}

const LATE: &str = "the other node's helper did not go on in time";

/// What comes after a step.
#[derive(Clone, Copy)]
enum Next {
    Go,
    Done,
}

/// Why there is no next step.
enum Broken {
    /// The connection must be reset.
    Failed(Failure),
    /// There is no handshake, or not with these certificates.
    Refused(anyhow::Error),
    /// The other node says so.
    Told(Stop, String),
    /// It has taken too long.
    Late,
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}
