//! A program that is attached to a kernel function where it was attached a moment ago.
//!
//! A link that has lost its last pin lets go of its program later, by itself (kernel/bpf/syscall.c, `bpf_link_put`), and
//! until then the kernel refuses to attach that program there again (kernel/bpf/trampoline.c,
//! `bpf_trampoline_link_prog`). It happens where a replaced program is put back. Nothing tells when the kernel has let go, so
//! it is tried until then.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

/// How long the kernel may take.
pub(super) const LIMIT: Duration = Duration::from_secs(10);

const PAUSE: Duration = Duration::from_millis(5);

/// Attaches, again and again while that is refused as busy, until the limit.
///
/// # Errors
/// What `attach` says, if it is anything else, or the time is over.
pub(super) fn wait<T>(attach: impl Fn() -> io::Result<T>, limit: Duration) -> io::Result<T> {
    let end = Instant::now() + limit;
    loop {
        match attach() {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < end => {
                thread::sleep(PAUSE);
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn refused(code: i32) -> io::Result<u32> {
        Err(io::Error::from_raw_os_error(code))
    }

    #[test]
    fn busy_alone_is_waited_for() {
        let tries = Cell::new(0);
        let attach = || {
            tries.set(tries.get() + 1);
            if tries.get() < 3 {
                refused(libc::EBUSY)
            } else {
                Ok(tries.get())
            }
        };
        assert_eq!(wait(attach, LIMIT).unwrap(), 3);
        let denied = wait(|| refused(libc::EPERM), LIMIT).unwrap_err();
        assert_eq!(denied.raw_os_error(), Some(libc::EPERM));
    }

    #[test]
    fn it_is_not_waited_for_without_end() {
        let busy = wait(|| refused(libc::EBUSY), Duration::ZERO).unwrap_err();
        assert_eq!(busy.raw_os_error(), Some(libc::EBUSY));
    }
}
