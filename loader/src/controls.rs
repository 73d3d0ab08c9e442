//! Defences that a test can have taken out of the programs, to show what they are good for.

/// What is left out. `underseal` leaves out nothing, and there is no way to tell it to. The bits
/// are those of `CONTROLS` in `bpf/src/offsets.rs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Controls {
    /// Connections that must be sealed are not held.
    pub no_hold: bool,
    /// The guard lets everything pass.
    pub no_guard: bool,
    /// Tasks inside send and receive are not recorded.
    pub no_record: bool,
}

impl Controls {
    /// The value of `CONTROLS`.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.no_hold as u32 | (self.no_guard as u32) << 1 | (self.no_record as u32) << 2
    }
}
