//! One end of the connection that a case is about.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::control::Control;
use crate::helper::Helper;
use crate::sys;
use crate::task::Sleep;

/// Which end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

impl Role {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// When the calls of a case are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timing {
    /// The helper is stopped until the case calls [`End::together`].
    Before,
    /// Both ends may send already.
    After,
    /// The helper runs; the server accepts when the case says so.
    Late,
}

/// One end, with what a case needs to play it.
pub(crate) struct End {
    pub(crate) role: Role,
    pub(crate) timing: Timing,
    /// Whether the connection is to be sealed.
    pub(crate) held: bool,
    pub(crate) control: Control,
    /// The client's helper, to be let go on.
    pub(crate) helper: Option<Helper>,
    pub(crate) listener: Option<Arc<TcpListener>>,
    /// Where the client connects to.
    pub(crate) address: Option<SocketAddr>,
    socket: Option<Arc<OwnedFd>>,
}

impl End {
    pub(crate) fn new(role: Role, timing: Timing, held: bool, control: Control) -> Self {
        Self {
            role,
            timing,
            held,
            control,
            helper: None,
            listener: None,
            address: None,
            socket: None,
        }
    }

    /// The socket, shared with threads; it is closed when the last one drops it.
    pub(crate) fn socket(&self) -> Result<Arc<OwnedFd>> {
        self.socket.clone().context("this end has no socket")
    }

    pub(crate) fn fd(&self) -> Result<BorrowedFd<'_>> {
        Ok(self
            .socket
            .as_ref()
            .context("this end has no socket")?
            .as_fd())
    }

    /// Closes the socket; no thread may have it.
    pub(crate) fn close(&mut self) -> Result<()> {
        let socket = self.socket.take().context("this end has no socket")?;
        ensure!(
            Arc::strong_count(&socket) == 1,
            "a thread still has the socket"
        );
        Ok(())
    }

    /// Connects, or accepts what the other end connects.
    pub(crate) fn open(&mut self) -> Result<()> {
        let stream = match (&self.listener, self.address) {
            (Some(listener), _) => listener.accept()?.0,
            (None, Some(address)) => TcpStream::connect(address)?,
            (None, None) => anyhow::bail!("neither listener nor address"),
        };
        self.socket = Some(Arc::new(stream.into()));
        Ok(())
    }

    /// Waits until this end may send, and for the other end.
    pub(crate) fn ready(&mut self) -> Result<()> {
        let events = sys::poll(self.fd()?, libc::POLLOUT, 10_000)?;
        ensure!(
            events == libc::POLLOUT,
            "the socket does not become writable: {events:#x}"
        );
        self.meet()
    }

    /// Both ends are here.
    pub(crate) fn meet(&mut self) -> Result<()> {
        self.control.say("here")?;
        self.control.hear("here")
    }

    /// All calls that were to come before the hand-over have been made at both ends: waits until each sleeps,
    /// then lets the helper go on.
    pub(crate) fn together(&mut self, tasks: &[Sleep]) -> Result<()> {
        if self.timing != Timing::Before {
            return Ok(());
        }
        if self.held {
            tasks.iter().try_for_each(Sleep::wait)?;
        }
        self.meet()?;
        self.helper.map_or(Ok(()), Helper::go)
    }

    /// Waits until the helper has found this socket and put the TLS protocol in; at once if nobody will.
    pub(crate) fn found(&self) -> Result<()> {
        let started = Instant::now();
        while self.held && sys::option(self.fd()?, libc::SOL_TCP, libc::TCP_ULP)?.is_empty() {
            ensure!(
                started.elapsed() < Duration::from_secs(10),
                "the helper does not find the socket"
            );
            sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}
