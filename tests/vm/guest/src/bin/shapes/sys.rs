//! The system calls for which no safe wrapper exists; the only unsafe code of this program.
#![allow(unsafe_code)]

use std::io::{self, Error};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result, ensure};
use io_uring::IoUring;
use io_uring::squeue::Entry;
use nix::sys::socket::sockopt::ReuseAddr;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, UnixAddr, bind, recvmsg,
    sendmsg, setsockopt,
};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, gettid};

use crate::signals::HANDLED;

/// Runs `work` in a child, which ends with it: 0, or 1 with the error on standard error.
pub(crate) fn spawn(work: impl FnOnce() -> Result<()>) -> Result<Pid> {
    // SAFETY: every caller has one thread at this moment, so the child may do whatever the parent may.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let code = match work() {
                Ok(()) => 0,
                Err(error) => {
                    eprintln!("{}: {error:#}", gettid());
                    1
                }
            };
            // SAFETY: _exit ends the process; buffers that the parent has filled are the parent's to write.
            unsafe { libc::_exit(code) }
        }
    }
}

/// Waits for a child of [`spawn`].
pub(crate) fn join(pid: Pid) -> Result<()> {
    let status = waitpid(pid, None)?;
    ensure!(status == WaitStatus::Exited(pid, 0), "{status:?}");
    Ok(())
}

/// The name of the upper-layer protocol of a TCP socket; empty if it has none.
pub(crate) fn ulp(socket: BorrowedFd<'_>) -> io::Result<String> {
    let mut name = [0u8; 16];
    let mut length = name.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `name`.
    cerr(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_ULP,
            name.as_mut_ptr().cast(),
            &raw mut length,
        )
    })?;
    let name = &name[..length as usize];
    let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
    Ok(String::from_utf8_lossy(&name[..end]).into_owned())
}

/// A descriptor that was inherited under this number.
pub(crate) fn inherited(fd: RawFd) -> OwnedFd {
    // SAFETY: the parent has left this descriptor open for this program alone, which asks once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Makes `target` another number of `file`, closing what it was; nobody owns the number.
pub(crate) fn replace(file: BorrowedFd<'_>, target: RawFd) -> io::Result<()> {
    // SAFETY: two integers; whoever still uses the number means to be surprised.
    cerr(unsafe { libc::dup2(file.as_raw_fd(), target) }).map(drop)
}

/// Closes a number that another thread uses.
pub(crate) fn close_number(fd: RawFd) -> io::Result<()> {
    // SAFETY: as in `replace`.
    cerr(unsafe { libc::close(fd) }).map(drop)
}

/// read(2) on a number that another thread may close.
pub(crate) fn read_number(fd: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most the buffer's length to it.
    let read = unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) };
    usize::try_from(read).map_err(|_| Error::last_os_error())
}

/// Sends a descriptor over a unix socket.
pub(crate) fn send_descriptor(over: BorrowedFd<'_>, file: BorrowedFd<'_>) -> Result<()> {
    let fds = [file.as_raw_fd()];
    let iov = [io::IoSlice::new(b"x")];
    let control = [ControlMessage::ScmRights(&fds)];
    sendmsg::<UnixAddr>(over.as_raw_fd(), &iov, &control, MsgFlags::empty(), None)
        .context("send a descriptor")?;
    Ok(())
}

/// Receives one.
pub(crate) fn receive_descriptor(over: BorrowedFd<'_>) -> Result<OwnedFd> {
    let mut byte = [0];
    let mut iov = [io::IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let message = recvmsg::<UnixAddr>(
        over.as_raw_fd(),
        &mut iov,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )
    .context("receive a descriptor")?;
    let rights = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    // SAFETY: just received, so nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(rights.context("no descriptor came")?) })
}

/// What a signal's handler does to the call it interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnSignal {
    /// SA_RESTART: the call begins again.
    Restart,
    /// The call returns EINTR.
    Return,
}

extern "C" fn handler(_: libc::c_int) {
    HANDLED.fetch_add(1, Ordering::SeqCst);
}

/// Counts the signals with this number in [`HANDLED`].
pub(crate) fn handle(signal: i32, then: OnSignal) -> io::Result<()> {
    // SAFETY: all zeroes is a sigaction; the handler does nothing but an atomic addition.
    cerr(unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = match then {
            OnSignal::Restart => libc::SA_RESTART,
            OnSignal::Return => 0,
        };
        libc::sigaction(signal, &raw const action, std::ptr::null_mut())
    })
    .map(drop)
}

/// Sends a signal to one thread of this process.
pub(crate) fn signal_thread(thread: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: three integers.
    let result =
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread.as_raw(), signal) };
    cerr(result as i32).map(drop)
}

/// recv(2), once: the standard library's calls are done again when a signal interrupts them.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let (start, length) = (buffer.as_mut_ptr().cast(), buffer.len());
    // SAFETY: the kernel writes at most `length` bytes to the buffer.
    let received = unsafe { libc::recv(socket.as_raw_fd(), start, length, 0) };
    usize::try_from(received).map_err(|_| Error::last_os_error())
}

/// send(2), once.
pub(crate) fn send(socket: BorrowedFd<'_>, data: &[u8]) -> io::Result<usize> {
    let (start, length) = (data.as_ptr().cast(), data.len());
    // SAFETY: the kernel reads `length` bytes of the slice.
    let sent = unsafe { libc::send(socket.as_raw_fd(), start, length, libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| Error::last_os_error())
}

/// accept(2), once.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let none = std::ptr::null_mut();
    // SAFETY: no address is asked for.
    let fd = cerr(unsafe { libc::accept(listener.as_raw_fd(), none, none.cast()) })?;
    // SAFETY: just made, so nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// connect(2), once.
pub(crate) fn connect(socket: BorrowedFd<'_>, address: SocketAddr) -> io::Result<()> {
    nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(())
}

/// A TCP socket for this address's family, not yet connected.
pub(crate) fn tcp_socket(address: SocketAddr) -> Result<OwnedFd> {
    stream_socket(address, libc::IPPROTO_TCP).context("socket")
}

/// A stream socket of this protocol.
pub(crate) fn stream_socket(address: SocketAddr, protocol: i32) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: three integers.
    let fd = cerr(unsafe { libc::socket(family, kind, protocol) })?;
    // SAFETY: just made, so nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A listener whose queue has room for this many connections and one more.
pub(crate) fn listener_with_queue(address: SocketAddr, room: i32) -> Result<TcpListener> {
    let listener = tcp_socket(address)?;
    listen_on(&listener, address, room)?;
    Ok(listener.into())
}

/// Makes a stream socket of any protocol a listener.
pub(crate) fn listen_on(listener: &OwnedFd, address: SocketAddr, room: i32) -> Result<()> {
    setsockopt(listener, ReuseAddr, &true)?;
    bind(listener.as_raw_fd(), &SockaddrStorage::from(address))?;
    // SAFETY: two integers.
    cerr(unsafe { libc::listen(listener.as_raw_fd(), room) }).context("listen")?;
    Ok(())
}

/// Sets an integer option of a TCP socket.
pub(crate) fn set_tcp(socket: BorrowedFd<'_>, option: i32, value: i32) -> io::Result<()> {
    let length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the kernel reads one integer of the given size.
    cerr(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            (&raw const value).cast(),
            length,
        )
    })
    .map(drop)
}

/// How many segments a connection has sent and received.
pub(crate) fn segments(socket: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    /// `tcpi_segs_out` (include/uapi/linux/tcp.h); `tcpi_segs_in` follows.
    const SEGS_OUT: usize = 136;
    let mut info = [0u32; 64];
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `info`.
    cerr(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    })?;
    Ok((info[SEGS_OUT / 4], info[SEGS_OUT / 4 + 1]))
}

/// Puts an entry into a ring's queue. Whoever calls this keeps what the entry points to until its completion.
pub(crate) fn push(ring: &mut IoUring, entry: &Entry) -> Result<()> {
    // SAFETY: every caller waits for the completion before its buffers go, or ends the ring before that.
    unsafe { ring.submission().push(entry) }.context("the queue is full")
}

/// The header of a message of one buffer, for a system call that this outlives.
pub(crate) struct Message {
    _buffer: Box<libc::iovec>,
    header: Box<libc::msghdr>,
}

impl Message {
    pub(crate) fn new(data: &[u8]) -> Self {
        let mut buffer = Box::new(libc::iovec {
            iov_base: data.as_ptr().cast_mut().cast(),
            iov_len: data.len(),
        });
        // SAFETY: plain data, for which all zeroes is a value.
        let mut header: Box<libc::msghdr> = Box::new(unsafe { std::mem::zeroed() });
        header.msg_iov = &raw mut *buffer;
        header.msg_iovlen = 1;
        Self {
            _buffer: buffer,
            header,
        }
    }

    pub(crate) fn header(&self) -> *const libc::msghdr {
        &raw const *self.header
    }
}

pub(crate) fn cerr(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(Error::last_os_error())
    } else {
        Ok(result)
    }
}
