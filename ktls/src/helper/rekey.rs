//! New keys for connections that are open, without a byte on the wire and unseen by their programs.
//!
//! A mutual handshake in memory, with the identities of now, yields keys for both directions. For one direction after
//! the other: its sender is held (`TCP_NOTSENT_LOWAT` 0), what it has sent is read ([`super::drain`]), the
//! receiver gets the key, the sender gets it, and leave to send. One at a time, because a program that answers while it
//! reads would wait for ever if both its ends were held.
//!
//! A program that does not read leaves nothing to be replaced: after a while its peer may send on under the old key, and
//! the guard tells again. At the hard limit the guard ends it, whatever happens here.
//!
//! State `Pausing`: held, and nothing has been replaced; whoever finds it lets go. `Replacing`: some key may be in;
//! whoever finds it resets the connection. Both are in the socket itself, so a helper that starts over knows.

use std::{
    collections::VecDeque,
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use tracing::debug;
use underseal_abi::{Conn, HelperCounter, State};

use super::{
    controls::{Controls, Step},
    drain::{Pause, Progress, Verdict},
    handover::{self, Failure},
    limit,
    maps::Maps,
    names::Route,
    table::Pair,
};
use crate::{
    SocketKeys,
    install::{self, InstallError},
    memory, set_notsent_lowat,
};

/// How many are under way at once: each of them holds a sender, and wants a look every few milliseconds.
pub(super) const MOST: usize = 32;
/// An end of a connection, by what it called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    Client,
    Server,
}

impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Server => "server",
        })
    }
}

/// What came of a turn.
#[must_use]
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It is to be looked at again.
    Wait,
    /// All that could be replaced is.
    Done,
    /// This kernel does not replace keys. Nothing has been changed.
    Unable,
}

/// A connection on its way to new keys.
pub(super) struct Rekey {
    pub(super) pair: Pair<OwnedFd>,
    /// None until the handshake is over. The first sender is held before that: it might send a lot meanwhile.
    pub(super) keys: Option<memory::Keys>,
    /// Whose key is next.
    senders: VecDeque<Sender>,
    pause: Option<Pause>,
    due: Instant,
}

impl Rekey {
    /// Holds `first`, whose key is replaced first; that of the other end comes after it.
    ///
    /// # Errors
    /// The connection cannot go on: it must be reset.
    pub(super) fn begin(
        maps: &mut Maps,
        pair: Pair<OwnedFd>,
        first: Sender,
        controls: &Controls,
    ) -> (Self, Result<(), Failure>) {
        let second = match first {
            Sender::Client => Sender::Server,
            Sender::Server => Sender::Client,
        };
        let mut rekey = Self {
            pair,
            keys: None,
            senders: VecDeque::from([first, second]),
            pause: None,
            due: Instant::now(),
        };
        let held = rekey.hold(maps, first, controls);
        (rekey, held)
    }

    /// When its next turn is.
    pub(super) const fn due(&self) -> Instant {
        self.due
    }

    /// Whether the socket is one of its two.
    pub(super) const fn has(&self, cookie: u64) -> bool {
        self.pair.client.0.cookie == cookie || self.pair.server.0.cookie == cookie
    }

    /// Looks how far it is, and goes on.
    ///
    /// # Errors
    /// The connection cannot go on: it must be reset.
    pub(super) fn turn(
        &mut self,
        maps: &mut Maps,
        now: Instant,
        controls: &Controls,
    ) -> Result<Turn, Failure> {
        let Some(sender) = self.senders.front().copied() else {
            return Ok(Turn::Done);
        };
        if self.pause.is_none() {
            self.hold(maps, sender, controls)?;
        }
        let seen = self.look(sender)?;
        let Some(pause) = &mut self.pause else {
            return Ok(Turn::Wait);
        };
        let verdict = pause.judge(seen, now);
        self.due = now + pause.next_look();
        match verdict {
            Verdict::Wait => {}
            Verdict::Cut => set_notsent_lowat(self.end(sender).1, 1)?,
            Verdict::PutOff => {
                maps.count(HelperCounter::RekeyPutOff, 1);
                self.stop(maps)?;
                return Ok(self.next(now));
            }
            Verdict::Drained => {
                return match self.replace(maps, sender, controls)? {
                    Replaced::Yes => Ok(self.next(now)),
                    Replaced::Unable => Ok(Turn::Unable),
                };
            }
        }
        Ok(Turn::Wait)
    }

    /// The sender's turn is over.
    fn next(&mut self, now: Instant) -> Turn {
        self.pause = None;
        self.senders.pop_front();
        self.due = now;
        if self.senders.is_empty() {
            Turn::Done
        } else {
            Turn::Wait
        }
    }

    fn hold(
        &mut self,
        maps: &mut Maps,
        sender: Sender,
        controls: &Controls,
    ) -> Result<(), Failure> {
        let (conn, socket) = self.end(sender);
        pause(maps, conn, socket)?;
        controls.reached(Step::Pausing);
        self.pause = Some(Pause::new(Instant::now(), Duration::ZERO));
        Ok(())
    }

    /// Ends it where it is: who is held may send, under the key that it has.
    ///
    /// # Errors
    /// Those of maps and sockets.
    pub(super) fn stop(&mut self, maps: &mut Maps) -> Result<(), Failure> {
        if self.pause.take().is_some()
            && let Some(sender) = self.senders.front()
        {
            let (conn, socket) = self.end(*sender);
            handover::release_end(maps, conn, socket)?;
        }
        Ok(())
    }

    /// Holds the sender and looks how far it is.
    fn look(&self, sender: Sender) -> io::Result<Progress> {
        let socket = self.end(sender).1;
        set_notsent_lowat(socket, 0)?;
        Progress::of(socket, self.peer_of(sender).1)
    }

    /// Everything has been read: the receiver's key, then the sender's.
    fn replace(
        &self,
        maps: &mut Maps,
        sender: Sender,
        controls: &Controls,
    ) -> Result<Replaced, Failure> {
        let (conn, socket) = self.end(sender);
        let receiver = self.peer_of(sender).1;
        maps.set_state(socket, State::Replacing)?;
        // Again, after the state: `underseal down` lets go of who is pausing, and resets who is replacing.
        if !self.look(sender)?.is_drained() {
            return Err(Failure::Rekey("somebody else has ended its hold"));
        }
        let Some([send, receive]) = self.keys_of(sender) else {
            return Err(Failure::Rekey("there are none"));
        };
        match install::install_rx(receiver, &receive.rx) {
            Ok(()) => {}
            Err(InstallError::AlreadyKeyed { .. }) => {
                handover::release_end(maps, conn, socket)?;
                return Ok(Replaced::Unable);
            }
            Err(error) => return Err(error.into()),
        }
        controls.reached(Step::Half);
        install::install_tx(socket, &send.tx)?;
        // Had it sent anything in between, that would be of the old key, and the other end would wait for the new.
        if !Progress::of(socket, receiver)?.is_drained() {
            return Err(Failure::Rekey("it has sent while it was held"));
        }
        limit::begin(maps, socket, send.tx.cipher())?;
        controls.reached(Step::Replaced);
        handover::release_end(maps, conn, socket)?;
        maps.count(HelperCounter::Rekeyed, 1);
        debug!("rekeyed {}, what the {sender} sends", Route(conn));
        Ok(Replaced::Yes)
    }

    fn end(&self, sender: Sender) -> (&Conn, BorrowedFd<'_>) {
        let (conn, socket) = match sender {
            Sender::Client => &self.pair.client,
            Sender::Server => &self.pair.server,
        };
        (conn, socket.as_fd())
    }

    fn peer_of(&self, sender: Sender) -> (&Conn, BorrowedFd<'_>) {
        match sender {
            Sender::Client => self.end(Sender::Server),
            Sender::Server => self.end(Sender::Client),
        }
    }

    /// Keys of the sender, keys of the receiver.
    fn keys_of(&self, sender: Sender) -> Option<[&SocketKeys; 2]> {
        let keys = self.keys.as_ref()?;
        Some(match sender {
            Sender::Client => [&keys.client, &keys.server],
            Sender::Server => [&keys.server, &keys.client],
        })
    }
}

/// What came of an attempt to replace a key.
#[derive(Debug, PartialEq, Eq)]
enum Replaced {
    Yes,
    Unable,
}

/// The table first: a helper that starts over looks there for whom to let go.
pub(super) fn pause(maps: &mut Maps, conn: &Conn, socket: BorrowedFd<'_>) -> Result<(), Failure> {
    maps.show_state(conn, State::Pausing);
    maps.set_holder(socket)?;
    maps.set_state(socket, State::Pausing)?;
    Ok(set_notsent_lowat(socket, 0)?)
}
