//! How connections end: orderly, one direction at a time, at once, by reset.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use anyhow::{Result, ensure};
use nix::errno::Errno;

use crate::data;
use crate::end::{End, Role};
use crate::sys::{self, Count};
use crate::task::Task;
use crate::transfer::{self, Shared, send};

/// A count, or the name of the error.
pub(crate) fn outcome(result: &Count) -> String {
    match result {
        Ok(count) => count.to_string(),
        Err(error) => format!(
            "{:?}",
            Errno::from_raw(error.raw_os_error().unwrap_or_default())
        ),
    }
}

/// Reads until the stream ends; how many bytes, and how it ended.
pub(crate) fn to_end(fd: BorrowedFd<'_>) -> (Vec<u8>, String) {
    let mut data = Vec::new();
    let mut buffer = vec![0; 50_021];
    loop {
        match sys::recv(fd, &mut buffer, 0) {
            Ok(0) => return (data, "end".into()),
            Ok(count) => data.extend(&buffer[..count]),
            error => return (data, outcome(&error)),
        }
    }
}

fn shut(fd: BorrowedFd<'_>) -> Result<()> {
    use std::os::fd::AsRawFd as _;
    Ok(nix::sys::socket::shutdown(
        fd.as_raw_fd(),
        nix::sys::socket::Shutdown::Write,
    )?)
}

/// A thread that reads to the end and says what it has seen; the data is that of stream `number`.
fn reader(socket: Shared, number: u64) -> Result<Task<String>> {
    Task::start(&[libc::SYS_recvfrom], move || {
        let (data, how) = to_end(socket.as_fd());
        data::compare(&data::stream(number, data.len()), &data)?;
        Ok(format!("{} bytes, {how}", data.len()))
    })
}

const LENGTH: usize = 50_003;
/// Of a listener that goes while a connection waits there.
const OWN_PORT: u16 = 7002;

/// `closer` sends and shuts its direction down; the other end reads it all, then answers and does the same.
pub(crate) fn half_close(end: &mut End, closer: Role) -> Result<String> {
    let socket = end.socket()?;
    if end.role == closer {
        let reader = reader(end.socket()?, 2)?;
        let sender = Task::start(&[libc::SYS_sendto], move || {
            send(socket.as_fd(), &data::stream(1, LENGTH))?;
            shut(socket.as_fd())
        })?;
        end.together(&[reader.sleep(), sender.sleep()])?;
        sender.join()?;
        return reader.join();
    }
    let reader = reader(end.socket()?, 1)?;
    end.together(&[reader.sleep()])?;
    let said = reader.join()?;
    send(socket.as_fd(), &data::stream(2, LENGTH))?;
    shut(socket.as_fd())?;
    Ok(said)
}

/// `closer` shuts its direction down before it has sent anything; the other end reads that, and answers with
/// `answer` bytes.
pub(crate) fn shutdown_first(end: &mut End, closer: Role, answer: usize) -> Result<String> {
    if end.role == closer {
        shut(end.fd()?)?;
        end.together(&[])?;
        return reader(end.socket()?, 2)?.join();
    }
    end.together(&[])?;
    let said = reader(end.socket()?, 1)?.join()?;
    let data = data::stream(2, answer);
    let sent = if answer > 0 {
        sys::send(end.fd()?, &data, libc::MSG_NOSIGNAL)
    } else {
        Ok(0)
    };
    end.close()?;
    Ok(format!("{said}, sent {}", outcome(&sent)))
}

/// The client shuts down before it has sent anything, when the helper has its socket and the server has not accepted.
pub(crate) fn shutdown_first_found(end: &mut End) -> Result<String> {
    if end.role == Role::Client {
        end.found()?;
        shut(end.fd()?)?;
        end.control.say("accept")?;
        return reader(end.socket()?, 2)?.join();
    }
    end.control.hear("accept")?;
    end.open()?;
    let said = reader(end.socket()?, 1)?.join()?;
    send(end.fd()?, &data::stream(2, LENGTH))?;
    end.close()?;
    Ok(said)
}

/// `closer` closes without having sent anything.
pub(crate) fn close_at_once(end: &mut End, closer: Role) -> Result<String> {
    if end.role == closer {
        end.close()?;
        end.together(&[])?;
        return Ok("closed".into());
    }
    end.together(&[])?;
    reader(end.socket()?, 1)?.join()
}

/// The client has gone when the server accepts.
pub(crate) fn close_unaccepted(end: &mut End) -> Result<String> {
    if end.role == Role::Client {
        end.close()?;
        end.control.say("accept")?;
        return Ok("closed".into());
    }
    end.control.hear("accept")?;
    end.open()?;
    reader(end.socket()?, 1)?.join()
}

/// The client fills the connection without ever waiting, then closes it; the server reads only afterwards.
pub(crate) fn close_full(end: &mut End) -> Result<String> {
    if end.role == Role::Server {
        let total: usize = end.control.line()?.parse()?;
        let (data, how) = to_end(end.fd()?);
        data::compare(&data::stream(1, data.len()), &data)?;
        let whole = if data.len() == total { "all" } else { "a part" };
        return Ok(format!("{whole}, {how}"));
    }
    let data = data::stream(1, 64 << 20);
    let mut sent = 0;
    while sys::poll(end.fd()?, libc::POLLOUT, 500)? != 0 && sent < data.len() {
        match sys::send(end.fd()?, &data[sent..], libc::MSG_DONTWAIT) {
            Ok(count) => sent += count,
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    ensure!(sent < data.len(), "the connection takes everything");
    end.close()?;
    end.control.say(&sent.to_string())?;
    Ok("closed".into())
}

/// The client sends and closes at once.
pub(crate) fn close_sent(end: &mut End) -> Result<String> {
    if end.role == Role::Server {
        return reader(end.socket()?, 1)?.join();
    }
    send(end.fd()?, &data::stream(1, transfer::LENGTH))?;
    end.close()?;
    Ok("closed".into())
}

/// `closer` resets the connection (SO_LINGER 0) while the other end reads.
pub(crate) fn reset(end: &mut End, closer: Role) -> Result<String> {
    if end.role == closer {
        let linger = [1i32.to_ne_bytes(), 0i32.to_ne_bytes()].concat();
        sys::set_bytes(end.fd()?, libc::SOL_SOCKET, libc::SO_LINGER, &linger)?;
        // Only when the other end reads.
        end.control.hear("reads")?;
        end.close()?;
        end.together(&[])?;
        return Ok("closed".into());
    }
    let reader = reader(end.socket()?, 1)?;
    reader.sleep().wait()?;
    end.control.say("reads")?;
    end.together(&[])?;
    reader.join()
}

/// The server never accepts; it closes its listener while the client sends and reads.
pub(crate) fn accept_never(end: &mut End) -> Result<String> {
    if end.role == Role::Server {
        // The client's first connection, to the listener that lives on, is not the one that this is about.
        end.open()?;
        let stream = TcpStream::from(end.socket()?.try_clone()?);
        let address = SocketAddr::new(stream.local_addr()?.ip(), OWN_PORT);
        let listener = TcpListener::bind(address)?;
        end.control.say("listening")?;
        end.control.hear("asleep")?;
        drop(listener);
        return Ok("never accepted".into());
    }
    end.control.hear("listening")?;
    end.close()?;
    end.address = end
        .address
        .map(|address| SocketAddr::new(address.ip(), OWN_PORT));
    end.open()?;
    let socket = end.socket()?;
    let other = Arc::clone(&socket);
    let sender = Task::start(&[libc::SYS_sendto], move || {
        Ok(outcome(&sys::send(
            socket.as_fd(),
            &[1; 1000],
            libc::MSG_NOSIGNAL,
        )))
    })?;
    let reader = Task::start(&[libc::SYS_recvfrom], move || {
        Ok(outcome(&sys::recv(other.as_fd(), &mut [0], 0)))
    })?;
    if end.held {
        sender.sleep().wait()?;
    }
    reader.sleep().wait()?;
    end.control.say("asleep")?;
    // Which of the two is told of the reset is not determined; the other may see what comes after it.
    let (sent, received) = (sender.join()?, reader.join()?);
    Ok(format!("send {sent}, recv {received}"))
}
