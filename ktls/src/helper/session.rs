//! One run of the helper on one set of pinned maps.

use std::{
    collections::HashSet,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tracing::{debug, warn};
use underseal_abi::{Conn, EventKind, HelperCounter, State};

use super::{
    controls::{Controls, Step},
    discover::{self, Found, Seen},
    handover,
    handover::Failure,
    maps::Maps,
    names::Route,
    peers::Peers,
    pins::Watch,
    queue::Queue,
    rekeying::Rekeys,
    remote::Remote,
    review::Review,
    table::{Missing, Pair, Table, is_remote},
    upkeep::{Limits, Upkeep},
};
use crate::{
    install::{self, InstallError},
    sys::has_keys,
};

/// Why a session ended.
#[must_use]
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The maps were unpinned; others may come.
    MapsGone,
    /// SIGTERM or SIGINT.
    Asked,
}

/// How many connections are sealed between two looks at what else there is to do. The records of
/// sleeping tasks are read once for all of them.
const BATCH: usize = 16;
/// How many sockets of complete connections are in hand at most before some of those are sealed: a helper that starts
/// over ten thousand connections does not look for all of them first. When half of them are sealed more are looked for.
const AHEAD: usize = 256;

/// The helper at work.
pub(super) struct Session {
    pub(super) controls: Controls,
    pub(super) maps: Maps,
    watch: Watch,
    applies: Watch,
    pub(super) peers: Peers,
    pub(super) table: Table<OwnedFd>,
    seen: Seen,
    /// Complete connections, by workloads of client and server.
    ready: Queue<(u32, u32), Pair<OwnedFd>>,
    limits: Limits,
    pub(super) upkeep: Upkeep,
    pub(super) remote: Remote,
    /// Ends of connections with other nodes that were closed, and are to be forgotten.
    pub(super) gone: Vec<Conn>,
    lost_events: u64,
    pub(super) review: Review,
    pub(super) rekeys: Rekeys,
}

impl Session {
    /// Opens the pinned maps and takes up every connection that waits there.
    ///
    /// # Errors
    /// A map is missing or of another version.
    pub(super) fn start(controls: Controls) -> Result<Self> {
        let watch = Watch::maps()?;
        let applies = Watch::applies()?;
        let maps = Maps::open()?;
        let lost_events = maps.lost_events();
        let peers = Peers::new(&controls);
        let mut session = Self {
            controls,
            maps,
            watch,
            applies,
            peers,
            table: Table::new(),
            seen: Seen::default(),
            ready: Queue::new(),
            limits: Limits::of_process()?,
            upkeep: Upkeep::new(),
            remote: Remote::new(),
            gone: Vec::new(),
            lost_events,
            review: Review::new()?,
            rekeys: Rekeys::new(),
        };
        session.configure()?;
        session.scan()?;
        session.resume_rekeys()?;
        Ok(session)
    }

    /// How many ends of connections wait.
    #[must_use]
    pub(super) fn waiting(&self) -> usize {
        self.table.len() + self.remote.len()
    }

    /// Works until the maps go or `stop` becomes readable.
    ///
    /// # Errors
    /// Only what makes going on pointless; a connection that fails is reset and logged.
    pub(super) fn run(&mut self, stop: impl AsFd) -> Result<End> {
        let end = self.work(stop);
        self.stop_rekeys();
        self.stop_renewals();
        end
    }

    fn work(&mut self, stop: impl AsFd) -> Result<End> {
        let mut ready = Vec::new();
        loop {
            self.take_events()?;
            self.search();
            self.seal();
            self.talk(&ready);
            self.keep_up(Instant::now());
            self.complain();
            self.review(Instant::now());
            self.recheck(Instant::now());
            self.rekey(Instant::now());
            let timeout = self.timeout();
            let mut wait = vec![
                PollFd::new(self.maps.events.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.watch.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.applies.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.review.as_fd(), PollFlags::POLLIN),
                PollFd::new(stop.as_fd(), PollFlags::POLLIN),
            ];
            let own = wait.len();
            wait.extend(self.remote.descriptors());
            let idle = match poll(&mut wait, timeout) {
                Ok(ready) => ready == 0,
                Err(Errno::EINTR) => false,
                Err(errno) => return Err(errno.into()),
            };
            ready.clear();
            ready.extend(wait.iter().map(|fd| fd.any().unwrap_or(false)));
            let asked = ready[own - 1];
            ready.drain(..own);
            self.review.take_events(Instant::now());
            if self.applies.changed() {
                self.configure()?;
            }
            if self.watch.changed() && Maps::open().is_err() {
                return Ok(End::MapsGone);
            }
            if asked {
                return Ok(End::Asked);
            }
            if idle && self.ready.len() == 0 {
                self.peers.work_ahead(&self.maps);
            }
        }
    }

    fn timeout(&mut self) -> PollTimeout {
        if self.peers.has_work() || self.ready.len() > 0 {
            return PollTimeout::ZERO;
        }
        // Rounded up: a millisecond early would spin.
        let round_up = |d: Duration| {
            PollTimeout::try_from(d + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        };
        let now = Instant::now();
        let due = [
            self.table.next_due(now),
            self.remote.next_due(now),
            self.peers.clear_shelf(),
            self.next_upkeep(now),
            Some(self.review.next_due(now)),
            self.rekeys.next_due(now),
            Some(self.rekeys.next_look(now)),
        ];
        due.into_iter()
            .flatten()
            .min()
            .map_or(PollTimeout::NONE, round_up)
    }

    /// Takes up what waits in the table of connections: after a start, or when messages were lost.
    /// What is no longer there has been closed.
    ///
    /// # Errors
    /// It cannot be read: connections would wait for ever.
    fn scan(&mut self) -> Result<()> {
        let now = Instant::now();
        let held = self.maps.held();
        let held = held.context("cannot read the table of connections")?;
        let known: HashSet<u64> = held.iter().map(|conn| conn.cookie).collect();
        self.table.retain(now, |cookie| known.contains(&cookie));
        let elsewhere = self.remote.conns();
        self.gone
            .extend(elsewhere.filter(|conn| !known.contains(&conn.cookie)));
        for conn in held {
            self.note(conn, now);
        }
        self.clear_sleepers();
        if self.maps.full() > 0 {
            self.end_stranded();
        }
        Ok(())
    }

    /// Takes in what BPF says of an end, unless it is being talked of with another node already.
    fn note(&mut self, conn: Conn, now: Instant) {
        if !self.remote.has(conn.cookie) && !self.upkeep.is_doomed(conn.cookie) {
            self.table.note(conn, now);
        }
    }

    /// Takes in what BPF has said.
    ///
    /// # Errors
    /// Messages were lost, and the table of connections cannot be read.
    pub(super) fn take_events(&mut self) -> Result<()> {
        let now = Instant::now();
        while let Some(event) = self.maps.next_event() {
            let conn = event.conn;
            match event.kind {
                k if k == EventKind::Held as u32 || k == EventKind::Accepted as u32 => {
                    self.note(conn, now);
                    self.controls.reached(Step::Event);
                }
                k if k == EventKind::Closed as u32 => {
                    self.maps.remove_seal(conn.cookie);
                    self.rekeys.closed(conn.cookie);
                    if self.table.closed(conn.cookie, now) || event.reason != 0 {
                        let at = Duration::from_nanos(conn.since);
                        self.upkeep.closed(conn.cookie, at);
                    }
                    if is_remote(&conn) {
                        self.gone.push(conn);
                    }
                }
                k if k == EventKind::Ending as u32 => {
                    self.table.forget(conn.cookie);
                    if is_remote(&conn) {
                        self.remote.closed(&conn);
                    }
                    // The end that was closed needs nothing more; the other one may wait to send.
                    if event.reason == 0 {
                        self.note(conn, now);
                    }
                }
                k if k == EventKind::Dropped as u32 => self.reset_dropped(&conn, event.reason),
                k if k == EventKind::KeyLimit as u32 => self.near_limit(&conn),
                k if k == EventKind::Unplaced as u32 => self.end_unplaced(&conn, event.reason),
                kind => warn!("unknown message {kind} from BPF; ignoring"),
            }
        }
        let lost = self.maps.lost_events();
        if lost != self.lost_events {
            warn!(
                "{} messages found the ring buffer full; reading the table of connections",
                lost - self.lost_events
            );
            self.lost_events = lost;
            self.scan()?;
        }
        Ok(())
    }

    /// Looks for sockets. Those of complete connections wait for [`Session::seal`].
    fn search(&mut self) {
        // Each time all that is due is put in order, and processes may have to be read.
        if 4 * self.ready.len() > AHEAD {
            return;
        }
        let now = Instant::now();
        let free = self
            .limits
            .in_hand
            .saturating_sub(self.table.in_hand() + 2 * self.ready.len());
        let room = free.min(AHEAD.saturating_sub(2 * self.ready.len()));
        let due = self.table.due(now, room);
        if due.is_empty() {
            return;
        }
        let table = &self.table;
        let found = discover::sockets(&self.maps, &due, &mut self.seen, |cookie| {
            table.waits(cookie)
        });
        for (conn, found) in due.iter().zip(found) {
            self.look_at(conn, found, now);
            if is_remote(conn) {
                if let Some((conn, socket)) = self.table.take_alone(conn.cookie) {
                    self.remote.add(conn, socket);
                }
            } else if let Some(pair) = self.table.take_ready(conn) {
                self.ready.push((conn.workload, conn.peer), pair);
            } else {
                self.let_go_alone(conn);
            }
        }
    }

    /// Seals some of the complete connections.
    fn seal(&mut self) {
        let pairs = self.ready.take(BATCH);
        if pairs.is_empty() {
            return;
        }
        let sealed = handover::seal(&mut self.maps, &mut self.peers, pairs, &self.controls);
        for (pair, result) in sealed {
            match result {
                Ok(()) => {
                    self.maps.count(HelperCounter::Sealed, 1);
                    debug!("sealed {}", Route(&pair.client.0));
                }
                Err(failure) => self.fail(&pair, &failure),
            }
        }
    }

    fn look_at(&mut self, conn: &Conn, found: Found, now: Instant) {
        match found {
            Ok(Some(socket)) => {
                self.controls.reached(Step::Descriptor);
                self.take_socket(conn, socket);
            }
            Ok(None) => {
                if self.table.missing(conn.cookie, now) != Missing::Lost {
                    return;
                }
                if conn.state == State::Ending as u32 {
                    // It ends in order by itself, and nobody is there to be told of anything.
                    self.table.forget(conn.cookie);
                } else {
                    self.give_up(conn, HelperCounter::ResetLost, "no process has its socket");
                }
            }
            // Out of descriptors or memory: the connection waits until there are some again.
            Err(error) if discover::is_shortage(&error) => {
                self.upkeep.short_of(&error, now);
                self.table.postpone(conn.cookie, now);
            }
            Err(error) => {
                self.give_up(
                    conn,
                    HelperCounter::ResetLost,
                    &format!("cannot look for its socket: {error}"),
                );
            }
        }
    }

    /// The protocol goes in at once: with it there keys can be set even after the program has shut
    /// the connection down, and it keeps the hold.
    fn take_socket(&mut self, conn: &Conn, socket: OwnedFd) {
        match self.maps.state(socket.as_fd()) {
            // A helper was killed between the last state and the release.
            Ok(Some(state)) if state == State::Sealed || self.skips(state) => {
                // The state again, for the control: without it BPF would keep the leave to send.
                let finished = handover::release_end(&mut self.maps, conn, socket.as_fd());
                if let Err(error) = finished {
                    self.give_up(
                        conn,
                        HelperCounter::ResetInterrupted,
                        &format!("cannot be let go: {error}"),
                    );
                }
                self.table.forget(conn.cookie);
            }
            Ok(Some(State::Ending)) => self.end_unsealed(conn, &socket),
            // The message of it is on its way; it had no keys, and its programs know.
            Ok(Some(State::Closed)) => {
                self.table.closed(conn.cookie, Instant::now());
            }
            Ok(Some(State::Held)) => match install::attach_ulp(socket.as_fd()) {
                Ok(()) => self.take_in(conn, socket),
                // An earlier helper may have come as far as this, but no further: what is sealed
                // with its keys could not be read with others.
                Err(InstallError::AlreadyAttached)
                    if has_keys(socket.as_fd()).is_ok_and(|has| !has) =>
                {
                    self.take_in(conn, socket)
                }
                Err(InstallError::AlreadyAttached) => self.give_up(
                    conn,
                    HelperCounter::ResetInterrupted,
                    &Failure::Interrupted.to_string(),
                ),
                // Shut down in this very moment.
                Err(_) if matches!(self.maps.state(socket.as_fd()), Ok(Some(State::Ending))) => {
                    self.end_unsealed(conn, &socket)
                }
                Err(error) => self.give_up(
                    conn,
                    HelperCounter::ResetInstall,
                    &format!("no kernel TLS: {error}"),
                ),
            },
            Ok(_) => self.give_up(
                conn,
                HelperCounter::ResetInterrupted,
                &Failure::Interrupted.to_string(),
            ),
            Err(error) => self.give_up(
                conn,
                HelperCounter::ResetInstall,
                &format!("cannot read its state: {error}"),
            ),
        }
    }

    /// The peer was closed or shut down before there were keys. Whoever waits to send is woken and
    /// then refused, by the program at the call itself.
    fn end_unsealed(&mut self, conn: &Conn, socket: &OwnedFd) {
        match handover::end_unsealed(&mut self.maps, conn, socket.as_fd()) {
            Ok(()) => drop(self.table.forget(conn.cookie)),
            Err(failure) => self.give_up(conn, failure.counter(), &failure.to_string()),
        }
    }

    fn take_in(&mut self, conn: &Conn, socket: OwnedFd) {
        self.controls.reached(Step::Protocol);
        self.table.found(conn.cookie, socket, self.limits.parked);
    }

    /// Test-only: whether what an earlier helper has left is taken for finished.
    fn skips(&self, state: State) -> bool {
        self.controls.no_interrupted && state == State::Keyed
    }
}
