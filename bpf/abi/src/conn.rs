//! What is kept of a socket and of its connection.

use core::mem::size_of;

/// The end of a connection that a socket is.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It called connect: TLS client.
    Client = 1,
    /// It was accepted: TLS server.
    Server = 2,
}

/// How far a socket is on its way to being sealed. Absent storage means: not ours, or unknown.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Seen at connect or setsockopt, not yet established: sends nothing.
    New = 1,
    /// Needs no TLS; sends as it likes.
    Released = 2,
    /// Established, waits for its keys; sends nothing.
    Held = 3,
    /// Keys are in the socket; tasks that slept there before are being restarted.
    Keyed = 4,
    /// Sends and receives TLS records and nothing else.
    Sealed = 5,
    /// One end was closed, or shut down for sending, before keys could be set. No data will pass;
    /// whoever still sends is reset.
    Ending = 6,
    /// Keys are in the socket and nobody sleeps in the old code, but the other end, on another
    /// node, has not said the same: receives TLS records, sends nothing.
    Primed = 7,
    /// The connection ended before it had keys. A program that has not noticed yet still calls, and needs no record.
    Closed = 8,
    /// Sealed, and held for a moment so that what it has sent is read before its key is replaced. Nothing has been
    /// replaced yet.
    Pausing = 9,
    /// Sealed and held; either end of what it sends may have the old key or the new one.
    Replacing = 10,
}

impl State {
    /// The state that `raw`, a value of the `STATES` storage, stands for.
    #[inline(always)]
    #[must_use]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            1 => Self::New,
            2 => Self::Released,
            3 => Self::Held,
            4 => Self::Keyed,
            5 => Self::Sealed,
            6 => Self::Ending,
            7 => Self::Primed,
            8 => Self::Closed,
            9 => Self::Pausing,
            10 => Self::Replacing,
            _ => return None,
        })
    }

    /// Whether what the socket sends is TLS records, and nothing else.
    #[inline(always)]
    #[must_use]
    pub const fn is_sealed(self) -> bool {
        matches!(self, Self::Sealed | Self::Pausing | Self::Replacing)
    }
}

/// Addresses of a connection as one of its ends sees them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Own address, [`crate::ip_key`] form.
    pub local: [u8; 16],
    /// Peer's address, [`crate::ip_key`] form.
    pub remote: [u8; 16],
    /// Own port, host order.
    pub local_port: u16,
    /// Peer's port, host order.
    pub remote_port: u16,
    /// 1 if the socket is `AF_INET6` (its addresses may still be IPv4-mapped), else 0.
    pub v6: u32,
}

impl Tuple {
    /// The same connection seen from the other end. The family is the peer's own affair.
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self {
            local: self.remote,
            remote: self.local,
            local_port: self.remote_port,
            remote_port: self.local_port,
            v6: self.v6,
        }
    }
}

/// One end of a connection that is, or shall be, sealed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conn {
    /// Socket cookie (`SO_COOKIE`).
    pub cookie: u64,
    /// Cookie of the network namespace it lives in.
    pub netns: u64,
    /// Time of establishment, ns, `CLOCK_MONOTONIC`.
    pub since: u64,
    /// Addresses and ports.
    pub tuple: Tuple,
    /// Workload this end belongs to.
    pub workload: u32,
    /// Workload at the other end; 0 if it lives on another node.
    pub peer: u32,
    /// [`Role`] as u32.
    pub role: u32,
    /// Process that called connect or accept; 0 until it has.
    pub tgid: u32,
    /// [`State`] as u32, for display; the socket's own storage decides.
    pub state: u32,
    /// 1 if a task that splices could not be recorded: must never be handed over. (A kprobe does
    /// not reach [`Socket::unrecorded`].)
    pub unrecorded: u32,
    /// Node that the other end lives on, as [`crate::Endpoint::node`].
    pub node: u32,
    /// Zero.
    pub reserved: u32,
}

/// `TCP_NOTSENT_LOWAT` as an application has set it while its socket was held.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lowat {
    /// Value of the last call, bytes.
    pub value: u32,
    /// 1 if there was such a call.
    pub set: u32,
}

impl Lowat {
    /// The value to give to the socket when it is let go. Zero would hold it again, so it means
    /// the largest (no limit), as does never having been set.
    #[inline(always)]
    #[must_use]
    pub const fn on_release(&self) -> u32 {
        if self.set == 0 || self.value == 0 {
            u32::MAX
        } else {
            self.value
        }
    }
}

/// What BPF keeps with a socket of a workload.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Socket {
    /// Identity and addresses; zero until established.
    pub conn: Conn,
    /// What the application asked of `TCP_NOTSENT_LOWAT`.
    pub lowat: Lowat,
    /// 1 if a task inside send or recv could not be recorded: must never be handed over.
    pub unrecorded: u32,
    /// 1 if its end must not look orderly: it was closed while data lay in a TLS record that was
    /// never completed, or a call to send was refused before it had keys.
    pub cut: u32,
}

/// A task that was inside send or recv on a held socket: key of `SLEEPERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sleeper {
    /// Socket cookie.
    pub cookie: u64,
    /// Thread id in the initial PID namespace.
    pub tid: u32,
    /// Process id in the initial PID namespace.
    pub tgid: u32,
}

const _: () = {
    assert!(size_of::<Tuple>() == 40);
    assert!(size_of::<Conn>() == 96);
    assert!(size_of::<Lowat>() == 8);
    assert!(size_of::<Socket>() == 112);
    assert!(size_of::<Sleeper>() == 16);
};
