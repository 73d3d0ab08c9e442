//! How connections end that plain TCP would end in another way: before they have keys, after their
//! own shutdown, or with data that kTLS keeps for a record that is never completed.

#![deny(unsafe_code)]

use underseal_abi::{Counter, Drop, EventKind, State};

use crate::{
    maps::{self, storage},
    sys::{self, Sock, SockOps},
};

const TCP_CLOSE_WAIT: u32 = 8;
const SEND_SHUTDOWN: u8 = 2;
const MSG_NOSIGNAL: u32 = 0x4000;
const EPIPE: i32 = 32;
const ECONNRESET: i32 = 104;

/// A held socket leaves the state in which the TLS protocol can be put in: it was closed or shut
/// down (`FIN_WAIT1`), or its peer was and had sent nothing (`CLOSE_WAIT`: the guard lets no other
/// FIN reach it). The program's own part comes under the socket's lock, and so does the helper's:
/// either the protocol is in and keys can still be set, or it never will be.
#[inline(always)]
pub fn one_side_shut(ctx: SockOps) {
    let by_peer = ctx.new_state() == TCP_CLOSE_WAIT;
    let Some(sock) = ctx.sock() else { return };
    if storage::state(sock) != Some(State::Held) || (!by_peer && sys::has_ulp(sock)) {
        return;
    }
    let Some(kept) = storage::socket(sock) else {
        return;
    };
    storage::set_state(sock, State::Ending);
    kept.conn.state = State::Ending as u32;
    maps::set_shown_state(kept.conn.cookie, State::Ending);
    maps::count(Counter::EndedUnsealed, 0);
    maps::tell(EventKind::Ending, u32::from(!by_peer), &kept.conn);
}

/// Whether a call to send on a socket in this state goes on: 0, or the error that the program gets.
#[inline(always)]
pub fn may_send(sock: Sock, state: State, flags: u32) -> i32 {
    let shut = (state.is_sealed() || state == State::Ending)
        && sys::shutdown_of(sock) & SEND_SHUTDOWN != 0;
    match state {
        // Plain TCP says so itself; kTLS would report the data as sent.
        state if state.is_sealed() && shut => {
            maps::count(Counter::RefusedShutdown, 0);
            if flags & MSG_NOSIGNAL == 0 {
                sys::raise_sigpipe();
            }
            -EPIPE
        }
        // The peer may still wait for an answer that cannot be sealed: it must not take the end of
        // the stream for one.
        State::Ending if !shut => {
            maps::count(Counter::RefusedEnding, 0);
            if let Some(kept) = storage::socket(sock) {
                kept.cut = 1;
                maps::tell(EventKind::Dropped, Drop::Ending as u32, &kept.conn);
            }
            -ECONNRESET
        }
        _ => 0,
    }
}

/// The last descriptor of a socket is closed. If it is sealed, kTLS is about to throw away what it has not given to
/// TCP, and then nobody could tell any more. If it was never connected, no other program sees its end.
#[inline(always)]
pub fn closed(sock: Sock) {
    let Some(state) = storage::state(sock) else {
        return;
    };
    let is_cut = state.is_sealed() && sys::keeps_unsent(sock);
    if (is_cut || state == State::New)
        && let Some(kept) = storage::socket(sock)
    {
        if is_cut {
            kept.cut = 1;
        } else {
            kept.conn.since = sys::now();
            maps::tell(EventKind::Closed, 1, &kept.conn);
        }
    }
}

/// Whether the end of this sealed stream would hide that its last bytes were never sent.
#[inline(always)]
pub fn is_cut(sock: Sock) -> bool {
    is_marked(sock) || sys::keeps_unsent(sock)
}

/// Whether a FIN at sequence number `seq` ends a connection without keys in order: it is the first
/// that the socket sends, and no call to send was refused.
#[inline(always)]
pub fn is_orderly(sock: Sock, seq: u32) -> bool {
    storage::flow_start(sock) == Some(seq) && !is_marked(sock)
}

#[inline(always)]
fn is_marked(sock: Sock) -> bool {
    storage::socket(sock).is_none_or(|kept| kept.cut != 0)
}
