//! What a test can ask of the loader: to leave defences out of the programs, to make maps small, to die at a step.

use nix::sys::signal::{Signal, raise};
use underseal_abi::names;

/// What is left out, or made small. `underseal` leaves out nothing, and there is no way to tell it to. The bits
/// are those of `CONTROLS` in `bpf/src/offsets.rs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Controls {
    /// Connections that must be sealed are not held.
    pub no_hold: bool,
    /// The guard lets everything pass.
    pub no_guard: bool,
    /// Tasks inside send and receive are not recorded.
    pub no_record: bool,
    /// Keys are used for ever.
    pub no_limit: bool,
    /// Room in `CONNS`; else what the object says.
    pub conns: Option<u32>,
    /// Room in `SLEEPERS`.
    pub sleepers: Option<u32>,
    /// Room in `NETNS`.
    pub netns: Option<u32>,
    /// How many steps are done before the process kills itself.
    pub steps: Option<u32>,
}

impl Controls {
    /// The value of `CONTROLS`.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.no_hold as u32
            | (self.no_guard as u32) << 1
            | (self.no_record as u32) << 2
            | (self.no_limit as u32) << 3
    }

    /// The maps that are made smaller, with their number of entries.
    pub fn rooms(self) -> impl Iterator<Item = (&'static str, u32)> {
        let rooms = [
            (names::CONNS, self.conns),
            (names::SLEEPERS, self.sleepers),
            (names::NETNS, self.netns),
        ];
        rooms
            .into_iter()
            .filter_map(|(name, room)| Some((name, room?)))
    }

    /// A step is about to begin. The process ends here (SIGKILL) if it was told to.
    pub fn begins(&mut self) {
        match &mut self.steps {
            // It cannot fail: the signal exists, and the process is this one.
            Some(0) => drop(raise(Signal::SIGKILL)),
            Some(left) => *left -= 1,
            None => {}
        }
    }
}
