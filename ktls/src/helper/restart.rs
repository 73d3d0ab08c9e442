//! Makes a task that sleeps inside send or recv leave the kernel and enter again, unseen by the
//! program: what it enters the second time is kTLS.
//!
//! A call that is entered again looks its descriptor up again. If the number means another file by
//! then, because another thread has closed or replaced it, the call must end instead; so must one
//! that a worker of io_uring carries out, which cannot enter again. Both are errors here.

use std::{
    fs, io,
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use nix::{errno::Errno, sys::ptrace, unistd::Pid};
use underseal_abi::Sleeper;

use super::sys::{self, Stop};

/// After this time a task that does not stop is given up: it sleeps where no signal reaches it.
const PATIENCE: Duration = Duration::from_secs(5);

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
/// `EPERM` if it is traced already or Yama forbids it, `ETIMEDOUT` if it does not stop; a sentence
/// if it must not be restarted.
pub(super) fn restart(sleeper: &Sleeper) -> io::Result<Restart> {
    if is_worker(sleeper.tid) {
        return leave_worker(sleeper.tid);
    }
    if sleeps_elsewhere(sleeper.tid) {
        return Ok(Restart::NotNeeded);
    }
    // A thread of its own: whatever it fails to detach from is let go when it ends, with its
    // signals (kernel/ptrace.c, `exit_ptrace`).
    let failed = |_| io::Error::other("the thread that does it panicked");
    thread::scope(|scope| {
        scope
            .spawn(|| stop_and_go(sleeper))
            .join()
            .map_err(failed)?
    })
}

fn stop_and_go(sleeper: &Sleeper) -> io::Result<Restart> {
    let pid = Pid::from_raw(sleeper.tid.cast_signed());
    match ptrace::seize(pid, ptrace::Options::empty()) {
        Ok(()) => {}
        Err(Errno::ESRCH) => return Ok(Restart::NotNeeded),
        Err(errno) => return Err(errno.into()),
    }
    ptrace::interrupt(pid)?;
    let (signal, result) = match wait_for_stop(pid)? {
        Stop::Gone => return Ok(Restart::NotNeeded),
        // The stop that was asked for, or that of a stopped process.
        Stop::Asked => (0, enter_again(pid, sleeper, Interrupted::ByUs)),
        // A signal was on its way: it must reach the program, once.
        Stop::Signal(signal) => (signal, enter_again(pid, sleeper, Interrupted::BySignal)),
    };
    match sys::detach(pid, signal) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
        Err(error) => return Err(error),
    }
    result
}

/// Waits for the stop, at most [`PATIENCE`].
fn wait_for_stop(pid: Pid) -> io::Result<Stop> {
    let started = Instant::now();
    loop {
        if let Some(stop) = sys::stop_of(pid)? {
            return Ok(stop);
        }
        let left = PATIENCE.saturating_sub(started.elapsed());
        if left.is_zero() {
            return Err(Errno::ETIMEDOUT.into());
        }
        sys::wait_for_child_signal(left)?;
    }
}

/// Why a task has left its call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Interrupted {
    /// For nothing but this stop.
    ByUs,
    /// For a signal, too.
    BySignal,
}

/// Sees to it that the stopped task's call, if it is to be entered again, is the one it was in.
#[cfg(target_arch = "x86_64")]
fn enter_again(pid: Pid, sleeper: &Sleeper, why: Interrupted) -> io::Result<Restart> {
    /// include/linux/errno.h: the kernel runs the call again, for ever or unless there is a handler.
    const RESTARTSYS: i64 = -512;
    const RESTARTS: [i64; 4] = [RESTARTSYS, -513, -514, -516];
    let mut registers = ptrace::getregs(pid)?;
    let (call, result) = (
        registers.orig_rax.cast_signed(),
        registers.rax.cast_signed(),
    );
    if call < 0 {
        return Ok(Restart::Done);
    }
    // A socket with a timeout makes the kernel return EINTR where others restart (net/core/sock.c,
    // `sock_intr_errno`). With no signal delivered the program must not see one: restart it too.
    let hidden = result == -i64::from(libc::EINTR) && why == Interrupted::ByUs;
    if !hidden && !RESTARTS.contains(&result) {
        return Ok(Restart::Done);
    }
    let arguments = [registers.rdi, registers.rsi, registers.rdx];
    let ended = !is_still_its_descriptor(call, arguments, sleeper);
    if ended {
        registers.rax = (-i64::from(libc::ECONNRESET)).cast_unsigned();
    } else if hidden {
        registers.rax = RESTARTSYS.cast_unsigned();
    }
    if ended || hidden {
        ptrace::setregs(pid, registers)?;
    }
    if ended {
        return Err(io::Error::other(
            "its descriptor was closed or means another file now",
        ));
    }
    Ok(Restart::Done)
}

/// Elsewhere a socket with a timeout shows EINTR, which portable programs handle, and a descriptor
/// that was replaced is not noticed.
#[cfg(not(target_arch = "x86_64"))]
fn enter_again(_: Pid, _: &Sleeper, _: Interrupted) -> io::Result<Restart> {
    Ok(Restart::Done)
}

/// Whether a descriptor among the arguments of a call on data is still the recorded socket. Of
/// io_uring's call no argument is one.
#[cfg(target_arch = "x86_64")]
fn is_still_its_descriptor(call: i64, arguments: [u64; 3], sleeper: &Sleeper) -> bool {
    let [first, second, third] = arguments;
    let numbers = match call {
        libc::SYS_sendfile => [first, second],
        libc::SYS_splice | libc::SYS_tee => [first, third],
        libc::SYS_io_uring_enter => return true,
        call if DATA_CALLS.contains(&call) => [first, first],
        _ => return true,
    };
    let Ok(process) = sys::pidfd_open(sleeper.tgid) else {
        return false;
    };
    // The upper half of the register is not part of the argument.
    numbers.iter().any(|number| {
        sys::pidfd_getfd(process.as_fd(), *number as u32)
            .and_then(|socket| crate::cookie(socket.as_fd()))
            .is_ok_and(|cookie| cookie == sleeper.cookie)
    })
}

/// Whether the task is a worker of io_uring, by the flags in /proc/TID/stat.
fn is_worker(tid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{tid}/stat")).unwrap_or_default();
    has_worker_flag(&stat)
}

fn has_worker_flag(stat: &str) -> bool {
    /// `PF_IO_WORKER` (include/linux/sched.h).
    const IO_WORKER: u64 = 0x10;
    // After the name, which may contain anything: state, five ids, and then the flags.
    let flags = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.split(' ').nth(6)?.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & IO_WORKER != 0)
}

/// A worker that has left the socket has nothing to restart. One that sleeps in it (a splice: other
/// requests do not wait there) could only end its request with an error that programs do not
/// expect, on some kernels not even an errno.
fn leave_worker(tid: u32) -> io::Result<Restart> {
    let started = Instant::now();
    loop {
        let before = is_asleep(tid);
        let stack = match fs::read_to_string(format!("/proc/{tid}/stack")) {
            Ok(stack) => stack,
            Err(error) if is_gone(&error) => return Ok(Restart::NotNeeded),
            Err(error) => return Err(error),
        };
        // The stack of a task that runs says nothing.
        let asleep = before && is_asleep(tid);
        if asleep && !is_in_socket(&stack) {
            return Ok(Restart::NotNeeded);
        }
        if asleep || started.elapsed() > PATIENCE {
            return Err(io::Error::other("io_uring waits in a splice from it"));
        }
        thread::yield_now();
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

/// Whether a function of sockets or splice is on a stack as /proc/TID/stack shows it.
fn is_in_socket(stack: &str) -> bool {
    stack.is_empty()
        || ["sock_", "tcp_", "splice"]
            .iter()
            .any(|name| stack.contains(name))
}

fn is_asleep(tid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{tid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| rest.starts_with(['S', 'D']))
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
    fn a_worker_is_known_by_its_flags_and_its_stack() {
        assert!(has_worker_flag(
            "77 (iou-wrk-70) S 1 70 70 0 -1 4194384 0 0 0"
        ));
        assert!(!has_worker_flag("77 (a) S (b) S 1 70 70 0 -1 4194368 0 0"));
        let idle = "[<0>] io_wq_worker+0x28d/0x450\n[<0>] ret_from_fork+0x31/0x50\n";
        assert!(!is_in_socket(idle));
        let splicing = "[<0>] sk_wait_data+0xd\n[<0>] tcp_splice_read+0x1\n";
        assert!(is_in_socket(&format!("{splicing}{idle}")));
        assert!(is_in_socket(""), "nothing is known");
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
