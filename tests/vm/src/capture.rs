//! What a recording shows: how much of the traffic of workloads is TLS records, WireGuard, or neither.
//!
//! TCP streams are put together and walked record by record, so that bytes which merely look like a record in one
//! segment are not taken for one, and a segment in which plaintext follows a record counts as plaintext.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, bail};
use memchr::memmem;
use underseal_vm_guest::{Answer, Call};

use crate::pcap::{IpPacket, Pcap, Transport};
use crate::stream::Stream;
use crate::vm::Vm;

/// A recording that runs in a guest.
#[derive(Debug)]
pub struct Recording<'vm> {
    vm: &'vm Vm,
    number: u64,
}

impl<'vm> Recording<'vm> {
    pub(crate) fn new(vm: &'vm Vm, number: u64) -> Self {
        Self { vm, number }
    }

    /// Ends it, after everything that has passed so far, and fetches it.
    ///
    /// # Errors
    /// When the kernel had to drop packets from it: such a recording would prove nothing.
    pub fn stop(self) -> Result<Pcap> {
        let answer = self.vm.call(
            Call::CaptureStop {
                capture: self.number,
            },
            std::time::Duration::from_secs(60),
        )?;
        let Answer::Captured {
            packets,
            dropped,
            path,
        } = answer
        else {
            bail!("not an answer to CaptureStop")
        };
        if dropped > 0 {
            bail!("the recording lost {dropped} of {packets} packets");
        }
        let pcap = Pcap::parse(&self.vm.get(&path)?)?;
        self.vm.sh(&format!("rm {path}"))?;
        Ok(pcap)
    }
}

/// What is looked for in a recording.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// Networks of workloads; a packet from or to one of them is their traffic.
    pub networks: &'a [(IpAddr, u8)],
    /// UDP port of WireGuard.
    pub wireguard_port: u16,
    /// Byte strings that only plaintext contains.
    pub markers: &'a [&'a [u8]],
}

/// What a recording shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathCount {
    /// TCP connections of workloads, each direction one.
    pub streams: u64,
    /// TLS 1.3 records between workloads.
    pub tls_records: u64,
    /// Bytes of these records, headers included.
    pub tls_bytes: u64,
    /// TCP segments between workloads of whose payload at least one byte is in no TLS record.
    pub plaintext_segments: u64,
    /// Bytes of workloads' TCP payload in no TLS record.
    pub plaintext_bytes: u64,
    /// Bytes missing in the middle of TCP streams: above zero, the recording has holes.
    pub missing_bytes: u64,
    /// WireGuard packets of any type.
    pub wireguard_packets: u64,
    /// WireGuard packets with data in them (type 4, longer than a keepalive).
    pub wireguard_data_packets: u64,
    /// ICMP of workloads, which no mode encrypts inside a node.
    pub icmp_packets: u64,
    /// Packets of workloads that are neither TCP nor ICMP: UDP, fragments, tunnels...
    pub other_packets: u64,
    /// How often a marker was found, in TCP streams put together and in all other packets.
    pub marker_hits: u64,
}

impl PathCount {
    /// Whether anything of workloads could be read: plaintext, a marker, other packets (ICMP is not counted).
    pub fn is_readable(&self) -> bool {
        self.plaintext_segments + self.plaintext_bytes + self.marker_hits + self.other_packets > 0
    }
}

/// Counts what `pcap` shows of the traffic asked for.
#[must_use]
pub fn count(pcap: &Pcap, question: &Question<'_>) -> PathCount {
    let mut count = PathCount::default();
    let mut open: HashMap<(SocketAddr, SocketAddr), Stream> = HashMap::new();
    for (_, packet) in &pcap.packets {
        let parsed = IpPacket::parse(pcap.link, packet);
        if let Some(IpPacket {
            source,
            destination,
            transport:
                Transport::Tcp {
                    ports,
                    sequence,
                    syn,
                    payload,
                },
        }) = parsed
        {
            if !question.concerns(source, destination) {
                continue;
            }
            let key = (
                SocketAddr::new(source, ports.0),
                SocketAddr::new(destination, ports.1),
            );
            // The same ports again may be a new connection; its first number tells.
            if syn
                && open
                    .get(&key)
                    .is_some_and(|stream| !stream.began_at(sequence))
            {
                finish(open.remove(&key), &mut count, question);
            }
            open.entry(key).or_default().add(sequence, syn, payload);
            continue;
        }
        count.marker_hits += hits(packet, question.markers);
        let Some(IpPacket {
            source,
            destination,
            transport,
        }) = parsed
        else {
            continue;
        };
        match transport {
            Transport::Udp { ports, payload } if is_wireguard(ports, payload, question) => {
                count.wireguard_packets += 1;
                // Header 16 bytes and tag 16 bytes, and nothing else, is a keepalive.
                count.wireguard_data_packets += u64::from(payload[0] == 4 && payload.len() > 32);
            }
            _ if !question.concerns(source, destination) => {}
            Transport::Icmp => count.icmp_packets += 1,
            _ => count.other_packets += 1,
        }
    }
    for stream in open.into_values() {
        finish(Some(stream), &mut count, question);
    }
    count
}

fn finish(stream: Option<Stream>, count: &mut PathCount, question: &Question<'_>) {
    let Some(stream) = stream else { return };
    let walked = stream.walk();
    count.streams += 1;
    count.tls_records += walked.records;
    count.tls_bytes += walked.record_bytes;
    count.plaintext_segments += walked.plaintext_segments;
    count.plaintext_bytes += walked.plaintext_bytes;
    count.missing_bytes += walked.missing_bytes;
    count.marker_hits += walked
        .pieces
        .iter()
        .map(|piece| hits(piece, question.markers))
        .sum::<u64>();
}

/// Every WireGuard message begins with its type, 1 to 4, and three zeroes.
fn is_wireguard(ports: (u16, u16), payload: &[u8], question: &Question<'_>) -> bool {
    (ports.0 == question.wireguard_port || ports.1 == question.wireguard_port)
        && matches!(payload, [1..=4, 0, 0, 0, ..])
}

fn hits(bytes: &[u8], markers: &[&[u8]]) -> u64 {
    let count = |marker: &&[u8]| memmem::find_iter(bytes, marker).count() as u64;
    markers
        .iter()
        .filter(|marker| !marker.is_empty())
        .map(count)
        .sum()
}

impl Question<'_> {
    fn concerns(&self, source: IpAddr, destination: IpAddr) -> bool {
        self.networks
            .iter()
            .any(|&network| contains(network, source) || contains(network, destination))
    }
}

fn contains((network, length): (IpAddr, u8), address: IpAddr) -> bool {
    let same =
        |a: u128, b: u128, bits: u8| length == 0 || (a ^ b) >> (bits - length.min(bits)) == 0;
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            same(network.to_bits().into(), address.to_bits().into(), 32)
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            same(network.to_bits(), address.to_bits(), 128)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;
    use crate::pcap::Link;

    const SHOP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
    const CART: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 11);
    const UPLINKS: (Ipv4Addr, Ipv4Addr) =
        (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));

    /// An Ethernet frame with IPv4.
    fn v4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0]);
        frame.extend((20 + payload.len() as u16).to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
        frame.extend(source.octets());
        frame.extend(destination.octets());
        frame.extend(payload);
        frame
    }

    /// The same packet translated to IPv6 (`fd00:1::` and the last byte), without Ethernet.
    fn v6(frame: &[u8]) -> Vec<u8> {
        let (ip, payload) = (&frame[14..34], &frame[34..]);
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend((payload.len() as u16).to_be_bytes());
        packet.extend([ip[9], 64]);
        for last in [ip[15], ip[19]] {
            packet.extend([0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
        packet.extend(payload);
        packet
    }

    fn tcp(ports: (u16, u16), sequence: u32, syn: bool, payload: &[u8]) -> Vec<u8> {
        let mut segment = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
        segment.extend(sequence.to_be_bytes());
        segment.extend([
            0,
            0,
            0,
            0,
            0x50,
            if syn { 2 } else { 0x10 },
            1,
            0,
            0,
            0,
            0,
            0,
        ]);
        segment.extend(payload);
        segment
    }

    fn udp(ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
        let mut datagram = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
        datagram.extend((8 + payload.len() as u16).to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(payload);
        datagram
    }

    fn record(length: u8) -> Vec<u8> {
        let mut record = vec![0x17, 3, 3, 0, length];
        record.resize(5 + usize::from(length), 0x55);
        record
    }

    fn counted(link: Link, packets: Vec<Vec<u8>>) -> PathCount {
        let packets = packets
            .into_iter()
            .map(|packet| (Duration::ZERO, packet))
            .collect();
        let networks = [
            (IpAddr::from([10, 1, 0, 0]), 24),
            ("fd00:1::".parse().unwrap(), 64),
        ];
        let question = Question {
            networks: &networks,
            wireguard_port: 51871,
            markers: &[b"secret"],
        };
        count(&Pcap { link, packets }, &question)
    }

    #[test]
    fn a_sealed_connection() {
        let to_cart = |segment: Vec<u8>| v4(SHOP, CART, 6, &segment);
        let frames = vec![
            to_cart(tcp((4000, 80), 7, true, &[])),
            v4(CART, SHOP, 6, &tcp((80, 4000), 9, true, &[])),
            to_cart(tcp((4000, 80), 8, false, &record(40))),
            v4(
                CART,
                SHOP,
                6,
                &tcp((80, 4000), 10, false, &record(20)[..10]),
            ),
            v4(
                CART,
                SHOP,
                6,
                &tcp((80, 4000), 20, false, &record(20)[10..]),
            ),
        ];
        let expected = PathCount {
            streams: 2,
            tls_records: 2,
            tls_bytes: 70,
            ..PathCount::default()
        };
        let translated = frames.iter().map(|frame| v6(frame)).collect();
        assert_eq!(counted(Link::Ethernet, frames), expected);
        assert_eq!(counted(Link::Ip, translated), expected);
        assert!(!expected.is_readable());
    }

    #[test]
    fn plaintext_cut_through_a_marker() {
        let frames = vec![
            v4(SHOP, CART, 6, &tcp((4000, 80), 8, false, b"a sec")),
            v4(SHOP, CART, 6, &tcp((4000, 80), 13, false, b"ret")),
        ];
        let count = counted(Link::Ethernet, frames);
        let found = (
            count.plaintext_segments,
            count.plaintext_bytes,
            count.marker_hits,
        );
        assert_eq!(found, (2, 8, 1));
        assert!(count.is_readable());
    }

    #[test]
    fn the_same_ports_again_are_another_connection() {
        let frames = vec![
            v4(SHOP, CART, 6, &tcp((4000, 80), 7, true, &[])),
            v4(SHOP, CART, 6, &tcp((4000, 80), 8, false, &record(40)[..10])),
            v4(SHOP, CART, 6, &tcp((4000, 80), 500, true, &[])),
            v4(SHOP, CART, 6, &tcp((4000, 80), 501, false, &record(17))),
        ];
        let count = counted(Link::Ethernet, frames);
        assert_eq!(
            (count.streams, count.tls_records, count.missing_bytes),
            (2, 2, 0)
        );
    }

    #[test]
    fn wireguard_and_what_passes_beside_it() {
        let (a, b) = UPLINKS;
        let wireguard = |kind: u8, length: usize| {
            let mut message = vec![kind, 0, 0, 0];
            message.resize(length, 1);
            v4(a, b, 17, &udp((51871, 51871), &message))
        };
        let frames = vec![
            wireguard(1, 148),
            wireguard(2, 92),
            wireguard(4, 32),
            wireguard(4, 128),
            // Not WireGuard, though the port says so; and not of a workload.
            v4(a, b, 17, &udp((51871, 51871), b"secret")),
            v4(a, b, 6, &tcp((1, 2), 0, false, b"ssh of the node")),
            // Of workloads: what no path may carry in the clear.
            v4(
                SHOP,
                Ipv4Addr::new(10, 2, 0, 10),
                17,
                &udp((5, 53), b"query"),
            ),
            v4(SHOP, CART, 1, &[8, 0, 0, 0]),
        ];
        let expected = PathCount {
            wireguard_packets: 4,
            wireguard_data_packets: 1,
            icmp_packets: 1,
            other_packets: 1,
            marker_hits: 1,
            ..PathCount::default()
        };
        assert_eq!(counted(Link::Ethernet, frames), expected);
    }
}
