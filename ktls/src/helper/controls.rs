//! Steps of the hand-over that a test can leave out, to show what they are good for.

/// What is left out. `underseal-handshake` leaves out nothing, and there is no way to tell it to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Controls {
    /// Tasks that sleep inside send and recv are left asleep.
    pub no_restart: bool,
}
