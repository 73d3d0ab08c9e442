//! Send buffers that are too small for kTLS to notice that it must send.
//!
//! Before Linux 6.5, sendfile and splice hand pages to kTLS one at a time (net/tls/tls_sw.c, `tls_sw_do_sendpage`), and
//! all but the last say `MSG_SENDPAGE_NOTLAST`. Records that are complete go to TCP with that flag, and TCP then sends
//! nothing until a segment as large as it wants has come together (net/ipv4/tcp.c, `do_tcp_sendpages`). When the send
//! buffer is full before that and nothing is under way that could be acknowledged, kTLS waits for room that nobody will
//! make: plain TCP pushes before it waits, kTLS does not. The buffer of a young connection takes about 46 KB, such a
//! segment has at most 64 KB.

use std::{io, os::fd::BorrowedFd, sync::LazyLock};

use nix::sys::{
    socket::{getsockopt, setsockopt, sockopt},
    utsname::uname,
};

use crate::sys::BufLock;

/// What `SO_SNDBUF` reads afterwards at least: the largest segment, what its buffers take, and a record.
const LEAST: usize = 128 << 10;

/// Makes the send buffer large enough on kernels that need it. Whether TCP goes on to fit it to the connection stays as
/// it is.
///
/// # Errors
/// Those of `getsockopt` and `setsockopt`.
pub(super) fn widen(socket: BorrowedFd<'_>) -> io::Result<()> {
    static NEEDED: LazyLock<bool> = LazyLock::new(|| {
        let release = uname().ok();
        release.is_none_or(|name| before_6_5(&name.release().to_string_lossy()))
    });
    if *NEEDED { enlarge(socket) } else { Ok(()) }
}

fn enlarge(socket: BorrowedFd<'_>) -> io::Result<()> {
    if getsockopt(&socket, sockopt::SndBuf)? >= LEAST {
        return Ok(());
    }
    let locked = getsockopt(&socket, BufLock)?;
    // The kernel doubles what it is told (socket(7)).
    setsockopt(&socket, sockopt::SndBufForce, &(LEAST / 2))?;
    // To set it has locked it.
    setsockopt(&socket, BufLock, &locked)?;
    Ok(())
}

fn before_6_5(release: &str) -> bool {
    let mut numbers = release.split(['.', '-']).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < (6, 5),
        // A larger buffer does no harm.
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        net::{TcpListener, TcpStream},
        os::fd::AsFd as _,
    };

    #[test]
    fn kernels_with_sendpage_are_known_by_their_release() {
        for old in ["6.1.0-53-cloud-amd64", "6.4.16", "5.15.0", "unknown", "6"] {
            assert!(before_6_5(old), "{old}");
        }
        for new in ["6.5.0", "6.12.95+deb12-cloud-amd64", "7.3-rc1", "10.0"] {
            assert!(!before_6_5(new), "{new}");
        }
    }

    #[test]
    fn tcp_goes_on_to_fit_a_widened_buffer_unless_the_program_has_fixed_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for fixed in [None, Some(4096)] {
            let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let fd = socket.as_fd();
            if let Some(bytes) = fixed {
                setsockopt(&fd, sockopt::SndBuf, &bytes).unwrap();
            }
            let locked = getsockopt(&fd, BufLock).unwrap();
            assert_eq!(locked & 1, u32::from(fixed.is_some()));
            enlarge(fd).unwrap();
            assert!(getsockopt(&fd, sockopt::SndBuf).unwrap() >= LEAST);
            assert_eq!(getsockopt(&fd, BufLock).unwrap(), locked);
        }
    }
}
