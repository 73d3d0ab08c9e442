//! The connections that wait for keys: joins the two ends. Pure; `S` is whatever stands for a socket.

#[cfg(feature = "fuzz")]
pub(super) mod fuzz;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use underseal_abi::{Conn, Role, State, THIS_NODE};

/// How often a socket that no process seems to have is looked for again, and how long in all: a
/// descriptor may be on its way from one process to another.
const FIRST_RETRY: Duration = Duration::from_millis(5);
const GIVE_UP: Duration = Duration::from_secs(2);
/// How long to wait before another try when this process is short of something.
const BUSY: Duration = Duration::from_millis(50);
/// How long a client's end may have no server's end: a listener whose queue is full makes one only
/// when a place is free, and gives up after about a minute (`tcp_synack_retries` 5: 63 s).
const SERVER_COMES: Duration = Duration::from_secs(90);

/// A connection, whichever end speaks of it: client's address and port, then the server's.
pub(super) type Key = ([u8; 16], u16, [u8; 16], u16);

/// One end.
#[derive(Debug)]
pub(super) struct End<S> {
    /// What BPF has said about it.
    pub(super) conn: Conn,
    socket: Option<S>,
    search: Option<Search>,
    /// When it is given up if its other end has not come by then.
    alone: Option<Instant>,
}

/// When to look for a socket next.
#[derive(Debug, Clone, Copy)]
struct Search {
    due: Instant,
    wait: Duration,
    /// When it was first not found.
    since: Option<Instant>,
}

/// Both ends of a connection with their sockets: ready for its keys.
#[derive(Debug)]
pub(super) struct Pair<S> {
    pub(super) client: (Conn, S),
    pub(super) server: (Conn, S),
}

/// What is to be done after a socket was not found.
#[must_use]
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// It is looked for again.
    Retry,
    /// It has been looked for long enough.
    Lost,
}

/// All connections that wait.
#[derive(Debug)]
pub(super) struct Table<S> {
    ends: HashMap<u64, End<S>>,
    by_key: HashMap<Key, [Option<u64>; 2]>,
    in_hand: usize,
}

impl<S> Table<S> {
    pub(super) fn new() -> Self {
        Self {
            ends: HashMap::new(),
            by_key: HashMap::new(),
            in_hand: 0,
        }
    }

    /// Takes in what BPF says of an end. One that a process has is looked for at once, and so is
    /// a client's socket that was put aside, now that its server has accepted.
    pub(super) fn note(&mut self, conn: Conn, now: Instant) {
        let key = key(&conn);
        // A socket that is disconnected (AF_UNSPEC) and connects again keeps its cookie. Of the old
        // connection's end no message may have come: the ring buffer was full.
        let old = self.ends.get(&conn.cookie).map(|end| end.conn);
        if old.is_some_and(|old| place(&old) != place(&conn)) {
            self.closed(conn.cookie, now);
        }
        let sides = self.by_key.entry(key).or_default();
        sides[side(&conn)] = Some(conn.cookie);
        let other = sides[1 - side(&conn)];
        let alone = if is_ending(&conn) || is_remote(&conn) {
            None
        } else if side(&conn) == 0 {
            Some(now + SERVER_COMES)
        } else {
            Some(now + GIVE_UP)
        };
        let end = self.ends.entry(conn.cookie).or_insert(End {
            conn,
            socket: None,
            search: None,
            alone,
        });
        end.conn = conn;
        if has_owner(&conn) {
            end.look(now);
        }
        if let Some(other) = other {
            end.alone = None;
            if let Some(other) = self.ends.get_mut(&other) {
                other.alone = None;
                if has_owner(&conn) && has_owner(&other.conn) {
                    other.look(now);
                }
            }
        }
    }

    /// At most `most` ends whose sockets are to be looked for now. Those of one connection come
    /// together, so that a limit leaves half a connection at most, and each pair of workloads has
    /// its share.
    pub(super) fn due(&self, now: Instant, most: usize) -> Vec<Conn> {
        let is_due = |end: &&End<S>| end.search.is_some_and(|s| s.due <= now);
        let mut due: Vec<Conn> = self
            .ends
            .values()
            .filter(is_due)
            .map(|end| end.conn)
            .collect();
        if due.len() > most {
            due.sort_unstable_by_key(|conn| (workloads(conn), key(conn), side(conn)));
            due = in_turns(&due, most);
        }
        due
    }

    /// How long until [`Table::due`] or [`Table::lonely`] has something; `None` if nothing is
    /// waited for.
    pub(super) fn next_due(&self, now: Instant) -> Option<Duration> {
        self.ends
            .values()
            .flat_map(|end| [end.search.map(|s| s.due), end.alone])
            .flatten()
            .map(|due| due.saturating_duration_since(now))
            .min()
    }

    /// The socket of `cookie` has been found. That of a client whose server has not accepted yet
    /// is put aside when `most_parked` are in hand: it is looked for again when it is needed.
    pub(super) fn found(&mut self, cookie: u64, socket: S, most_parked: usize) {
        let is_awaited = self.ends.get(&cookie).is_some_and(|end| {
            let other = self.other_end(&end.conn);
            is_remote(&end.conn) || other.is_some_and(|other| has_owner(&other))
        });
        if let Some(end) = self.ends.get_mut(&cookie) {
            end.search = None;
            if is_awaited || self.in_hand < most_parked {
                self.in_hand += usize::from(end.socket.is_none());
                end.socket = Some(socket);
            }
        }
    }

    /// The socket of `cookie` could not be looked for now, for a reason that will pass.
    pub(super) fn postpone(&mut self, cookie: u64, now: Instant) {
        if let Some(search) = self.search_of(cookie) {
            search.due = now + BUSY;
        }
    }

    /// The socket of `cookie` has not been found.
    pub(super) fn missing(&mut self, cookie: u64, now: Instant) -> Missing {
        let Some(search) = self.search_of(cookie) else {
            return Missing::Retry;
        };
        let since = *search.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= GIVE_UP {
            return Missing::Lost;
        }
        search.due = now + search.wait;
        search.wait *= 2;
        Missing::Retry
    }

    fn search_of(&mut self, cookie: u64) -> Option<&mut Search> {
        self.ends.get_mut(&cookie)?.search.as_mut()
    }

    /// Takes out the connection of `conn` if both its sockets are there.
    pub(super) fn take_ready(&mut self, conn: &Conn) -> Option<Pair<S>> {
        let [client, server] = *self.by_key.get(&key(conn))?;
        let has_socket = |cookie: u64| {
            self.ends
                .get(&cookie)
                .is_some_and(|end| end.socket.is_some())
        };
        let (client, server) = (
            client.filter(|c| has_socket(*c))?,
            server.filter(|c| has_socket(*c))?,
        );
        let mut take = |cookie| {
            let (conn, socket) = self.forget(cookie)?;
            Some((conn, socket?))
        };
        Some(Pair {
            client: take(client)?,
            server: take(server)?,
        })
    }

    /// Takes out the end of `cookie` if its socket is there; its other end is on another node.
    pub(super) fn take_alone(&mut self, cookie: u64) -> Option<(Conn, S)> {
        self.ends.get(&cookie)?.socket.as_ref()?;
        let (conn, socket) = self.forget(cookie)?;
        Some((conn, socket?))
    }

    /// Whether this end waits here without its socket.
    pub(super) fn waits(&self, cookie: u64) -> bool {
        self.ends
            .get(&cookie)
            .is_some_and(|end| end.socket.is_none())
    }

    /// Whether an end of this connection waits here.
    pub(super) fn has(&self, key: &Key) -> bool {
        self.by_key.contains_key(key)
    }

    /// Ends whose sockets are there, and whose other end, of the same node, is not.
    pub(super) fn alone(&self) -> Vec<Conn> {
        let ends = self.ends.values().filter(|end| end.socket.is_some());
        let conns = ends.map(|end| end.conn);
        conns
            .filter(|conn| self.other_end(conn).is_none())
            .collect()
    }

    /// Forgets one end and returns it with its socket.
    pub(super) fn forget(&mut self, cookie: u64) -> Option<(Conn, Option<S>)> {
        let end = self.ends.remove(&cookie)?;
        self.in_hand -= usize::from(end.socket.is_some());
        let key = key(&end.conn);
        // A port may have been used again: the place may be a younger end's by now.
        if let Some(sides) = self.by_key.get_mut(&key) {
            let place = &mut sides[side(&end.conn)];
            if *place == Some(cookie) {
                *place = None;
            }
            if sides.iter().all(Option::is_none) {
                self.by_key.remove(&key);
            }
        }
        Some((end.conn, end.socket))
    }

    /// The end `cookie` has been closed. Its other end, if that is here, has a moment to be closed
    /// as well; after that it is lonely. True if the closed one was here.
    pub(super) fn closed(&mut self, cookie: u64, now: Instant) -> bool {
        let Some((conn, _)) = self.forget(cookie) else {
            return false;
        };
        let other = self.other_end(&conn).map(|other| other.cookie);
        if let Some(other) = other.and_then(|other| self.ends.get_mut(&other))
            && !is_ending(&other.conn)
        {
            other.alone = Some(now + GIVE_UP);
        }
        true
    }

    /// Forgets every end for which `stays` is false.
    pub(super) fn retain(&mut self, now: Instant, stays: impl Fn(u64) -> bool) {
        let gone: Vec<u64> = self.ends.keys().copied().filter(|c| !stays(*c)).collect();
        for cookie in gone {
            self.closed(cookie, now);
        }
    }

    /// Ends that nobody will ever seal: their other end is gone, or was never known.
    pub(super) fn lonely(&self, now: Instant) -> Vec<Conn> {
        let is_lonely = |end: &&End<S>| end.alone.is_some_and(|until| until <= now);
        let lonely = self.ends.values().filter(is_lonely);
        lonely.map(|end| end.conn).collect()
    }

    /// The other end of the connection of `conn`, if it is here.
    pub(super) fn other_end(&self, conn: &Conn) -> Option<Conn> {
        let cookie = self.by_key.get(&key(conn))?[1 - side(conn)]?;
        self.ends.get(&cookie).map(|end| end.conn)
    }

    /// The ends whose sockets are in hand.
    pub(super) fn parked(&self) -> impl Iterator<Item = (&Conn, &S)> {
        self.ends
            .values()
            .filter_map(|end| Some((&end.conn, end.socket.as_ref()?)))
    }

    /// How many sockets are in hand.
    pub(super) const fn in_hand(&self) -> usize {
        self.in_hand
    }

    /// How many ends wait.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }
}

impl<S> End<S> {
    fn look(&mut self, now: Instant) {
        if self.socket.is_none() && self.search.is_none() {
            self.search = Some(Search {
                due: now,
                wait: FIRST_RETRY,
                since: None,
            });
        }
    }
}

/// It ends in order without its other end.
fn is_ending(conn: &Conn) -> bool {
    conn.state == State::Ending as u32
}

/// Whether the other end of a connection is on another node.
pub(super) const fn is_remote(conn: &Conn) -> bool {
    conn.node > THIS_NODE
}

/// A client was there to connect, a server only once it has accepted.
fn has_owner(conn: &Conn) -> bool {
    conn.tgid != 0 || conn.role == Role::Client as u32
}

/// The first of each pair of workloads, the second of each, and so on.
fn in_turns(sorted: &[Conn], most: usize) -> Vec<Conn> {
    let groups: Vec<&[Conn]> = sorted
        .chunk_by(|one, next| workloads(one) == workloads(next))
        .collect();
    let longest = groups.iter().map(|group| group.len()).max().unwrap_or(0);
    // Two at a time: the ends of one connection.
    (0..longest)
        .step_by(2)
        .flat_map(|at| groups.iter().map(move |group| (at, *group)))
        .flat_map(|(at, group)| group.iter().skip(at).take(2))
        .take(most)
        .copied()
        .collect()
}

/// Workloads of client and server.
fn workloads(conn: &Conn) -> (u32, u32) {
    if side(conn) == 0 {
        (conn.workload, conn.peer)
    } else {
        (conn.peer, conn.workload)
    }
}

fn side(conn: &Conn) -> usize {
    usize::from(conn.role == Role::Server as u32)
}

/// Which end of which connection.
fn place(conn: &Conn) -> (Key, usize) {
    (key(conn), side(conn))
}

/// Which connection this is an end of.
pub(super) fn key(conn: &Conn) -> Key {
    let t = if side(conn) == 0 {
        conn.tuple
    } else {
        conn.tuple.reversed()
    };
    (t.local, t.local_port, t.remote, t.remote_port)
}
