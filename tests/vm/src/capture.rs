//! What a recording shows: how much of the traffic of workloads is TLS records, WireGuard, or neither.
//!
//! TCP streams are put together and walked record by record, so that bytes which merely look like a record in one
//! segment are not taken for one, and a segment in which plaintext follows a record counts as plaintext.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, bail};
use underseal_vm_guest::{Answer, Call};

use crate::pcap::{IpPacket, Pcap, Transport};
use crate::stream::Stream;
use crate::vm::Vm;

/// A recording that runs in a guest.
#[derive(Debug)]
pub struct Recording<'vm> {
    vm: &'vm Vm,
    number: u64,
    path: String,
}

impl<'vm> Recording<'vm> {
    pub(crate) fn new(vm: &'vm Vm, number: u64, path: String) -> Self {
        Self { vm, number, path }
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
        let Answer::Captured { packets, dropped } = answer else {
            bail!("not an answer to CaptureStop")
        };
        if dropped > 0 {
            bail!("the recording lost {dropped} of {packets} packets");
        }
        let pcap = Pcap::parse(&self.vm.get(&self.path)?)?;
        self.vm.sh(&format!("rm {}", self.path))?;
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
    let count = |marker: &&[u8]| {
        bytes
            .windows(marker.len())
            .filter(|window| window == marker)
            .count() as u64
    };
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
