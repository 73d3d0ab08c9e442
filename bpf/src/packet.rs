//! Reading packets. Offsets are relative to the network header unless a name says otherwise.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, bpf_hdr_start_off::BPF_HDR_START_NET, bpf_sock},
    helpers::generated::{
        bpf_redirect, bpf_redirect_peer, bpf_sk_fullsock, bpf_skb_change_type, bpf_skb_load_bytes,
        bpf_skb_load_bytes_relative, bpf_skb_store_bytes,
    },
};
use underseal_abi::{Segment, ip_key};

use crate::{apart, sys::Sock};

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
/// UDP.
const IPPROTO_UDP: u8 = 17;
/// SCTP.
const IPPROTO_SCTP: u8 = 132;
const PACKET_HOST: u32 = 0;
/// The longest link-layer header of interfaces that are covered (Ethernet), bytes.
const LINK_HEADER: u32 = 14;
const FIN: u8 = 1;
const SYN: u8 = 1 << 1;
const RST: u8 = 1 << 2;
const ACK: u8 = 1 << 4;
const RST_ACK: u8 = RST | ACK;
/// `ip_hdr(skb)->frag_off`: more fragments, and where this one begins.
const IP_MF: u16 = 0x2000;
const IP_OFFSET: u16 = 0x1fff;
/// `struct frag_hdr`: the same of IPv6.
const IP6_MF: u16 = 1;
const IP6_OFFSET: u16 = 0xfff8;
/// The hop limit of neighbour discovery: proof that no router has passed it on (RFC 4861 §11.2).
const ON_LINK: u8 = 255;

/// A packet that a program was given.
#[derive(Clone, Copy)]
pub struct Packet(pub *mut __sk_buff);

/// The network header of a packet. Without padding, like what follows, since functions of `apart` get its address.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Ip {
    /// Source address, `ip_key` form.
    pub source: [u8; 16],
    /// Destination address, `ip_key` form.
    pub destination: [u8; 16],
    /// Offset of the transport header.
    pub transport: u32,
    /// Which packet in fragments it is part of.
    pub ident: u32,
    /// Transport protocol (of a fragment too).
    pub protocol: u8,
    /// Hop limit or TTL.
    pub hops: u8,
    /// Which part of a packet in fragments it is: 0 none, 1 the first, 2 a later one.
    pub fragment: u8,
    /// Zero.
    pub reserved: u8,
}

const _: () = assert!(size_of::<Ip>() == 44 && size_of::<Talk>() == 6);

impl Ip {
    /// Whether it is the first part of a packet in fragments.
    #[inline(always)]
    pub fn is_first_fragment(&self) -> bool {
        self.fragment == 1
    }
}

/// What network policies look at behind the network header.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Talk {
    /// Source port; of an ICMP echo, the identifier; else 0.
    pub source: u16,
    /// Destination port, likewise.
    pub destination: u16,
    /// TCP, UDP and so on; ICMPv6 is ICMP here.
    pub protocol: u8,
    /// What it is.
    pub kind: Kind,
}

/// What a packet is in a conversation.
#[repr(u8)]
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    /// The first segment of a TCP connection.
    Connects,
    /// A TCP reset without data.
    Resets,
    /// Another TCP segment.
    Continues,
    /// A packet of a protocol without connections, or of one whose connections are not known here.
    Datagram,
    /// An ICMP error, which quotes the packet that it is about.
    Quotes,
    /// Neighbour discovery.
    Link,
    /// A fragment that has no transport header.
    #[default]
    Later,
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

/// The two ports that the header of TCP, UDP and SCTP begins with.
#[inline(always)]
pub fn ports(h: [u8; 4]) -> (u16, u16) {
    (
        u16::from_be_bytes([h[0], h[1]]),
        u16::from_be_bytes([h[2], h[3]]),
    )
}

/// [`Ip::fragment`], from whether more come and where this one begins.
#[inline(always)]
fn fragment(more: u16, offset: u16) -> u8 {
    if offset != 0 { 2 } else { u8::from(more != 0) }
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

    /// Reads `N` bytes at `offset`; false beyond the end.
    #[inline(always)]
    fn load<const N: usize>(self, offset: u32, to: &mut [u8; N]) -> bool {
        // SAFETY: the helper writes exactly N bytes or zeros.
        unsafe {
            bpf_skb_load_bytes_relative(
                self.0.cast(),
                offset,
                to.as_mut_ptr().cast(),
                N as u32,
                BPF_HDR_START_NET,
            ) == 0
        }
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
        let mut ip = Ip::default();
        apart::read_ip(self, &mut ip).then_some(ip)
    }

    /// Reads the network header; false if the packet is not IP or too short. Called through `apart`, like `talk` and
    /// `quoted`, and so with a stack of its own: all functions of a program share 512 bytes.
    #[inline(always)]
    pub fn read_ip(self, ip: &mut Ip) -> bool {
        match u16::from_be(field!(self.0, protocol) as u16).into() {
            ETH_P_IP => self.read_ip4(0, ip),
            ETH_P_IPV6 => self.read_ip6(ip),
            _ => false,
        }
    }

    /// Reads an IPv4 header at `offset`.
    #[inline(always)]
    fn read_ip4(self, offset: u32, ip: &mut Ip) -> bool {
        let mut h = [0u8; 20];
        if !self.load(offset, &mut h) {
            return false;
        }
        let field = u16::from_be_bytes([h[6], h[7]]);
        ip.source = ip_key([h[12], h[13], h[14], h[15]]);
        ip.destination = ip_key([h[16], h[17], h[18], h[19]]);
        ip.protocol = h[9];
        ip.transport = offset + u32::from(h[0] & 15) * 4;
        ip.hops = h[8];
        ip.fragment = fragment(field & IP_MF, field & IP_OFFSET);
        ip.ident = u16::from_be_bytes([h[4], h[5]]).into();
        true
    }

    /// Steps over up to six extension headers, and none behind that of a fragment. A longer chain
    /// keeps the protocol of the last one seen, which no rule allows.
    #[inline(always)]
    fn read_ip6(self, ip: &mut Ip) -> bool {
        let mut h = [0u8; 8];
        if !self.load(0, &mut h)
            || !self.load(8, &mut ip.source)
            || !self.load(24, &mut ip.destination)
        {
            return false;
        }
        ip.protocol = h[6];
        ip.hops = h[7];
        ip.transport = 40;
        ip.fragment = 0;
        ip.ident = 0;
        let mut headers = 0;
        while headers < 6 {
            match ip.protocol {
                IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_DSTOPTS => {
                    if !self.load(ip.transport, &mut h) {
                        return false;
                    }
                    ip.protocol = h[0];
                    ip.transport += (u32::from(h[1]) + 1) * 8;
                }
                // All that every fragment of a packet says; what follows is in the first one alone,
                // and in the others anything.
                IPPROTO_FRAGMENT => {
                    if !self.load(ip.transport, &mut h) {
                        return false;
                    }
                    let field = u16::from_be_bytes([h[2], h[3]]);
                    ip.protocol = h[0];
                    ip.fragment = fragment(field & IP6_MF, field & IP6_OFFSET);
                    ip.ident = u32::from_be_bytes([h[4], h[5], h[6], h[7]]);
                    ip.transport += 8;
                    break;
                }
                _ => break,
            }
            headers += 1;
        }
        true
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

    /// Reads what is behind `ip`, for policies; false if its header is cut off.
    #[inline(always)]
    pub fn talk(self, ip: &Ip, talk: &mut Talk) -> bool {
        match self.parse_talk(ip) {
            Some(read) => {
                *talk = read;
                true
            }
            None => false,
        }
    }

    #[inline(always)]
    fn parse_talk(self, ip: &Ip) -> Option<Talk> {
        let protocol = match ip.protocol {
            IPPROTO_ICMPV6 => IPPROTO_ICMP,
            protocol => protocol,
        };
        let mut talk = Talk {
            protocol,
            source: 0,
            destination: 0,
            kind: Kind::Datagram,
        };
        if ip.fragment > 1 {
            talk.kind = Kind::Later;
            return Some(talk);
        }
        match protocol {
            IPPROTO_TCP => {
                let h = self.bytes::<14>(ip.transport)?;
                let header = u32::from(h[12] >> 4) * 4;
                let is_bare = self.len() <= LINK_HEADER + ip.transport + header;
                (talk.source, talk.destination) = ports([h[0], h[1], h[2], h[3]]);
                talk.kind = match h[13] & (SYN | RST | ACK) {
                    SYN => Kind::Connects,
                    RST | RST_ACK if is_bare => Kind::Resets,
                    _ => Kind::Continues,
                };
            }
            IPPROTO_UDP | IPPROTO_SCTP => {
                (talk.source, talk.destination) = ports(self.bytes::<4>(ip.transport)?);
            }
            IPPROTO_ICMP => {
                let h = self.bytes::<8>(ip.transport)?;
                let ident = u16::from_be_bytes([h[4], h[5]]);
                talk.kind = match (ip.protocol, h[0]) {
                    (IPPROTO_ICMPV6, 133..=137) if ip.hops == ON_LINK => Kind::Link,
                    (IPPROTO_ICMPV6, 1..=4) | (IPPROTO_ICMP, 3 | 11 | 12) => Kind::Quotes,
                    _ => Kind::Datagram,
                };
                if matches!(
                    (ip.protocol, h[0]),
                    (IPPROTO_ICMPV6, 128 | 129) | (IPPROTO_ICMP, 0 | 8)
                ) {
                    (talk.source, talk.destination) = (ident, ident);
                }
            }
            _ => {}
        }
        Some(talk)
    }

    /// Reads addresses, protocol and ports of the packet that an ICMP error is about; false if they are cut off. Extension
    /// headers in it are not looked behind.
    #[inline(always)]
    pub fn quoted(self, ip: &Ip, about: &mut Ip, ports: &mut [u8; 4]) -> bool {
        let at = ip.transport + 8;
        let read = if ip.protocol == IPPROTO_ICMPV6 {
            let mut h = [0u8; 8];
            about.transport = at + 40;
            let read = self.load(at, &mut h);
            about.protocol = h[6];
            read && self.load(at + 8, &mut about.source)
                && self.load(at + 24, &mut about.destination)
        } else {
            self.read_ip4(at, about)
        };
        if about.protocol == IPPROTO_ICMPV6 {
            about.protocol = IPPROTO_ICMP;
        }
        let has_ports = matches!(about.protocol, IPPROTO_TCP | IPPROTO_UDP | IPPROTO_SCTP);
        read && (!has_ports || self.load(about.transport, ports))
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

    /// Hands the packet to the stack, as if the device `ifindex` had received it.
    #[inline(always)]
    pub fn redirect_ingress(self, ifindex: u32) -> i32 {
        // SAFETY: plain integers.
        unsafe { bpf_redirect(ifindex, u64::from(BPF_F_INGRESS)) as i32 }
    }

    /// Makes a notice its own answer: source and destination change places (no checksum minds), and the kind is another
    /// one. Only on devices without a link-layer header, without IP options and extension headers; false for all others.
    #[inline(never)]
    pub fn answer(self, ip: &Ip, kind: u8) -> bool {
        let mut addresses = [0u8; 32];
        let turned = match (
            u16::from_be(field!(self.0, protocol) as u16).into(),
            ip.transport,
        ) {
            (ETH_P_IP, 20) => match self.bytes::<8>(12) {
                Some([a, b, c, d, e, f, g, h]) => self.store(12, &[e, f, g, h, a, b, c, d]),
                None => false,
            },
            (ETH_P_IPV6, 40) => {
                addresses[..16].copy_from_slice(&ip.destination);
                addresses[16..].copy_from_slice(&ip.source);
                self.store(8, &addresses)
            }
            _ => false,
        };
        turned && self.store(ip.transport + 8, &[kind])
    }

    /// Writes `N` bytes at `offset` from the start of the buffer.
    #[inline(always)]
    fn store<const N: usize>(self, offset: u32, bytes: &[u8; N]) -> bool {
        // SAFETY: this program's own context; the helper reads exactly N bytes.
        unsafe { bpf_skb_store_bytes(self.0, offset, bytes.as_ptr().cast(), N as u32, 0) == 0 }
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
