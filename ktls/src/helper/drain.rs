//! Whether everything that one end of a sealed connection has sent is read by the other, so that both may go on with
//! another key. No byte tells the reader of it: records under the old key and under the new one must not meet.

use std::{
    io,
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use super::sys;
use crate::sys::{Way, record_number};

/// How long a sender is held while the other end reads nothing. As long as that has something to read, it does not
/// matter to it.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// How long until the next look.
const SOON: Duration = Duration::from_millis(2);
/// The same when it has taken a while already.
const LATER: Duration = Duration::from_millis(10);
/// The looks after which it has.
const LOOKS: u32 = 25;
/// How long nothing has moved when a sender is taken for one that sleeps in the middle of a record.
const STUCK: Duration = Duration::from_millis(30);

/// What a sender has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    /// Bytes that its TCP has not had acknowledged.
    pub(super) unsent: u32,
    /// Number of the next record. One of which TCP has taken a part has its number already.
    pub(super) records: u64,
}

impl Sent {
    /// By `sender`.
    ///
    /// # Errors
    /// Those of `ioctl` and `getsockopt`.
    pub(super) fn by(sender: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self {
            unsent: sys::unsent(sender)?,
            records: record_number(sender, Way::Send)?,
        })
    }
}

/// What a receiver has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opened {
    /// Number of the next record that its TLS expects.
    pub(super) records: u64,
    /// Bytes that its TCP has, and its TLS has not taken.
    pub(super) unread: u32,
}

impl Opened {
    /// By `receiver`.
    ///
    /// # Errors
    /// Those of `ioctl` and `getsockopt`.
    pub(super) fn by(receiver: BorrowedFd<'_>) -> io::Result<Self> {
        // In this order: what moves on meanwhile shows as a difference, never as equality.
        Ok(Self {
            records: record_number(receiver, Way::Receive)?,
            unread: sys::unread(receiver)?,
        })
    }
}

/// How far one direction of a connection is. What was opened must have been looked at before what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) opened: Opened,
    pub(super) sent: Sent,
}

impl Progress {
    /// Of what `sender` sends to `receiver`.
    ///
    /// # Errors
    /// Those of `ioctl` and `getsockopt`.
    pub(super) fn of(sender: BorrowedFd<'_>, receiver: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self {
            opened: Opened::by(receiver)?,
            sent: Sent::by(sender)?,
        })
    }

    /// All but a part of one record seems to have arrived: its sender may sleep in the middle of it.
    const fn may_be_cut(&self) -> bool {
        /// Header, and the longest that follows (RFC 8446 §5.2).
        const RECORD: u32 = 5 + (1 << 14) + 256;
        self.sent.unsent == 0
            && self.opened.unread < RECORD
            && self.sent.records != self.opened.records
    }

    /// Nothing is under way.
    pub(super) const fn is_drained(&self) -> bool {
        self.sent.unsent == 0 && self.opened.unread == 0 && self.sent.records == self.opened.records
    }
}

/// What is to be done about a sender that is held.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Its key can be replaced.
    Drained,
    /// It is to be looked at again.
    Wait,
    /// It may sleep in the middle of a record. It may go on while nothing of it is unsent; the next look holds it again.
    Cut,
    /// The other end does not read.
    PutOff,
}

/// A sender is being held.
#[derive(Debug)]
pub(super) struct Pause {
    /// How much the other end has read, and when that was less.
    read: (u64, Instant),
    looks: u32,
    /// What was seen last, and since when it has been so.
    seen: Option<(Progress, Instant)>,
    /// How old what is seen of the other end may be.
    delay: Duration,
}

impl Pause {
    pub(super) const fn new(now: Instant, delay: Duration) -> Self {
        Self {
            read: (0, now),
            looks: 0,
            seen: None,
            delay,
        }
    }

    /// Judges what is seen now.
    pub(super) fn judge(&mut self, seen: Progress, now: Instant) -> Verdict {
        if seen.is_drained() {
            return Verdict::Drained;
        }
        if self.read.0 != seen.opened.records {
            self.read = (seen.opened.records, now);
        }
        if now - self.read.1 >= PATIENCE {
            return Verdict::PutOff;
        }
        let since = match self.seen {
            Some((before, since)) if before == seen => since,
            _ => now,
        };
        let is_cut = seen.may_be_cut() && now - since >= STUCK + self.delay;
        self.seen = (!is_cut).then_some((seen, since));
        self.looks += 1;
        if is_cut { Verdict::Cut } else { Verdict::Wait }
    }

    /// How long until the next look.
    pub(super) fn next_look(&self) -> Duration {
        next_look(self.looks)
    }
}

/// How long until the look that comes after so many.
pub(super) const fn next_look(looks: u32) -> Duration {
    if looks < LOOKS { SOON } else { LATER }
}
