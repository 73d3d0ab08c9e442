//! The only unsafe code of the loader outside `kernel/bpf`: what neither std nor nix offers.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The cookie of the network namespace that a socket belongs to.
///
/// # Errors
/// `ENOPROTOOPT` on kernels before 5.14.
pub(crate) fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = mem::size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: the descriptor is borrowed, so it is open during the call. The kernel writes at most
    // `length` bytes to the third pointer, and `length` is the size of the live, writable u64
    // behind it; any eight bytes are a u64. It writes a socklen_t to the last pointer, which is
    // one. It keeps neither pointer.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}
