//! Sockets that are sent over unix sockets, are in no process for a while, or lose their number under a thread.

use std::io::{ErrorKind, Read as _};
use std::net::TcpStream;
use std::os::fd::{AsFd as _, AsRawFd as _, IntoRawFd as _, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;

use anyhow::{Result, bail, ensure};
use nix::unistd::{gettid, pipe, write};

use crate::data::{self, AMOUNT, SPEAKER, Turn, talk};
use crate::lab::Side;
use crate::{sys, wait};

/// Another process talks, on a descriptor it was sent before this one has used it.
pub(crate) fn client(side: &mut Side) -> Result<()> {
    side.helper.stop()?;
    let socket = side.connect()?;
    passed_on(side, socket, Turn::Speak)
}

/// The same at the server.
pub(crate) fn server(side: &mut Side) -> Result<()> {
    side.helper.stop()?;
    let listener = side.listen()?;
    let (socket, _) = listener.accept()?;
    passed_on(side, socket, Turn::Listen)
}

fn passed_on(side: &Side, socket: TcpStream, turn: Turn) -> Result<()> {
    let (here, there) = UnixStream::pair()?;
    let descriptor = socket.as_raw_fd();
    let child = sys::spawn(|| {
        // What fork has given it does not count: it is to be in one process alone.
        sys::close_number(descriptor)?;
        let socket = sys::receive_descriptor(there.as_fd())?;
        talk(&TcpStream::from(socket), turn)
    })?;
    sys::send_descriptor(here.as_fd(), socket.as_fd())?;
    drop(socket);
    side.helper.resume()?;
    sys::join(child)
}

/// The socket is on its way, in no process, when the helper first looks for it.
pub(crate) fn client_in_flight(side: &mut Side) -> Result<()> {
    side.helper.stop()?;
    let socket = side.connect()?;
    let (here, there) = UnixStream::pair()?;
    sys::send_descriptor(here.as_fd(), socket.as_fd())?;
    drop(socket);
    side.tell("accept")?;
    side.hear("accepted")?;
    side.helper.resume()?;
    side.hear("found")?;
    let socket = sys::receive_descriptor(there.as_fd())?;
    talk(&TcpStream::from(socket), Turn::Speak)
}

/// Its server says when the helper has found the server's end: both were looked for together.
pub(crate) fn tells_when_found(side: &mut Side) -> Result<()> {
    let socket = side.accept_when_told()?;
    side.tell("accepted")?;
    if side.is_sealed() {
        wait::until_found(&socket)?;
    }
    side.tell("found")?;
    talk(&socket, Turn::Listen)
}

/// The same with the ends exchanged.
pub(crate) fn server_in_flight(side: &mut Side) -> Result<()> {
    side.helper.stop()?;
    let socket = side.accept_when_told()?;
    let (here, there) = UnixStream::pair()?;
    sys::send_descriptor(here.as_fd(), socket.as_fd())?;
    drop(socket);
    side.helper.resume()?;
    side.tell("sent")?;
    side.hear("found")?;
    let socket = sys::receive_descriptor(there.as_fd())?;
    talk(&TcpStream::from(socket), Turn::Listen)
}

pub(crate) fn tells_when_client_found(side: &mut Side) -> Result<()> {
    let socket = side.connect()?;
    side.tell("accept")?;
    side.hear("sent")?;
    if side.is_sealed() {
        wait::until_found(&socket)?;
    }
    side.tell("found")?;
    talk(&socket, Turn::Speak)
}

/// It is on its way for longer than anybody looks for it.
pub(crate) fn client_lost(side: &mut Side) -> Result<()> {
    side.helper.stop()?;
    let socket = side.connect()?;
    let (here, there) = UnixStream::pair()?;
    sys::send_descriptor(here.as_fd(), socket.as_fd())?;
    drop(socket);
    side.helper.resume()?;
    side.tell("accept")?;
    side.hear("so far")?;
    let socket = TcpStream::from(sys::receive_descriptor(there.as_fd())?);
    if side.is_sealed() {
        return ensure_reset(&socket);
    }
    talk(&socket, Turn::Speak)
}

pub(crate) fn server_of_lost(side: &mut Side) -> Result<()> {
    let socket = side.accept_when_told()?;
    if side.is_sealed() {
        ensure_reset(&socket)?;
        return side.tell("so far");
    }
    side.tell("so far")?;
    talk(&socket, Turn::Listen)
}

/// A thread closes the socket while another one sleeps in it, before the helper has looked for it.
pub(crate) fn closed_asleep(side: &mut Side) -> Result<()> {
    side.helper.stop()?;
    let socket = side.connect()?;
    under_a_sleeper(side, socket, |side, number| {
        sys::close_number(number)?;
        side.helper.resume()
    })
}

/// A thread makes the number mean a pipe, with the helper holding the socket already.
pub(crate) fn replaced_asleep(side: &mut Side) -> Result<()> {
    let socket = side.connect()?;
    if side.is_sealed() {
        wait::until_found(&socket)?;
    }
    let (reader, writer) = pipe()?;
    write(&writer, b"of the pipe")?;
    under_a_sleeper(side, socket, |_, number| {
        Ok(sys::replace(reader.as_fd(), number)?)
    })
}

/// One thread reads; asleep, `change` happens to the number it reads from; then the server accepts. The sleeper gets
/// what comes for the socket it began to read from: the data, or when sealed the reset, and nothing else.
fn under_a_sleeper(
    side: &mut Side,
    socket: TcpStream,
    change: impl FnOnce(&mut Side, RawFd) -> Result<()>,
) -> Result<()> {
    let number = socket.into_raw_fd();
    let (sender, receiver) = mpsc::channel();
    let reader = thread::spawn(move || {
        sender.send(gettid())?;
        let mut got = vec![0; AMOUNT];
        match sys::read_number(number, &mut got) {
            Ok(read) => {
                got.truncate(read);
                Ok(got)
            }
            Err(error) => Err(anyhow::Error::from(error)),
        }
    });
    wait::until_in_call(receiver.recv()?, &[libc::SYS_read])?;
    change(side, number)?;
    side.tell("accept")?;
    let got = reader.join().map_err(|_| anyhow::anyhow!("panicked"))?;
    match got {
        Ok(got) if !side.is_sealed() => {
            ensure!(
                !got.is_empty() && data::stream(SPEAKER, AMOUNT).starts_with(&got),
                "other bytes than were sent"
            );
            side.tell("read")
        }
        Ok(got) => bail!("{} bytes instead of a reset", got.len()),
        Err(error) if side.is_sealed() => is_reset(&error),
        Err(error) => Err(error),
    }
}

/// Fails unless reading from this socket says that the connection was reset.
pub(crate) fn ensure_reset(mut socket: &TcpStream) -> Result<()> {
    match socket.read(&mut [0; 16]) {
        Ok(read) => bail!("{read} bytes instead of a reset"),
        Err(error) => is_reset(&error.into()),
    }
}

/// Fails unless this error says that a connection was reset.
pub(crate) fn is_reset(error: &anyhow::Error) -> Result<()> {
    let kind = error
        .downcast_ref::<std::io::Error>()
        .map(std::io::Error::kind);
    ensure!(
        matches!(
            kind,
            Some(ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted)
        ),
        "{error:#} instead of a reset"
    );
    Ok(())
}
