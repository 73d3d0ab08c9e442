//! What two helpers say of a connection that is open: [`super::Message::Renewal`].

use super::{KEY, MOST, bytes_of, key_of};
use crate::helper::{drain::Opened, table::Key};

/// The kinds of these letters, from the first on.
const FIRST: u8 = 8;

/// One of them. Whoever begins has the connection's number; it may hold either end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::helper) enum Renewal {
    /// To begin: shake hands again for this connection. The second value says whether the sender's kernel replaces keys.
    Ask(Key, bool),
    /// The answer, with the same about the other kernel. The client's end says hello now.
    Agree(bool),
    /// Bytes of the handshake.
    Tls(Vec<u8>),
    /// Of the server's helper: it has accepted the client's certificate too. New keys may follow, first for what
    /// whoever has begun sends.
    Verified,
    /// The sender of this letter holds its end: how much is opened of what that has sent?
    Drain,
    /// So much. Sent again whenever it has changed.
    Opened(Opened),
    /// All of it, up to this record: the new key goes in for receiving.
    Replace(u64),
    /// It is in.
    Replaced,
    /// The sender of this letter is done with what its end sends, and holds it no longer.
    Turn,
    /// It ends here.
    Stop(Stop, String),
}

/// Why it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::helper) enum Stop {
    /// The certificates are refused: the connection must end.
    Refused,
    /// Nothing is wrong with the connection: it may be tried again.
    Later,
    /// The connection is being reset.
    Failed,
}

impl Renewal {
    /// A flight of the handshake, in as many messages as it takes.
    pub(in crate::helper) fn tls(flight: &[u8]) -> impl Iterator<Item = Self> {
        flight.chunks(MOST).map(|part| Self::Tls(part.to_vec()))
    }

    /// The letter's kind and content.
    pub(super) fn write(&self) -> (u8, Vec<u8>) {
        let (kind, content) = match self {
            Self::Ask(key, able) => (0, [bytes_of(key).as_slice(), &[u8::from(*able)]].concat()),
            Self::Agree(able) => (1, vec![u8::from(*able)]),
            Self::Tls(bytes) => (2, bytes.clone()),
            Self::Verified => (3, Vec::new()),
            Self::Drain => (4, Vec::new()),
            Self::Opened(opened) => {
                let (records, unread) = (opened.records.to_be_bytes(), opened.unread.to_be_bytes());
                (5, [records.as_slice(), &unread].concat())
            }
            Self::Replace(records) => (6, records.to_be_bytes().to_vec()),
            Self::Replaced => (7, Vec::new()),
            Self::Turn => (8, Vec::new()),
            Self::Stop(why, text) => {
                let code = match why {
                    Stop::Refused => 1,
                    Stop::Later => 2,
                    Stop::Failed => 3,
                };
                (9, [&[code], text.as_bytes()].concat())
            }
        };
        (FIRST + kind, content)
    }

    /// What a letter of this kind says; `None` if it is no such letter.
    pub(super) fn read(kind: u8, content: &[u8]) -> Option<Self> {
        Some(match (kind.checked_sub(FIRST)?, content) {
            (0, content) => {
                let (key, able) = content.split_first_chunk::<KEY>()?;
                Self::Ask(key_of(key)?, truth(able)?)
            }
            (1, able) => Self::Agree(truth(able)?),
            (2, bytes) => Self::Tls(bytes.to_vec()),
            (3, []) => Self::Verified,
            (4, []) => Self::Drain,
            (5, content) => {
                let (records, unread) = content.split_first_chunk()?;
                Self::Opened(Opened {
                    records: u64::from_be_bytes(*records),
                    unread: u32::from_be_bytes(unread.try_into().ok()?),
                })
            }
            (6, records) => Self::Replace(u64::from_be_bytes(records.try_into().ok()?)),
            (7, []) => Self::Replaced,
            (8, []) => Self::Turn,
            (9, [code, text @ ..]) => {
                let why = match code {
                    1 => Stop::Refused,
                    2 => Stop::Later,
                    3 => Stop::Failed,
                    _ => return None,
                };
                Self::Stop(why, super::line(text))
            }
            _ => return None,
        })
    }

    /// Whether letters of this kind are among these.
    pub(super) const fn has(kind: u8) -> bool {
        kind >= FIRST && kind <= FIRST + 9
    }
}

fn truth(byte: &[u8]) -> Option<bool> {
    match byte {
        [0] => Some(false),
        [1] => Some(true),
        _ => None,
    }
}
