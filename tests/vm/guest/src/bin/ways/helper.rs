//! The handshake helper, stopped while calls are made that must come before the hand-over.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process that is told to stop and to go on.
#[derive(Clone, Copy)]
pub(crate) struct Helper(pub(crate) i32);

impl Helper {
    /// Returns when it has stopped.
    pub(crate) fn stop(self) -> Result<()> {
        kill(Pid::from_raw(self.0), Signal::SIGSTOP)?;
        let started = Instant::now();
        loop {
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.0))?;
            // The state follows the name, which stands in parentheses.
            if stat
                .rsplit(") ")
                .next()
                .is_some_and(|rest| rest.starts_with('T'))
            {
                return Ok(());
            }
            if started.elapsed() > Duration::from_secs(10) {
                bail!("the helper does not stop");
            }
            sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn go(self) -> Result<()> {
        Ok(kill(Pid::from_raw(self.0), Signal::SIGCONT)?)
    }
}
