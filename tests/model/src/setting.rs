//! What is explored: which defences are there, what may go wrong, which step has been spoiled.

/// One exploration.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// What protects.
    pub defences: Defences,
    /// What may go wrong.
    pub faults: Faults,
    /// What the programs do.
    pub talk: Talk,
    /// What the kernel makes of keys for a socket that has some.
    pub rekey: Rekey,
    /// A mistake in the protocol; `None` is the protocol as it is.
    pub mutation: Option<Mutation>,
}

/// The lines of defence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defences {
    /// All of them.
    All,
    /// Hold and restart: the guard lets everything pass.
    NoGuard,
    /// Guard and restart: sockets may send from the start.
    NoHold,
    /// The guard alone: nothing is held, nobody is restarted.
    GuardAlone,
}

/// What may go wrong, and how often.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// So many times the helper is killed, before any of its steps.
    pub kills: u8,
    /// The map of sleeping tasks may be full.
    pub full_map: bool,
    /// A task may refuse to be restarted (it is being traced).
    pub stubborn_task: bool,
    /// Either program may shut its side down, or end, at any time.
    pub endings: bool,
    /// Either program may set `TCP_NOTSENT_LOWAT` at any time.
    pub lowat: bool,
}

/// Which tasks there are, and how they enter the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Talk {
    /// On either end one task sends and another one receives.
    BothWays,
    /// The client sends twice, the server receives.
    ClientSpeaks,
    /// The server sends twice, the client receives.
    ServerSpeaks,
    /// The client sends twice, the server receives; both by splice, which kprobes record.
    Splice,
}

/// What setting keys does on a socket that has keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rekey {
    /// It fails (Linux before 6.14).
    Refused,
    /// The new ones count from now on.
    Accepted,
}

/// One mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Sleeping tasks are left asleep.
    NoRestart,
    /// A task writes its record, and does not look again.
    NoSecondLook,
    /// A task's record is seen by others only after the task has read on: no barrier, or another order.
    RecordLate,
    /// State `Keyed` is written before the keys are in.
    KeyedBeforeKeys,
    /// The keys for sending go in, and `Keyed` is written, only after the records were read.
    RecordsReadBeforeKeyed,
    /// State `Sealed` is written before the sleeping tasks have been restarted.
    SealedBeforeRestart,
    /// A helper that finds `Keyed` begins the connection again.
    KeyedIsHeld,
    /// A helper that begins a connection again replaces keys that an earlier one has set.
    KeysReplaced,
    /// Nobody looks whether there was a task that could not be recorded.
    UnrecordedIgnored,
    /// A task that splices and cannot be recorded leaves no trace.
    SpliceUntraced,
    /// A task that splices while the connection is being made is not recorded.
    SpliceUnseenWhileNew,
    /// The guard lets a sealed socket send what it likes.
    GuardTrustsState,
    /// What arrives at a socket that is `Keyed`, perhaps a moment too early, makes the helper reset it.
    EarlyIsFatal,
}

impl Setting {
    pub(crate) const fn has_guard(&self) -> bool {
        !matches!(self.defences, Defences::NoGuard)
    }

    pub(crate) const fn has_hold(&self) -> bool {
        matches!(self.defences, Defences::All | Defences::NoGuard)
    }

    pub(crate) const fn leaves_sleepers(&self) -> bool {
        matches!(self.defences, Defences::GuardAlone)
    }

    /// Whether anything in this setting may end in a reset that nobody can avoid.
    pub(crate) const fn can_fail(&self) -> bool {
        let faults = &self.faults;
        faults.kills > 0
            || faults.full_map
            || faults.stubborn_task
            || faults.endings
            || !self.has_hold()
    }
}
