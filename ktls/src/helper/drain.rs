//! Whether everything that one end of a sealed connection has sent is read by the other, so that both may go on with
//! another key. No byte tells the reader of it: records under the old key and under the new one must not meet.

use std::{io, os::fd::BorrowedFd};

use super::sys;
use crate::sys::{Way, record_number};

/// How far one direction of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    /// Bytes that the sender's TCP has not had acknowledged.
    unsent: u32,
    /// Bytes that the receiver's TCP has, and its TLS has not taken.
    unread: u32,
    /// Number of the next record that is sent, and of the next that is received.
    records: (u64, u64),
}

impl Progress {
    /// Of what `sender` sends to `receiver`.
    ///
    /// # Errors
    /// Those of `ioctl` and `getsockopt`.
    pub(super) fn of(sender: BorrowedFd<'_>, receiver: BorrowedFd<'_>) -> io::Result<Self> {
        // In this order: what moves on meanwhile shows as a difference, never as equality.
        let received = record_number(receiver, Way::Receive)?;
        Ok(Self {
            unread: sys::unread(receiver)?,
            unsent: sys::unsent(sender)?,
            records: (record_number(sender, Way::Send)?, received),
        })
    }

    /// How many records have been read, under this key.
    pub(super) const fn received(&self) -> u64 {
        self.records.1
    }

    /// All but a part of one record seems to have arrived: its sender may sleep in the middle of it.
    pub(super) const fn may_be_cut(&self) -> bool {
        /// Header, and the longest that follows (RFC 8446 §5.2).
        const RECORD: u32 = 5 + (1 << 14) + 256;
        self.unsent == 0 && self.unread < RECORD && self.records.0 != self.records.1
    }

    /// Nothing is under way. A record of which TCP has taken a part has its number already, so it counts.
    pub(super) const fn is_drained(&self) -> bool {
        self.unsent == 0 && self.unread == 0 && self.records.0 == self.records.1
    }
}
