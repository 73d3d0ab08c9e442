//! Non-blocking sockets, edge-triggered: one thread for all.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{self, SockFlag, SockaddrStorage};

use crate::exchange::{Count, End, Outcome, id_of};
use crate::{new_socket, signals, threads::LAST_WORDS};

/// Keys of the two descriptors that are no connection.
const LISTENER: u64 = u64::MAX;
const SIGNALS: u64 = u64::MAX - 1;

pub(crate) struct Loop {
    epoll: Epoll,
    signals: SignalFd,
    listener: Option<TcpListener>,
    gate: Option<PathBuf>,
    open: HashMap<u64, (TcpStream, End)>,
    count: Count,
}

impl Loop {
    pub(crate) fn new(listener: Option<TcpListener>, gate: Option<PathBuf>) -> Result<Self> {
        let signals = signals()?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&signals, EpollEvent::new(EpollFlags::EPOLLIN, SIGNALS))?;
        if let Some(listener) = &listener {
            listener.set_nonblocking(true)?;
        }
        Ok(Self {
            epoll,
            signals,
            listener,
            gate,
            open: HashMap::new(),
            count: Count::default(),
        })
    }

    pub(crate) fn connect(mut self, (address, n, bytes): (SocketAddr, u64, u64)) -> Result<Self> {
        for number in 0..n {
            let socket = new_socket(address, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC)?;
            match socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(address)) {
                Ok(()) | Err(Errno::EINPROGRESS) => {
                    self.watch(socket.into(), End::client(id_of(number), bytes))?;
                }
                Err(errno) => self.count.add(&io::Error::from(errno).into()),
            }
        }
        Ok(self)
    }

    fn watch(&mut self, stream: TcpStream, end: End) -> Result<()> {
        let key = stream.as_raw_fd() as u64;
        let what = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP;
        let event = EpollEvent::new(what | EpollFlags::EPOLLET, key);
        self.epoll.add(stream.as_fd(), event)?;
        self.open.insert(key, (stream, end));
        Ok(())
    }

    /// A client ends when all its connections have, or `until`; a server some time after it is told to.
    pub(crate) fn run(mut self, mut until: Option<Instant>) -> Result<()> {
        let mut is_listening = false;
        let mut events = vec![EpollEvent::empty(); 512];
        loop {
            let gate_is_open = self.gate.as_ref().is_none_or(|gate| gate.exists());
            if let Some(listener) = &self.listener
                && gate_is_open
                && !is_listening
            {
                let event = EpollEvent::new(EpollFlags::EPOLLIN, LISTENER);
                self.epoll.add(listener.as_fd(), event)?;
                is_listening = true;
            }
            let is_late = until.is_some_and(|until| Instant::now() >= until);
            if is_late || (until.is_some() && self.open.is_empty()) {
                break;
            }
            let ready = match self.epoll.wait(&mut events, EpollTimeout::from(50_u8)) {
                Err(Errno::EINTR) => 0,
                other => other?,
            };
            for event in &events[..ready] {
                match event.data() {
                    SIGNALS => {
                        self.signals.read_signal()?;
                        until = until.or(Some(Instant::now() + LAST_WORDS));
                    }
                    LISTENER => self.accept()?,
                    key => self.serve(key),
                }
            }
        }
        self.finish()
    }

    fn finish(mut self) -> Result<()> {
        drop(self.signals);
        self.count.open = self.open.len() as u64;
        println!("{}", self.count);
        Ok(())
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            let Some(listener) = &self.listener else {
                return Ok(());
            };
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(true)?;
                    self.watch(stream, End::server())?;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => self.count.add(&error.into()),
            }
        }
    }

    fn serve(&mut self, key: u64) {
        let Some((stream, end)) = self.open.get_mut(&key) else {
            return;
        };
        if let Err(outcome) = advance(stream, end) {
            self.count.add(&outcome);
            self.open.remove(&key);
        }
    }
}

/// Does all that can be done without waiting; an outcome when there is nothing more to come.
fn advance(stream: &mut TcpStream, end: &mut End) -> Result<(), Outcome> {
    let mut buffer = [0; 32 << 10];
    loop {
        let mut is_stuck = true;
        match stream.read(&mut buffer) {
            Ok(0) if end.has_said_all() => return Err(end.ended()),
            // It has said all: what is left to say still goes.
            Ok(0) => {}
            Ok(some) => {
                end.hear(&buffer[..some])?;
                is_stuck = false;
            }
            Err(error) if waits(&error) => {}
            Err(error) => return Err(error.into()),
        }
        let next = end.next();
        if !next.is_empty() {
            match stream.write(&next) {
                Ok(some) => {
                    end.sent += some as u64;
                    is_stuck = false;
                    if end.has_said_all() {
                        stream.shutdown(Shutdown::Write)?;
                    }
                }
                Err(error) if waits(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if is_stuck {
            return Ok(());
        }
    }
}

/// Not now; a connect that is under way says ENOTCONN to a read.
fn waits(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAGAIN | libc::ENOTCONN | libc::EINPROGRESS)
    )
}
