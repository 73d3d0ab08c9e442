//! The hand-over: from two held sockets to two sealed ones, in the one order in which nothing can
//! leak. Many connections go through it together, so that the records of sleeping tasks are read
//! once for all.
//!
//! 1. Handshake in memory; keys into both sockets, receiving before sending.
//! 2. State `Keyed` on both: from now on no task is recorded, because every call that starts now
//!    finds kTLS.
//! 3. Every recorded task that still sleeps in the old code is made to restart its call.
//! 4. State `Sealed` on both, and only then does either get leave to send.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{Ordering, fence},
};

use underseal_abi::{Conn, HelperCounter, Lowat, Sleeper, State};

use super::{
    buffer,
    controls::{Controls, Step},
    limit,
    maps::Maps,
    peers::Peers,
    refusal,
    restart::{Restart, restart},
    table::Pair,
};
use crate::{
    SocketKeys,
    install::{self, InstallError},
    memory, set_notsent_lowat,
};

/// Why a connection is reset instead of being sealed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// Identities.
    #[error("{0:#}")]
    Refused(anyhow::Error),
    /// The kernel did not take the keys.
    #[error("{0}")]
    Install(#[from] InstallError),
    /// The socket does not answer.
    #[error("cannot use its socket: {0}")]
    Socket(#[from] io::Error),
    /// A task may still be inside the old code.
    #[error("a task inside send or recv could not be made to restart: {0}")]
    Restart(String),
    /// The addresses fit, the workloads do not.
    #[error("its two ends do not belong to each other's workloads")]
    Mismatch,
    /// Its keys were being replaced.
    #[error("its keys could not be replaced: {0}")]
    Rekey(&'static str),
    /// Another helper had begun.
    #[error("an earlier helper ended in the middle of the hand-over")]
    Interrupted,
}

impl Failure {
    fn unrecorded() -> Self {
        Self::Restart(UNRECORDED.into())
    }

    /// The counter of its reason, beside that.
    pub(super) fn reason(&self) -> Option<HelperCounter> {
        match self {
            Self::Refused(error) => refusal::counter(error),
            _ => None,
        }
    }

    /// What this failure is counted as.
    pub(super) const fn counter(&self) -> HelperCounter {
        match self {
            Self::Refused(_) | Self::Mismatch => HelperCounter::ResetRefused,
            Self::Install(_) | Self::Socket(_) | Self::Rekey(_) => HelperCounter::ResetInstall,
            Self::Restart(_) => HelperCounter::ResetRestart,
            Self::Interrupted => HelperCounter::ResetInterrupted,
        }
    }
}

/// A connection on its way through the steps.
struct Passage {
    pair: Pair<OwnedFd>,
    result: Result<(), Failure>,
}

/// Seals `pairs`. Returns each with what came of it; one that failed is still held.
pub(super) fn seal(
    maps: &mut Maps,
    peers: &mut Peers,
    pairs: Vec<Pair<OwnedFd>>,
    controls: &Controls,
) -> Vec<(Pair<OwnedFd>, Result<(), Failure>)> {
    let mut passages: Vec<Passage> = pairs
        .into_iter()
        .map(|pair| {
            let result = key(maps, peers, &pair, controls);
            Passage { pair, result }
        })
        .collect();
    // The other half of this barrier is in bpf/src/sleepers.rs.
    fence(Ordering::SeqCst);
    restart_sleepers(maps, &mut passages, controls);
    for passage in &mut passages {
        if passage.result.is_ok() {
            passage.result = release(maps, &passage.pair, controls);
        }
    }
    passages.into_iter().map(|p| (p.pair, p.result)).collect()
}

/// Steps 1 and 2.
fn key(
    maps: &mut Maps,
    peers: &mut Peers,
    pair: &Pair<OwnedFd>,
    controls: &Controls,
) -> Result<(), Failure> {
    let (client, server) = (pair.client.1.as_fd(), pair.server.1.as_fd());
    let (one, other) = (&pair.client.0, &pair.server.0);
    if (one.workload, one.peer) != (other.peer, other.workload) {
        return Err(Failure::Mismatch);
    }
    for socket in [client, server] {
        match maps.state(socket)? {
            Some(State::Held) => {}
            Some(State::Closed) => return Err(closed()),
            _ => return Err(Failure::Interrupted),
        }
    }
    let made = peers
        .handshake(maps, &pair.client.0)
        .map_err(Failure::Refused)?;
    controls.reached(Step::Handshake);
    // Before the keys: no connection is sealed of which it is not known with whom.
    maps.note_seal(one, made.server.chain())?;
    maps.note_seal(other, made.client.chain())?;
    // As the keys' own: the guard lets nothing of a socket pass of which it does not know it.
    for (socket, keys) in [(client, &made.keys.client), (server, &made.keys.server)] {
        limit::begin(maps, socket, keys.tx.cipher())?;
    }
    install_all(client, server, &made.keys, controls)?;
    for socket in [client, server] {
        make_room(socket, controls)?;
        maps.set_state(socket, State::Keyed)?;
        controls.reached(Step::Keyed);
    }
    Ok(())
}

fn make_room(socket: BorrowedFd<'_>, controls: &Controls) -> io::Result<()> {
    if controls.no_send_buffer {
        return Ok(());
    }
    buffer::widen(socket)
}

fn install_all(
    client: BorrowedFd<'_>,
    server: BorrowedFd<'_>,
    keys: &memory::Keys,
    controls: &Controls,
) -> Result<(), InstallError> {
    let done = |()| controls.reached(Step::Key);
    let receive = |socket, keys: &SocketKeys| install::install_rx(socket, &keys.rx).map(done);
    let send = |socket, keys: &SocketKeys| install::install_tx(socket, &keys.tx).map(done);
    receive(client, &keys.client)?;
    receive(server, &keys.server)?;
    send(client, &keys.client)?;
    send(server, &keys.server)
}

/// Step 3. A connection with a task that could not be restarted fails.
fn restart_sleepers(maps: &mut Maps, passages: &mut [Passage], controls: &Controls) {
    let on_failed = |cookie| {
        let mut failed = passages.iter().filter(|p| p.result.is_err());
        failed.any(|p| ends(&p.pair).any(|(conn, _)| conn.cookie == cookie))
    };
    let cookies = passages
        .iter()
        .flat_map(|p| [p.pair.client.0.cookie, p.pair.server.0.cookie]);
    let cookies: Vec<u64> = cookies.collect();
    for (cookie, failure) in wake(maps, cookies, on_failed, controls) {
        let on_it = |p: &&mut Passage| ends(&p.pair).any(|(conn, _)| conn.cookie == cookie);
        if let Some(passage) = passages.iter_mut().find(on_it) {
            passage.result = Err(failure);
        }
    }
    for passage in passages.iter_mut().filter(|p| p.result.is_ok()) {
        if ends(&passage.pair).any(|(conn, socket)| is_unrecorded(maps, conn, socket)) {
            passage.result = Err(Failure::unrecorded());
        }
    }
}

/// Makes every task recorded on one of these sockets restart its call, but for those on sockets
/// that have failed already. Returns the sockets where that did not work.
fn wake(
    maps: &mut Maps,
    mut cookies: Vec<u64>,
    has_failed: impl Fn(u64) -> bool,
    controls: &Controls,
) -> Vec<(u64, Failure)> {
    cookies.sort_unstable();
    let sleepers = match maps.sleepers(&cookies) {
        Ok(sleepers) => sleepers,
        Err(error) => {
            let failure = || Failure::Restart(format!("{UNREAD}: {error}"));
            return cookies
                .into_iter()
                .map(|cookie| (cookie, failure()))
                .collect();
        }
    };
    let mut failed = Vec::new();
    let mut restarted = 0;
    for sleeper in &sleepers {
        if !controls.no_restart && !has_failed(sleeper.cookie) {
            controls.reached(Step::Restart);
            let restarted_it = restart(sleeper);
            controls.reached(Step::Restarted);
            match restarted_it {
                Ok(Restart::Done) => restarted += 1,
                Ok(Restart::NotNeeded) => {}
                Err(error) => {
                    let failure = Failure::Restart(explain(sleeper, &error));
                    failed.push((sleeper.cookie, failure));
                }
            }
        }
        maps.remove_sleeper(sleeper);
    }
    maps.count(HelperCounter::Restarted, restarted);
    failed
}

/// An end whose other end is on another node, with the keys for it.
pub(super) struct Priming<'a> {
    pub(super) conn: &'a Conn,
    pub(super) socket: BorrowedFd<'a>,
    pub(super) keys: &'a SocketKeys,
}

/// Steps 1 to 3 for single ends, whose handshake is done: keys in, nobody asleep in the old code.
/// They receive records then, and send nothing until [`release_end`]. Returns what came of each.
pub(super) fn prime(
    maps: &mut Maps,
    primings: &[Priming<'_>],
    controls: &Controls,
) -> Vec<Result<(), Failure>> {
    let mut results: Vec<_> = primings
        .iter()
        .map(|end| key_end(maps, end, controls))
        .collect();
    // As in `seal`.
    fence(Ordering::SeqCst);
    let at = |cookie: u64| primings.iter().position(|end| end.conn.cookie == cookie);
    let cookies = primings.iter().map(|end| end.conn.cookie).collect();
    let has_failed = |cookie| at(cookie).is_none_or(|at| results[at].is_err());
    for (cookie, failure) in wake(maps, cookies, has_failed, controls) {
        if let Some(at) = at(cookie) {
            results[at] = Err(failure);
        }
    }
    for (end, result) in primings.iter().zip(&mut results) {
        if result.is_ok() && is_unrecorded(maps, end.conn, end.socket) {
            *result = Err(Failure::unrecorded());
        }
        if result.is_ok() {
            *result = maps
                .set_state(end.socket, State::Primed)
                .map_err(Failure::from);
        }
    }
    results
}

fn key_end(maps: &Maps, end: &Priming<'_>, controls: &Controls) -> Result<(), Failure> {
    match maps.state(end.socket)? {
        Some(State::Held) => {}
        Some(State::Closed) => return Err(closed()),
        _ => return Err(Failure::Interrupted),
    }
    limit::begin(maps, end.socket, end.keys.tx.cipher())?;
    install::install_rx(end.socket, &end.keys.rx)?;
    install::install_tx(end.socket, &end.keys.tx)?;
    make_room(end.socket, controls)?;
    Ok(maps.set_state(end.socket, State::Keyed)?)
}

/// Step 4 for a single end: the other one is ready for what it sends. Also for one that was held for another key.
pub(super) fn release_end(
    maps: &mut Maps,
    conn: &Conn,
    socket: BorrowedFd<'_>,
) -> Result<(), Failure> {
    maps.set_state(socket, State::Sealed)?;
    Ok(finish(maps, conn, socket)?)
}

/// Lets an end without keys send in plaintext: the configuration does not ask for a seal any more,
/// and its other end has been let go already. Tasks that sleep in the old code sleep in the right one.
pub(super) fn let_go(maps: &mut Maps, conn: &Conn, socket: BorrowedFd<'_>) -> Result<(), Failure> {
    if maps.state(socket)? != Some(State::Held) {
        return Err(Failure::Interrupted);
    }
    maps.set_state(socket, State::Released)?;
    for sleeper in &maps.sleepers(&[conn.cookie])? {
        maps.remove_sleeper(sleeper);
    }
    send_leave(maps, socket)?;
    maps.show_state(conn, State::Released);
    Ok(())
}

/// Somebody has ended the connection meanwhile.
fn closed() -> Failure {
    Failure::Socket(io::Error::from_raw_os_error(libc::ENOTCONN))
}

fn explain(sleeper: &Sleeper, error: &io::Error) -> String {
    let hint = match error.raw_os_error() {
        Some(libc::EPERM) => " (is a debugger attached, or kernel.yama.ptrace_scope 3?)",
        _ => "",
    };
    let Sleeper { tid, tgid, .. } = sleeper;
    format!("task {tid} of process {tgid}: {error}{hint}")
}

/// Whether BPF could not record a task on the socket, or says nothing about it at all.
fn is_unrecorded(maps: &Maps, conn: &Conn, socket: BorrowedFd<'_>) -> bool {
    !matches!(maps.socket(socket), Ok(Some(kept)) if kept.unrecorded == 0)
        || maps.is_unrecorded(conn.cookie)
}

/// Step 4. The guard begins to let records pass with the state, on both ends before either sends.
///
/// The server gets leave first: what it is asked can then reach it only when it may answer. Servers that have read a
/// request on a socket that never blocks send a short answer without a thought of `EAGAIN` (PostgreSQL's answer to a
/// client that asks for TLS).
fn release(maps: &mut Maps, pair: &Pair<OwnedFd>, controls: &Controls) -> Result<(), Failure> {
    for (_, socket) in ends(pair) {
        maps.set_state(socket, State::Sealed)?;
        controls.reached(Step::Sealed);
    }
    for (conn, socket) in [&pair.server, &pair.client] {
        finish(maps, conn, socket.as_fd())?;
        controls.reached(Step::Released);
    }
    Ok(())
}

/// Gives one sealed socket leave to send, with the limit its program has asked for.
fn finish(maps: &mut Maps, conn: &Conn, socket: BorrowedFd<'_>) -> io::Result<()> {
    send_leave(maps, socket)?;
    maps.show_state(conn, State::Sealed);
    Ok(())
}

/// Lets the programs of a connection notice that it ends before it has keys (state `Ending`). From
/// that state on BPF refuses every call to send; tasks that slept in one before are made to call
/// again. Nothing that waits for leave to send sleeps on.
pub(super) fn end_unsealed(
    maps: &mut Maps,
    conn: &Conn,
    socket: BorrowedFd<'_>,
) -> Result<(), Failure> {
    // The other half of this barrier is in bpf/src/sleepers.rs.
    fence(Ordering::SeqCst);
    for sleeper in maps.sleepers(&[conn.cookie])? {
        let restarted = restart(&sleeper);
        maps.remove_sleeper(&sleeper);
        match restarted {
            Ok(Restart::Done) => maps.count(HelperCounter::Restarted, 1),
            Ok(Restart::NotNeeded) => {}
            Err(error) => return Err(Failure::Restart(explain(&sleeper, &error))),
        }
    }
    if is_unrecorded(maps, conn, socket) {
        return Err(Failure::unrecorded());
    }
    Ok(set_notsent_lowat(socket, u32::MAX)?)
}

const UNREAD: &str = "the records of sleeping tasks cannot be read";
const UNRECORDED: &str = "the map of sleeping tasks was full";

/// Sets the limit that the program has asked for, which is above zero: the hold is over.
fn send_leave(maps: &Maps, socket: BorrowedFd<'_>) -> io::Result<()> {
    let kept = maps.socket(socket)?;
    let lowat = kept.map_or(Lowat::default(), |kept| kept.lowat);
    set_notsent_lowat(socket, lowat.on_release())
}

fn ends(pair: &Pair<OwnedFd>) -> impl Iterator<Item = (&Conn, BorrowedFd<'_>)> {
    [&pair.client, &pair.server]
        .into_iter()
        .map(|(conn, socket)| (conn, socket.as_fd()))
}
