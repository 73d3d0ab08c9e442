//! The state of everything: two sockets, their tasks, what is between them, the helper.

use underseal_abi::State;

use crate::helper::Helper;

/// The most that one end sends: two units of data and the end of the stream.
pub(crate) const UNITS: usize = 3;

/// All there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Connection {
    pub(crate) ends: [End; 2],
    pub(crate) tasks: [Task; 4],
    /// What each end has sent.
    pub(crate) streams: [Stream; 2],
    pub(crate) helper: Helper,
    /// The kernel has established it.
    pub(crate) established: bool,
    /// The server's program has it.
    pub(crate) accepted: bool,
    /// Both programs have been told that it is gone.
    pub(crate) reset: bool,
    pub(crate) harm: Option<Harm>,
}

/// What must never come to a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Harm {
    /// It was handed TLS records.
    CiphertextRead,
    /// It was handed, as its peer's data, what nobody had sealed.
    PlaintextRead,
    /// Its kTLS was given something that it cannot decrypt.
    RecordRefused,
}

/// One socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct End {
    /// In the socket's storage.
    pub(crate) state: State,
    /// In the table of connections.
    pub(crate) shown: State,
    pub(crate) ulp: bool,
    /// Which handshake the keys are from; 0: there are none.
    pub(crate) rx: u8,
    pub(crate) tx: u8,
    /// `TCP_NOTSENT_LOWAT` lets it send.
    pub(crate) open: bool,
    /// A task could not be recorded.
    pub(crate) unrecorded: bool,
    /// A message of the guard to the helper waits.
    pub(crate) told: bool,
    pub(crate) life: Life,
    /// Its program has set `TCP_NOTSENT_LOWAT`.
    pub(crate) asked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Life {
    Open,
    /// Shut down for sending.
    Shut,
    /// No process has it.
    Left,
}

/// One task that sends or receives, call after call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Task {
    pub(crate) at: At,
    /// It is in the map of sleeping tasks.
    pub(crate) recorded: bool,
    /// Its record is written, and others do not see it yet.
    pub(crate) is_late: bool,
}

/// Where a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum At {
    /// In its program, or stopped on its way there.
    Program,
    /// In the hook: it has read that the socket waits for keys.
    Noticed,
    /// In the hook: its record is written.
    Recorded,
    /// Past the hook; `sk_prot` is not read yet.
    Entering,
    /// Inside the protocol's function, asleep unless it can go on.
    Inside(Code),
    /// It has ended, or never was.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Code {
    Tcp,
    Ktls,
}

/// What one end has sent, unit by unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Stream {
    units: [Option<Unit>; UNITS],
    /// How many have left the socket.
    pub(crate) left: u8,
    /// How many are in the peer's receive queue.
    pub(crate) arrived: u8,
    /// How many the peer's program has.
    pub(crate) read: u8,
}

/// As much as one call sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Unit {
    Plain,
    /// Sealed with the keys of this handshake.
    Record(u8),
    Fin,
}

impl Connection {
    /// The kernel's reset: nothing that happened before matters any more.
    pub(crate) fn end(&mut self) {
        let helper = Helper {
            kills: self.helper.kills,
            ..Helper::AWAY
        };
        *self = Self {
            ends: [End::NEW; 2],
            tasks: [Task::GONE; 4],
            streams: [Stream::default(); 2],
            helper,
            established: true,
            accepted: true,
            reset: true,
            harm: self.harm,
        };
    }
}

impl End {
    pub(crate) const NEW: Self = Self {
        state: State::New,
        shown: State::New,
        ulp: false,
        rx: 0,
        tx: 0,
        open: false,
        unrecorded: false,
        told: false,
        life: Life::Open,
        asked: false,
    };

    pub(crate) const fn waits_for_keys(&self) -> bool {
        matches!(self.state, State::New | State::Held)
    }
}

impl Task {
    pub(crate) const GONE: Self = Self {
        at: At::Gone,
        recorded: false,
        is_late: false,
    };
    pub(crate) const READY: Self = Self {
        at: At::Program,
        recorded: false,
        is_late: false,
    };
}

impl Stream {
    pub(crate) fn push(&mut self, unit: Unit) {
        if let Some(free) = self.units.iter_mut().find(|unit| unit.is_none()) {
            *free = Some(unit);
        }
    }

    pub(crate) fn unit(&self, number: u8) -> Option<Unit> {
        self.units.get(usize::from(number)).copied().flatten()
    }

    /// Units of data.
    pub(crate) fn data(&self) -> usize {
        let is_data = |unit: &&Option<Unit>| !matches!(unit, None | Some(Unit::Fin));
        self.units.iter().filter(is_data).count()
    }

    pub(crate) fn len(&self) -> usize {
        self.units.iter().flatten().count()
    }

    /// Whether anything readable has left the socket.
    pub(crate) fn has_leaked(&self) -> bool {
        self.units[..usize::from(self.left)].contains(&Some(Unit::Plain))
    }
}
