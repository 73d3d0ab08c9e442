//! A TCP connection to another node's helper. Never blocks: what cannot be sent now waits here.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    poll::PollFlags,
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect, listen,
        setsockopt, socket, sockopt,
    },
};

use super::message::{GREETING, Inbox, Letter, Message, RENEWALS};

/// More bytes that wait to be sent mean that the other side does not read.
const MOST_WAITING: usize = 16 << 20;
/// How long bytes may be on their way, milliseconds, and when a silent peer is asked whether it is
/// still there, seconds: what waits for a node that is gone must learn of it.
const USER_TIMEOUT: u32 = 10_000;
const KEEPALIVE: u32 = 5;

/// One of them.
#[derive(Debug)]
pub(super) struct Link {
    stream: TcpStream,
    inbox: Inbox,
    outbox: Vec<u8>,
    connected: bool,
}

impl Link {
    /// Begins to connect from one address to another.
    ///
    /// # Errors
    /// It is known at once that this cannot work.
    pub(super) fn connect(from: IpAddr, to: SocketAddr) -> io::Result<Self> {
        let socket = tcp_socket(to)?;
        bind(
            socket.as_raw_fd(),
            &SockaddrStorage::from(SocketAddr::new(from, 0)),
        )?;
        match connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
            Ok(()) | Err(Errno::EINPROGRESS) => Self::new(socket.into()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// One that was accepted.
    ///
    /// # Errors
    /// It is gone already.
    pub(super) fn accepted(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Self::new(stream)
    }

    fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        setsockopt(&stream, sockopt::TcpUserTimeout, &USER_TIMEOUT)?;
        setsockopt(&stream, sockopt::KeepAlive, &true)?;
        setsockopt(&stream, sockopt::TcpKeepIdle, &KEEPALIVE)?;
        setsockopt(&stream, sockopt::TcpKeepInterval, &KEEPALIVE)?;
        let mut link = Self {
            stream,
            inbox: Inbox::default(),
            outbox: GREETING.to_vec(),
            connected: false,
        };
        link.queue(&Letter {
            id: 0,
            message: Message::Speaks(RENEWALS.to_vec()),
        });
        Ok(link)
    }

    /// What to wait for.
    pub(super) fn interest(&self) -> PollFlags {
        if self.connected && self.outbox.is_empty() {
            PollFlags::POLLIN
        } else {
            PollFlags::POLLIN | PollFlags::POLLOUT
        }
    }

    /// Whether the other side has accepted.
    pub(super) fn is_connected(&self) -> bool {
        self.connected
    }

    /// Puts a letter behind those that wait.
    pub(super) fn queue(&mut self, letter: &Letter) {
        letter.write(&mut self.outbox);
    }

    /// Sends what can be sent now.
    ///
    /// # Errors
    /// The link is broken.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if !self.has_connected()? {
            return Ok(());
        }
        while !self.outbox.is_empty() {
            match self.stream.write(&self.outbox) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(sent) => drop(self.outbox.drain(..sent)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.outbox.len() > MOST_WAITING {
            return Err(io::Error::other("it does not read what it is sent"));
        }
        Ok(())
    }

    /// Every letter that has arrived. The second value says how the link ended, if it has.
    pub(super) fn receive(&mut self) -> (Vec<Letter>, io::Result<()>) {
        let mut buffer = [0; 16 << 10];
        let end = loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => break Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.inbox.push(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::NotConnected => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        match self.inbox.letters() {
            Ok(letters) => (letters, end),
            Err(malformed) => (Vec::new(), Err(io::Error::other(malformed))),
        }
    }

    fn has_connected(&mut self) -> io::Result<bool> {
        if !self.connected {
            if let Some(error) = self.stream.take_error()? {
                return Err(error);
            }
            self.connected = self.stream.peer_addr().is_ok();
        }
        Ok(self.connected)
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Listens on `address`, which need not exist yet: it comes and goes with the device.
///
/// # Errors
/// The port is taken.
pub(super) fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = tcp_socket(address)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    setsockopt(&socket, sockopt::IpFreebind, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&socket, Backlog::new(128)?)?;
    Ok(socket.into())
}

fn tcp_socket(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    Ok(socket(family, SockType::Stream, flags, None)?)
}
