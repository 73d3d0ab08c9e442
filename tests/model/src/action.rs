//! One step of somebody, as people read it.

use std::fmt;

/// An end of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Called connect.
    Client,
    /// Was accepted.
    Server,
}

/// A step.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The handshake of TCP is over.
    Establish,
    /// The server's program accepts.
    Accept,
    /// A task goes on, and the helper's map has room.
    Task(u8),
    /// What a task has written is seen by others at last.
    RecordLands(u8),
    /// A task goes on, and finds the map of sleeping tasks full.
    TaskUnrecorded(u8),
    /// A task comes out of its call empty-handed: a timeout, a signal, EAGAIN, a restart.
    TaskReturns(u8),
    /// A segment leaves, or meets the guard.
    Leave(Side),
    /// A segment arrives, or meets the guard.
    Arrive(Side),
    /// The program shuts its side down.
    Shut(Side),
    /// The program ends.
    Exit(Side),
    /// The program sets `TCP_NOTSENT_LOWAT`.
    SetLowat(Side),
    /// A helper starts.
    HelperStarts,
    /// The helper is killed.
    HelperKilled,
    /// The helper looks for a socket.
    Look(Side),
    /// The helper reads that the guard dropped something.
    HearDrop(Side),
    /// The helper takes the next step of the hand-over.
    HandOver(&'static str),
    /// The helper cannot restart a task.
    RestartFails,
}

pub(crate) const SIDES: [Side; 2] = [Side::Client, Side::Server];

impl Side {
    pub(crate) const fn index(self) -> usize {
        match self {
            Self::Client => 0,
            Self::Server => 1,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Establish => f.write_str("the connection is established and held"),
            Self::Accept => f.write_str("the server's program accepts it"),
            Self::Task(task) => write!(f, "{} goes one step on", name(task)),
            Self::TaskUnrecorded(task) => {
                write!(f, "{} finds the map of sleeping tasks full", name(task))
            }
            Self::RecordLands(task) => write!(f, "the record of {} is seen", name(task)),
            Self::TaskReturns(task) => write!(f, "{} leaves its call", name(task)),
            Self::Leave(side) => write!(f, "a segment of the {} meets the guard", side.name()),
            Self::Arrive(side) => {
                write!(f, "a segment of the {} comes to its peer", side.name())
            }
            Self::Shut(side) => write!(f, "the {} shuts its side down", side.name()),
            Self::Exit(side) => write!(f, "the {}'s program ends", side.name()),
            Self::SetLowat(side) => write!(f, "the {} sets TCP_NOTSENT_LOWAT", side.name()),
            Self::HelperStarts => f.write_str("a helper starts"),
            Self::HelperKilled => f.write_str("the helper is killed"),
            Self::Look(side) => {
                write!(f, "the helper looks for the {}'s socket", side.name())
            }
            Self::HearDrop(side) => {
                write!(f, "the helper hears of a drop at the {}", side.name())
            }
            Self::HandOver(step) => write!(f, "the helper: {step}"),
            Self::RestartFails => f.write_str("the helper cannot restart a task"),
        }
    }
}

/// The checker shows actions by this.
impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn name(task: u8) -> &'static str {
    match task {
        0 => "the client's sender",
        1 => "the client's reader",
        2 => "the server's sender",
        _ => "the server's reader",
    }
}
