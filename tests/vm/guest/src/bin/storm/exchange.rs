//! What the two ends of a connection have to say to each other, and how it ended.

use std::fmt;
use std::io;

/// What the server says before it has heard anything.
const GREETING: u64 = 64;
/// What the client says first: who it is, and how much follows each way.
pub(crate) const HEADER: u64 = 16;

/// How connections ended.
#[derive(Default)]
pub(crate) struct Count {
    pub(crate) lived: u64,
    pub(crate) reset: u64,
    pub(crate) refused: u64,
    pub(crate) wrong: u64,
    pub(crate) open: u64,
}

pub(crate) enum Outcome {
    Lived,
    Reset,
    Refused,
    /// The end came too early.
    Cut(String),
    Wrong(String),
}

impl Count {
    pub(crate) fn add(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Lived => self.lived += 1,
            Outcome::Reset => self.reset += 1,
            Outcome::Refused => self.refused += 1,
            Outcome::Cut(why) | Outcome::Wrong(why) => {
                eprintln!("wrong: {why}");
                self.wrong += 1;
            }
        }
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            lived,
            reset,
            refused,
            wrong,
            open,
        } = self;
        write!(
            f,
            "lived={lived} reset={reset} refused={refused} wrong={wrong} open={open}"
        )
    }
}

impl From<io::Error> for Outcome {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            // The last: shutdown of a socket that was reset meanwhile.
            Some(libc::ECONNRESET | libc::ECONNABORTED | libc::EPIPE | libc::ENOTCONN) => {
                Self::Reset
            }
            Some(libc::ECONNREFUSED | libc::EPERM | libc::ENETUNREACH) => Self::Refused,
            _ => Self::Wrong(error.to_string()),
        }
    }
}

/// One end of a connection: what it has to say and to hear.
#[derive(Clone)]
pub(crate) struct End {
    is_client: bool,
    header: [u8; HEADER as usize],
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

impl End {
    pub(crate) fn client(id: u64, bytes: u64) -> Self {
        let mut header = [0; HEADER as usize];
        header[..8].copy_from_slice(&id.to_le_bytes());
        header[8..].copy_from_slice(&bytes.to_le_bytes());
        Self {
            is_client: true,
            header,
            sent: 0,
            received: 0,
        }
    }

    pub(crate) const fn server() -> Self {
        Self {
            is_client: false,
            header: [0; HEADER as usize],
            sent: 0,
            received: 0,
        }
    }

    fn word(&self, at: usize) -> u64 {
        let mut word = [0; 8];
        word.copy_from_slice(&self.header[at..at + 8]);
        u64::from_le_bytes(word)
    }

    /// The byte at a position of the direction from the client, or from the server.
    fn byte(&self, from_client: bool, at: u64) -> u8 {
        let id = self.word(0);
        match (from_client, at) {
            (true, ..HEADER) => self.header[at as usize],
            (true, _) => pattern(id, at - HEADER),
            (false, ..GREETING) => pattern(0, at),
            (false, _) => pattern(!id, at - GREETING),
        }
    }

    /// The length of a direction, as far as it is known.
    fn length(&self, from_client: bool) -> u64 {
        let knows = self.is_client || self.received >= HEADER;
        match (from_client, knows) {
            (true, true) => HEADER + self.word(8),
            (true, false) => HEADER,
            (false, true) => GREETING + self.word(8),
            (false, false) => GREETING,
        }
    }

    /// What is to be said next; empty if that is all for now.
    pub(crate) fn next(&self) -> Vec<u8> {
        let end = self.length(self.is_client).min(self.sent + (64 << 10));
        (self.sent..end)
            .map(|at| self.byte(self.is_client, at))
            .collect()
    }

    pub(crate) fn has_said_all(&self) -> bool {
        (self.is_client || self.received >= HEADER) && self.sent == self.length(self.is_client)
    }

    /// Compares what was heard.
    pub(crate) fn hear(&mut self, heard: &[u8]) -> Result<(), Outcome> {
        for byte in heard {
            let at = self.received;
            if !self.is_client && at < HEADER {
                self.header[at as usize] = *byte;
            } else if at >= self.length(!self.is_client) || *byte != self.byte(!self.is_client, at)
            {
                return Err(Outcome::Wrong(format!("byte {at} is {byte:#04x}")));
            }
            self.received += 1;
        }
        Ok(())
    }

    /// The other end has said that this is all.
    pub(crate) fn ended(&self) -> Outcome {
        let expected = self.length(!self.is_client);
        if self.received == expected && (self.is_client || self.received >= HEADER) {
            Outcome::Lived
        } else {
            Outcome::Cut(format!("ends after {} of {expected}", self.received))
        }
    }
}

/// A byte that depends on the whole of its position, so that nothing can be moved unseen.
fn pattern(id: u64, at: u64) -> u8 {
    let word =
        (id ^ (at / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (word ^ (word >> 29)).to_le_bytes()[(at % 8) as usize]
}

pub(crate) fn id_of(n: u64) -> u64 {
    u64::from(std::process::id()) << 32 | (n + 1)
}
