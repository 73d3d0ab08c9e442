//! Notices to and from other nodes (`underseal_abi::notice`): single packets that enter WireGuard by the device that
//! they are about. Programs answer them; who waits for an answer looks for it here.

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use ipnet::IpNet;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use underseal_abi::{NOTICE_BYTES, NOTICE_PROTOCOL, NoticeKind, notice};

use super::error::Error;
use super::link;
use crate::config::value::InterfaceName;
use crate::sys;

/// A WireGuard device that notices are sent by.
pub struct Post {
    /// Its name.
    pub interface: InterfaceName,
    index: u32,
    socket: OwnedFd,
    nonce: [u8; 4],
}

/// From where and to where a notice goes: an address of a network of this node, and one of the peer's.
pub type Pair = (IpNet, IpNet);

impl Post {
    /// Opens it.
    ///
    /// # Errors
    /// There is no such device, or the kernel refuses.
    pub fn open(interface: &InterfaceName) -> Result<Self, Error> {
        let index = link::named(interface.as_str())?.index;
        let fail = |source| Error::new("open a packet socket on", interface.as_str(), source);
        let mut nonce = [0; 4];
        getrandom::fill(&mut nonce).map_err(|error| fail(io::Error::other(error)))?;
        Ok(Self {
            interface: interface.clone(),
            index,
            socket: sys::packet_socket(index, NOTICE_PROTOCOL).map_err(fail)?,
            nonce,
        })
    }

    /// Sends a notice.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn send(&self, kind: NoticeKind, (own, theirs): Pair) -> Result<(), Error> {
        let Some(packet) = packet(own.network(), theirs.network(), notice(kind, self.nonce)) else {
            return Ok(());
        };
        sys::send_packet(self.socket.as_fd(), self.index, &packet)
            .map_err(|source| Error::new("send by", self.interface.as_str(), source))
    }

    /// The answers that have come, as pairs of addresses: where they came from, where they went.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn answers(&self) -> Result<Vec<(IpAddr, IpAddr)>, Error> {
        let mut answers = Vec::new();
        let mut buffer = [0; 128];
        loop {
            match nix::unistd::read(&self.socket, &mut buffer) {
                Ok(length) => answers.extend(self.answer(&buffer[..length])),
                Err(Errno::EAGAIN) => return Ok(answers),
                Err(Errno::EINTR) => {}
                Err(error) => {
                    return Err(Error::new("receive from", self.interface.as_str(), error));
                }
            }
        }
    }

    fn answer(&self, packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
        let (source, destination, payload) = parts(packet)?;
        (payload == notice(NoticeKind::Answer, self.nonce)).then_some((source, destination))
    }
}

/// Waits until something comes by one of these devices, until `end` at most.
///
/// # Errors
/// The kernel's refusal.
pub fn wait(posts: &[Post], end: Instant) -> Result<(), Error> {
    let mut fds: Vec<PollFd<'_>> = posts
        .iter()
        .map(|post| PollFd::new(post.socket.as_fd(), PollFlags::POLLIN))
        .collect();
    // Rounded up: else the last millisecond is spent in turns of no length.
    let left = end.saturating_duration_since(Instant::now()).as_millis() + 1;
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(Error::new("wait for", "answers of other nodes", error)),
    }
}

/// An IP packet; `None` if the addresses are not of one family.
fn packet(source: IpAddr, destination: IpAddr, payload: [u8; NOTICE_BYTES]) -> Option<Vec<u8>> {
    let mut packet = Vec::with_capacity(40 + NOTICE_BYTES);
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let length = 20 + NOTICE_BYTES as u16;
            packet.extend([0x45, 0]);
            packet.extend(length.to_be_bytes());
            packet.extend([0, 0, 0, 0, HOPS, NOTICE_PROTOCOL, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            let sum = checksum(&packet);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend((NOTICE_BYTES as u16).to_be_bytes());
            packet.extend([NOTICE_PROTOCOL, HOPS]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
        }
        _ => return None,
    }
    packet.extend(payload);
    Some(packet)
}

/// Source, destination and payload of a packet as [`packet`] makes them.
fn parts(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let v4 = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(octets.into())
    };
    let v6 = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
        Some(Ipv6Addr::from(octets).into())
    };
    match packet.first()? {
        0x45 => Some((v4(12)?, v4(16)?, packet.get(20..)?)),
        first if first >> 4 == 6 => Some((v6(8)?, v6(24)?, packet.get(40..)?)),
        _ => None,
    }
}

/// RFC 1071.
fn checksum(header: &[u8]) -> u16 {
    let words = header.chunks(2).map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        [high] => u32::from(*high) << 8,
        _ => 0,
    });
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// Hop limit: it goes over one hop.
const HOPS: u8 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_read_back() {
        let payload = notice(NoticeKind::Use, [1, 2, 3, 4]);
        for (source, destination) in [("10.1.0.0", "10.2.0.0"), ("fd00:1::", "fd00:2::")] {
            let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
            let packet = packet(source, destination, payload).unwrap();
            assert_eq!(parts(&packet), Some((source, destination, &payload[..])));
        }
        let mixed = packet(
            "10.1.0.0".parse().unwrap(),
            "fd00:2::".parse().unwrap(),
            payload,
        );
        assert_eq!(mixed, None);
    }

    /// What a receiver does: the sum over a header with its checksum is 0. It stays so when addresses change places.
    #[test]
    fn the_checksum_holds_for_the_answer_too() {
        let addresses = [
            "10.1.0.0".parse().unwrap(),
            "192.168.255.255".parse().unwrap(),
        ];
        let payload = notice(NoticeKind::Ask, [0; 4]);
        let mut packet = packet(addresses[0], addresses[1], payload).unwrap();
        assert_eq!(checksum(&packet[..20]), 0);
        packet[12..20].rotate_left(4);
        assert_eq!(checksum(&packet[..20]), 0);
    }
}
