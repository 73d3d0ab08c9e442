//! What the helper does beside its main work: it tries failed resets again, ends connections that nobody will ever
//! seal, and forgets what has gone. Without it nothing leaks; but a socket could wait for ever.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File, Metadata},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit};
use tracing::{error, warn};
use underseal_abi::{Conn, HelperCounter, Unplaced};

use super::{
    discover,
    names::{Route, text},
    reset,
    session::Session,
    sys,
};

/// How often this is done while something waits.
const EVERY: Duration = Duration::from_secs(1);
/// How often a reset that fails is tried.
const TRIES: u32 = 60;
/// How often it is looked whether programs still have the sockets that wait here. This process's
/// own duplicate keeps a socket open that its program has closed.
const LOOK: Duration = Duration::from_secs(5);
/// How long the socket of a program that has closed it waits for the other end to accept: as long
/// as the kernel keeps one in FIN-WAIT-2 (`tcp_fin_timeout`).
const ABANDONED: Duration = Duration::from_secs(60);
/// The age at which the record of a task is certainly of no use, if its socket is unknown: no
/// connect takes that long.
const STALE: Duration = Duration::from_secs(600);

/// How many sockets may be in hand.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// In all.
    pub(super) in_hand: usize,
    /// Of connections whose server has not accepted.
    pub(super) parked: usize,
}

impl Limits {
    /// What the limit of open files leaves. Some are kept for maps, locks and the searches.
    pub(super) fn of_process() -> Result<Self> {
        let (files, _) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read RLIMIT_NOFILE")?;
        Ok(Self::of(usize::try_from(files).unwrap_or(usize::MAX)))
    }

    fn of(files: usize) -> Self {
        // Beyond this nothing is gained: it is memory.
        let in_hand = (files.saturating_sub(48) / 2).clamp(4, 65536);
        Self {
            in_hand,
            parked: (in_hand / 2).min(4096),
        }
    }
}

/// What there is to do.
#[derive(Debug)]
pub(super) struct Upkeep {
    /// Sockets whose reset has failed, with the tries so far.
    doomed: HashMap<u64, (Conn, u32)>,
    /// Sockets that were closed before they had keys, and when (`CLOCK_MONOTONIC`): the records of their tasks from before
    /// that are of no use.
    closed: BTreeMap<u64, Duration>,
    /// Ends in hand that no process has any more, and since when.
    abandoned: HashMap<u64, Instant>,
    due: Instant,
    look: Instant,
    warned: Option<Instant>,
}

impl Upkeep {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            doomed: HashMap::new(),
            closed: BTreeMap::new(),
            abandoned: HashMap::new(),
            due: now,
            look: now,
            warned: None,
        }
    }

    /// A socket was closed at this time (`CLOCK_MONOTONIC`), before it had keys. It may be connected again.
    pub(super) fn closed(&mut self, cookie: u64, at: Duration) {
        self.closed.insert(cookie, at);
    }

    /// Whether the socket is to be reset, once that is possible.
    pub(super) fn is_doomed(&self, cookie: u64) -> bool {
        self.doomed.contains_key(&cookie)
    }

    /// This process is short of something; said once in a while.
    pub(super) fn short_of(&mut self, error: &io::Error, now: Instant) {
        if self
            .warned
            .is_none_or(|at| now - at > Duration::from_secs(10))
        {
            self.warned = Some(now);
            warn!("connections wait, because sockets cannot be taken now: {error}");
        }
    }
}

impl Session {
    /// When there is something to do next; `None` while nothing waits.
    pub(super) fn next_upkeep(&self, now: Instant) -> Option<Duration> {
        let until = |at: Instant| at.saturating_duration_since(now);
        let soon = !self.upkeep.doomed.is_empty() || !self.upkeep.closed.is_empty();
        let look = (self.table.in_hand() > 0).then(|| until(self.upkeep.look));
        let soon = soon.then(|| until(self.upkeep.due));
        [look, soon].into_iter().flatten().min()
    }

    /// Does what is due.
    pub(super) fn keep_up(&mut self, now: Instant) {
        for conn in self.table.lonely(now) {
            self.give_up(&conn, HelperCounter::ResetLost, "its other end is gone");
        }
        if now >= self.upkeep.due {
            self.upkeep.due = now + EVERY;
            self.reset_again();
            if !self.upkeep.closed.is_empty() {
                self.clear_sleepers();
            }
        }
        if now >= self.upkeep.look {
            self.upkeep.look = now + LOOK;
            if let Err(error) = self.end_abandoned(now) {
                self.upkeep.short_of(&error, now);
            }
        }
    }

    /// Ends one socket; false if it was gone, or could not be ended now: then it is tried again.
    pub(super) fn destroy(&mut self, conn: &Conn, socket: Option<&OwnedFd>) -> bool {
        let at = sys::monotonic();
        match reset::reset(&self.maps, conn, socket.map(AsFd::as_fd)) {
            Ok(ended) => {
                if ended {
                    self.upkeep.closed(conn.cookie, at);
                }
                ended
            }
            Err(error) => {
                warn!("{error:#}; it stays held and is tried again");
                self.upkeep.doomed.insert(conn.cookie, (*conn, 0));
                false
            }
        }
    }

    fn reset_again(&mut self) {
        for (cookie, (conn, tries)) in std::mem::take(&mut self.upkeep.doomed) {
            let at = sys::monotonic();
            match reset::reset(&self.maps, &conn, None) {
                Ok(_) => self.upkeep.closed(cookie, at),
                Err(error) if tries >= TRIES => {
                    error!("{} stays held: {error:#}", Route(&conn));
                }
                Err(_) => {
                    self.upkeep.doomed.insert(cookie, (conn, tries + 1));
                }
            }
        }
    }

    /// A connection is held that the table of connections does not have.
    pub(super) fn end_unplaced(&mut self, conn: &Conn, reason: u32) {
        let (counter, why) = if reason == Unplaced::Foreign as u32 {
            (
                HelperCounter::ResetRefused,
                "its address is not its workload's",
            )
        } else if reason == Unplaced::Refused as u32 {
            (
                HelperCounter::ResetPolicy,
                "network policies do not allow it any more",
            )
        } else if reason == Unplaced::Mptcp as u32 {
            (
                HelperCounter::ResetMptcp,
                "it is MPTCP, by a socket older than the take-over of its workload; restart the program, and it gets TCP",
            )
        } else {
            (HelperCounter::ResetFull, "the table of connections is full")
        };
        // The other end may be in the table: it is told by the reset, like any peer.
        if self.destroy(conn, None) {
            self.maps.count(counter, 1);
            error!("reset {}: {why}", Route(conn));
        }
    }

    /// The same for those of which no message has come.
    pub(super) fn end_stranded(&mut self) {
        for (workload, path) in self.maps.namespaces() {
            let found = File::open(&path).and_then(|file| self.maps.stranded(&file));
            match found {
                Ok(conns) => {
                    for conn in conns {
                        // What was just being established is in the table by now.
                        if !self.maps.has_conn(conn.cookie) {
                            let conn = Conn { workload, ..conn };
                            self.end_unplaced(&conn, Unplaced::Full as u32);
                        }
                    }
                }
                Err(error) => warn!("cannot look for connections in {}: {error}", path.display()),
            }
        }
    }

    /// Deletes the records of tasks that slept on sockets which are gone.
    pub(super) fn clear_sleepers(&mut self) {
        let closed = std::mem::take(&mut self.upkeep.closed);
        self.maps.clear_sleepers(&closed, STALE);
    }

    /// Ends connections of which no process has the socket any more: those of a namespace that is
    /// gone at once, because this process keeps it alive; others when they have had time to be
    /// accepted, which is how a program that closes at once is served.
    fn end_abandoned(&mut self, now: Instant) -> io::Result<()> {
        let parked: Vec<Conn> = self.table.parked().map(|(conn, _)| *conn).collect();
        let alive = discover::alive(&self.maps, &parked)?;
        let known = std::mem::take(&mut self.upkeep.abandoned);
        for (conn, _) in parked.iter().zip(alive).filter(|(_, alive)| !alive) {
            let since = known.get(&conn.cookie).copied().unwrap_or(now);
            if now - since >= ABANDONED || self.is_uprooted(conn) {
                let why = "no process has its socket any more";
                self.give_up(conn, HelperCounter::ResetLost, why);
            } else {
                self.upkeep.abandoned.insert(conn.cookie, since);
            }
        }
        Ok(())
    }

    /// Whether the namespace of a socket in hand is no longer that of its workload.
    fn is_uprooted(&self, conn: &Conn) -> bool {
        let mut parked = self.table.parked();
        let Some((_, socket)) = parked.find(|(parked, _)| parked.cookie == conn.cookie) else {
            return false;
        };
        let identity = |metadata: io::Result<Metadata>| metadata.ok().map(|m| (m.dev(), m.ino()));
        let own = identity(sys::namespace_of(socket.as_fd()).and_then(|file| file.metadata()));
        let configured = self.maps.workload(conn.workload).ok();
        let configured = configured.and_then(|w| identity(fs::metadata(Path::new(text(&w.netns)))));
        own.is_some() && own != configured
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_files_leave_room_for_work() {
        let limits = |files| {
            let limits = Limits::of(files);
            (limits.in_hand, limits.parked)
        };
        assert_eq!(limits(0), (4, 2));
        assert_eq!(limits(64), (8, 4));
        assert_eq!(limits(4096), (2024, 1012));
        assert_eq!(limits(1 << 20), (65536, 4096));
    }
}
