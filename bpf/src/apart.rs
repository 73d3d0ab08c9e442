//! Functions that the verifier checks by themselves, once for each program: they have global linkage. One that is only
//! not inlined it checks again at every call, in every state that the caller may be in (kernel/bpf/verifier.c,
//! `check_func_call`, `do_check_subprogs`); with what policies ask of a packet that came to a million
//! instructions.
//!
//! It takes nothing for granted there. An argument is a number, the context, or a pointer to memory of a size that BTF
//! tells: all of it written before (a struct has no padding), perhaps null. The answer is a number that may be anything,
//! and so is what such a pointer points to afterwards. Here are the pointers and the null checks alone; the modules
//! have the rest.

use core::ptr::{from_mut, from_ref};

use aya_ebpf::bindings::__sk_buff;
use underseal_abi::{Conn, Direction, Endpoint, EventKind, Flow, Ruling, Segment, Side, Tuple};

use crate::{
    guard, hold, maps,
    packet::{Ip, Packet, Talk},
    policy::{self, Case},
};

/// [`maps::find_endpoint`].
#[inline(always)]
pub fn find_endpoint(ip: &[u8; 16], found: &mut Endpoint) {
    endpoint_of(from_ref(ip), from_mut(found));
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn endpoint_of(ip: *const [u8; 16], found: *mut Endpoint) -> u32 {
    // SAFETY: null, or as the verifier has seen at every call.
    if let (Some(ip), Some(found)) = unsafe { (ip.as_ref(), found.as_mut()) } {
        maps::find_endpoint(ip, found);
    }
    0
}

/// [`maps::peer_number`].
#[inline(always)]
pub fn peer_number(generation: u32, ip: &[u8; 16]) -> u32 {
    number_of(generation, from_ref(ip))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn number_of(generation: u32, ip: *const [u8; 16]) -> u32 {
    // SAFETY: as in `endpoint_of`.
    match unsafe { ip.as_ref() } {
        Some(ip) => maps::peer_number(generation, ip),
        None => 0,
    }
}

/// [`maps::tell`].
#[inline(always)]
pub fn tell(kind: EventKind, reason: u32, conn: &Conn) -> bool {
    tell_of(kind as u32, reason, from_ref(conn)) != 0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tell_of(kind: u32, reason: u32, conn: *const Conn) -> u32 {
    // SAFETY: as in `endpoint_of`.
    match unsafe { conn.as_ref() } {
        Some(conn) => maps::send(kind, reason, conn).into(),
        None => 0,
    }
}

/// [`Packet::read_ip`].
#[inline(always)]
pub fn read_ip(packet: Packet, ip: &mut Ip) -> bool {
    ip_of(packet.0, from_mut(ip)) != 0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn ip_of(packet: *mut __sk_buff, ip: *mut Ip) -> u32 {
    // SAFETY: as in `endpoint_of`.
    match unsafe { ip.as_mut() } {
        Some(ip) => Packet(packet).read_ip(ip).into(),
        None => 0,
    }
}

/// [`Packet::talk`].
#[inline(always)]
pub fn talk(packet: Packet, ip: &Ip, talk: &mut Talk) -> bool {
    talk_of(packet.0, from_ref(ip), from_mut(talk)) != 0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn talk_of(packet: *mut __sk_buff, ip: *const Ip, talk: *mut Talk) -> u32 {
    // SAFETY: as in `endpoint_of`.
    match unsafe { (ip.as_ref(), talk.as_mut()) } {
        (Some(ip), Some(talk)) => Packet(packet).talk(ip, talk).into(),
        _ => 0,
    }
}

/// [`Packet::quoted`].
#[inline(always)]
pub fn quoted(packet: Packet, ip: &Ip, about: &mut Ip, ports: &mut [u8; 4]) -> bool {
    quoted_of(packet.0, from_ref(ip), from_mut(about), from_mut(ports)) != 0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn quoted_of(
    packet: *mut __sk_buff,
    ip: *const Ip,
    about: *mut Ip,
    ports: *mut [u8; 4],
) -> u32 {
    // SAFETY: as in `endpoint_of`.
    match unsafe { (ip.as_ref(), about.as_mut(), ports.as_mut()) } {
        (Some(ip), Some(about), Some(ports)) => Packet(packet).quoted(ip, about, ports).into(),
        _ => 0,
    }
}

/// [`policy::judge`].
#[inline(always)]
pub fn judge(case: &Case) -> Ruling {
    Ruling::from_raw(ruling_of(from_ref(case)))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn ruling_of(case: *const Case) -> u32 {
    // SAFETY: as in `endpoint_of`.
    match unsafe { case.as_ref() } {
        Some(case) => policy::judge(case) as u32,
        None => Ruling::RefusedPolicy as u32,
    }
}

/// [`policy::side`].
#[inline(always)]
pub fn side(case: &Case, direction: Direction) -> Side {
    Side::from_raw(side_of(from_ref(case), direction as u32))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn side_of(case: *const Case, direction: u32) -> u64 {
    let direction = if direction == Direction::Egress as u32 {
        Direction::Egress
    } else {
        Direction::Ingress
    };
    // SAFETY: as in `endpoint_of`.
    match unsafe { case.as_ref() } {
        Some(case) => policy::side(case, direction).to_raw(),
        None => Side::DENIED.to_raw(),
    }
}

/// [`policy::packet`].
#[inline(always)]
pub fn judge_packet(packet: Packet, ip: &Ip, own: u32) -> Ruling {
    Ruling::from_raw(ruling_of_packet(packet.0, from_ref(ip), own))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn ruling_of_packet(packet: *mut __sk_buff, ip: *const Ip, own: u32) -> u32 {
    // SAFETY: as in `endpoint_of`.
    match unsafe { ip.as_ref() } {
        Some(ip) => policy::packet(Packet(packet), ip, own) as u32,
        None => Ruling::RefusedPolicy as u32,
    }
}

/// [`hold::judge`].
#[inline(always)]
pub fn judge_connection(tuple: &Tuple, workload: u32, role: u32) -> Ruling {
    Ruling::from_raw(ruling_of_connection(from_ref(tuple), workload, role))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn ruling_of_connection(tuple: *const Tuple, workload: u32, role: u32) -> u32 {
    // SAFETY: as in `endpoint_of`.
    match unsafe { tuple.as_ref() } {
        Some(tuple) => hold::judge(tuple, workload, role) as u32,
        None => Ruling::RefusedPolicy as u32,
    }
}

/// [`guard::advance`].
#[inline(always)]
pub fn advance(packet: Packet, flow: *mut Flow, segment: Segment, payload: u32) -> u32 {
    verdict_of(packet.0, flow, segment.seq, segment.len, payload)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn verdict_of(
    packet: *mut __sk_buff,
    flow: *mut Flow,
    seq: u32,
    len: u32,
    payload: u32,
) -> u32 {
    // SAFETY: as in `endpoint_of`.
    match unsafe { flow.as_mut() } {
        Some(flow) => guard::advance(Packet(packet), flow, Segment { seq, len }, payload),
        None => guard::GAP,
    }
}
