//! One request and its answer on a routing netlink socket (`NETLINK_ROUTE`), with the kernel's
//! explanation of a refusal (extended ACK).
//!
//! A socket lives for one exchange: it belongs to the network namespace of the calling thread, and
//! nothing here is frequent enough to keep it. It does not know what the messages mean.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::error::Error;

/// The kernel's refusal of a request.
#[derive(Debug)]
pub struct Refused {
    /// The error number, or what went wrong on the way.
    pub source: io::Error,
    /// The text of the extended ACK.
    pub text: Option<String>,
}

impl Refused {
    /// The error for the user: what was attempted, on which object.
    pub fn on(self, op: &'static str, object: impl Into<String>) -> Error {
        Error {
            op,
            object: object.into(),
            source: self.source,
            detail: self.text,
        }
    }

    /// Whether the kernel refused with this error number.
    #[must_use]
    pub fn is(&self, errno: nix::errno::Errno) -> bool {
        self.source.raw_os_error() == Some(errno as i32)
    }
}

impl From<io::Error> for Refused {
    fn from(source: io::Error) -> Self {
        Self { source, text: None }
    }
}

/// Sends one request with `NLM_F_ACK` and the given flags. Returns the messages that came before
/// the ACK: none for a change, one for a get.
///
/// # Errors
/// The kernel's refusal.
pub fn request(
    message: RouteNetlinkMessage,
    flags: u16,
) -> Result<Vec<RouteNetlinkMessage>, Refused> {
    let answer = exchange(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
    Ok(answer.messages)
}

/// Reads a whole table. A table that changed while it was read is read again.
///
/// # Errors
/// The kernel's refusal, or `Interrupted` if the table changed on each of several tries.
pub fn dump(message: &RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, Refused> {
    for _ in 0..DUMP_TRIES {
        let answer = exchange(message.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
        if !answer.interrupted {
            return Ok(answer.messages);
        }
    }
    let text = "the table changed each time while it was read";
    Err(io::Error::new(io::ErrorKind::Interrupted, text).into())
}

struct Answer {
    messages: Vec<RouteNetlinkMessage>,
    interrupted: bool,
}

fn exchange(message: RouteNetlinkMessage, flags: u16) -> Result<Answer, Refused> {
    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.set_ext_ack(true)?;
    // Refusals then carry the header of the request, not the whole request, before the explanation.
    socket.set_cap_ack(true)?;
    // Without it the kernel ignores the filters of a dump instead of refusing what it does not know.
    socket.set_netlink_get_strict_chk(true)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let mut answer = Answer {
        messages: Vec::new(),
        interrupted: false,
    };
    let mut buffer = vec![0; RECEIVE_BUFFER];
    loop {
        let length = socket.recv(&mut &mut buffer[..], 0)?;
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            rest = rest
                .get(align(message.header.length as usize)..)
                .unwrap_or_default();
            answer.interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
            let has_text = message.header.flags & netlink_packet_core::NLM_F_ACK_TLVS != 0;
            match message.payload {
                NetlinkPayload::InnerMessage(inner) => answer.messages.push(inner),
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answer),
                NetlinkPayload::Error(error) => {
                    let attributes = error
                        .header
                        .get(NETLINK_HEADER_LENGTH..)
                        .filter(|_| has_text);
                    return Err(Refused {
                        source: error.to_io(),
                        text: attributes.and_then(explanation),
                    });
                }
                NetlinkPayload::Done(done) if done.code == 0 => return Ok(answer),
                NetlinkPayload::Done(done) => {
                    let source = io::Error::from_raw_os_error(done.code.abs());
                    let text = if has_text {
                        explanation(&done.extended_ack)
                    } else {
                        None
                    };
                    return Err(Refused { source, text });
                }
                _ => {}
            }
        }
    }
}

/// The text among the attributes of an extended ACK (`NLMSGERR_ATTR_MSG`).
fn explanation(mut attributes: &[u8]) -> Option<String> {
    while let Some((header, _)) = attributes.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]);
        let value = attributes.get(4..length)?;
        if kind == NLMSGERR_ATTR_MSG {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        attributes = attributes.get(align(length)..)?;
    }
    None
}

/// Messages and attributes start at multiples of four bytes.
const fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

const DUMP_TRIES: usize = 8;
/// The kernel fills at most 32 KiB of a dump at a time; a datagram that does not fit would be cut.
const RECEIVE_BUFFER: usize = 64 * 1024;
const NETLINK_HEADER_LENGTH: usize = 16;
const NLMSGERR_ATTR_MSG: u16 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(value);
        bytes.resize(align(bytes.len()), 0);
        bytes
    }

    #[test]
    fn explanation_is_found_behind_other_attributes() {
        let attributes = [attribute(2, &[1, 0, 0, 0]), attribute(1, b"mtu less\0")].concat();
        assert_eq!(explanation(&attributes).as_deref(), Some("mtu less"));
    }

    #[test]
    fn explanation_of_garbage_is_none() {
        assert_eq!(explanation(&[]), None);
        assert_eq!(explanation(&attribute(2, &[1, 0, 0, 0])), None);
        // A length that leads past the end, and one of zero, which must not loop for ever.
        assert_eq!(explanation(&[200, 0, 1, 0, b'x']), None);
        assert_eq!(explanation(&[0, 0, 7, 0, 0, 0, 0, 0]), None);
    }
}
