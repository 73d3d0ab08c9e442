//! One run of the helper on one set of pinned maps.

use std::{
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::Result;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tracing::{debug, error, warn};
use underseal_abi::{Conn, Drop, EventKind, HelperCounter, State};

use super::{
    controls::Controls,
    discover, handover,
    handover::Failure,
    maps::Maps,
    names::Route,
    peers::Peers,
    pins::Watch,
    reset,
    table::{Missing, Pair, Table},
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

/// The helper at work.
pub(super) struct Session {
    controls: Controls,
    maps: Maps,
    watch: Watch,
    peers: Peers,
    table: Table<OwnedFd>,
    lost_events: u64,
}

impl Session {
    /// Opens the pinned maps and takes up every connection that waits there.
    ///
    /// # Errors
    /// A map is missing or of another version.
    pub(super) fn start(controls: Controls) -> Result<Self> {
        let watch = Watch::maps()?;
        let maps = Maps::open()?;
        let lost_events = maps.lost_events();
        let mut session = Self {
            controls,
            maps,
            watch,
            peers: Peers::new(),
            table: Table::new(),
            lost_events,
        };
        session.scan();
        Ok(session)
    }

    /// How many ends of connections wait.
    #[must_use]
    pub(super) fn waiting(&self) -> usize {
        self.table.len()
    }

    /// Works until the maps go or `stop` becomes readable.
    ///
    /// # Errors
    /// Only what makes going on pointless; a connection that fails is reset and logged.
    pub(super) fn run(&mut self, stop: impl AsFd) -> Result<End> {
        loop {
            self.take_events();
            self.search();
            let timeout = self.timeout();
            let mut wait = [
                PollFd::new(self.maps.events.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.watch.as_fd(), PollFlags::POLLIN),
                PollFd::new(stop.as_fd(), PollFlags::POLLIN),
            ];
            let idle = match poll(&mut wait, timeout) {
                Ok(ready) => ready == 0,
                Err(Errno::EINTR) => false,
                Err(errno) => return Err(errno.into()),
            };
            let asked = wait[2].any().unwrap_or(false);
            if self.watch.changed() && Maps::open().is_err() {
                return Ok(End::MapsGone);
            }
            if asked {
                return Ok(End::Asked);
            }
            if idle {
                self.peers.work_ahead(&self.maps);
            }
        }
    }

    fn timeout(&mut self) -> PollTimeout {
        if self.peers.has_work() {
            return PollTimeout::ZERO;
        }
        // Rounded up: a millisecond early would spin.
        let round_up = |d: Duration| {
            PollTimeout::try_from(d + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        };
        let due = [
            self.table.next_due(Instant::now()),
            self.peers.clear_shelf(),
        ];
        due.into_iter()
            .flatten()
            .min()
            .map_or(PollTimeout::NONE, round_up)
    }

    /// Takes up what waits in the table of connections: after a start, or when messages were lost.
    fn scan(&mut self) {
        let now = Instant::now();
        for conn in self.maps.conns() {
            if conn.state == State::Held as u32 || conn.state == State::Ending as u32 {
                self.table.note(conn, now);
            }
        }
    }

    fn take_events(&mut self) {
        let now = Instant::now();
        while let Some(event) = self.maps.next_event() {
            let conn = event.conn;
            match event.kind {
                k if k == EventKind::Held as u32 || k == EventKind::Accepted as u32 => {
                    self.table.note(conn, now)
                }
                k if k == EventKind::Ending as u32 => {
                    self.table.forget(conn.cookie);
                    // The end that was closed needs nothing more; the other one may wait to send.
                    if event.reason == 0 {
                        self.table.note(conn, now);
                    }
                }
                k if k == EventKind::Closed as u32 => drop(self.table.forget(conn.cookie)),
                k if k == EventKind::Dropped as u32 => self.reset_dropped(&conn, event.reason),
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
            self.scan();
        }
    }

    /// Looks for sockets and seals the connections that are complete then.
    fn search(&mut self) {
        let now = Instant::now();
        let mut pairs = Vec::new();
        for conn in self.table.due(now) {
            self.look_for(&conn, now);
            pairs.extend(self.table.take_ready(&conn));
        }
        if pairs.is_empty() {
            return;
        }
        for (pair, result) in handover::seal(&mut self.maps, &mut self.peers, pairs, self.controls)
        {
            match result {
                Ok(()) => {
                    self.maps.count(HelperCounter::Sealed, 1);
                    debug!("sealed {}", Route(&pair.client.0));
                }
                Err(failure) => self.fail(&pair, &failure),
            }
        }
    }

    fn look_for(&mut self, conn: &Conn, now: Instant) {
        match discover::socket(&self.maps, conn) {
            Ok(Some(socket)) => self.take_socket(conn, socket),
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
            Ok(Some(State::Sealed)) => {
                if let Err(error) = handover::finish(&mut self.maps, conn, socket.as_fd()) {
                    self.give_up(
                        conn,
                        HelperCounter::ResetInterrupted,
                        &format!("cannot be let go: {error}"),
                    );
                }
                self.table.forget(conn.cookie);
            }
            Ok(Some(State::Ending)) => self.end_unsealed(conn, &socket),
            Ok(Some(State::Held)) => match install::attach_ulp(socket.as_fd()) {
                Ok(()) => self.table.found(conn.cookie, socket),
                // An earlier helper may have come as far as this, but no further: what is sealed
                // with its keys could not be read with others.
                Err(InstallError::AlreadyAttached)
                    if has_keys(socket.as_fd()).is_ok_and(|has| !has) =>
                {
                    self.table.found(conn.cookie, socket)
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

    /// Resets a connection of which one end is in the table.
    fn give_up(&mut self, conn: &Conn, counter: HelperCounter, why: &str) {
        let other = self.table.other_end(conn);
        self.maps.count(counter, 1);
        error!("reset {}: {why}", Route(conn));
        for end in [Some(*conn), other].into_iter().flatten() {
            self.table.forget(end.cookie);
            self.destroy(&end);
        }
    }

    fn fail(&mut self, pair: &Pair<OwnedFd>, failure: &Failure) {
        self.maps.count(failure.counter(), 1);
        error!("reset {}: {failure}", Route(&pair.client.0));
        // The server's end first: then the client reads ECONNRESET, which programs know.
        self.destroy(&pair.server.0);
        self.destroy(&pair.client.0);
    }

    fn reset_dropped(&mut self, conn: &Conn, reason: u32) {
        let why = match reason {
            r if r == Drop::Unsealed as u32 => "payload from a socket without keys",
            r if r == Drop::NotARecord as u32 => "payload that is no TLS record",
            r if r == Drop::Gap as u32 => "payload that does not follow the last TLS record",
            r if r == Drop::UnsealedIngress as u32 => "payload for a socket without keys",
            r if r == Drop::Unknown as u32 => {
                "payload between workloads from a socket older than the take-over"
            }
            r if r == Drop::Cut as u32 => {
                "the end of a stream whose last bytes were announced (MSG_MORE) and never sent"
            }
            r if r == Drop::Ending as u32 => {
                "a call to send to a peer that was closed or shut down before there were keys"
            }
            _ => "a reason unknown to this version",
        };
        // Each retransmission is dropped and told of again: what is gone already is old news.
        let mut ended = self.destroy(conn);
        if reason == Drop::Cut as u32 || reason == Drop::Ending as u32 {
            // One that its program has closed ends without a word to its peer on older kernels.
            ended |= self.destroy(&opposite(conn));
        }
        if let Some(other) = self.table.other_end(conn) {
            self.table.forget(other.cookie);
            self.destroy(&other);
        }
        self.table.forget(conn.cookie);
        if ended {
            self.maps.count(HelperCounter::ResetGuard, 1);
            error!("reset {}: the guard dropped {why}", Route(conn));
        }
    }

    /// Ends one socket; false if it was gone, or could not be ended.
    fn destroy(&self, conn: &Conn) -> bool {
        reset::reset(&self.maps, conn).unwrap_or_else(|error| {
            warn!("{error:#}; it stays held");
            false
        })
    }
}

/// The other end of a connection, as far as this one knows it.
fn opposite(conn: &Conn) -> Conn {
    Conn {
        tuple: conn.tuple.reversed(),
        workload: conn.peer,
        peer: conn.workload,
        ..Conn::default()
    }
}
