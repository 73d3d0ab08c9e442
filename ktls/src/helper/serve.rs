//! The helper as a program.

use std::{io, process::ExitCode};

use anyhow::{Context, Result};
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use tracing::{error, info};

use super::{
    controls::Controls,
    pins::{Lock, wait_for_maps},
    session::{End, Session},
};

/// Serves until SIGTERM or SIGINT, or until there is no point in going on; logs to standard error.
#[must_use]
pub fn main(controls: Controls) -> ExitCode {
    let log = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .without_time()
        .with_target(false);
    log.with_max_level(level()).init();
    match serve(controls) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            error!("{failure:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(controls: Controls) -> Result<()> {
    let _lock = Lock::take()?;
    raise_descriptor_limit();
    let stop = stop_signals()?;
    loop {
        wait_for_maps()?;
        let mut session = Session::start(controls.clone())?;
        // Ready means: what comes now is taken up. Outside systemd there is nobody to tell.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        info!("ready; {} ends of connections wait", session.waiting());
        match session.run(&stop)? {
            End::MapsGone => info!("the maps are gone; waiting for `underseal apply`"),
            End::Asked => return Ok(()),
        }
    }
}

/// SIGTERM and SIGINT as a descriptor. SIGCHLD, by which the kernel tells of tasks that stop, is
/// blocked, so that it can be waited for.
fn stop_signals() -> Result<SignalFd> {
    let mut stop = SigSet::empty();
    stop.add(Signal::SIGTERM);
    stop.add(Signal::SIGINT);
    stop.thread_block().context("cannot block signals")?;
    let mut child = SigSet::empty();
    child.add(Signal::SIGCHLD);
    child.thread_block().context("cannot block signals")?;
    SignalFd::with_flags(&stop, SfdFlags::SFD_CLOEXEC).context("cannot open a signalfd")
}

/// Every connection that waits for its server to accept costs one descriptor.
fn raise_descriptor_limit() {
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Without it fewer connections can wait; that shows when there are so many.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
}

fn level() -> tracing::Level {
    std::env::var("UNDERSEAL_LOG")
        .ok()
        .and_then(|level| level.parse().ok())
        .unwrap_or(tracing::Level::INFO)
}
