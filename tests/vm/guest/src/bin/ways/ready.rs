//! Calls that never wait, and the ways to wait for a socket to be ready.

use std::os::fd::{AsFd as _, BorrowedFd};

use anyhow::{Result, bail, ensure};

use crate::data;
use crate::end::{End, Role};
use crate::endings::outcome;
use crate::sys::{self, Epoll};
use crate::task::Task;
use crate::transfer::LENGTH;

/// A way to wait.
pub(crate) struct Way {
    pub(crate) name: &'static str,
    calls: &'static [i64],
    wait: Wait,
}

#[derive(Clone, Copy)]
enum Wait {
    Select,
    Poll,
    Level,
    Edge,
}

pub(crate) const WAYS: &[Way] = &[
    Way {
        name: "select",
        calls: &[libc::SYS_select, libc::SYS_pselect6],
        wait: Wait::Select,
    },
    Way {
        name: "poll",
        calls: &[libc::SYS_poll, libc::SYS_ppoll],
        wait: Wait::Poll,
    },
    Way {
        name: "epoll_level",
        calls: &[libc::SYS_epoll_wait, libc::SYS_epoll_pwait],
        wait: Wait::Level,
    },
    Way {
        name: "epoll_edge",
        calls: &[libc::SYS_epoll_wait, libc::SYS_epoll_pwait],
        wait: Wait::Edge,
    },
];

/// One thread that sends and receives, never blocked, and sleeps only while it waits.
pub(crate) fn run(end: &mut End, way: &'static Way) -> Result<String> {
    let (socket, role) = (end.socket()?, end.role);
    let task = Task::start(way.calls, move || {
        let (mine, theirs) = if role == Role::Client { (1, 2) } else { (2, 1) };
        let mut duplex = Duplex {
            out: data::stream(mine, LENGTH),
            sent: 0,
            received: Vec::new(),
        };
        let fd = socket.as_fd();
        match way.wait {
            Wait::Select => duplex.run(fd, |events| sys::select(fd, events))?,
            Wait::Poll => duplex.run(fd, |events| sys::poll(fd, events, -1))?,
            Wait::Level => {
                let epoll = Epoll::watch(fd, 0)?;
                duplex.run(fd, |events| {
                    epoll.change(fd, events.into())?;
                    epoll.wait().map(|events| events as i16)
                })?;
            }
            Wait::Edge => {
                let epoll = Epoll::watch(fd, libc::EPOLLET)?;
                duplex.run(fd, |_| epoll.wait().map(|events| events as i16))?;
            }
        }
        data::compare(&data::stream(theirs, LENGTH), &duplex.received)?;
        Ok(format!(
            "sent {}, received {}",
            duplex.sent,
            duplex.received.len()
        ))
    })?;
    end.together(&[task.sleep()])?;
    task.join()
}

struct Duplex {
    out: Vec<u8>,
    sent: usize,
    received: Vec<u8>,
}

impl Duplex {
    /// Waits, then sends and receives until neither goes on; until all is sent and received.
    fn run(
        &mut self,
        fd: BorrowedFd<'_>,
        mut wait: impl FnMut(i16) -> std::io::Result<i16>,
    ) -> Result<()> {
        while self.sent < self.out.len() || self.received.len() < LENGTH {
            let wants = |event, wanted| if wanted { event } else { 0 };
            let wanted = wants(libc::POLLIN, self.received.len() < LENGTH)
                | wants(libc::POLLOUT, self.sent < self.out.len());
            let events = wait(wanted)?;
            ensure!(
                events & libc::POLLERR == 0,
                "an error after {} sent, {} received",
                self.sent,
                self.received.len()
            );
            if events & libc::POLLIN != 0 {
                self.receive(fd)?;
            }
            if events & libc::POLLOUT != 0 {
                self.send(fd)?;
            }
        }
        Ok(())
    }

    fn receive(&mut self, fd: BorrowedFd<'_>) -> Result<()> {
        let mut buffer = vec![0; 40_009];
        while self.received.len() < LENGTH {
            match sys::recv(fd, &mut buffer, libc::MSG_DONTWAIT) {
                Ok(0) => bail!("the stream ended after {} bytes", self.received.len()),
                Ok(count) => self.received.extend(&buffer[..count]),
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn send(&mut self, fd: BorrowedFd<'_>) -> Result<()> {
        while self.sent < self.out.len() {
            match sys::send(fd, &self.out[self.sent..], libc::MSG_DONTWAIT) {
                Ok(count) => self.sent += count,
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// What a program sees that tries at once, without waiting; nothing may get lost by it.
pub(crate) fn first_try(end: &mut End) -> Result<String> {
    let fd = end.fd()?;
    let writable = sys::poll(fd, libc::POLLOUT, 0)?;
    let sent = sys::send(fd, b"a", libc::MSG_DONTWAIT);
    let received = sys::recv(fd, &mut [0], libc::MSG_DONTWAIT | libc::MSG_PEEK);
    let seen = format!("poll {writable:#x}, send {}", outcome(&sent));
    // What it receives depends on what the other end has sent by then, unless nobody can.
    let hears = if end.held {
        outcome(&received)
    } else {
        "any".into()
    };
    end.together(&[])?;
    if sent.is_err() {
        sys::poll(end.fd()?, libc::POLLOUT, -1)?;
        sys::send(end.fd()?, b"a", 0)?;
    }
    let mut byte = [0];
    let count = sys::recv(end.fd()?, &mut byte, 0)?;
    ensure!(
        count == 1 && byte == *b"a",
        "received {count} bytes, {byte:?}"
    );
    Ok(if crate::transfer::is_before(end) {
        format!("{seen}, recv {hears}")
    } else {
        seen
    })
}
