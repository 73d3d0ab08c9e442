//! What two nodes' helpers say to each other, as bytes. Pure.
//!
//! Each side begins with [`GREETING`]. Then come letters: kind, zero, length of the content (u16),
//! the number of the connection (u64), content; all numbers big-endian. A connection's number is
//! chosen by the side that opened the link.
//!
//! Number 0 is no connection's. `Tls` letters of it, which the first version ignores, say what the speaker understands
//! besides ([`Message::Speaks`]), so that nothing else is sent to one of that version, which would end the link over it.
//! Kinds that this version does not know are ignored.

mod renewal;

use super::table::Key;

pub(super) use renewal::{Renewal, Stop};

/// Who speaks, and in which version.
pub(super) const GREETING: [u8; 8] = *b"UNDSEAL\x01";
/// That letters about open connections are understood.
pub(super) const RENEWALS: &[u8] = b"renewals";
const HEADER: usize = 12;
const KEY: usize = 36;
/// As many content bytes as are put into one letter.
const MOST: usize = 32 << 10;

/// A message about the connection `id`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Letter {
    pub(super) id: u64,
    pub(super) message: Message,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// Of the client's helper: it has its end of this connection and waits.
    Open(Key),
    /// Of the server's helper: it has its end too; shake hands now.
    Begin,
    /// Bytes of the handshake.
    Tls(Vec<u8>),
    /// The sender's end has its keys and will understand records. Only after both have said so does
    /// either end send.
    Ready,
    /// The sender gives the connection up, or never had it.
    Refuse(Refused, String),
    /// Of the client's helper: its end is gone, nothing is wanted any more.
    Cancel,
    /// Of the server's helper: its end of this connection waits. Is an `Open` to be expected?
    Ask(Key),
    /// About no connection: what the speaker understands besides.
    Speaks(Vec<u8>),
    /// About a connection that is open.
    Renewal(Renewal),
}

/// Why a node refuses a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The identities.
    Identity,
    /// It does not seal connections between nodes, and has let its end go.
    NotSealing,
    /// It does not know the connection, or has lost it.
    Unknown,
    /// Its kernel did not take the keys, or a task could not be restarted.
    Failed,
}

/// What arrived is no letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    /// Neither side of this version.
    #[error("it does not speak this version of the protocol of helpers")]
    Greeting,
    /// Not understood.
    #[error("it sent a message that is not understood")]
    Letter,
}

impl Letter {
    /// Appends this to `out`.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let mut put = |kind: u8, content: &[u8]| {
            // No content is longer: `Message::tls` cuts flights, texts are cut here.
            let content = &content[..content.len().min(MOST)];
            let length = u16::try_from(content.len()).unwrap_or(u16::MAX);
            out.extend([kind, 0]);
            out.extend(length.to_be_bytes());
            out.extend(self.id.to_be_bytes());
            out.extend(content);
        };
        match &self.message {
            Message::Open(key) => put(1, &bytes_of(key)),
            Message::Begin => put(2, &[]),
            Message::Tls(bytes) => put(3, bytes),
            Message::Ready => put(4, &[]),
            Message::Refuse(why, text) => {
                let code = match why {
                    Refused::Identity => 1,
                    Refused::NotSealing => 2,
                    Refused::Unknown => 3,
                    Refused::Failed => 4,
                };
                put(5, &[&[code], text.as_bytes()].concat());
            }
            Message::Cancel => put(6, &[]),
            Message::Ask(key) => put(7, &bytes_of(key)),
            Message::Speaks(bytes) => put(3, bytes),
            Message::Renewal(said) => {
                let (kind, content) = said.write();
                put(kind, &content);
            }
        }
    }

    fn read(kind: u8, id: u64, content: &[u8]) -> Option<Self> {
        let message = match (kind, content) {
            (3, bytes) if id == 0 => Message::Speaks(bytes.to_vec()),
            (1, key) => Message::Open(key_of(key)?),
            (2, []) => Message::Begin,
            (3, bytes) => Message::Tls(bytes.to_vec()),
            (4, []) => Message::Ready,
            (5, [code, text @ ..]) => {
                let why = match code {
                    1 => Refused::Identity,
                    2 => Refused::NotSealing,
                    3 => Refused::Unknown,
                    4 => Refused::Failed,
                    _ => return None,
                };
                Message::Refuse(why, line(text))
            }
            (6, []) => Message::Cancel,
            (7, key) => Message::Ask(key_of(key)?),
            (kind, content) => Message::Renewal(Renewal::read(kind, content)?),
        };
        Some(Self { id, message })
    }

    /// Whether this version knows letters of this kind.
    const fn knows(kind: u8) -> bool {
        matches!(kind, 1..=7) || Renewal::has(kind)
    }
}

/// It goes into the log: one line, whatever the other side wrote.
fn line(text: &[u8]) -> String {
    String::from_utf8_lossy(text).replace(char::is_control, " ")
}

impl Message {
    /// A flight of the handshake, in as many messages as it takes.
    pub(super) fn tls(flight: &[u8]) -> impl Iterator<Item = Self> {
        flight.chunks(MOST).map(|part| Self::Tls(part.to_vec()))
    }
}

/// Bytes that have arrived.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    bytes: Vec<u8>,
    greeted: bool,
}

impl Inbox {
    /// Takes in what has arrived.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// All letters that are complete.
    ///
    /// # Errors
    /// What is there is no letter; nothing that follows can be understood.
    pub(super) fn letters(&mut self) -> Result<Vec<Letter>, Malformed> {
        let mut at = 0;
        if !self.greeted {
            let begun = self.bytes.len().min(GREETING.len());
            if self.bytes[..begun] != GREETING[..begun] {
                return Err(Malformed::Greeting);
            }
            if begun < GREETING.len() {
                return Ok(Vec::new());
            }
            self.greeted = true;
            at = begun;
        }
        let mut letters = Vec::new();
        while let Some((letter, length)) = first(&self.bytes[at..])? {
            letters.extend(letter);
            at += length;
        }
        self.bytes.drain(..at);
        Ok(letters)
    }
}

/// The first letter and its length; `None` if it is not complete. One of an unknown kind has a length alone.
fn first(bytes: &[u8]) -> Result<Option<(Option<Letter>, usize)>, Malformed> {
    let Some(([kind, zero, high, low, id @ ..], rest)) = bytes.split_first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    if *zero != 0 || length > MOST {
        return Err(Malformed::Letter);
    }
    let Some(content) = rest.get(..length) else {
        return Ok(None);
    };
    let letter = if Letter::knows(*kind) {
        let letter = Letter::read(*kind, u64::from_be_bytes(*id), content);
        Some(letter.ok_or(Malformed::Letter)?)
    } else {
        None
    };
    Ok(Some((letter, HEADER + length)))
}

fn bytes_of(key: &Key) -> [u8; KEY] {
    let (client, client_port, server, server_port) = key;
    let mut bytes = [0; KEY];
    bytes[..16].copy_from_slice(client);
    bytes[16..18].copy_from_slice(&client_port.to_be_bytes());
    bytes[18..34].copy_from_slice(server);
    bytes[34..].copy_from_slice(&server_port.to_be_bytes());
    bytes
}

fn key_of(bytes: &[u8]) -> Option<Key> {
    let (client, rest) = bytes.split_first_chunk::<16>()?;
    let (client_port, rest) = rest.split_first_chunk::<2>()?;
    let (server, rest) = rest.split_first_chunk::<16>()?;
    let server_port: &[u8; 2] = rest.try_into().ok()?;
    Some((
        *client,
        u16::from_be_bytes(*client_port),
        *server,
        u16::from_be_bytes(*server_port),
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::helper::drain::Opened;

    fn message() -> impl Strategy<Value = Message> {
        let key = (
            any::<[u8; 16]>(),
            any::<u16>(),
            any::<[u8; 16]>(),
            any::<u16>(),
        );
        let why = prop::sample::select(vec![
            Refused::Identity,
            Refused::NotSealing,
            Refused::Unknown,
            Refused::Failed,
        ]);
        prop_oneof![
            key.prop_map(Message::Open),
            Just(Message::Begin),
            prop::collection::vec(any::<u8>(), 0..300).prop_map(Message::Tls),
            Just(Message::Ready),
            (why, "[ -~]{0,40}").prop_map(|(why, text)| Message::Refuse(why, text)),
            Just(Message::Cancel),
            key.prop_map(Message::Ask),
            renewal(key).prop_map(Message::Renewal),
        ]
    }

    fn renewal(key: impl Strategy<Value = Key>) -> impl Strategy<Value = Renewal> {
        let why = prop::sample::select(vec![Stop::Refused, Stop::Later, Stop::Failed]);
        prop_oneof![
            (key, any::<bool>()).prop_map(|(key, able)| Renewal::Ask(key, able)),
            any::<bool>().prop_map(Renewal::Agree),
            prop::collection::vec(any::<u8>(), 0..300).prop_map(Renewal::Tls),
            Just(Renewal::Verified),
            Just(Renewal::Drain),
            any::<(u64, u32)>()
                .prop_map(|(records, unread)| Renewal::Opened(Opened { records, unread })),
            any::<u64>().prop_map(Renewal::Replace),
            Just(Renewal::Replaced),
            Just(Renewal::Turn),
            (why, "[ -~]{0,40}").prop_map(|(why, text)| Renewal::Stop(why, text)),
        ]
    }

    proptest! {
        /// However the bytes are cut, the letters come out as they went in.
        #[test]
        fn letters_survive_the_way(sent in prop::collection::vec((1..u64::MAX, message()), 0..8), cut in 1usize..50) {
            let sent: Vec<_> = sent.into_iter().map(|(id, message)| Letter { id, message }).collect();
            let mut bytes = GREETING.to_vec();
            for letter in &sent {
                letter.write(&mut bytes);
            }
            let (mut inbox, mut got) = (Inbox::default(), Vec::new());
            for part in bytes.chunks(cut) {
                inbox.push(part);
                got.extend(inbox.letters().unwrap());
            }
            prop_assert_eq!(got, sent);
        }

        /// Whatever arrives, nothing panics, and no more is kept than one letter.
        #[test]
        fn anything_may_arrive(bytes in prop::collection::vec(any::<u8>(), 0..200), greeted: bool) {
            let mut inbox = Inbox::default();
            if greeted {
                inbox.push(&GREETING);
            }
            inbox.push(&bytes);
            let _ = inbox.letters();
        }
    }

    #[test]
    fn what_a_later_version_says_besides_is_ignored() {
        let (mut inbox, mut bytes) = (Inbox::default(), GREETING.to_vec());
        bytes.extend([200, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 9, 1, 2, 3]);
        let cancel = Letter {
            id: 9,
            message: Message::Cancel,
        };
        cancel.write(&mut bytes);
        inbox.push(&bytes);
        assert_eq!(inbox.letters(), Ok(vec![cancel]));
    }

    #[test]
    fn another_protocol_is_found_out_at_its_first_byte() {
        let mut inbox = Inbox::default();
        inbox.push(b"S");
        assert_eq!(inbox.letters(), Err(Malformed::Greeting));
    }
}
