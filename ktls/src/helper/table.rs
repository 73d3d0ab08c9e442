//! The connections that wait for keys: joins the two ends. Pure; `S` is whatever stands for a socket.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use underseal_abi::{Conn, Role};

/// How often a socket that no process seems to have is looked for again, and how long in all: a
/// descriptor may be on its way from one process to another.
const FIRST_RETRY: Duration = Duration::from_millis(5);
const GIVE_UP: Duration = Duration::from_secs(2);

/// A connection, whichever end speaks of it: client's address and port, then the server's.
type Key = ([u8; 16], u16, [u8; 16], u16);

/// One end.
#[derive(Debug)]
pub(super) struct End<S> {
    /// What BPF has said about it.
    pub(super) conn: Conn,
    socket: Option<S>,
    search: Option<Search>,
}

/// When to look for a socket next.
#[derive(Debug, Clone, Copy)]
struct Search {
    due: Instant,
    wait: Duration,
    since: Instant,
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
}

impl<S> Table<S> {
    pub(super) fn new() -> Self {
        Self {
            ends: HashMap::new(),
            by_key: HashMap::new(),
        }
    }

    /// Takes in what BPF says of an end. One that a process has is looked for at once.
    pub(super) fn note(&mut self, conn: Conn, now: Instant) {
        let end = self.ends.entry(conn.cookie).or_insert(End {
            conn,
            socket: None,
            search: None,
        });
        end.conn = conn;
        // A client was there to connect; only one that did so before the take-over has no owner.
        let has_owner = conn.tgid != 0 || conn.role == Role::Client as u32;
        if has_owner && end.socket.is_none() && end.search.is_none() {
            end.search = Some(Search {
                due: now,
                wait: FIRST_RETRY,
                since: now,
            });
        }
        self.by_key.entry(key(&conn)).or_default()[side(&conn)] = Some(conn.cookie);
    }

    /// The ends whose sockets are to be looked for now.
    pub(super) fn due(&self, now: Instant) -> Vec<Conn> {
        let is_due = |end: &&End<S>| end.search.is_some_and(|s| s.due <= now);
        self.ends
            .values()
            .filter(is_due)
            .map(|end| end.conn)
            .collect()
    }

    /// How long until [`Table::due`] has something; `None` if nothing is being looked for.
    pub(super) fn next_due(&self, now: Instant) -> Option<Duration> {
        self.ends
            .values()
            .filter_map(|end| end.search)
            .map(|s| s.due.saturating_duration_since(now))
            .min()
    }

    /// The socket of `cookie` has been found.
    pub(super) fn found(&mut self, cookie: u64, socket: S) {
        if let Some(end) = self.ends.get_mut(&cookie) {
            end.socket = Some(socket);
            end.search = None;
        }
    }

    /// The socket of `cookie` has not been found.
    pub(super) fn missing(&mut self, cookie: u64, now: Instant) -> Missing {
        let Some(search) = self
            .ends
            .get_mut(&cookie)
            .and_then(|end| end.search.as_mut())
        else {
            return Missing::Retry;
        };
        if now.saturating_duration_since(search.since) >= GIVE_UP {
            return Missing::Lost;
        }
        search.due = now + search.wait;
        search.wait *= 2;
        Missing::Retry
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
            self.ends
                .remove(&cookie)
                .and_then(|end| Some((end.conn, end.socket?)))
        };
        let pair = Pair {
            client: take(client)?,
            server: take(server)?,
        };
        self.by_key.remove(&key(conn));
        Some(pair)
    }

    /// Forgets one end, dropping its socket.
    pub(super) fn forget(&mut self, cookie: u64) -> Option<Conn> {
        let end = self.ends.remove(&cookie)?;
        let key = key(&end.conn);
        if let Some(sides) = self.by_key.get_mut(&key) {
            sides[side(&end.conn)] = None;
            if sides.iter().all(Option::is_none) {
                self.by_key.remove(&key);
            }
        }
        Some(end.conn)
    }

    /// The other end of the connection of `conn`, if it is here.
    pub(super) fn other_end(&self, conn: &Conn) -> Option<Conn> {
        let cookie = self.by_key.get(&key(conn))?[1 - side(conn)]?;
        self.ends.get(&cookie).map(|end| end.conn)
    }

    /// How many ends wait.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }
}

fn side(conn: &Conn) -> usize {
    usize::from(conn.role == Role::Server as u32)
}

fn key(conn: &Conn) -> Key {
    let t = if side(conn) == 0 {
        conn.tuple
    } else {
        conn.tuple.reversed()
    };
    (t.local, t.local_port, t.remote, t.remote_port)
}

#[cfg(test)]
mod tests {
    use underseal_abi::Tuple;

    use super::*;

    fn conn(cookie: u64, role: Role, tgid: u32) -> Conn {
        let tuple = Tuple {
            local: [1; 16],
            remote: [2; 16],
            local_port: 40000,
            remote_port: 80,
            v6: 1,
        };
        let tuple = match role {
            Role::Client => tuple,
            Role::Server => Tuple {
                v6: 0,
                ..tuple.reversed()
            },
        };
        Conn {
            cookie,
            tuple,
            role: role as u32,
            tgid,
            ..Conn::default()
        }
    }

    #[test]
    fn a_pair_is_ready_when_both_sockets_are_there_in_any_order() {
        for server_first in [false, true] {
            let (mut table, now) = (Table::new(), Instant::now());
            let (client, server) = (conn(1, Role::Client, 10), conn(2, Role::Server, 0));
            table.note(client, now);
            table.note(server, now);
            assert_eq!(table.due(now), [client], "the server has not accepted");
            let accepted = conn(2, Role::Server, 20);
            table.note(accepted, now);
            let mut order = [(1, "client"), (2, "server")];
            if server_first {
                order.reverse();
            }
            for (cookie, socket) in order {
                assert!(table.take_ready(&client).is_none());
                table.found(cookie, socket);
            }
            let pair = table.take_ready(&client).unwrap();
            assert_eq!((pair.client.1, pair.server.1), ("client", "server"));
            assert_eq!((table.len(), table.by_key.len()), (0, 0));
        }
    }

    #[test]
    fn a_missing_socket_is_looked_for_ever_more_rarely_and_then_lost() {
        let (mut table, start) = (Table::<()>::new(), Instant::now());
        table.note(conn(1, Role::Client, 10), start);
        let mut now = start;
        let mut tries = 0;
        while table.missing(1, now) == Missing::Retry {
            now += table.next_due(now).unwrap();
            tries += 1;
            assert!(tries < 20);
        }
        assert!(
            now - start >= GIVE_UP && now - start < GIVE_UP * 2,
            "{tries} tries, {:?}",
            now - start
        );
    }

    #[test]
    fn forgetting_one_end_leaves_the_other() {
        let (mut table, now) = (Table::<()>::new(), Instant::now());
        let (client, server) = (conn(1, Role::Client, 10), conn(2, Role::Server, 20));
        table.note(client, now);
        table.note(server, now);
        assert_eq!(table.other_end(&client), Some(server));
        assert_eq!(table.forget(1), Some(client));
        assert_eq!(table.other_end(&server), None);
        assert_eq!(table.forget(2), Some(server));
        assert!(table.by_key.is_empty());
    }
}
