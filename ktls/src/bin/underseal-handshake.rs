//! The handshake helper of Underseal: see `underseal_ktls::helper`.
//!
//! Takes no arguments and reads no file but certificates. Runs as a service; may be stopped,
//! killed or replaced at any time.

use std::{io, process::ExitCode};

use anyhow::{Context, Result};
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
    signalfd::{SfdFlags, SignalFd},
};
use tracing::{error, info};
use underseal_ktls::helper::{End, Lock, Session, wait_for_maps};

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .without_time()
        .with_target(false)
        .with_max_level(level())
        .init();
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            error!("{failure:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<()> {
    let _lock = Lock::take()?;
    raise_descriptor_limit();
    let stop = stop_signals()?;
    loop {
        wait_for_maps()?;
        let mut session = Session::start()?;
        // Ready means: what comes now is taken up. Outside systemd there is nobody to tell.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        info!("ready; {} ends of connections wait", session.waiting());
        match session.run(&stop)? {
            End::MapsGone => info!("the maps are gone; waiting for `underseal apply`"),
            End::Asked => return Ok(()),
        }
    }
}

/// SIGTERM and SIGINT as a descriptor; SIGALRM, which ends a wait for a task, as a no-op.
fn stop_signals() -> Result<SignalFd> {
    extern "C" fn nothing(_: i32) {}
    let mut stop = SigSet::empty();
    stop.add(Signal::SIGTERM);
    stop.add(Signal::SIGINT);
    stop.thread_block().context("cannot block signals")?;
    install_no_op(SigAction::new(
        SigHandler::Handler(nothing),
        SaFlags::empty(),
        SigSet::empty(),
    ))?;
    SignalFd::with_flags(&stop, SfdFlags::SFD_CLOEXEC).context("cannot open a signalfd")
}

#[allow(unsafe_code)]
fn install_no_op(action: SigAction) -> Result<()> {
    // SAFETY: the handler does nothing, so it is async-signal-safe.
    unsafe { sigaction(Signal::SIGALRM, &action) }.context("cannot handle SIGALRM")?;
    Ok(())
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
