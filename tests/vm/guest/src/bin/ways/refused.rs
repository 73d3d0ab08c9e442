//! What TLS cannot do, or does otherwise than plain TCP.

use anyhow::Result;

use crate::data;
use crate::end::{End, Role};
use crate::endings::{outcome, to_end};
use crate::sys;
use crate::transfer::{recv, send};

const LENGTH: usize = 1000;

fn receive_all(end: &End) -> Result<String> {
    let (data, how) = to_end(end.fd()?);
    data::compare(&data::stream(1, data.len()), &data)?;
    Ok(format!("{} bytes, {how}", data.len()))
}

/// More was announced, and does not come.
pub(crate) fn more_close(end: &mut End) -> Result<String> {
    if end.role == Role::Server {
        return receive_all(end);
    }
    let sent = sys::send(end.fd()?, &data::stream(1, LENGTH), libc::MSG_MORE);
    end.close()?;
    Ok(outcome(&sent))
}

pub(crate) fn more_shutdown(end: &mut End) -> Result<String> {
    if end.role == Role::Server {
        let said = receive_all(end)?;
        end.control.say("read")?;
        return Ok(said);
    }
    let sent = sys::send(end.fd()?, &data::stream(1, LENGTH), libc::MSG_MORE);
    let shut = nix::sys::socket::shutdown(
        std::os::fd::AsRawFd::as_raw_fd(&end.fd()?),
        nix::sys::socket::Shutdown::Write,
    );
    end.control.hear("read")?;
    Ok(format!("{}, shutdown {shut:?}", outcome(&sent)))
}

/// More was announced, and comes; then the connection ends.
pub(crate) fn more_then_rest(end: &mut End) -> Result<String> {
    if end.role == Role::Server {
        return receive_all(end);
    }
    let data = data::stream(1, 16_384 + LENGTH);
    // A full record of its own, and one that is begun and completed.
    for (part, flags) in [
        (&data[..16_384], libc::MSG_MORE),
        (&data[16_384..16_500], libc::MSG_MORE),
        (&data[16_500..], 0),
    ] {
        sys::send(end.fd()?, part, flags)?;
    }
    end.close()?;
    Ok("closed".into())
}

/// Sends after it has shut its own direction down.
pub(crate) fn send_after_shutdown(end: &mut End) -> Result<String> {
    if end.role == Role::Server {
        end.together(&[])?;
        return receive_all(end);
    }
    // Something was sent, so that the shutdown is the only thing that is special.
    if end.timing == crate::end::Timing::After {
        send(end.fd()?, &data::stream(1, LENGTH))?;
    }
    nix::sys::socket::shutdown(
        std::os::fd::AsRawFd::as_raw_fd(&end.fd()?),
        nix::sys::socket::Shutdown::Write,
    )?;
    let first = outcome(&sys::send(end.fd()?, b"late", 0));
    let signals = sys::sigpipes();
    let second = outcome(&sys::send(end.fd()?, b"late", libc::MSG_NOSIGNAL));
    end.together(&[])?;
    Ok(format!("send {first}, SIGPIPE {signals}, send {second}"))
}

/// Sends after the other end has reset the connection.
pub(crate) fn send_after_reset(end: &mut End) -> Result<String> {
    if end.role == Role::Server {
        let linger = [1i32.to_ne_bytes(), 0i32.to_ne_bytes()].concat();
        sys::set_bytes(end.fd()?, libc::SOL_SOCKET, libc::SO_LINGER, &linger)?;
        end.close()?;
        end.control.say("reset")?;
        return Ok("closed".into());
    }
    end.control.hear("reset")?;
    // The reset has arrived when the socket says so.
    sys::poll(end.fd()?, 0, -1)?;
    let sends: Vec<_> = (0..3)
        .map(|_| end.fd().map(|fd| outcome(&sys::send(fd, b"late", 0))))
        .collect::<Result<_>>()?;
    let received = outcome(&sys::recv(end.fd()?, &mut [0], 0));
    Ok(format!(
        "send {}, SIGPIPE {}, recv {received}",
        sends.join(" "),
        sys::sigpipes()
    ))
}

/// Flags and calls that TLS has no answer to; the connection must live on.
pub(crate) fn flags(end: &mut End) -> Result<String> {
    if end.role == Role::Server {
        let wanted: usize = end.control.line()?.parse()?;
        let data = recv(end.fd()?, wanted)?;
        return Ok(format!("{}", data.iter().all(|byte| *byte == b'x')));
    }
    let fd = end.fd()?;
    let calls = [
        ("MSG_OOB", sys::send(fd, b"x", libc::MSG_OOB)),
        (
            "SO_ZEROCOPY",
            sys::set(fd, libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1).map(|()| 0),
        ),
        ("MSG_ZEROCOPY", sys::send(fd, b"xx", libc::MSG_ZEROCOPY)),
        ("MSG_FASTOPEN", sys::send(fd, b"xxx", libc::MSG_FASTOPEN)),
        ("sendmmsg", sys::sendmmsg(fd, b"xxxx", 2)),
    ];
    let mut wanted: usize = calls
        .iter()
        .filter_map(|(_, result)| result.as_ref().ok())
        .sum();
    // The byte of MSG_OOB is not part of the stream.
    wanted -= calls[0].1.as_ref().map_or(0, |count| *count);
    sys::send(fd, b"xxxxx", 0)?;
    let said: Vec<_> = calls
        .iter()
        .map(|(name, result)| format!("{name} {}", outcome(result)))
        .collect();
    end.control.say(&(wanted + 5).to_string())?;
    Ok(said.join(", "))
}
