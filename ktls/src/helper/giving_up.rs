//! Connections that a session gives up: what is counted and told, and which ends are ended.

use std::os::fd::OwnedFd;

use tracing::error;
use underseal_abi::{Conn, Drop, HelperCounter};

use super::{
    handover::Failure,
    names::Route,
    session::Session,
    table::{Pair, is_remote},
};

impl Session {
    /// Resets a connection of which one end is in the table.
    pub(super) fn give_up(&mut self, conn: &Conn, counter: HelperCounter, why: &str) {
        let other = self.table.other_end(conn);
        self.maps.count(counter, 1);
        error!("reset {}: {why}", Route(conn));
        if is_remote(conn) {
            self.remote.gave_up(conn, why);
        }
        for end in [Some(*conn), other].into_iter().flatten() {
            self.end(&end);
        }
    }

    /// The same for a connection inside this node, whose other end may be in no table.
    pub(super) fn give_up_both(&mut self, conn: &Conn, counter: HelperCounter, why: &str) {
        self.give_up(conn, counter, why);
        self.destroy(&opposite(conn), None);
    }

    /// Takes an end out of the table and ends its socket; false if that was gone.
    fn end(&mut self, conn: &Conn) -> bool {
        let known = self.table.forget(conn.cookie);
        let socket = known.and_then(|(_, socket)| socket);
        self.destroy(conn, socket.as_ref())
    }

    pub(super) fn fail(&mut self, pair: &Pair<OwnedFd>, failure: &Failure) {
        self.maps.count(failure.counter(), 1);
        if let Some(reason) = failure.reason() {
            self.maps.count(reason, 1);
        }
        error!("reset {}: {failure}", Route(&pair.client.0));
        // The server's end first: then the client reads ECONNRESET, which programs know.
        self.destroy(&pair.server.0, Some(&pair.server.1));
        self.destroy(&pair.client.0, Some(&pair.client.1));
    }

    pub(super) fn reset_dropped(&mut self, conn: &Conn, reason: u32) {
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
            r if r == Drop::KeyLimit as u32 => {
                "what its key must not encrypt any more: more was sent than twice seal.rekey_after, and the key \
                 could not be replaced"
            }
            _ => "a reason unknown to this version",
        };
        // Each retransmission is dropped and told of again: what is gone already is old news.
        let other = self.table.other_end(conn);
        let mut ended = self.end(conn);
        if is_remote(conn) {
            self.remote.gave_up(conn, why);
        } else if [Drop::Cut, Drop::Ending, Drop::KeyLimit]
            .iter()
            .any(|r| *r as u32 == reason)
        {
            // One that its program has closed ends without a word to its peer on older kernels.
            ended |= self.destroy(&opposite(conn), None);
        }
        if let Some(other) = other {
            self.end(&other);
        }
        if ended {
            let counter = if reason == Drop::KeyLimit as u32 {
                HelperCounter::ResetKeyLimit
            } else {
                HelperCounter::ResetGuard
            };
            self.maps.count(counter, 1);
            error!("reset {}: the guard dropped {why}", Route(conn));
        }
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
