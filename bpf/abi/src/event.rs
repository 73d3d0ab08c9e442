//! What the programs tell the helper, and iterators whoever reads them.

use core::mem::size_of;

use crate::Conn;

/// What an [`Event`] tells.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A connection was established and is held.
    Held = 1,
    /// The server's end was accepted; [`Conn::tgid`] is known now.
    Accepted = 2,
    /// A held or sealed socket was closed, or could not be connected, at the time [`Conn::since`]; [`Event::reason`] is 1
    /// if it had no keys: then tasks may be recorded on it.
    Closed = 3,
    /// The guard dropped a segment; [`Event::reason`] is a [`Drop`].
    Dropped = 4,
    /// The connection ends before it has keys; [`Event::reason`] is 1 at the end that was closed or
    /// shut down, 0 at the other.
    Ending = 5,
    /// A connection is held that is not in `CONNS`, for the reason [`Unplaced`]: it must be ended.
    Unplaced = 6,
    /// A sealed socket has sent so much that its key should be replaced.
    KeyLimit = 7,
}

/// Why a connection is in no table.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unplaced {
    /// The maps had no room.
    Full = 1,
    /// Its own address is not its workload's.
    Foreign = 2,
    /// Network policies do not allow it any more: they were changed while it was being made.
    Refused = 3,
    /// It is a subflow of an MPTCP socket that is older than the take-over of its namespace.
    Mptcp = 4,
}

/// Why the guard dropped a segment.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drop {
    /// Payload of a socket that has no keys yet.
    Unsealed = 1,
    /// Payload of a sealed socket that is not a TLS record.
    NotARecord = 2,
    /// Payload that does not continue the record stream.
    Gap = 3,
    /// Payload for a socket that has no keys yet.
    UnsealedIngress = 4,
    /// Payload between workloads that must be sealed, by a socket Underseal has never seen.
    Unknown = 5,
    /// The end of a sealed stream whose last bytes were never sent: more was announced
    /// (`MSG_MORE`) and did not come.
    Cut = 6,
    /// A call to send on a connection that ends before it has keys; refused before it made a
    /// segment.
    Ending = 7,
    /// A sealed socket has sent as much as its key may encrypt.
    KeyLimit = 8,
}

/// Record of the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// [`EventKind`] as u32.
    pub kind: u32,
    /// What the [`EventKind`] says; 0 otherwise.
    pub reason: u32,
    /// The end that it is about.
    pub conn: Conn,
}

/// What the `task_file` iterator writes for each socket it finds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskFile {
    /// Socket cookie.
    pub cookie: u64,
    /// Process id in the initial PID namespace.
    pub tgid: u32,
    /// Descriptor number in that process.
    pub fd: u32,
}

const _: () = {
    assert!(size_of::<Event>() == 104);
    assert!(size_of::<TaskFile>() == 16);
};
