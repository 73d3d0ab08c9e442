//! Records the tasks that enter send or recv on a socket that has no keys yet: they must be made
//! to restart their call when it has.
//!
//! The order is what makes a grace period unnecessary. A task: writes its record, barrier, reads
//! the state. The helper: writes state `Keyed` (the keys are in by then), barrier, reads the
//! records. One of the two sees the other: either the helper finds the record, or the task finds
//! `Keyed`, and then it has yet to read `sk->sk_prot`, which is kTLS's by now.

#![deny(unsafe_code)]

use underseal_abi::State;

use crate::{
    maps::{self, storage},
    offsets::{CONTROLS, NO_RECORD},
    sys::{self, Sock, Spliced},
};

const TCP_SYN_SENT: u8 = 2;

/// The current task is about to enter send or recv on `sock`, which was found in `state`.
#[inline(always)]
pub fn enter(sock: Sock, state: State) {
    if !matches!(state, State::New | State::Held) || CONTROLS.load() & NO_RECORD != 0 {
        return;
    }
    let sleeper = sys::sleeper(sys::cookie(sock));
    let now = sys::now();
    if !maps::insert_sleeper(&sleeper, now) {
        if let Some(kept) = storage::socket_or_new(sock) {
            kept.unrecorded = 1;
        }
        return;
    }
    sys::barrier(now);
    if !waits_for_keys(sock) {
        maps::remove_sleeper(&sleeper);
    }
}

/// The current task is about to splice to or from this socket. These paths have no LSM hook, and a
/// kprobe cannot reach socket storage: whether a socket is held is looked up by cookie. One that is
/// being connected is not in the table yet, and counts as held.
#[inline(always)]
pub fn enter_splice(socket: Spliced) {
    let waits = socket.state == TCP_SYN_SENT || maps::is_held(socket.cookie);
    if socket.cookie == 0 || !waits {
        return;
    }
    let now = sys::now();
    if !maps::insert_sleeper(&sys::sleeper(socket.cookie), now) {
        maps::set_unrecorded(socket.cookie);
    }
    sys::barrier(now);
}

#[inline(always)]
fn waits_for_keys(sock: Sock) -> bool {
    matches!(storage::state(sock), Some(State::New | State::Held))
}
