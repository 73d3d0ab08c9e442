//! Blocking calls: both ends send and receive at the same time, each in a thread of its own.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};

use crate::data;
use crate::end::{End, Role, Timing};
use crate::sys::{self, Count};
use crate::task::Task;

/// More than a TLS record, a pipe, and what the kernel takes at once; no multiple of anything.
pub(crate) const LENGTH: usize = 200_003;

/// A way to send and a way to receive.
pub(crate) struct Way {
    pub(crate) name: &'static str,
    send: fn(BorrowedFd<'_>, &[u8]) -> Result<()>,
    /// Where the sender sleeps.
    sends: &'static [i64],
    receive: fn(BorrowedFd<'_>, usize) -> Result<Vec<u8>>,
    receives: &'static [i64],
}

macro_rules! ways {
    ($($name:literal: $send:ident in $sends:ident, $receive:ident in $receives:ident;)*) => {
        pub(crate) const WAYS: &[Way] = &[$(Way {
            name: $name,
            send: $send,
            sends: &[libc::$sends],
            receive: $receive,
            receives: &[libc::$receives],
        },)*];
    };
}

ways! {
    "read_write": write in SYS_write, read in SYS_read;
    "readv_writev": writev in SYS_writev, readv in SYS_readv;
    "send_recv": send in SYS_sendto, recv in SYS_recvfrom;
    "sendmsg_recvmsg": sendmsg in SYS_sendmsg, recvmsg in SYS_recvmsg;
    "sendmmsg_recvmmsg": sendmmsg in SYS_sendmmsg, recvmmsg in SYS_recvmmsg;
    "sendfile_splice": sendfile in SYS_sendfile, splice_out in SYS_splice;
    "splice_peek": splice_in in SYS_splice, peek in SYS_recvfrom;
    "more_waitall": more in SYS_sendto, wait_all in SYS_recvfrom;
    "dontwait": send_dontwait in SYS_poll, recv_dontwait in SYS_poll;
    "cork_rcvlowat": corked in SYS_write, rcvlowat in SYS_recvfrom;
}

/// Plays one of [`WAYS`].
pub(crate) fn run(end: &mut End, way: &'static Way) -> Result<String> {
    let sender = sender(end, way)?;
    let receiver = receiver(end, way)?;
    end.together(&[sender.sleep(), receiver.sleep()])?;
    let sent = sender.join().context("sending")?;
    let received = receiver.join().context("receiving")?;
    Ok(format!("sent {sent}, received {received}"))
}

/// The server sends at once, the client only receives.
pub(crate) fn server_first(end: &mut End, way: &'static Way) -> Result<String> {
    let task = match end.role {
        Role::Server => sender(end, way)?,
        Role::Client => receiver(end, way)?,
    };
    end.together(&[task.sleep()])?;
    Ok(format!("{}", task.join()?))
}

/// The server accepts only when the client sleeps in send and receive.
pub(crate) fn accept_late(end: &mut End) -> Result<String> {
    let way = &WAYS[2];
    if end.role == Role::Server {
        end.control.hear("accept")?;
        end.open()?;
        return run(end, way);
    }
    let (sender, receiver) = (sender(end, way)?, receiver(end, way)?);
    if end.held {
        sender.sleep().wait()?;
        receiver.sleep().wait()?;
    }
    end.control.say("accept")?;
    Ok(format!(
        "sent {}, received {}",
        sender.join()?,
        receiver.join()?
    ))
}

/// The client sends a file and asks for more than is in it, as programs do that do not know its size; then it
/// waits for an answer.
pub(crate) fn sendfile_beyond(end: &mut End) -> Result<String> {
    let fd = end.fd()?;
    match end.role {
        Role::Client => {
            let file = file(&data::stream(1, 20_000))?;
            let sent = sys::sendfile(fd, file.as_fd(), 1 << 20)?;
            let answered = sys::poll(fd, libc::POLLIN, 3000)? != 0;
            Ok(format!("sent {sent}, answered: {answered}"))
        }
        Role::Server => {
            // What does not come must not hold up the case.
            sys::set_bytes(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &timeval(5))?;
            let Ok(received) = recv(fd, 20_000) else {
                return Ok("received less".into());
            };
            data::compare(&data::stream(1, 20_000), &received)?;
            send(fd, b"thanks")?;
            Ok("received 20000".into())
        }
    }
}

/// A timeout for SO_RCVTIMEO and SO_SNDTIMEO.
pub(crate) fn timeval(seconds: i64) -> Vec<u8> {
    [seconds.to_ne_bytes(), 0i64.to_ne_bytes()].concat()
}

fn number(role: Role) -> u64 {
    if role == Role::Client { 1 } else { 2 }
}

/// A thread that sends this end's stream.
pub(crate) fn sender(end: &End, way: &'static Way) -> Result<Task<usize>> {
    let (socket, role) = (end.socket()?, end.role);
    Task::start(way.sends, move || {
        (way.send)(socket.as_fd(), &data::stream(number(role), LENGTH))?;
        Ok(LENGTH)
    })
}

/// A thread that receives the other end's stream and compares it.
pub(crate) fn receiver(end: &End, way: &'static Way) -> Result<Task<usize>> {
    let (socket, role) = (end.socket()?, end.role.other());
    Task::start(way.receives, move || {
        let received = (way.receive)(socket.as_fd(), LENGTH)?;
        data::compare(&data::stream(number(role), LENGTH), &received)?;
        Ok(received.len())
    })
}

/// Sends everything, in calls of at most `most` bytes.
fn all(data: &[u8], most: usize, mut call: impl FnMut(&[u8]) -> Count) -> Result<()> {
    let mut rest = data;
    while !rest.is_empty() {
        let at = data.len() - rest.len();
        let sent =
            call(&rest[..rest.len().min(most)]).with_context(|| format!("after {at} bytes"))?;
        rest = &rest[sent..];
    }
    Ok(())
}

/// Receives so many bytes, in calls of at most `most`.
fn exactly(
    length: usize,
    most: usize,
    mut call: impl FnMut(&mut [u8]) -> Count,
) -> Result<Vec<u8>> {
    let mut data = vec![0; length];
    let mut at = 0;
    while at < length {
        let end = length.min(at + most);
        match call(&mut data[at..end]).with_context(|| format!("after {at} bytes"))? {
            0 => bail!("the stream ended after {at} of {length} bytes"),
            some => at += some,
        }
    }
    Ok(data)
}

const MOST: usize = 60_001;

fn write(fd: BorrowedFd<'_>, data: &[u8]) -> Result<()> {
    all(data, MOST, |part| sys::write(fd, part))
}

fn writev(fd: BorrowedFd<'_>, data: &[u8]) -> Result<()> {
    all(data, MOST, |part| sys::writev(fd, part))
}

pub(crate) fn send(fd: BorrowedFd<'_>, data: &[u8]) -> Result<()> {
    all(data, MOST, |part| sys::send(fd, part, libc::MSG_NOSIGNAL))
}

fn sendmsg(fd: BorrowedFd<'_>, data: &[u8]) -> Result<()> {
    all(data, MOST, |part| sys::sendmsg(fd, part))
}

fn sendmmsg(fd: BorrowedFd<'_>, data: &[u8]) -> Result<()> {
    all(data, MOST, |part| sys::sendmmsg(fd, part, 1))
}

fn sendfile(fd: BorrowedFd<'_>, data: &[u8]) -> Result<()> {
    let file = file(data)?;
    all(data, MOST, |part| {
        sys::sendfile(fd, file.as_fd(), part.len())
    })
}

fn splice_in(fd: BorrowedFd<'_>, data: &[u8]) -> Result<()> {
    let (out, mut into) = std::io::pipe()?;
    // As much as an empty pipe takes without waiting for its reader.
    for part in data.chunks(60_001) {
        into.write_all(part)?;
        all(part, part.len(), |rest| {
            sys::splice(out.as_fd(), fd, rest.len())
        })?;
    }
    Ok(())
}

/// Small pieces that belong together, and the last one says so.
fn more(fd: BorrowedFd<'_>, data: &[u8]) -> Result<()> {
    let (most, last) = data.split_at(data.len() - 1);
    for part in most.chunks(3001) {
        all(part, part.len(), |rest| sys::send(fd, rest, libc::MSG_MORE))?;
    }
    all(last, 1, |rest| sys::send(fd, rest, 0))
}

fn send_dontwait(fd: BorrowedFd<'_>, data: &[u8]) -> Result<()> {
    all(data, MOST, |part| {
        sys::poll(fd, libc::POLLOUT, -1)?;
        again(sys::send(fd, part, libc::MSG_DONTWAIT))
    })
}

fn corked(fd: BorrowedFd<'_>, data: &[u8]) -> Result<()> {
    sys::set(fd, libc::SOL_TCP, libc::TCP_CORK, 1)?;
    all(data, 5003, |part| sys::write(fd, part))?;
    Ok(sys::set(fd, libc::SOL_TCP, libc::TCP_CORK, 0)?)
}

fn read(fd: BorrowedFd<'_>, length: usize) -> Result<Vec<u8>> {
    exactly(length, MOST, |part| sys::read(fd, part))
}

fn readv(fd: BorrowedFd<'_>, length: usize) -> Result<Vec<u8>> {
    exactly(length, MOST, |part| sys::readv(fd, part))
}

pub(crate) fn recv(fd: BorrowedFd<'_>, length: usize) -> Result<Vec<u8>> {
    exactly(length, MOST, |part| sys::recv(fd, part, 0))
}

fn recvmsg(fd: BorrowedFd<'_>, length: usize) -> Result<Vec<u8>> {
    exactly(length, MOST, |part| sys::recvmsg(fd, part))
}

fn recvmmsg(fd: BorrowedFd<'_>, length: usize) -> Result<Vec<u8>> {
    exactly(length, MOST, |part| sys::recvmmsg(fd, part))
}

/// From the socket into a pipe, and read from there.
fn splice_out(fd: BorrowedFd<'_>, length: usize) -> Result<Vec<u8>> {
    let (out, into) = std::io::pipe()?;
    exactly(length, 30_000, |part| {
        let moved = sys::splice(fd, into.as_fd(), part.len())?;
        let mut read = 0;
        while read < moved {
            read += sys::read(out.as_fd(), &mut part[read..moved])?;
        }
        Ok(moved)
    })
}

/// Looks at the data first; what it then takes must be the same.
fn peek(fd: BorrowedFd<'_>, length: usize) -> Result<Vec<u8>> {
    exactly(length, MOST, |part| {
        let mut seen = vec![0; part.len().min(10_007)];
        let count = sys::recv(fd, &mut seen, libc::MSG_PEEK)?;
        let taken = sys::recv(fd, &mut part[..count], 0)?;
        if taken > 0 && seen[..taken] != part[..taken] {
            return Err(std::io::Error::other("MSG_PEEK showed other bytes"));
        }
        Ok(taken)
    })
}

fn wait_all(fd: BorrowedFd<'_>, length: usize) -> Result<Vec<u8>> {
    let mut data = vec![0; length];
    let count = sys::recv(fd, &mut data, libc::MSG_WAITALL)?;
    ensure!(
        count == length,
        "MSG_WAITALL returned {count} of {length} bytes"
    );
    Ok(data)
}

fn recv_dontwait(fd: BorrowedFd<'_>, length: usize) -> Result<Vec<u8>> {
    let mut at = 0;
    let mut data = vec![0; length];
    while at < length {
        sys::poll(fd, libc::POLLIN, -1)?;
        match sys::recv(fd, &mut data[at..], libc::MSG_DONTWAIT) {
            Ok(0) => bail!("the stream ended after {at} of {length} bytes"),
            result => at += again(result)?,
        }
    }
    Ok(data)
}

/// No call returns before 5000 bytes are there, but for the last one.
fn rcvlowat(fd: BorrowedFd<'_>, length: usize) -> Result<Vec<u8>> {
    let set = |bytes: usize| sys::set(fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT, bytes as i32);
    let data = exactly(length, MOST, |part| {
        // Never more than fits: plain TCP does not wake a call that wants less than SO_RCVLOWAT.
        let least = part.len().min(5000);
        set(least)?;
        let count = sys::recv(fd, part, 0)?;
        if count < least {
            return Err(std::io::Error::other(format!("SO_RCVLOWAT: {count} bytes")));
        }
        Ok(count)
    });
    set(1)?;
    data
}

/// Nothing yet is no error.
fn again(result: Count) -> Count {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(0),
        other => other,
    }
}

/// A file with this content, from its start.
fn file(data: &[u8]) -> Result<File> {
    let mut file = File::from(sys::memfd()?);
    file.write_all(data)?;
    file.rewind()?;
    Ok(file)
}

/// What a thread that shares a socket needs.
pub(crate) type Shared = Arc<OwnedFd>;

/// Whether calls of this case are made before the hand-over.
pub(crate) fn is_before(end: &End) -> bool {
    end.timing == Timing::Before
}
