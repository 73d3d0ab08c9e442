//! Sockets that move between processes by fork and exec, or have several numbers, and processes with many sockets.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::ReusePort;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage};
use nix::sys::socket::{bind, listen, setsockopt, socket};
use nix::unistd::Pid;

use crate::data::{Turn, talk};
use crate::lab::Side;
use crate::{sys, wait};

/// How many clients the servers with several processes or threads get.
const PROCESSES: usize = 3;
const THREADS: usize = 6;
const SOCKETS_EACH: usize = 3;

/// A child serves what its parent has accepted, and the parent has closed it before the helper looks.
pub(crate) fn fork_after_accept(side: &mut Side) -> Result<()> {
    side.helper.stop()?;
    let listener = side.listen()?;
    let (socket, _) = listener.accept()?;
    let child = sys::spawn(|| talk(&socket, Turn::Listen))?;
    drop(socket);
    side.helper.resume()?;
    sys::join(child)
}

/// Children that were there first accept on the one listener.
pub(crate) fn pre_forked_accept(side: &mut Side) -> Result<()> {
    let listener = TcpListener::bind(side.address)?;
    let children: Vec<Pid> = (0..PROCESSES)
        .map(|_| sys::spawn(|| talk(&listener.accept()?.0, Turn::Listen)))
        .collect::<Result<_>>()?;
    drop(listener);
    for child in &children {
        wait::until_in_call(*child, &[libc::SYS_accept, libc::SYS_accept4])?;
    }
    side.tell("listening")?;
    children.into_iter().try_for_each(sys::join)
}

/// As many clients as there are such children, at once.
pub(crate) fn three_clients(side: &mut Side) -> Result<()> {
    side.hear("listening")?;
    in_threads(PROCESSES, || {
        talk(&TcpStream::connect(side.address)?, Turn::Speak)
    })
}

/// A child talks on what its parent has connected and closed.
pub(crate) fn fork_after_connect(side: &mut Side) -> Result<()> {
    side.helper.stop()?;
    let socket = side.connect()?;
    let child = sys::spawn(|| talk(&socket, Turn::Speak))?;
    drop(socket);
    side.helper.resume()?;
    sys::join(child)
}

/// Another number, and the first one closed.
pub(crate) fn dup_close_first(side: &mut Side) -> Result<()> {
    side.helper.stop()?;
    let first = side.connect()?;
    let second = first.try_clone()?;
    drop(first);
    side.helper.resume()?;
    talk(&second, Turn::Speak)
}

/// Likewise, to a number of the program's choice.
pub(crate) fn dup2_close_first(side: &mut Side) -> Result<()> {
    const NUMBER: RawFd = 200;
    let listener = side.listen()?;
    let (first, _) = listener.accept()?;
    sys::replace(first.as_fd(), NUMBER)?;
    drop(first);
    talk(&TcpStream::from(sys::inherited(NUMBER)), Turn::Listen)
}

/// A program that is started with the descriptor talks on it.
pub(crate) fn exec(side: &mut Side) -> Result<()> {
    side.helper.stop()?;
    let socket = side.connect()?;
    fcntl(&socket, FcntlArg::F_SETFD(FdFlag::empty()))?;
    let program = std::env::current_exe()?;
    let mut child = Command::new(program)
        .args(["talk", &socket.as_raw_fd().to_string()])
        .spawn()?;
    drop(socket);
    side.helper.resume()?;
    let status = child.wait()?;
    ensure!(status.success(), "{status}");
    Ok(())
}

/// What such a program does.
pub(crate) fn inherited(fd: RawFd) -> Result<()> {
    talk(&TcpStream::from(sys::inherited(fd)), Turn::Speak)
}

/// Two processes listen on the same address; each names itself by its first byte.
pub(crate) fn reuse_port(side: &mut Side) -> Result<()> {
    let (stop, stopped) = UnixStream::pair()?;
    let mut children = Vec::new();
    for name in [b'a', b'b'] {
        let listener = shared_listener(side)?;
        children.push(sys::spawn(|| {
            sys::close_number(stop.as_raw_fd())?;
            serve_until(&listener, &stopped, name)
        })?);
    }
    side.tell("listening")?;
    side.hear("both")?;
    drop(stop);
    children.into_iter().try_for_each(sys::join)
}

fn shared_listener(side: &Side) -> Result<TcpListener> {
    let family = if side.address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let listener = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&listener, ReusePort, &true)?;
    bind(listener.as_raw_fd(), &SockaddrStorage::from(side.address))?;
    listen(&listener, Backlog::new(16)?)?;
    Ok(listener.into())
}

fn serve_until(listener: &TcpListener, stopped: &UnixStream, name: u8) -> Result<()> {
    loop {
        let mut both = [
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut both, PollTimeout::NONE)?;
        if both[1].any().unwrap_or(false) {
            return Ok(());
        }
        let (mut socket, _) = listener.accept()?;
        socket.write_all(&[name])?;
        talk(&socket, Turn::Listen)?;
    }
}

/// Connects until both have answered: which one it is follows from the ports.
pub(crate) fn both_servers(side: &mut Side) -> Result<()> {
    const TRIES: usize = 64;
    side.hear("listening")?;
    let mut seen = Vec::new();
    for _ in 0..TRIES {
        let mut socket = TcpStream::connect(side.address)?;
        let mut name = [0];
        socket.read_exact(&mut name)?;
        talk(&socket, Turn::Speak)?;
        if !seen.contains(&name) {
            seen.push(name);
        }
        if seen.len() == 2 {
            return side.tell("both");
        }
    }
    bail!("{TRIES} connections, and only {seen:?} answered")
}

/// Threads of one process, each with several sockets at once.
pub(crate) fn many_clients(side: &mut Side) -> Result<()> {
    side.hear("listening")?;
    in_threads(THREADS, || {
        let connect = |_| TcpStream::connect(side.address);
        let sockets: Vec<_> = (0..SOCKETS_EACH).map(connect).collect::<Result<_, _>>()?;
        sockets
            .iter()
            .try_for_each(|socket| talk(socket, Turn::Speak))
    })
}

/// A server with a thread for each.
pub(crate) fn thread_each(side: &mut Side) -> Result<()> {
    let listener = side.listen()?;
    let mut threads = Vec::new();
    for _ in 0..THREADS * SOCKETS_EACH {
        let (socket, _) = listener.accept()?;
        threads.push(thread::spawn(move || talk(&socket, Turn::Listen)));
    }
    threads.into_iter().try_for_each(joined)
}

/// One thread has both ends. It may send before anybody reads, but not before it has accepted.
pub(crate) fn to_itself(side: &mut Side) -> Result<()> {
    let listener = TcpListener::bind(side.address)?;
    let mut one = TcpStream::connect(side.address)?;
    let (mut other, _) = listener.accept()?;
    for word in [b"first", b"other"] {
        one.write_all(word)?;
        let mut got = [0; 5];
        other.read_exact(&mut got)?;
        ensure!(got == *word, "{got:?}");
        std::mem::swap(&mut one, &mut other);
    }
    Ok(())
}

/// The same with sockets that never block: it sends when poll says so.
pub(crate) fn to_itself_not_blocking(side: &mut Side) -> Result<()> {
    let listener = TcpListener::bind(side.address)?;
    let mut one = TcpStream::connect(side.address)?;
    one.set_nonblocking(true)?;
    // Before it has accepted: a plain socket takes this at once, a held one not yet.
    let mut sent = match one.write(b"early") {
        Ok(sent) => sent,
        Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
        Err(error) => return Err(error.into()),
    };
    let (mut other, _) = listener.accept()?;
    while sent < 5 {
        let mut ready = [PollFd::new(one.as_fd(), PollFlags::POLLOUT)];
        let count = poll(&mut ready, PollTimeout::from(20_000_u16))?;
        ensure!(count == 1, "never writable");
        sent += one.write(&b"early"[sent..])?;
    }
    let mut got = [0; 5];
    other.read_exact(&mut got)?;
    ensure!(got == *b"early", "{got:?}");
    Ok(())
}

/// Nobody else can accept while it sends, blocking. Sealed, it waits until its patience ends.
pub(crate) fn to_itself_sends_first(side: &mut Side) -> Result<()> {
    let listener = TcpListener::bind(side.address)?;
    let mut one = TcpStream::connect(side.address)?;
    one.set_write_timeout(Some(Duration::from_secs(2)))?;
    let sent = match one.write(b"early") {
        Ok(sent) => sent,
        Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
        Err(error) => return Err(error.into()),
    };
    ensure!((sent == 0) == side.is_sealed(), "sent {sent}");
    let (mut other, _) = listener.accept()?;
    one.set_write_timeout(None)?;
    one.write_all(&b"early"[sent..])?;
    let mut got = [0; 5];
    other.read_exact(&mut got)?;
    ensure!(got == *b"early", "{got:?}");
    Ok(())
}

/// Runs `work` in `count` threads.
fn in_threads(count: usize, work: impl Fn() -> Result<()> + Sync) -> Result<()> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(&work)).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("panicked"))?)
    })
}

fn joined(thread: thread::JoinHandle<Result<()>>) -> Result<()> {
    thread.join().map_err(|_| anyhow::anyhow!("panicked"))?
}
