//! Packets and pcap files.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// What the packets of a file begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// An Ethernet header.
    Ethernet,
    /// The IP header, as on a WireGuard device.
    Ip,
}

/// A recording: packets with the time of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pcap {
    /// What each packet begins with.
    pub link: Link,
    /// Time since some start, and bytes.
    pub packets: Vec<(Duration, Vec<u8>)>,
}

const MAGIC: u32 = 0xa1b2_c3d4;
const HEADER: usize = 24;

impl Pcap {
    /// Reads a little-endian pcap file with microseconds, as the guest's recorder writes them.
    ///
    /// # Errors
    /// When it is something else or has been cut off.
    pub fn parse(file: &[u8]) -> Result<Self> {
        if word(file, 0)? != MAGIC {
            bail!("not a little-endian pcap file");
        }
        let link = match word(file, 20)? {
            1 => Link::Ethernet,
            101 => Link::Ip,
            other => bail!("link type {other}"),
        };
        let (mut packets, mut at) = (Vec::new(), HEADER);
        while at < file.len() {
            let time = Duration::new(word(file, at)?.into(), word(file, at + 4)? * 1000);
            let length = word(file, at + 8)? as usize;
            at += 16;
            packets.push((time, file.get(at..at + length).context("cut off")?.to_vec()));
            at += length;
        }
        Ok(Self { link, packets })
    }

    /// The file, for tcpdump and wireshark.
    pub fn to_bytes(&self) -> Vec<u8> {
        let link = match self.link {
            Link::Ethernet => 1,
            Link::Ip => 101,
        };
        let mut file: Vec<u8> = [MAGIC, 2 | 4 << 16, 0, 0, 1 << 20, link]
            .into_iter()
            .flat_map(u32::to_le_bytes)
            .collect();
        for (time, packet) in &self.packets {
            let length = packet.len() as u32;
            file.extend(
                [time.as_secs() as u32, time.subsec_micros(), length, length]
                    .into_iter()
                    .flat_map(u32::to_le_bytes),
            );
            file.extend(packet);
        }
        file
    }
}

fn word(file: &[u8], at: usize) -> Result<u32> {
    let bytes = file.get(at..at + 4).context("cut off")?;
    Ok(u32::from_le_bytes(bytes.try_into()?))
}

/// An IP packet taken apart as far as counting needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpPacket<'a> {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol of the payload; of a fragment that is not the first, one that has no ports here.
    pub transport: Transport<'a>,
}

/// The payload of an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport<'a> {
    /// A TCP segment.
    Tcp {
        /// Source and destination port.
        ports: (u16, u16),
        /// Sequence number of the first byte.
        sequence: u32,
        /// Whether it opens a connection.
        syn: bool,
        /// Its data.
        payload: &'a [u8],
    },
    /// A UDP datagram.
    Udp {
        /// Source and destination port.
        ports: (u16, u16),
        /// Its data.
        payload: &'a [u8],
    },
    /// ICMP of either version: echo, errors, neighbour discovery.
    Icmp,
    /// Anything else, fragments and malformed ones included.
    Other,
}

/// Whether these bytes are an IP packet from the first to the last.
fn is_bare_ip(packet: &[u8]) -> bool {
    let length = |at, header| half(packet, at).map(|n| usize::from(n) + header);
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => length(2, 0) == Some(packet.len()),
        Some(6) => length(4, 40) == Some(packet.len()),
        _ => false,
    }
}

impl<'a> IpPacket<'a> {
    /// Takes a packet apart; none when it is not IP.
    pub fn parse(link: Link, packet: &'a [u8]) -> Option<Self> {
        let ip = match link {
            Link::Ip => packet,
            Link::Ethernet => match packet.get(12..14)? {
                [0x08, 0x00] | [0x86, 0xdd] => &packet[14..],
                // What WireGuard has decrypted is handed to a workload without a link header.
                _ if is_bare_ip(packet) => packet,
                _ => return None,
            },
        };
        match ip.first()? >> 4 {
            4 => Self::v4(ip),
            6 => Self::v6(ip),
            _ => None,
        }
    }

    fn v4(ip: &'a [u8]) -> Option<Self> {
        let header = usize::from(ip[0] & 15) * 4;
        let address =
            |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?));
        let (source, destination) = (address(12)?, address(16)?);
        // Ethernet pads short frames; a length of zero means that offloading made it too long for the field.
        let length = match usize::from(half(ip, 2)?) {
            0 => ip.len(),
            length => length.min(ip.len()),
        };
        let fragment = half(ip, 6)? & 0x3fff != 0;
        let transport = match ip.get(header..length) {
            Some(payload) if !fragment => Transport::parse(ip[9], payload),
            _ => Transport::Other,
        };
        Some(Self {
            source,
            destination,
            transport,
        })
    }

    fn v6(ip: &'a [u8]) -> Option<Self> {
        let address = |at: usize| {
            Some(IpAddr::from(
                <[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?,
            ))
        };
        let (source, destination) = (address(8)?, address(24)?);
        let length = match usize::from(half(ip, 4)?) {
            0 => ip.len(),
            length => (40 + length).min(ip.len()),
        };
        let (mut next, mut rest) = (ip[6], ip.get(40..length)?);
        // Hop-by-hop, routing and destination options say their own length in units of eight bytes.
        while let (0 | 43 | 60, Some(&[following, units, ..])) =
            (next, rest.first_chunk::<2>().map(|chunk| chunk as &[u8]))
        {
            next = following;
            rest = rest.get((usize::from(units) + 1) * 8..).unwrap_or_default();
        }
        Some(Self {
            source,
            destination,
            transport: Transport::parse(next, rest),
        })
    }
}

impl<'a> Transport<'a> {
    fn parse(protocol: u8, packet: &'a [u8]) -> Self {
        let parsed = match protocol {
            6 => Self::tcp(packet),
            17 => Self::udp(packet),
            1 | 58 => Some(Self::Icmp),
            _ => None,
        };
        parsed.unwrap_or(Self::Other)
    }

    fn tcp(segment: &'a [u8]) -> Option<Self> {
        let header = usize::from(segment.get(12)? >> 4) * 4;
        Some(Self::Tcp {
            ports: (half(segment, 0)?, half(segment, 2)?),
            sequence: u32::from_be_bytes(segment.get(4..8)?.try_into().ok()?),
            syn: segment.get(13)? & 2 != 0,
            payload: segment.get(header..)?,
        })
    }

    fn udp(datagram: &'a [u8]) -> Option<Self> {
        Some(Self::Udp {
            ports: (half(datagram, 0)?, half(datagram, 2)?),
            payload: datagram.get(8..)?,
        })
    }
}

/// A big-endian number of two bytes.
fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_survives() {
        let packets = vec![
            (Duration::from_micros(1_000_002), vec![1, 2, 3]),
            (Duration::from_secs(2), vec![]),
        ];
        let pcap = Pcap {
            link: Link::Ip,
            packets,
        };
        assert_eq!(Pcap::parse(&pcap.to_bytes()).unwrap(), pcap);
        assert!(Pcap::parse(&pcap.to_bytes()[..45]).is_err());
    }

    #[test]
    fn padding_and_extension_headers_are_left_out() {
        let mut v4 = vec![
            0x45, 0, 0, 30, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ];
        v4.extend([0, 1, 0, 2, 0, 10, 0, 0, 7, 8]);
        v4.extend([0; 16]);
        let IpPacket {
            transport:
                Transport::Udp {
                    ports: (1, 2),
                    payload: [7, 8],
                },
            ..
        } = IpPacket::parse(Link::Ip, &v4).unwrap()
        else {
            panic!()
        };
        let mut v6 = vec![0x60, 0, 0, 0, 0, 18, 0, 64];
        v6.extend([0; 32]);
        v6.extend([17, 0, 0, 0, 0, 0, 0, 0]);
        v6.extend([0, 1, 0, 2, 0, 10, 0, 0, 7, 8]);
        let IpPacket {
            transport: Transport::Udp {
                payload: [7, 8], ..
            },
            ..
        } = IpPacket::parse(Link::Ip, &v6).unwrap()
        else {
            panic!()
        };
    }
}
