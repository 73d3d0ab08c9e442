//! Notices between nodes about the pair of WireGuard keys in use: which device leads to a peer while keys are replaced.
//! WireGuard has authenticated whatever comes here: the source belongs to the peer whose keys it came under.

#![deny(unsafe_code)]

use underseal_abi::{Config, NOTICE_BYTES, NOTICE_PROTOCOL, NoticeKind, THIS_NODE, notice_kind};

use crate::{
    maps,
    packet::{Ip, Packet},
};

/// What a notice says; `None` if the packet is none.
#[inline(always)]
pub fn kind(packet: Packet, ip: &Ip) -> Option<NoticeKind> {
    if ip.protocol != NOTICE_PROTOCOL {
        return None;
    }
    let bytes = packet.bytes::<NOTICE_BYTES>(ip.transport)?;
    notice_kind(&bytes)
}

/// A notice has come: does what it says. True if it has become the answer, which is to go out where it came in.
#[inline(always)]
pub fn came(packet: Packet, config: &Config, ip: &Ip, kind: NoticeKind) -> bool {
    let by = device(packet, config);
    let source = maps::endpoint(&ip.source);
    if !source.is_known() || source.node == THIS_NODE {
        return false;
    }
    let is_leading = match kind {
        NoticeKind::Use => {
            maps::set_leading(&ip.source, by);
            true
        }
        NoticeKind::Ask | NoticeKind::Answer => {
            // Whoever comes by this node's next key has changed to it.
            let is_next = source.next == packet.ifindex();
            if is_next {
                maps::set_leading(&ip.source, by);
            }
            is_next || source.ifindex == by
        }
    };
    kind != NoticeKind::Answer && is_leading && packet.answer(ip, NoticeKind::Answer as u8)
}

/// A packet that is no notice has come, while peers change to this node's next key. A peer that sends under it has changed:
/// this node may have been told before it was started anew.
#[inline(always)]
pub fn follow(packet: Packet, config: &Config, source: &[u8; 16]) {
    let by = device(packet, config);
    let known = maps::endpoint(source);
    if known.next == packet.ifindex() && known.ifindex != by {
        maps::set_leading(source, by);
    }
}

/// The device that a packet came by, as [`underseal_abi::Endpoint::ifindex`] has it.
#[inline(always)]
fn device(packet: Packet, config: &Config) -> u32 {
    match packet.ifindex() {
        face if face == config.wireguard => 0,
        other => other,
    }
}
