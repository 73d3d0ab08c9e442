//! Makes a task that sleeps inside send or recv leave the kernel and enter again, unseen by the
//! program: what it enters the second time is kTLS.

use std::{fs, io};

use nix::{
    errno::Errno,
    sys::{
        ptrace,
        signal::Signal,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, alarm},
};
use underseal_abi::Sleeper;

/// Seconds after which a task that does not stop is given up: it sleeps where no signal reaches it.
const PATIENCE: u32 = 5;
/// `ERESTARTSYS` (include/linux/errno.h): the kernel runs the system call again.
#[cfg(target_arch = "x86_64")]
const RESTART: u64 = (-512_i64).cast_unsigned();

/// What came of it.
#[must_use]
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Restart {
    /// The task was stopped and goes on.
    Done,
    /// The task is gone, or sleeps somewhere else: nothing to do.
    NotNeeded,
}

/// Restarts one task.
///
/// # Errors
/// `EPERM` if it is traced already or Yama forbids it, `ETIMEDOUT` if it does not stop.
pub(super) fn restart(sleeper: &Sleeper) -> io::Result<Restart> {
    if sleeps_elsewhere(sleeper.tid) {
        return Ok(Restart::NotNeeded);
    }
    let pid = Pid::from_raw(sleeper.tid.cast_signed());
    match ptrace::seize(pid, ptrace::Options::empty()) {
        Ok(()) => {}
        Err(Errno::ESRCH) => return Ok(Restart::NotNeeded),
        Err(errno) => return Err(errno.into()),
    }
    ptrace::interrupt(pid)?;
    let status = wait_for_stop(pid)?;
    let signal = match status {
        WaitStatus::Exited(..) | WaitStatus::Signaled(..) => return Ok(Restart::NotNeeded),
        // The stop that was asked for.
        WaitStatus::PtraceEvent(..) => {
            hide_interruption(pid)?;
            None
        }
        // A signal was on its way: it must reach the program, once.
        WaitStatus::Stopped(_, signal) => Some(signal),
        _ => None,
    };
    match ptrace::detach(pid, signal.filter(|s| *s != Signal::SIGTRAP)) {
        Ok(()) | Err(Errno::ESRCH) => Ok(Restart::Done),
        Err(errno) => Err(errno.into()),
    }
}

/// Waits for the stop, at most [`PATIENCE`]: SIGALRM (its handler does nothing) ends the wait.
fn wait_for_stop(pid: Pid) -> io::Result<WaitStatus> {
    alarm::set(PATIENCE);
    let status = waitpid(pid, Some(WaitPidFlag::__WALL));
    alarm::cancel();
    match status {
        Ok(status) => Ok(status),
        Err(Errno::EINTR) => Err(Errno::ETIMEDOUT.into()),
        Err(errno) => Err(errno.into()),
    }
}

/// A socket with a timeout makes the kernel return EINTR where others restart (net/core/sock.c,
/// `sock_intr_errno`). No signal was delivered, so the program must not see one: restart it too.
#[cfg(target_arch = "x86_64")]
fn hide_interruption(pid: Pid) -> io::Result<()> {
    let mut registers = ptrace::getregs(pid)?;
    let in_call = registers.orig_rax.cast_signed() >= 0;
    if in_call && registers.rax.cast_signed() == -i64::from(libc::EINTR) {
        registers.rax = RESTART;
        ptrace::setregs(pid, registers)?;
    }
    Ok(())
}

/// Elsewhere a socket with a timeout shows EINTR, which portable programs handle.
#[cfg(not(target_arch = "x86_64"))]
fn hide_interruption(_: Pid) -> io::Result<()> {
    Ok(())
}

/// Whether the task sleeps in a system call that has nothing to do with sockets' data, so that
/// its record is old. One that runs may be anywhere: it must be stopped.
fn sleeps_elsewhere(tid: u32) -> bool {
    let Ok(line) = fs::read_to_string(format!("/proc/{tid}/syscall")) else {
        return false;
    };
    is_elsewhere(&line)
}

fn is_elsewhere(line: &str) -> bool {
    match line
        .split_whitespace()
        .next()
        .and_then(|n| n.parse::<i64>().ok())
    {
        None => false,
        Some(number) => number >= 0 && !DATA_CALLS.contains(&number),
    }
}

/// The system calls that move data through a socket.
const DATA_CALLS: [i64; 16] = [
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_preadv2,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwritev2,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_io_uring_enter,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sleeper_in_another_call_is_left_alone() {
        assert!(!is_elsewhere("running"));
        assert!(!is_elsewhere(&format!(
            "{} 0x4 0x7f 0x10 0x0 0x0 0x0 0x7ffd 0x7f12",
            libc::SYS_recvfrom
        )));
        assert!(!is_elsewhere("-1 0x7ffd 0x7f12"), "blocked outside a call");
        assert!(is_elsewhere(&format!(
            "{} 0x4 0x7f 0x10 0x0 0x0 0x0 0x7ffd 0x7f12",
            libc::SYS_epoll_wait
        )));
    }

    #[test]
    fn a_task_that_is_gone_needs_nothing() {
        let sleeper = Sleeper {
            cookie: 1,
            tid: i32::MAX.cast_unsigned(),
            tgid: 1,
        };
        assert_eq!(restart(&sleeper).unwrap(), Restart::NotNeeded);
    }
}
