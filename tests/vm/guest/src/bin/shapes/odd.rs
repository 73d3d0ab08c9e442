//! MPTCP and TCP Fast Open asked for, and keep-alive.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use anyhow::{Result, bail, ensure};
use nix::sys::socket::sockopt::{KeepAlive, TcpKeepCount, TcpKeepIdle, TcpKeepInterval};
use nix::sys::socket::{MsgFlags, SockaddrStorage, sendto, setsockopt};

use crate::data::{self, AMOUNT, LISTENER, SPEAKER, Turn, talk};
use crate::lab::Side;
use crate::{sys, wait};

/// A client that would rather have MPTCP, and takes TCP.
pub(crate) fn mptcp_client(side: &mut Side) -> Result<()> {
    side.hear("listening")?;
    let socket = rather_mptcp(side)?;
    sys::connect(socket.as_fd(), side.address)?;
    talk(&TcpStream::from(socket), Turn::Speak)
}

/// The same as server.
pub(crate) fn mptcp_server(side: &mut Side) -> Result<()> {
    let listener = rather_mptcp(side)?;
    sys::listen_on(&listener, side.address, 16)?;
    side.tell("listening")?;
    let socket = sys::accept(listener.as_fd())?;
    talk(&TcpStream::from(socket), Turn::Listen)
}

/// As programs do that can use MPTCP: a refusal that says "not here" leads to TCP.
fn rather_mptcp(side: &Side) -> Result<OwnedFd> {
    match sys::stream_socket(side.address, libc::IPPROTO_MPTCP) {
        Ok(_) => bail!("a socket that nobody can seal"),
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => {
            sys::tcp_socket(side.address)
        }
        Err(error) => Err(error.into()),
    }
}

/// How often a client connects: the first time it gets a cookie, the second time data rides in the SYN.
const ROUNDS: usize = 2;

/// A server with Fast Open, in a namespace that allows it.
pub(crate) fn fast_open_server(side: &mut Side) -> Result<()> {
    allow_fast_open()?;
    let listener = sys::listener_with_queue(side.address, 16)?;
    sys::set_tcp(listener.as_fd(), libc::TCP_FASTOPEN, 5)?;
    side.tell("listening")?;
    for _ in 0..ROUNDS {
        talk(&listener.accept()?.0, Turn::Listen)?;
    }
    Ok(())
}

/// sendto with MSG_FASTOPEN, or connect where that is not to be had.
pub(crate) fn fast_open_message(side: &mut Side) -> Result<()> {
    allow_fast_open()?;
    side.hear("listening")?;
    for _ in 0..ROUNDS {
        let socket = sys::tcp_socket(side.address)?;
        let all = data::stream(SPEAKER, AMOUNT);
        let sent = send_fast(&socket, side.address, &all)?;
        ensure!(sent.is_none() == side.is_sealed(), "sent {sent:?}");
        if sent.is_none() {
            sys::connect(socket.as_fd(), side.address)?;
        }
        let socket = TcpStream::from(socket);
        std::io::Write::write_all(&mut &socket, &all[sent.unwrap_or(0)..])?;
        data::hear(&socket, LISTENER)?;
        socket.shutdown(std::net::Shutdown::Write)?;
        data::at_end(&socket)?;
    }
    Ok(())
}

/// How much was taken; none if the kernel wants connect to be called.
fn send_fast(socket: &OwnedFd, to: SocketAddr, data: &[u8]) -> Result<Option<usize>> {
    let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
    match sendto(socket.as_raw_fd(), data, &SockaddrStorage::from(to), flags) {
        Ok(sent) => Ok(Some(sent)),
        Err(nix::errno::Errno::EOPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// TCP_FASTOPEN_CONNECT: connect only says that it has, and the first send does.
pub(crate) fn fast_open_connect(side: &mut Side) -> Result<()> {
    allow_fast_open()?;
    side.hear("listening")?;
    for _ in 0..ROUNDS {
        let socket = sys::tcp_socket(side.address)?;
        sys::set_tcp(socket.as_fd(), libc::TCP_FASTOPEN_CONNECT, 1)?;
        sys::connect(socket.as_fd(), side.address)?;
        talk(&TcpStream::from(socket), Turn::Speak)?;
    }
    Ok(())
}

fn allow_fast_open() -> Result<()> {
    Ok(fs::write("/proc/sys/net/ipv4/tcp_fastopen", "3")?)
}

/// Keep-alive as fast as it can be set, on both ends of a connection that waits for its server for a while.
pub(crate) fn kept_alive(side: &mut Side) -> Result<()> {
    let socket = side.connect()?;
    often_alive(&socket)?;
    let (_, before) = sys::segments(socket.as_fd())?;
    // Each answer to a probe is a segment that comes in.
    wait::until("answers to two probes", wait::PATIENCE, || {
        Ok(sys::segments(socket.as_fd())?.1 >= before + 2)
    })?;
    side.tell("accept")?;
    talk(&socket, Turn::Speak)
}

pub(crate) fn kept_alive_server(side: &mut Side) -> Result<()> {
    let socket = side.accept_when_told()?;
    often_alive(&socket)?;
    talk(&socket, Turn::Listen)
}

fn often_alive(socket: &TcpStream) -> Result<()> {
    setsockopt(socket, KeepAlive, &true)?;
    setsockopt(socket, TcpKeepIdle, &1)?;
    setsockopt(socket, TcpKeepInterval, &1)?;
    Ok(setsockopt(socket, TcpKeepCount, &2)?)
}
