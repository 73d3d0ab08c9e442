//! Many connections at once, each byte of which is known to both ends: what is lost, doubled, changed or cut is found.
//!
//! ```text
//! storm serve ADDR threads|epoll [FILE]      accepts once FILE exists; SIGTERM makes it print its count and end
//! storm run ADDR N BYTES threads|epoll SECONDS   N connections at once, BYTES each way; prints its count when all have
//!                                            ended, or after SECONDS
//! ```
//!
//! The server speaks first, while the client already sends: both ends have somebody asleep in the kernel. A count is
//! `lived=.. reset=.. refused=.. wrong=.. open=..`: exchanged whole; ended by a reset, as TCP may; not connected;
//! anything else (the reason is on standard error); still under way.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod events;
mod exchange;
mod threads;

use std::env;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};

use crate::events::Loop;

fn main() -> Result<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    setrlimit(Resource::RLIMIT_NOFILE, 1 << 17, 1 << 17).context("RLIMIT_NOFILE")?;
    match words[..] {
        ["serve", address, way, ref gate @ ..] => {
            let listener = listen(address.parse()?)?;
            let gate = gate.first().map(PathBuf::from);
            match way {
                "threads" => threads::serve(&listener, gate),
                _ => Loop::new(Some(listener), gate)?.run(None),
            }
        }
        ["run", address, n, bytes, way, seconds] => {
            let until = Instant::now() + Duration::from_secs(seconds.parse()?);
            let load = (address.parse()?, n.parse()?, bytes.parse()?);
            match way {
                "threads" => threads::run(load, until),
                _ => Loop::new(None, None)?.connect(load)?.run(Some(until)),
            }
        }
        _ => bail!("see the head of this program's source for its arguments"),
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let socket = new_socket(address, SockFlag::SOCK_CLOEXEC)?;
    socket::setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    socket::listen(&socket, socket::Backlog::MAXCONN)?;
    Ok(socket.into())
}

pub(crate) fn new_socket(address: SocketAddr, flags: SockFlag) -> nix::Result<OwnedFd> {
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    socket::socket(family, SockType::Stream, flags, None)
}

/// Blocks SIGTERM in this thread and all that it starts.
pub(crate) fn signals() -> Result<SignalFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.thread_block()?;
    Ok(SignalFd::with_flags(
        &set,
        SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
    )?)
}

pub(crate) fn wait_for(gate: Option<&Path>) {
    while gate.is_some_and(|gate| !gate.exists()) {
        thread::sleep(Duration::from_millis(20));
    }
}
