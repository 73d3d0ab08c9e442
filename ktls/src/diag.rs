//! TCP sockets as the kernel lists them (`NETLINK_SOCK_DIAG`): their upper layer protocol, and
//! their end by `SOCK_DESTROY`.
//!
//! Everything is about the network namespace of the calling thread; a socket of another one is
//! not found. Needs `CAP_NET_ADMIN` for `destroy` and, on kernels up to 6.12, to see TLS.
//!
//! Constants and layouts: `include/uapi/linux/{inet_diag,sock_diag,tls}.h`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket as Netlink, SocketAddr as NetlinkAddr};

/// Both addresses of a connection, as its local end sees them. IPv4 addresses mapped into IPv6 are
/// written as the IPv4 addresses they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    /// This end.
    pub local: SocketAddr,
    /// The other end; unspecified for a listening socket.
    pub remote: SocketAddr,
}

/// State of a TCP socket (`include/net/tcp_states.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are those of RFC 9293")]
pub enum State {
    Established = 1,
    SynSent,
    SynReceived,
    FinWait1,
    FinWait2,
    TimeWait,
    Close,
    CloseWait,
    LastAck,
    Listen,
    Closing,
    NewSynReceived,
}

/// A TCP socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpSocket {
    /// Its addresses.
    pub tuple: Tuple,
    /// Its state.
    pub state: State,
    /// Socket cookie (`SO_COOKIE`), unique until reboot.
    pub cookie: u64,
    /// Inode of its descriptor; 0 if no process has it any more.
    pub inode: u32,
    /// Owner.
    pub uid: u32,
    /// Index of the interface it is bound to, or 0.
    pub interface: u32,
    /// Upper layer protocol, if it has one.
    pub ulp: Option<Ulp>,
}

/// An upper layer protocol of a TCP socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ulp {
    /// Its name: "tls", "mptcp".
    pub name: String,
    /// What kernel TLS says about itself.
    pub tls: Option<Tls>,
}

/// Kernel TLS on a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tls {
    /// Protocol version: 0x0304 is TLS 1.3; `None` before there are keys.
    pub version: Option<u16>,
    /// `TLS_CIPHER_*`; `None` before there are keys.
    pub cipher: Option<u16>,
    /// What happens to data that is sent.
    pub send: Direction,
    /// What happens to data that is received.
    pub receive: Direction,
}

/// What kernel TLS does with one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Nothing: it has no keys.
    Plain,
    /// Records made by the processor.
    Software,
    /// Records made by the network card, or something this version does not know.
    Other(u16),
}

impl Tls {
    /// Whether both directions have keys.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.send != Direction::Plain && self.receive != Direction::Plain
    }
}

/// All TCP sockets, IPv4 and IPv6.
///
/// # Errors
/// The kernel's refusal; `ENOENT` if it has no `tcp_diag`. A kernel without IPv6 has no IPv6 sockets.
pub fn list() -> io::Result<Vec<TcpSocket>> {
    let mut sockets = dump(libc::AF_INET, ALL_STATES)?;
    match dump(libc::AF_INET6, ALL_STATES) {
        Ok(more) => sockets.extend(more),
        // tcp_diag answered for IPv4, so what is missing is IPv6.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        Err(error) => return Err(error),
    }
    Ok(sockets)
}

/// Ends one TCP socket at once: its owner gets `ECONNABORTED` from every call, blocked ones too,
/// and the other end a reset. `false` if there is no such socket (any more).
///
/// # Errors
/// The kernel's refusal: `EPERM` without `CAP_NET_ADMIN`, `EOPNOTSUPP` on a kernel without
/// `CONFIG_INET_DIAG_DESTROY`. `InvalidInput` if one address is IPv4 and the other IPv6.
pub fn destroy(tuple: Tuple, cookie: u64) -> io::Result<bool> {
    if destroy_on(0, tuple, cookie)? {
        return Ok(true);
    }
    // A socket that is bound to an interface (SO_BINDTODEVICE, or a link-local address) is found by that interface only.
    match list()?.into_iter().find(|socket| socket.cookie == cookie) {
        Some(bound) if bound.interface != 0 => destroy_on(bound.interface, bound.tuple, cookie),
        _ => Ok(false),
    }
}

/// The same for whatever connection has these addresses now. Never a listener: asked for addresses
/// without a cookie, the kernel would end the one that the connection came to, if it is gone itself.
///
/// # Errors
/// Those of [`list`] and [`destroy`].
pub fn destroy_connection(tuple: Tuple) -> io::Result<bool> {
    let is_it = |socket: &TcpSocket| socket.tuple == tuple && socket.state != State::Listen;
    match list()?.into_iter().find(is_it) {
        Some(socket) => destroy_on(socket.interface, tuple, socket.cookie),
        None => Ok(false),
    }
}

fn destroy_on(interface: u32, tuple: Tuple, cookie: u64) -> io::Result<bool> {
    let mut id = socket_id(tuple, cookie).ok_or(io::ErrorKind::InvalidInput)?;
    id[36..40].copy_from_slice(&interface.to_ne_bytes());
    let family = if tuple.local.ip().to_canonical().is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let request = request(
        SOCK_DESTROY,
        NLM_F_REQUEST | NLM_F_ACK,
        &body(family, 0, &id),
    );
    match exchange(&request) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether [`destroy`] can work here: asks for a list that is empty, and for the end of a socket that cannot be.
///
/// # Errors
/// Those of [`list`] and [`destroy`].
pub fn probe() -> io::Result<()> {
    dump(libc::AF_INET, 0)?;
    let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    destroy_on(
        0,
        Tuple {
            local: nowhere,
            remote: nowhere,
        },
        u64::MAX - 1,
    )
    .map(drop)
}

fn dump(family: libc::c_int, states: u32) -> io::Result<Vec<TcpSocket>> {
    exchange(&request(
        SOCK_DIAG_BY_FAMILY,
        NLM_F_REQUEST | NLM_F_DUMP,
        &body(family, states, &[0; SOCKET_ID]),
    ))
}

/// Sends a request and reads its whole answer.
fn exchange(request: &[u8]) -> io::Result<Vec<TcpSocket>> {
    let socket = Netlink::new(NETLINK_SOCK_DIAG)?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    socket.send(request, 0)?;
    let mut sockets = Vec::new();
    let mut buffer = vec![0; RECEIVE_BUFFER];
    loop {
        let length = socket.recv(&mut &mut buffer[..], 0)?;
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            let (message, next) = split_message(rest)?;
            rest = next;
            match message {
                Message::Socket(found) => sockets.push(*found),
                Message::End(0) => return Ok(sockets),
                Message::End(code) => return Err(io::Error::from_raw_os_error(-code)),
                Message::Other => {}
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Message {
    Socket(Box<TcpSocket>),
    /// The end of the answer, with 0 or a negative error number.
    End(i32),
    Other,
}

/// Takes one netlink message off the front.
fn split_message(bytes: &[u8]) -> io::Result<(Message, &[u8])> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "malformed sock_diag message");
    let length = u32_at(bytes, 0).ok_or_else(malformed)? as usize;
    let kind = u16_at(bytes, 4).ok_or_else(malformed)?;
    let payload = bytes.get(NETLINK_HEADER..length).ok_or_else(malformed)?;
    let next = bytes.get(align(length)..).unwrap_or_default();
    let message = match kind {
        // The kernel may leave the payload of NLMSG_DONE empty.
        NLMSG_DONE | NLMSG_ERROR => Message::End(u32_at(payload, 0).unwrap_or(0).cast_signed()),
        SOCK_DIAG_BY_FAMILY => {
            Message::Socket(Box::new(tcp_socket(payload).ok_or_else(malformed)?))
        }
        _ => Message::Other,
    };
    Ok((message, next))
}

/// A `struct inet_diag_msg` and the attributes behind it.
fn tcp_socket(payload: &[u8]) -> Option<TcpSocket> {
    let family = libc::c_int::from(*payload.first()?);
    let state = state(*payload.get(1)?)?;
    let port = |at| {
        Some(u16::from_be_bytes(
            payload.get(at..at + 2)?.try_into().ok()?,
        ))
    };
    let address = |at| {
        let bytes: [u8; 16] = payload.get(at..at + 16)?.try_into().ok()?;
        match family {
            libc::AF_INET => Some(IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]])),
            libc::AF_INET6 => Some(Ipv6Addr::from(bytes).to_canonical()),
            _ => None,
        }
    };
    let cookie = u64::from(u32_at(payload, 44)?) | u64::from(u32_at(payload, 48)?) << 32;
    let attributes = payload.get(INET_DIAG_MSG..)?;
    Some(TcpSocket {
        tuple: Tuple {
            local: SocketAddr::new(address(8)?, port(4)?),
            remote: SocketAddr::new(address(24)?, port(6)?),
        },
        state,
        cookie,
        interface: u32_at(payload, 40)?,
        uid: u32_at(payload, 64)?,
        inode: u32_at(payload, 68)?,
        ulp: find(attributes, INET_DIAG_ULP_INFO).and_then(ulp),
    })
}

fn state(number: u8) -> Option<State> {
    STATES.into_iter().find(|state| *state as u8 == number)
}

fn ulp(attributes: &[u8]) -> Option<Ulp> {
    let name = find(attributes, INET_ULP_INFO_NAME)?;
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    let tls = find(attributes, INET_ULP_INFO_TLS).map(|tls| {
        let number = |kind| find(tls, kind).and_then(|value| u16_at(value, 0));
        Tls {
            version: number(TLS_INFO_VERSION),
            cipher: number(TLS_INFO_CIPHER),
            send: direction(number(TLS_INFO_TXCONF)),
            receive: direction(number(TLS_INFO_RXCONF)),
        }
    });
    Some(Ulp {
        name: String::from_utf8_lossy(name).into_owned(),
        tls,
    })
}

fn direction(conf: Option<u16>) -> Direction {
    match conf {
        None | Some(TLS_CONF_BASE) => Direction::Plain,
        Some(TLS_CONF_SW) => Direction::Software,
        Some(other) => Direction::Other(other),
    }
}

/// The value of the first attribute of this kind.
fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        let kind = u16_at(attributes, 2)? & NLA_TYPE_MASK;
        let value = attributes.get(ATTRIBUTE_HEADER..length)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(align(length)..)?;
    }
}

/// A netlink message.
fn request(kind: u16, flags: u16, body: &[u8; INET_DIAG_REQ]) -> Vec<u8> {
    let length = (NETLINK_HEADER + INET_DIAG_REQ) as u32;
    let mut message = Vec::with_capacity(NETLINK_HEADER + INET_DIAG_REQ);
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    // Sequence number and port: one request per socket needs neither.
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(body);
    message
}

/// A `struct inet_diag_req_v2`.
fn body(family: libc::c_int, states: u32, id: &[u8; SOCKET_ID]) -> [u8; INET_DIAG_REQ] {
    let mut body = [0; INET_DIAG_REQ];
    body[0] = family as u8;
    body[1] = libc::IPPROTO_TCP as u8;
    // Only with INET_DIAG_INFO does the kernel add the upper layer protocol.
    body[2] = 1 << (INET_DIAG_INFO - 1);
    body[4..8].copy_from_slice(&states.to_ne_bytes());
    body[8..].copy_from_slice(id);
    body
}

/// A `struct inet_diag_sockid`; `None` if the addresses are of two families.
fn socket_id(tuple: Tuple, cookie: u64) -> Option<[u8; SOCKET_ID]> {
    let (local, remote) = (
        tuple.local.ip().to_canonical(),
        tuple.remote.ip().to_canonical(),
    );
    if local.is_ipv4() != remote.is_ipv4() {
        return None;
    }
    let mut id = [0; SOCKET_ID];
    id[0..2].copy_from_slice(&tuple.local.port().to_be_bytes());
    id[2..4].copy_from_slice(&tuple.remote.port().to_be_bytes());
    for (address, at) in [(local, 4), (remote, 20)] {
        match address {
            IpAddr::V4(v4) => id[at..at + 4].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => id[at..at + 16].copy_from_slice(&v6.octets()),
        }
    }
    id[40..44].copy_from_slice(&(cookie as u32).to_ne_bytes());
    id[44..48].copy_from_slice(&((cookie >> 32) as u32).to_ne_bytes());
    Some(id)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Messages and attributes start at multiples of four bytes.
const fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

const STATES: [State; 12] = [
    State::Established,
    State::SynSent,
    State::SynReceived,
    State::FinWait1,
    State::FinWait2,
    State::TimeWait,
    State::Close,
    State::CloseWait,
    State::LastAck,
    State::Listen,
    State::Closing,
    State::NewSynReceived,
];
/// A bit for each state; bit 0 is no state.
const ALL_STATES: u32 = (1 << (STATES.len() + 1)) - 2;

const NETLINK_HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
const INET_DIAG_REQ: usize = 56;
const INET_DIAG_MSG: usize = 72;
const SOCKET_ID: usize = 48;
/// The kernel fills at most 32 KiB of a dump at a time.
const RECEIVE_BUFFER: usize = 64 * 1024;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
/// Without the bits for nested and for big-endian.
const NLA_TYPE_MASK: u16 = 0x3fff;
const INET_DIAG_INFO: u8 = 2;
const INET_DIAG_ULP_INFO: u16 = 19;
const INET_ULP_INFO_NAME: u16 = 1;
const INET_ULP_INFO_TLS: u16 = 2;
const TLS_INFO_VERSION: u16 = 1;
const TLS_INFO_CIPHER: u16 = 2;
const TLS_INFO_TXCONF: u16 = 3;
const TLS_INFO_RXCONF: u16 = 4;
const TLS_CONF_BASE: u16 = 1;
const TLS_CONF_SW: u16 = 2;

#[cfg(test)]
mod tests;
