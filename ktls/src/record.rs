//! Records that are not data, on a socket that the kernel decrypts.
//!
//! A peer with a TLS library of its own sends session tickets and alerts. A plain `read` gets EIO
//! for them; [`RecordReader`] takes them out and hands on the data. Between two of our own
//! sockets there is nothing of the kind, and nobody needs this module.

use crate::sys;
use nix::{
    cmsg_space,
    sys::socket::{ControlMessageOwned, MsgFlags, TlsGetRecordType, recvmsg},
};
use std::{
    io::{self, IoSliceMut, Read},
    os::fd::{AsFd, AsRawFd},
};

/// Reads the data of a socket that has receive keys.
///
/// Session tickets are skipped; close_notify, and a bare end of the stream, are the end of data.
/// A key update is an error, because the secret that it would need was not kept.
#[derive(Debug)]
pub struct RecordReader<S> {
    socket: S,
    messages: Messages,
    // A short buffer may hold half an alert.
    alert: Vec<u8>,
    closed: bool,
}

impl<S: AsFd> RecordReader<S> {
    /// A reader of `socket`, on which nothing was read since its keys were installed.
    pub fn new(socket: S) -> Self {
        Self {
            socket,
            messages: Messages::default(),
            alert: Vec::new(),
            closed: false,
        }
    }

    /// One `recvmsg`: the type of the record and how much of it is in `buffer`.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<(TlsGetRecordType, usize)> {
        let mut control = cmsg_space!(u8);
        let mut data = [IoSliceMut::new(buffer)];
        let message = recvmsg::<()>(
            self.socket.as_fd().as_raw_fd(),
            &mut data,
            Some(&mut control),
            MsgFlags::empty(),
        )?;
        // The end of the stream comes without a type.
        let kind = message
            .cmsgs()?
            .find_map(|control| match control {
                ControlMessageOwned::TlsGetRecordType(kind) => Some(kind),
                _ => None,
            })
            .unwrap_or(TlsGetRecordType::ApplicationData);
        Ok((kind, message.bytes))
    }
}

impl<S: AsFd> Read for RecordReader<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.closed {
            return Ok(0);
        }
        loop {
            let (kind, len) = self.receive(buffer)?;
            match kind {
                TlsGetRecordType::ApplicationData => return Ok(len),
                TlsGetRecordType::Handshake => self.messages.skip(&buffer[..len])?,
                TlsGetRecordType::Alert => {
                    self.alert.extend_from_slice(&buffer[..len]);
                    if let [_, description, ..] = self.alert[..] {
                        self.closed = true;
                        return alert(description).map(|()| 0);
                    }
                }
                other => return Err(invalid(format!("a record of type {other:?}"))),
            }
        }
    }
}

/// Tells the peer that no more data follows; its half of the connection stays open.
///
/// The caller shuts the socket down for writing afterwards.
///
/// # Errors
///
/// That of `sendmsg`.
pub fn close_notify(socket: impl AsFd) -> io::Result<()> {
    sys::send_record(socket, ALERT, &[LEVEL_WARNING, CLOSE_NOTIFY])
}

/// The handshake messages after the handshake. One may be spread over several reads, several may
/// stand in one: only lengths are kept, never contents.
#[derive(Debug, Default)]
struct Messages {
    header: Vec<u8>,
    /// Bytes of the current message's body that are still to come.
    body_left: usize,
}

impl Messages {
    /// Takes in the next bytes of the handshake stream; an error if they are not to be skipped.
    fn skip(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.body_left > 0 {
                let taken = self.body_left.min(bytes.len());
                self.body_left -= taken;
                bytes = &bytes[taken..];
                continue;
            }
            self.header.push(bytes[0]);
            bytes = &bytes[1..];
            if let [kind, a, b, c] = self.header[..] {
                self.header.clear();
                if kind != NEW_SESSION_TICKET {
                    return Err(unwanted_message(kind));
                }
                self.body_left = u32::from_be_bytes([0, a, b, c]) as usize;
            }
        }
        Ok(())
    }
}

fn unwanted_message(kind: u8) -> io::Error {
    match kind {
        KEY_UPDATE => io::Error::new(
            io::ErrorKind::Unsupported,
            "the peer asked for a key update, which a sealed connection cannot follow",
        ),
        other => invalid(format!("a handshake message of type {other}")),
    }
}

fn alert(description: u8) -> io::Result<()> {
    if description == CLOSE_NOTIFY {
        return Ok(());
    }
    let description = rustls::AlertDescription::from(description);
    Err(io::Error::new(
        io::ErrorKind::ConnectionAborted,
        format!("the peer ended the connection with the alert {description:?}"),
    ))
}

fn invalid(what: String) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the peer sent {what} on a sealed connection"),
    )
}

/// Record and message types of RFC 8446, appendix B.
const ALERT: u8 = 21;
const LEVEL_WARNING: u8 = 1;
const CLOSE_NOTIFY: u8 = 0;
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ticket(len: usize) -> Vec<u8> {
        let mut message = vec![NEW_SESSION_TICKET];
        message.extend_from_slice(&u32::try_from(len).unwrap().to_be_bytes()[1..]);
        // A body that would be a key update if it were taken for a header.
        message.resize(4 + len, KEY_UPDATE);
        message
    }

    proptest! {
        #[test]
        fn tickets_are_skipped_however_they_are_cut(
            lengths in prop::collection::vec(0_usize..400, 1..5),
            step in 1_usize..64,
        ) {
            let stream: Vec<u8> = lengths.iter().flat_map(|len| ticket(*len)).collect();
            let mut messages = Messages::default();
            for piece in stream.chunks(step) {
                messages.skip(piece).unwrap();
            }
            prop_assert_eq!(messages.body_left, 0);
            prop_assert!(messages.header.is_empty());
            let update = [KEY_UPDATE, 0, 0, 1, 0];
            let error = messages.skip(&update).unwrap_err();
            prop_assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        }
    }

    #[test]
    fn alerts_other_than_the_close_are_errors() {
        alert(CLOSE_NOTIFY).unwrap();
        let error = alert(48).unwrap_err();
        assert!(error.to_string().contains("UnknownCA"), "{error}");
    }
}
