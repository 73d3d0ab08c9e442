//! The packet path: which packets pass between workloads, WireGuard and the world. By address, and by the
//! network policies; what is in connections is the guard's affair.

#![deny(unsafe_code)]

use underseal_abi::{Config, Counter, Endpoint, Path, THIS_NODE, is_link_scope, path_of};

use crate::{
    apart, maps, notice,
    packet::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_IGMP, IPPROTO_TCP, Ip, Packet},
    policy::{self, CLIENT, SERVER},
};

/// The next program, then the stack (`TCX_NEXT`, `TC_ACT_UNSPEC`).
const NEXT: i32 = -1;
/// `TC_ACT_SHOT`.
const DROP: i32 = 2;

#[inline(always)]
fn refuse(packet: Packet, counter: Counter) -> i32 {
    maps::count(counter, packet.len());
    DROP
}

/// A workload sends a packet (ingress of the host side of its veth).
#[inline(always)]
pub fn from_workload(packet: Packet) -> i32 {
    if packet.is_arp() {
        return NEXT;
    }
    if !packet.is_ip() {
        // Behind a bridge any other protocol would reach the neighbours as it is.
        return refuse(packet, Counter::DropNonTcp);
    }
    let mut ip = Ip::default();
    if !apart::read_ip(packet, &mut ip) {
        return refuse(packet, Counter::DropSpoofed);
    }
    let config = maps::config();
    if is_link_scope(&ip.destination) || is_link_scope(&ip.source) {
        return if may_pass_on_link(&config, &ip) {
            NEXT
        } else {
            refuse(packet, Counter::DropNonTcp)
        };
    }
    if maps::endpoint(&ip.source).ifindex != packet.ifindex() {
        return refuse(packet, Counter::DropSpoofed);
    }
    let peer = maps::endpoint(&ip.destination);
    if config.policy != 0 {
        let server = if peer.is_own() { SERVER } else { 0 };
        if let Some(counter) = refusal(packet, &config, &ip, CLIENT | server) {
            return refuse(packet, counter);
        }
    }
    match path_of(maps::policy(&config), &peer) {
        Path::Tunnel if config.wireguard == 0 => refuse(packet, Counter::DropUnreachable),
        // Nodes believe what such packets say: no workload may speak for its node.
        Path::Tunnel if notice::kind(packet, &ip).is_some() => refuse(packet, Counter::DropSpoofed),
        Path::Tunnel => {
            maps::count(Counter::ToWireguard, packet.len());
            packet.redirect(if peer.ifindex == 0 {
                config.wireguard
            } else {
                peer.ifindex
            })
        }
        Path::Seal if !may_pass_beside_mtls(&config, &ip) => refuse(packet, Counter::DropNonTcp),
        Path::Seal | Path::Local => deliver(packet, &peer, Counter::SameNode),
        Path::Outside => {
            maps::count(Counter::Outside, packet.len());
            NEXT
        }
        Path::Deny => refuse(packet, Counter::DropOutside),
    }
}

/// The host's stack sends a packet to a workload (egress of the host side of its veth). What
/// comes from another workload must not come this way: those are redirected past it.
#[inline(always)]
pub fn to_workload(packet: Packet) -> i32 {
    if !packet.is_ip() {
        return NEXT;
    }
    let mut ip = Ip::default();
    if !apart::read_ip(packet, &mut ip) {
        return refuse(packet, Counter::DropBypass);
    }
    let config = maps::config();
    if is_link_scope(&ip.source) || is_link_scope(&ip.destination) {
        return if config.policy == 0 || may_pass_on_link(&config, &ip) {
            NEXT
        } else {
            refuse(packet, Counter::RefusedPolicy)
        };
    }
    let source = maps::endpoint(&ip.source);
    if source.is_known() && (source.node != THIS_NODE || source.workload != 0) {
        return refuse(packet, Counter::DropBypass);
    }
    match path_of(maps::policy(&config), &source) {
        Path::Deny => refuse(packet, Counter::DropOutside),
        _ => {
            if let Some(counter) = refusal(packet, &config, &ip, SERVER) {
                return refuse(packet, counter);
            }
            maps::count(Counter::Outside, packet.len());
            NEXT
        }
    }
}

/// The host's own stack sends a packet to another node, by the device that has the routes. Another one may have the
/// session.
#[inline(always)]
pub fn to_wireguard(packet: Packet) -> i32 {
    let mut ip = Ip::default();
    if !apart::read_ip(packet, &mut ip) {
        return NEXT;
    }
    let to = maps::endpoint(&ip.destination);
    if to.is_known() && to.node != THIS_NODE && to.ifindex != 0 && to.ifindex != packet.ifindex() {
        packet.redirect(to.ifindex)
    } else {
        NEXT
    }
}

/// WireGuard has decrypted a packet. It has also checked that the source belongs to the peer.
#[inline(always)]
pub fn from_wireguard(packet: Packet) -> i32 {
    let mut ip = Ip::default();
    if !apart::read_ip(packet, &mut ip) {
        return NEXT;
    }
    let config = maps::config();
    if let Some(kind) = notice::kind(packet, &ip) {
        return if notice::came(packet, &config, &ip, kind) {
            packet.redirect(packet.ifindex())
        } else {
            DROP
        };
    }
    if config.flags & Config::ROTATING != 0 {
        notice::follow(packet, &config, &ip.source);
    }
    let to = maps::endpoint(&ip.destination);
    if !to.is_own() {
        // The host knows one device, which has the addresses: its firewall and its routes are about that.
        return if config.wireguard != 0 && config.wireguard != packet.ifindex() {
            packet.redirect_ingress(config.wireguard)
        } else {
            NEXT
        };
    }
    if let Some(counter) = refusal(packet, &config, &ip, SERVER) {
        return refuse(packet, counter);
    }
    deliver(packet, &to, Counter::FromWireguard)
}

/// A packet crosses an uplink: nothing for or from a workload network may, whatever state the
/// rest of the node is in.
#[inline(always)]
pub fn uplink(packet: Packet, counter: Counter) -> i32 {
    if !packet.is_ip() {
        return NEXT;
    }
    let mut ip = Ip::default();
    if !apart::read_ip(packet, &mut ip) {
        return refuse(packet, counter);
    }
    if maps::endpoint(&ip.source).is_known() || maps::endpoint(&ip.destination).is_known() {
        return refuse(packet, counter);
    }
    NEXT
}

/// Why network policies do not let a packet pass, if so. `own` says which ends are workloads of this node.
#[inline(always)]
fn refusal(packet: Packet, config: &Config, ip: &Ip, own: u32) -> Option<Counter> {
    if config.policy == 0 {
        return None;
    }
    policy::refusal(apart::judge_packet(packet, ip, own))
}

#[inline(always)]
fn deliver(packet: Packet, to: &Endpoint, counter: Counter) -> i32 {
    if to.ifindex == 0 {
        return refuse(packet, Counter::DropUnreachable);
    }
    maps::count(counter, packet.len());
    packet.redirect_peer(to.ifindex)
}

/// Whether a packet for or from an address of the link may leave a workload: neighbour discovery and
/// its like may. Behind a bridge neighbours would get the rest too, and such addresses say nothing of
/// who they are: nothing could be sealed.
#[inline(always)]
fn may_pass_on_link(config: &Config, ip: &Ip) -> bool {
    const NEIGHBOUR: Endpoint = Endpoint {
        node: THIS_NODE,
        workload: 1,
        ifindex: 0,
        next: 0,
    };
    let is_sealing = path_of(maps::policy(config), &NEIGHBOUR) == Path::Seal;
    if !is_sealing && config.policy == 0 {
        return true;
    }
    match ip.protocol {
        IPPROTO_ICMP | IPPROTO_ICMPV6 | IPPROTO_IGMP => true,
        // Nor could a policy say who may talk to whom.
        _ if config.policy != 0 => false,
        IPPROTO_TCP => false,
        _ => config.flags & Config::ALLOW_NON_TCP != 0,
    }
}

/// Whether a packet between two workloads that must use mTLS may pass although mTLS cannot carry
/// it: TCP is the guard's affair, ICMP carries no application data.
#[inline(always)]
fn may_pass_beside_mtls(config: &Config, ip: &Ip) -> bool {
    matches!(ip.protocol, IPPROTO_TCP | IPPROTO_ICMP | IPPROTO_ICMPV6)
        || config.flags & Config::ALLOW_NON_TCP != 0
}
