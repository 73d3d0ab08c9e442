//! Waiting for what another task has come to, by what /proc says of it. Each wait has a limit, and fails at it.

use std::fs;
use std::os::fd::AsFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::unistd::Pid;

use crate::sys;

/// Longer than anything waited for takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Asks `is_so` again and again until it is.
pub(crate) fn until(
    what: &str,
    limit: Duration,
    mut is_so: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let started = Instant::now();
    while !is_so()? {
        if started.elapsed() > limit {
            bail!("waited {limit:?} for {what}");
        }
        sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Waits until a task sleeps in one of these system calls.
pub(crate) fn until_in_call(task: Pid, calls: &[i64]) -> Result<()> {
    until(
        &format!("task {task} to sleep in one of calls {calls:?}"),
        PATIENCE,
        || {
            let line = fs::read_to_string(format!("/proc/{task}/syscall"))
                .with_context(|| format!("task {task}"))?;
            let number = line.split(' ').next().and_then(|word| word.parse().ok());
            Ok(number.is_some_and(|number: i64| calls.contains(&number)))
        },
    )
}

/// Whether the state of a process is one of these letters (proc(5)).
pub(crate) fn is_in(pid: Pid, states: &str) -> Result<bool> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    Ok(state.is_some_and(|state| states.contains(state)))
}

/// Waits until the helper has found this socket: then it has kernel TLS, with or without keys.
pub(crate) fn until_found(socket: impl AsFd) -> Result<()> {
    until("the helper to find a socket", PATIENCE, || {
        Ok(sys::ulp(socket.as_fd())? == "tls")
    })
}
