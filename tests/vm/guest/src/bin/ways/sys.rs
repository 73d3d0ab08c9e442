//! The calls that this program is about, as bare as the kernel has them: wrappers would hide what is to be seen.
#![allow(unsafe_code)]

use std::io::{self, Error};
use std::mem::zeroed;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicU32, Ordering};

/// A result of a call: a count, or an error.
pub(crate) type Count = io::Result<usize>;

pub(crate) fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Count {
    // SAFETY: the kernel writes at most `len` bytes to `buffer`.
    count(unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) })
}

pub(crate) fn readv(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Count {
    let parts = thirds_mut(buffer);
    // SAFETY: three parts of one buffer that nobody else uses during the call.
    count(unsafe { libc::readv(fd.as_raw_fd(), parts.as_ptr(), 3) })
}

pub(crate) fn recv(fd: BorrowedFd<'_>, buffer: &mut [u8], flags: i32) -> Count {
    // SAFETY: as in `read`.
    count(unsafe {
        libc::recv(
            fd.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            flags,
        )
    })
}

pub(crate) fn recvmsg(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Count {
    let mut parts = thirds_mut(buffer);
    let mut message = message(&mut parts);
    // SAFETY: the message names three parts of `buffer` and nothing else.
    count(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, 0) })
}

/// Up to two messages, half of the buffer each; waits for the first only. The bytes of both, put together.
pub(crate) fn recvmmsg(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Count {
    let half = buffer.len() / 2;
    let (first, second) = buffer.split_at_mut(half);
    let (mut a, mut b) = (thirds_mut(first), thirds_mut(second));
    let mut messages = [
        libc::mmsghdr {
            msg_hdr: message(&mut a),
            msg_len: 0,
        },
        libc::mmsghdr {
            msg_hdr: message(&mut b),
            msg_len: 0,
        },
    ];
    let flags = libc::MSG_WAITFORONE;
    // SAFETY: two messages that name parts of `buffer`; no timeout.
    let received = count(unsafe {
        libc::recvmmsg(
            fd.as_raw_fd(),
            messages.as_mut_ptr(),
            2,
            flags as _,
            null_mut(),
        )
    })?;
    let first = messages[0].msg_len as usize;
    let second = if received > 1 {
        messages[1].msg_len as usize
    } else {
        0
    };
    buffer.copy_within(half..half + second, first);
    Ok(first + second)
}

pub(crate) fn write(fd: BorrowedFd<'_>, data: &[u8]) -> Count {
    // SAFETY: the kernel reads at most `len` bytes of `data`.
    count(unsafe { libc::write(fd.as_raw_fd(), data.as_ptr().cast(), data.len()) })
}

pub(crate) fn writev(fd: BorrowedFd<'_>, data: &[u8]) -> Count {
    let parts = thirds(data);
    // SAFETY: three parts of `data`, only read.
    count(unsafe { libc::writev(fd.as_raw_fd(), parts.as_ptr(), 3) })
}

pub(crate) fn send(fd: BorrowedFd<'_>, data: &[u8], flags: i32) -> Count {
    // SAFETY: as in `write`.
    count(unsafe { libc::send(fd.as_raw_fd(), data.as_ptr().cast(), data.len(), flags) })
}

pub(crate) fn sendmsg(fd: BorrowedFd<'_>, data: &[u8]) -> Count {
    let mut parts = thirds(data);
    let message = message(&mut parts);
    // SAFETY: the message names three parts of `data`, only read.
    count(unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, 0) })
}

/// Sends `data` as so many messages, one or two; the bytes that were sent.
pub(crate) fn sendmmsg(fd: BorrowedFd<'_>, data: &[u8], messages: u32) -> Count {
    let (first, second) = data.split_at(data.len() / messages as usize);
    let (mut a, mut b) = (thirds(first), thirds(second));
    let mut headers = [
        libc::mmsghdr {
            msg_hdr: message(&mut a),
            msg_len: 0,
        },
        libc::mmsghdr {
            msg_hdr: message(&mut b),
            msg_len: 0,
        },
    ];
    // SAFETY: at most two messages that name parts of `data`, only read.
    let sent =
        count(unsafe { libc::sendmmsg(fd.as_raw_fd(), headers.as_mut_ptr(), messages.min(2), 0) })?;
    Ok(headers[..sent].iter().map(|h| h.msg_len as usize).sum())
}

/// From the place where `file` stands.
pub(crate) fn sendfile(to: BorrowedFd<'_>, file: BorrowedFd<'_>, length: usize) -> Count {
    // SAFETY: two descriptors and no pointer.
    count(unsafe { libc::sendfile(to.as_raw_fd(), file.as_raw_fd(), null_mut(), length) })
}

pub(crate) fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, length: usize) -> Count {
    // SAFETY: two descriptors and no pointers.
    count(unsafe {
        libc::splice(
            from.as_raw_fd(),
            null_mut(),
            to.as_raw_fd(),
            null_mut(),
            length,
            0,
        )
    })
}

/// What became ready within `ms`, -1 for ever.
pub(crate) fn poll(fd: BorrowedFd<'_>, events: i16, ms: i32) -> io::Result<i16> {
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events,
        revents: 0,
    };
    // SAFETY: one pollfd.
    count(unsafe { libc::poll(&raw mut poll, 1, ms) })?;
    Ok(poll.revents)
}

/// The same by select, for reading and writing only.
pub(crate) fn select(fd: BorrowedFd<'_>, events: i16) -> io::Result<i16> {
    let number = fd.as_raw_fd();
    // SAFETY: fd_set is plain data; the number is below FD_SETSIZE, for this program opens few files.
    let (mut readable, mut writable): (libc::fd_set, libc::fd_set) =
        unsafe { (zeroed(), zeroed()) };
    if events & libc::POLLIN != 0 {
        // SAFETY: as above.
        unsafe { libc::FD_SET(number, &raw mut readable) };
    }
    if events & libc::POLLOUT != 0 {
        // SAFETY: as above.
        unsafe { libc::FD_SET(number, &raw mut writable) };
    }
    // SAFETY: two sets that outlive the call, no timeout.
    count(unsafe {
        libc::select(
            number + 1,
            &raw mut readable,
            &raw mut writable,
            null_mut(),
            null_mut(),
        )
    })?;
    // SAFETY: both sets were written by the call.
    let (r, w) = unsafe {
        (
            libc::FD_ISSET(number, &raw const readable),
            libc::FD_ISSET(number, &raw const writable),
        )
    };
    Ok(if r { libc::POLLIN } else { 0 } | if w { libc::POLLOUT } else { 0 })
}

/// An epoll instance that watches one socket for reading and writing.
pub(crate) struct Epoll(OwnedFd);

impl Epoll {
    pub(crate) fn watch(fd: BorrowedFd<'_>, flags: i32) -> io::Result<Self> {
        // SAFETY: no pointer.
        let epoll = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        let new = Self(epoll);
        new.control(
            libc::EPOLL_CTL_ADD,
            fd,
            libc::EPOLLIN | libc::EPOLLOUT | flags,
        )?;
        Ok(new)
    }

    pub(crate) fn change(&self, fd: BorrowedFd<'_>, events: i32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, events)
    }

    pub(crate) fn wait(&self) -> io::Result<i32> {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: room for one event.
        count(unsafe { libc::epoll_wait(self.0.as_raw_fd(), &raw mut event, 1, -1) })?;
        Ok(event.events as i32)
    }

    fn control(&self, operation: i32, fd: BorrowedFd<'_>, events: i32) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: events as u32,
            u64: 0,
        };
        // SAFETY: one event, only read.
        count(unsafe {
            libc::epoll_ctl(
                self.0.as_raw_fd(),
                operation,
                fd.as_raw_fd(),
                &raw mut event,
            )
        })
        .map(drop)
    }
}

/// Sets an option of type int.
pub(crate) fn set(fd: BorrowedFd<'_>, level: i32, option: i32, value: i32) -> io::Result<()> {
    set_bytes(fd, level, option, &value.to_ne_bytes())
}

/// Sets an option of any type.
pub(crate) fn set_bytes(
    fd: BorrowedFd<'_>,
    level: i32,
    option: i32,
    value: &[u8],
) -> io::Result<()> {
    // SAFETY: the kernel reads `len` bytes of `value`.
    count(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            value.as_ptr().cast(),
            value.len() as u32,
        )
    })
    .map(drop)
}

/// Reads an option of at most 16 bytes.
pub(crate) fn option(fd: BorrowedFd<'_>, level: i32, option: i32) -> io::Result<Vec<u8>> {
    let mut value = [0u8; 16];
    let mut length = 16;
    // SAFETY: the kernel writes at most `length` bytes to `value`.
    count(unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            option,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    })?;
    Ok(value[..length as usize].to_vec())
}

/// An anonymous file.
pub(crate) fn memfd() -> io::Result<OwnedFd> {
    // SAFETY: the name is a C string.
    owned(unsafe { libc::memfd_create(c"ways".as_ptr(), libc::MFD_CLOEXEC) })
}

/// Id of the calling thread.
pub(crate) fn thread_id() -> i32 {
    // SAFETY: no argument.
    unsafe { libc::gettid() }
}

static SIGPIPES: AtomicU32 = AtomicU32::new(0);

/// Counts SIGPIPE from now on instead of dying of it.
pub(crate) fn count_sigpipe() -> io::Result<()> {
    extern "C" fn note(_: i32) {
        SIGPIPES.fetch_add(1, Ordering::Relaxed);
    }
    // SAFETY: sigaction is plain data.
    let mut action: libc::sigaction = unsafe { zeroed() };
    action.sa_sigaction = note as *const () as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler only counts, which is async-signal-safe.
    count(unsafe { libc::sigaction(libc::SIGPIPE, &raw const action, null_mut()) }).map(drop)
}

/// How many SIGPIPE there were since this was last asked.
pub(crate) fn sigpipes() -> u32 {
    SIGPIPES.swap(0, Ordering::Relaxed)
}

/// Three parts of unequal length. The kernel does not write to them, although the type says so.
fn thirds(data: &[u8]) -> [libc::iovec; 3] {
    let (a, rest) = data.split_at(data.len() / 7);
    let (b, c) = rest.split_at(rest.len() / 3);
    [a, b, c].map(|part| libc::iovec {
        iov_base: part.as_ptr().cast_mut().cast(),
        iov_len: part.len(),
    })
}

fn thirds_mut(data: &mut [u8]) -> [libc::iovec; 3] {
    let seventh = data.len() / 7;
    let (a, rest) = data.split_at_mut(seventh);
    let third = rest.len() / 3;
    let (b, c) = rest.split_at_mut(third);
    [a, b, c].map(|part| libc::iovec {
        iov_base: part.as_mut_ptr().cast(),
        iov_len: part.len(),
    })
}

fn message(parts: &mut [libc::iovec; 3]) -> libc::msghdr {
    libc::msghdr {
        msg_name: null_mut(),
        msg_namelen: 0,
        msg_iov: parts.as_mut_ptr(),
        msg_iovlen: 3,
        msg_control: null::<u8>().cast_mut().cast(),
        msg_controllen: 0,
        msg_flags: 0,
    }
}

/// How many bytes a read would give, as FIONREAD says.
pub(crate) fn readable(fd: BorrowedFd<'_>) -> io::Result<i32> {
    let mut bytes = 0;
    // SAFETY: the kernel writes one int, which outlives the call.
    count(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut bytes) })?;
    Ok(bytes)
}

/// Negative is an error, whose number is the thread's `errno`.
fn count(result: impl TryInto<usize>) -> Count {
    result.try_into().map_err(|_| Error::last_os_error())
}

fn owned(fd: i32) -> io::Result<OwnedFd> {
    count(fd)?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
