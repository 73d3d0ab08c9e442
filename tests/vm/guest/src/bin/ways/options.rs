//! Options that a program sets itself, before and after the hand-over.

use anyhow::{Result, ensure};

use crate::end::{End, Role, Timing};
use crate::endings::outcome;
use crate::sys;
use crate::transfer::{self, WAYS, timeval};

/// SO_RCVTIMEO and SO_SNDTIMEO, long enough, at sockets that sleep: nobody may notice the hand-over.
pub(crate) fn timeouts(end: &mut End) -> Result<String> {
    for option in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
        sys::set_bytes(end.fd()?, libc::SOL_SOCKET, option, &timeval(15))?;
    }
    transfer::run(end, &WAYS[2])
}

/// Timeouts that expire while the connection is held; it goes on afterwards.
pub(crate) fn timeouts_expire(end: &mut End) -> Result<String> {
    let fd = end.fd()?;
    let short = [0i64.to_ne_bytes(), 50_000i64.to_ne_bytes()].concat();
    for option in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
        sys::set_bytes(fd, libc::SOL_SOCKET, option, &short)?;
    }
    let received = outcome(&sys::recv(fd, &mut [0], 0));
    end.meet()?;
    let sent = sys::send(end.fd()?, b"a", 0);
    end.together(&[])?;
    let fd = end.fd()?;
    for option in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
        sys::set_bytes(fd, libc::SOL_SOCKET, option, &timeval(15))?;
    }
    if sent.is_err() {
        sys::send(fd, b"a", 0)?;
    }
    ensure!(sys::recv(fd, &mut [0], 0)? == 1, "nothing came");
    Ok(format!("recv {received}, send {}", outcome(&sent)))
}

/// Options of TCP that a program sets: what it reads back, at once and after the hand-over, and that data passes.
pub(crate) fn own_options(end: &mut End) -> Result<String> {
    let asked = [
        (libc::TCP_NOTSENT_LOWAT, 16_384),
        (libc::TCP_NODELAY, 1),
        (libc::TCP_QUICKACK, 0),
        (libc::TCP_USER_TIMEOUT, 30_000),
    ];
    for (option, value) in asked {
        sys::set(end.fd()?, libc::SOL_TCP, option, value)?;
    }
    let read = |end: &End| -> Result<Vec<i32>> {
        let value = |option| Ok(int(&sys::option(end.fd()?, libc::SOL_TCP, option)?));
        // TCP switches quick acknowledgements on and off by itself.
        let lasting = asked
            .iter()
            .filter(|(option, _)| *option != libc::TCP_QUICKACK);
        lasting.map(|(option, _)| value(*option)).collect()
    };
    let at_once = read(end)?;
    let said = transfer::run(end, &WAYS[0])?;
    Ok(format!("{said}, reads {at_once:?}, then {:?}", read(end)?))
}

/// TCP_NOTSENT_LOWAT 0, which means "never writable" to the kernel and "no limit of my own" to a program that
/// resets it; 1, the strictest that lets anything pass.
pub(crate) fn lowat_zero(end: &mut End) -> Result<String> {
    let value = if end.role == Role::Client { 0 } else { 1 };
    let unset = int(&sys::option(
        end.fd()?,
        libc::SOL_TCP,
        libc::TCP_NOTSENT_LOWAT,
    )?);
    sys::set(end.fd()?, libc::SOL_TCP, libc::TCP_NOTSENT_LOWAT, value)?;
    let said = transfer::run(end, &WAYS[0])?;
    let after = int(&sys::option(
        end.fd()?,
        libc::SOL_TCP,
        libc::TCP_NOTSENT_LOWAT,
    )?);
    Ok(format!("{said}, unset {unset}, set {value}, reads {after}"))
}

/// What FIONREAD says of a thousand bytes.
pub(crate) fn fionread(end: &mut End) -> Result<String> {
    if end.role == Role::Server {
        transfer::send(end.fd()?, &[7; 1000])?;
        end.meet()?;
        return Ok("sent".into());
    }
    let there = sys::poll(end.fd()?, libc::POLLIN, -1)?;
    ensure!(there & libc::POLLIN != 0, "not readable: {there:#x}");
    let before = sys::readable(end.fd()?)?;
    let received = transfer::recv(end.fd()?, 1000)?.len();
    let after = sys::readable(end.fd()?)?;
    end.meet()?;
    Ok(format!("{before}, received {received}, then {after}"))
}

/// Whether poll keeps to SO_RCVLOWAT.
pub(crate) fn rcvlowat_poll(end: &mut End) -> Result<String> {
    assert_eq!(end.timing, Timing::After);
    if end.role == Role::Server {
        transfer::send(end.fd()?, &[7; 100])?;
        end.meet()?;
        end.meet()?;
        transfer::send(end.fd()?, &[7; 9900])?;
        return Ok("sent".into());
    }
    sys::set(end.fd()?, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 5000)?;
    end.meet()?;
    let early = sys::poll(end.fd()?, libc::POLLIN, 200)?;
    end.meet()?;
    ensure!(
        sys::poll(end.fd()?, libc::POLLIN, -1)? & libc::POLLIN != 0,
        "not readable"
    );
    let count = sys::recv(end.fd()?, &mut [0; 5000], 0)?;
    Ok(format!(
        "readable after 100 of 5000 bytes: {}, received {count}",
        early != 0
    ))
}

fn int(bytes: &[u8]) -> i32 {
    bytes
        .first_chunk()
        .map_or(-1, |bytes| i32::from_ne_bytes(*bytes))
}
