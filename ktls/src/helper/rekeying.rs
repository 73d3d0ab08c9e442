//! Which connections get new keys, and when: what a session does about [`super::rekey`].

use std::{
    collections::{HashMap, VecDeque},
    io,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use tracing::{info, warn};
use underseal_abi::{Conn, HelperCounter, Role, State};

use super::{
    discover,
    handover::{self, Failure},
    names::Route,
    refusal,
    rekey::{MOST, Rekey, Sender, Turn},
    session::Session,
    table::{Pair, is_remote, key},
};
use crate::{
    Cipher,
    sys::{Way, cipher_of},
};

/// The longest time between two looks whose certificates are due.
const RARELY: Duration = Duration::from_secs(3600);

/// How much later than the client's node the server's begins, beside an eighth of the interval.
const GRACE: Duration = Duration::from_secs(5);

/// Connections on their way to new keys.
pub(super) struct Rekeys {
    /// Ends whose connections are to get other keys, or to be verified again.
    waiting: VecDeque<Conn>,
    under_way: Vec<Rekey>,
    /// Whether this kernel replaces keys, as far as is known: the first connection tries.
    able: bool,
    /// When to look next whose certificates are to be verified again.
    look: Instant,
}

impl Rekeys {
    pub(super) fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            under_way: Vec::new(),
            able: true,
            look: Instant::now(),
        }
    }

    /// The configuration may have changed.
    pub(super) fn ask(&mut self) {
        self.look = Instant::now();
    }

    /// When there is something to do next, apart from [`Rekeys::next_look`].
    pub(super) fn next_due(&self, now: Instant) -> Option<Duration> {
        let due = self.under_way.iter().map(Rekey::due);
        let first = (self.room() > 0 && !self.waiting.is_empty()).then_some(now);
        let next = due.chain(first).min()?;
        Some(next.saturating_duration_since(now))
    }

    /// When to look next for connections whose certificates are due.
    pub(super) fn next_look(&self, now: Instant) -> Duration {
        self.look.saturating_duration_since(now)
    }

    /// How many may begin now: many at once, because the table of connections is read for them.
    fn room(&self) -> usize {
        let free = MOST.saturating_sub(self.under_way.len());
        if free >= MOST / 2 || free >= self.waiting.len() {
            free
        } else {
            0
        }
    }

    /// A socket has been closed.
    pub(super) fn closed(&mut self, cookie: u64) {
        self.waiting.retain(|conn| conn.cookie != cookie);
        self.under_way.retain(|rekey| !rekey.has(cookie));
    }

    fn has(&self, cookie: u64) -> bool {
        self.waiting.iter().any(|conn| conn.cookie == cookie)
            || self.under_way.iter().any(|rekey| rekey.has(cookie))
    }
}

impl Session {
    /// An end has sent so much that it should get another key. On a kernel that does not replace keys it goes on to the
    /// hard limit.
    pub(super) fn near_limit(&mut self, conn: &Conn) {
        let remote = is_remote(conn);
        if !self.rekeys.able || self.controls.no_rekey || remote && !self.remote.replaces_keys() {
            return;
        }
        if remote {
            self.remote.renew(conn);
        } else if !self.rekeys.has(conn.cookie) {
            self.rekeys.waiting.push_back(*conn);
        }
    }

    /// Queues the connections whose certificates were verified longer ago than is configured. They get new keys, if the
    /// kernel replaces any: the handshake for these is what verifies.
    pub(super) fn recheck(&mut self, now: Instant) {
        if now < self.rekeys.look {
            return;
        }
        let Some(every) = self.maps.recheck() else {
            self.rekeys.look = now + RARELY;
            return;
        };
        // So often that it is late by a small part of the interval.
        self.rekeys.look = now + (every / 24).clamp(Duration::from_secs(1), RARELY);
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        for (cookie, seal) in self.maps.seals() {
            let age = since_epoch.saturating_sub(Duration::from_secs(seal.at));
            if age < every {
                continue;
            }
            let conn = self.maps.conn(cookie);
            let Some(conn) = conn.filter(|conn| conn.state == State::Sealed as u32) else {
                continue;
            };
            let is_client = conn.role == Role::Client as u32;
            if is_remote(&conn) {
                // The client's node begins, unless it is away, or its clock says that it is not due.
                if is_client || age >= every + every / 8 + GRACE {
                    self.remote.renew(&conn);
                }
            } else if is_client && !self.rekeys.has(cookie) {
                // The client's end stands for both.
                self.rekeys.waiting.push_back(conn);
            }
        }
    }

    /// Goes on with all connections that get new keys.
    pub(super) fn rekey(&mut self, now: Instant) {
        self.begin_rekeys(now);
        for mut rekey in std::mem::take(&mut self.rekeys.under_way) {
            if rekey.due() > now {
                self.rekeys.under_way.push(rekey);
                continue;
            }
            if rekey.keys.is_none() && !self.fetch_keys(&mut rekey) {
                continue;
            }
            match rekey.turn(&mut self.maps, now, &self.controls) {
                Ok(Turn::Wait) => self.rekeys.under_way.push(rekey),
                Ok(Turn::Done) => {}
                Ok(Turn::Unable) => self.unable(),
                Err(failure) => self.fail(&rekey.pair, &failure),
            }
        }
    }

    /// Lets everybody go on who is held for a new key: this process ends, or its maps are gone.
    pub(super) fn stop_rekeys(&mut self) {
        self.rekeys.waiting.clear();
        for mut rekey in std::mem::take(&mut self.rekeys.under_way) {
            if let Err(failure) = rekey.stop(&mut self.maps) {
                self.fail(&rekey.pair, &failure);
            }
        }
    }

    /// Sees to what an earlier helper has left: who was held only is let go, and where keys may have been replaced in
    /// part the connection is reset.
    ///
    /// # Errors
    /// The table of connections cannot be read.
    pub(super) fn resume_rekeys(&mut self) -> Result<()> {
        let paused = self
            .maps
            .paused()
            .context("cannot read the table of connections")?;
        let found = discover::now(&self.maps, &paused);
        for (conn, found) in paused.iter().zip(found) {
            let state = match &found {
                Ok(Some(socket)) => self.maps.state(socket.as_fd()).ok().flatten(),
                _ => None,
            };
            let released = match (&found, state) {
                (Ok(Some(socket)), Some(State::Pausing | State::Sealed)) => {
                    handover::release_end(&mut self.maps, conn, socket.as_fd()).is_ok()
                }
                _ => false,
            };
            if !released {
                let why = "an earlier helper ended while its keys were being replaced";
                if is_remote(conn) {
                    self.give_up(conn, HelperCounter::ResetInterrupted, why);
                } else {
                    self.give_up_both(conn, HelperCounter::ResetInterrupted, why);
                }
            }
        }
        Ok(())
    }

    fn unable(&mut self) {
        if std::mem::replace(&mut self.rekeys.able, false) {
            info!(
                "this kernel does not replace the keys of open connections: they are reset at twice \
                 seal.rekey_after"
            );
        }
    }

    /// Begins with as many as there is room for: the table of connections and each process are read once for all.
    fn begin_rekeys(&mut self, now: Instant) {
        let first = self.rekeys.waiting.len().min(self.rekeys.room());
        if first == 0 {
            return;
        }
        let conns: Vec<Conn> = self.rekeys.waiting.drain(..first).collect();
        match self.both_ends(&conns) {
            Ok(pairs) => {
                for (conn, pair) in pairs {
                    self.begin_rekey(&conn, pair);
                }
            }
            // The guard tells again.
            Err(error) => self.upkeep.short_of(&error, now),
        }
    }

    fn begin_rekey(&mut self, conn: &Conn, pair: Pair<OwnedFd>) {
        if !self.rekeys.able || self.controls.no_rekey {
            if let Err(error) = self.new_keys(&pair) {
                self.refused(&pair, error);
            }
            return;
        }
        let first = if conn.role == Role::Client as u32 {
            Sender::Client
        } else {
            Sender::Server
        };
        match Rekey::begin(&mut self.maps, pair, first, &self.controls) {
            (rekey, Ok(())) => self.rekeys.under_way.push(rekey),
            (rekey, Err(failure)) => self.fail(&rekey.pair, &failure),
        }
    }

    /// Makes keys for a connection whose first sender is held; false if there are none, and it goes on without.
    fn fetch_keys(&mut self, rekey: &mut Rekey) -> bool {
        match self.new_keys(&rekey.pair) {
            Ok(keys) => {
                rekey.keys = Some(keys);
                true
            }
            Err(error) => {
                // One that is reset next need not be held either.
                if let Err(failure) = rekey.stop(&mut self.maps) {
                    self.fail(&rekey.pair, &failure);
                } else {
                    self.refused(&rekey.pair, error);
                }
                false
            }
        }
    }

    /// A handshake for an open connection has failed.
    fn refused(&mut self, pair: &Pair<OwnedFd>, error: anyhow::Error) {
        if refusal::is_final(&error) {
            self.maps.count(HelperCounter::RefusedRecheck, 1);
            self.fail(pair, &Failure::Refused(error));
        } else {
            warn!("no new keys for {}: {error:#}", Route(&pair.client.0));
        }
    }

    /// A handshake with the identities of now, and the cipher that the connection has: the kernel takes no other.
    fn new_keys(&mut self, pair: &Pair<OwnedFd>) -> Result<crate::memory::Keys> {
        let (client, server) = (&pair.client.0, &pair.server.0);
        let number = cipher_of(pair.client.1.as_fd(), Way::Send).context("its cipher")?;
        let cipher = Cipher::from_number(number).context("its cipher is unknown")?;
        let made = self.peers.fresh(&self.maps, client, cipher)?;
        self.maps.note_seal(client, made.server.chain())?;
        self.maps.note_seal(server, made.client.chain())?;
        self.maps.count(HelperCounter::Rechecked, 1);
        Ok(made.keys)
    }

    /// Those of `conns` that are sealed connections still, with both sockets.
    fn both_ends(&self, conns: &[Conn]) -> io::Result<Vec<(Conn, Pair<OwnedFd>)>> {
        let mut table: HashMap<_, Vec<Conn>> = HashMap::new();
        for conn in self.maps.conns()? {
            table.entry(key(&conn)).or_default().push(conn);
        }
        let opposite = |conn: &Conn| {
            let is_it = |other: &&Conn| {
                other.cookie != conn.cookie
                    && other.role != conn.role
                    && (other.workload, other.peer) == (conn.peer, conn.workload)
            };
            let other = table.get(&key(conn))?.iter().find(is_it)?;
            Some([*conn, *other])
        };
        let both: Vec<[Conn; 2]> = conns.iter().filter_map(opposite).collect();
        let mut found = discover::now(&self.maps, both.as_flattened()).into_iter();
        let mut pairs = Vec::new();
        for ends in both {
            let mut sockets = [found.next(), found.next()].map(|found| self.sealed(found?));
            if let [Some(own), Some(other)] = sockets.each_mut().map(Option::take) {
                pairs.push((ends[0], pair(ends, own, other)));
            }
        }
        Ok(pairs)
    }

    /// A socket that was found, if it is sealed. Of one that was not the guard tells again.
    fn sealed(&self, found: discover::Found) -> Option<OwnedFd> {
        let socket = found.ok()??;
        let state = self.maps.state(socket.as_fd()).ok()?;
        (state == Some(State::Sealed)).then_some(socket)
    }
}

fn pair([conn, other]: [Conn; 2], own: OwnedFd, others: OwnedFd) -> Pair<OwnedFd> {
    let (own, other) = ((conn, own), (other, others));
    let (client, server) = if conn.role == Role::Client as u32 {
        (own, other)
    } else {
        (other, own)
    };
    Pair { client, server }
}
