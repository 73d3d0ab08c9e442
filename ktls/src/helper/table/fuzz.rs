//! Test-only (feature `fuzz`): any messages of BPF in any order, and what must hold of the table after each.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use underseal_abi::{Conn, Role, State, THIS_NODE, Tuple};

use super::{End, Table, key, side};

/// Plays the bytes, three for each step; what is beyond 200 steps shows nothing new. There are eight sockets and four connections, so that steps meet.
///
/// # Panics
/// The table is not whole after a step, or not empty when all sockets are closed.
pub fn table(bytes: &[u8]) {
    let (mut table, mut now) = (Table::new(), Instant::now());
    for step in bytes.as_chunks().0.iter().take(200) {
        now += Duration::from_millis(u64::from(step[2] >> 4) * 100);
        play(&mut table, *step, now);
        table.assert_whole(now);
    }
    table.retain(now, |_| false);
    table.assert_whole(now);
    assert!(table.ends.is_empty() && table.by_key.is_empty());
}

fn play(table: &mut Table<u8>, [what, which, more]: [u8; 3], now: Instant) {
    let conn = conn(which, more);
    let cookie = conn.cookie;
    match what % 10 {
        0..3 => table.note(conn, now),
        3 => drop(table.closed(cookie, now)),
        4 => drop(table.forget(cookie)),
        5 => table.found(cookie, more, usize::from(more & 3)),
        6 => drop(table.missing(cookie, now)),
        7 => table.postpone(cookie, now),
        8 => {
            if let Some(pair) = table.take_ready(&conn) {
                assert_eq!(key(&pair.client.0), key(&pair.server.0));
                assert_ne!(pair.client.0.cookie, pair.server.0.cookie);
            }
        }
        _ => drop(table.take_alone(cookie)),
    }
}

fn conn(which: u8, more: u8) -> Conn {
    let tuple = Tuple {
        local: [1; 16],
        remote: [2; 16],
        local_port: u16::from(which >> 3 & 3),
        remote_port: 80,
        v6: 0,
    };
    let is_server = which & 0x20 != 0;
    let (role, tuple) = if is_server {
        (Role::Server, tuple.reversed())
    } else {
        (Role::Client, tuple)
    };
    let is_ending = which & 0xc0 == 0xc0;
    Conn {
        cookie: u64::from(which & 7),
        tuple,
        role: role as u32,
        tgid: u32::from(more & 1),
        workload: u32::from(more >> 1 & 1),
        peer: u32::from(more >> 2 & 1),
        node: THIS_NODE + u32::from(which & 0xc0 == 0x40),
        state: if is_ending {
            State::Ending
        } else {
            State::Held
        } as u32,
        ..Conn::default()
    }
}

impl<S> Table<S> {
    pub(crate) fn assert_whole(&self, now: Instant) {
        let in_hand = self.ends.values().filter(|end| end.socket.is_some());
        assert_eq!(self.in_hand, in_hand.count());
        for (key_of, sides) in &self.by_key {
            assert_ne!(*sides, [None; 2], "an empty place");
            for (at, cookie) in sides.iter().enumerate() {
                let Some(cookie) = cookie else { continue };
                let conn = &self.ends.get(cookie).expect("a stale end").conn;
                assert_eq!((key(conn), side(conn)), (*key_of, at), "a stale place");
            }
        }
        self.assert_timely(now);
    }

    /// Whoever waits is woken when there is something to do, and not before.
    fn assert_timely(&self, now: Instant) {
        let due = self.due(now, usize::MAX);
        let cookies: BTreeSet<u64> = due.iter().map(|conn| conn.cookie).collect();
        assert_eq!(cookies.len(), due.len());
        let some = self.due(now, 3);
        assert_eq!(some.len(), due.len().min(3));
        assert!(some.iter().all(|conn| cookies.contains(&conn.cookie)));
        let is_idle = due.is_empty() && self.lonely(now).is_empty();
        assert_eq!(self.next_due(now) == Some(Duration::ZERO), !is_idle);
        let waits = |end: &End<S>| end.search.is_some() || end.alone.is_some();
        assert_eq!(self.next_due(now).is_some(), self.ends.values().any(waits));
    }
}
