//! Reading packets. Offsets are relative to the network header unless a name says otherwise.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{
    bindings::{__sk_buff, bpf_hdr_start_off::BPF_HDR_START_NET, bpf_sock},
    helpers::generated::{
        bpf_redirect, bpf_redirect_peer, bpf_sk_fullsock, bpf_skb_change_type, bpf_skb_load_bytes,
        bpf_skb_load_bytes_relative,
    },
};
use underseal_abi::{Segment, ip_key};

use crate::sys::Sock;

const ETH_P_IP: u32 = 0x0800;
const ETH_P_ARP: u32 = 0x0806;
const ETH_P_IPV6: u32 = 0x86dd;
const IPPROTO_HOPOPTS: u8 = 0;
/// TCP.
pub const IPPROTO_TCP: u8 = 6;
const IPPROTO_ROUTING: u8 = 43;
const IPPROTO_FRAGMENT: u8 = 44;
/// ICMP.
pub const IPPROTO_ICMP: u8 = 1;
/// IGMP.
pub const IPPROTO_IGMP: u8 = 2;
/// ICMPv6.
pub const IPPROTO_ICMPV6: u8 = 58;
const IPPROTO_DSTOPTS: u8 = 60;
const PACKET_HOST: u32 = 0;
const FIN: u8 = 1;

/// A packet that a program was given.
#[derive(Clone, Copy)]
pub struct Packet(pub *mut __sk_buff);

/// The network header of a packet.
#[derive(Clone, Copy)]
pub struct Ip {
    /// Source address, `ip_key` form.
    pub source: [u8; 16],
    /// Destination address, `ip_key` form.
    pub destination: [u8; 16],
    /// Transport protocol (of a fragment too).
    pub protocol: u8,
    /// Offset of the transport header.
    pub transport: u32,
}

/// A TCP segment.
#[derive(Clone, Copy)]
pub struct Tcp {
    /// Sequence number and length of the payload.
    pub segment: Segment,
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Offset of the payload.
    pub payload: u32,
    /// Whether the FIN flag is set.
    pub fin: bool,
}

macro_rules! field {
    ($ctx:expr, $($member:ident).+) => {
        // SAFETY: a member of this program's own context; the verifier checks the access.
        unsafe { read_volatile(addr_of!((*$ctx).$($member).+)) }
    };
}

impl Packet {
    /// `N` bytes at `offset`; `None` beyond the end.
    #[inline(always)]
    pub fn bytes<const N: usize>(self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = [0u8; N];
        // SAFETY: the helper writes exactly N bytes or fails.
        let failed = unsafe {
            bpf_skb_load_bytes_relative(
                self.0.cast(),
                offset,
                bytes.as_mut_ptr().cast(),
                N as u32,
                BPF_HDR_START_NET,
            )
        };
        if failed == 0 { Some(bytes) } else { None }
    }

    /// `N` bytes at `offset` from the start of the buffer, in page fragments too (where payload is, and where
    /// reads relative to a header do not reach: net/core/filter.c, `bpf_skb_load_bytes_relative`).
    #[inline(always)]
    pub fn payload<const N: usize>(self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = [0u8; N];
        // SAFETY: the helper writes exactly N bytes or fails.
        let failed = unsafe {
            bpf_skb_load_bytes(self.0.cast(), offset, bytes.as_mut_ptr().cast(), N as u32)
        };
        if failed == 0 { Some(bytes) } else { None }
    }

    /// Bytes of the packet as the device counts them.
    #[inline(always)]
    pub fn len(self) -> u32 {
        field!(self.0, len)
    }

    /// Interface the packet is on.
    #[inline(always)]
    pub fn ifindex(self) -> u32 {
        field!(self.0, ifindex)
    }

    /// Whether this is an IP packet at all; ARP for one is not.
    #[inline(always)]
    pub fn is_ip(self) -> bool {
        matches!(
            u16::from_be(field!(self.0, protocol) as u16).into(),
            ETH_P_IP | ETH_P_IPV6
        )
    }

    /// Whether this is ARP.
    #[inline(always)]
    pub fn is_arp(self) -> bool {
        u32::from(u16::from_be(field!(self.0, protocol) as u16)) == ETH_P_ARP
    }

    /// The network header; `None` if the packet is not IP or too short.
    #[inline(always)]
    pub fn ip(self) -> Option<Ip> {
        match u16::from_be(field!(self.0, protocol) as u16).into() {
            ETH_P_IP => self.ip4(),
            ETH_P_IPV6 => self.ip6(),
            _ => None,
        }
    }

    #[inline(always)]
    fn ip4(self) -> Option<Ip> {
        let h = self.bytes::<20>(0)?;
        Some(Ip {
            source: ip_key([h[12], h[13], h[14], h[15]]),
            destination: ip_key([h[16], h[17], h[18], h[19]]),
            protocol: h[9],
            transport: u32::from(h[0] & 15) * 4,
        })
    }

    /// Steps over up to six extension headers, and none behind that of a fragment. A longer chain
    /// keeps the protocol of the last one seen, which no rule allows.
    #[inline(always)]
    fn ip6(self) -> Option<Ip> {
        let [protocol] = self.bytes::<1>(6)?;
        let mut ip = Ip {
            source: self.bytes(8)?,
            destination: self.bytes(24)?,
            protocol,
            transport: 40,
        };
        let mut headers = 0;
        while headers < 6 {
            match ip.protocol {
                IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_DSTOPTS => {
                    let [next, length] = self.bytes::<2>(ip.transport)?;
                    ip.protocol = next;
                    ip.transport += (u32::from(length) + 1) * 8;
                }
                // All that every fragment of a packet says; what follows is in the first one alone,
                // and in the others anything.
                IPPROTO_FRAGMENT => {
                    let [next] = self.bytes::<1>(ip.transport)?;
                    ip.protocol = next;
                    ip.transport += 8;
                    break;
                }
                _ => break,
            }
            headers += 1;
        }
        Some(ip)
    }

    /// The TCP header behind `ip`. The payload runs to the end of the buffer: on the paths where
    /// this is called the network header is the buffer's start (cgroup hooks).
    #[inline(always)]
    pub fn tcp(self, ip: &Ip) -> Option<Tcp> {
        if ip.protocol != IPPROTO_TCP {
            return None;
        }
        let h = self.bytes::<14>(ip.transport)?;
        let payload = ip.transport + u32::from(h[12] >> 4) * 4;
        Some(Tcp {
            segment: Segment {
                seq: u32::from_be_bytes([h[4], h[5], h[6], h[7]]),
                len: self.len().saturating_sub(payload),
            },
            source: u16::from_be_bytes([h[0], h[1]]),
            destination: u16::from_be_bytes([h[2], h[3]]),
            payload,
            fin: h[13] & FIN != 0,
        })
    }

    /// The full TCP socket that sends or receives this packet, if there is one.
    #[inline(always)]
    pub fn tcp_sock(self) -> Option<Sock> {
        let sk: *mut bpf_sock = field!(self.0, __bindgen_anon_2.sk);
        if sk.is_null() {
            return None;
        }
        // SAFETY: not null.
        let full = unsafe { bpf_sk_fullsock(sk) };
        if full.is_null() || field!(full, protocol) != u32::from(IPPROTO_TCP) {
            return None;
        }
        Some(Sock(full.cast()))
    }

    /// Hands the packet to the WireGuard device; it drops it if that is down or gone.
    #[inline(always)]
    pub fn redirect(self, ifindex: u32) -> i32 {
        // SAFETY: plain integers.
        unsafe { bpf_redirect(ifindex, 0) as i32 }
    }

    /// Hands the packet to the other end of the veth `ifindex`, in the workload's namespace.
    #[inline(always)]
    pub fn redirect_peer(self, ifindex: u32) -> i32 {
        // The packet may carry a neighbour's link-layer address (a bridge): the workload would
        // take it for somebody else's.
        // SAFETY: this program's own context, plain integers.
        unsafe {
            bpf_skb_change_type(self.0, PACKET_HOST);
            bpf_redirect_peer(ifindex, 0) as i32
        }
    }
}
