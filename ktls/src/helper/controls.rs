//! Test-only: takes a step of the hand-over away, so that a test can show what it is good for.
//! Builds without the feature `test-controls` have none of it.

/// Whether sleeping tasks are left alone.
#[cfg(feature = "test-controls")]
pub(super) fn no_restart() -> bool {
    std::env::var("UNDERSEAL_CONTROLS")
        .is_ok_and(|controls| controls.split(',').any(|c| c == "no-restart"))
}

/// Whether sleeping tasks are left alone: never.
#[cfg(not(feature = "test-controls"))]
pub(super) const fn no_restart() -> bool {
    false
}
