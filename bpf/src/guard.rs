//! The guard: the second line, independent of the hold. Payload leaves a socket only while it is
//! released, or sealed and then as TLS records that follow one another without a gap.
use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use underseal_abi::{
    Config, Conn, Counter, Drop, EventKind, Flow, KeyUse, Path, Segment, State, Step, Tuple,
    Verdict,
};

use crate::{
    apart, ending, hold,
    maps::{self, storage},
    offsets::{CONTROLS, NO_GUARD, NO_LIMIT},
    packet::{Ip, Packet, Tcp},
    sys::Sock,
};

const PASS: i32 = 1;
const DROP: i32 = 0;
/// More records than the largest segment the stack makes (512 KiB) can hold.
const MAX_RECORDS: u32 = 32768;

/// A packet leaves a socket of a covered process.
#[inline(always)]
pub fn egress(packet: Packet) -> i32 {
    let Some(sock) = packet.tcp_sock() else {
        return PASS;
    };
    let state = storage::state(sock);
    if state == Some(State::Released) || CONTROLS.load() & NO_GUARD != 0 {
        return PASS;
    }
    let Some((ip, tcp)) = segment(packet) else {
        // A TCP socket sent something that cannot be parsed: only a stranger's may pass.
        return if state.is_none() { PASS } else { DROP };
    };
    if tcp.segment.len == 0 && !tcp.fin {
        return PASS;
    }
    match state {
        Some(state) if state.is_sealed() && tcp.fin && ending::is_cut(sock) => {
            dropped(sock, Drop::Cut, Counter::DropCut, packet)
        }
        Some(state) if state.is_sealed() => sealed(packet, sock, tcp),
        Some(State::Ending)
            if tcp.segment.len == 0 && ending::is_orderly(sock, tcp.segment.seq) =>
        {
            PASS
        }
        Some(_) if tcp.segment.len == 0 => {
            maps::count(Counter::FinDeferred, 0);
            DROP
        }
        Some(_) => dropped(sock, Drop::Unsealed, Counter::DropUnsealed, packet),
        None if tcp.segment.len == 0 => PASS,
        None => stranger(packet, &ip, &tcp),
    }
}

/// A packet arrives at a socket of a covered process.
#[inline(always)]
pub fn ingress(packet: Packet) -> i32 {
    let Some(sock) = packet.tcp_sock() else {
        return PASS;
    };
    let state = storage::state(sock);
    if !matches!(
        state,
        Some(State::New | State::Held | State::Keyed | State::Ending)
    ) || CONTROLS.load() & NO_GUARD != 0
    {
        return PASS;
    }
    match segment(packet) {
        Some((_, tcp)) if tcp.segment.len == 0 => PASS,
        // The peer is sealed a moment earlier and its program may have set TCP_NOTSENT_LOWAT itself.
        // TCP sends again; a socket does not stay as it is now.
        _ if state == Some(State::Keyed) => {
            maps::count(Counter::DropUnsealedIngress, packet.len());
            DROP
        }
        _ => dropped(
            sock,
            Drop::UnsealedIngress,
            Counter::DropUnsealedIngress,
            packet,
        ),
    }
}

#[inline(always)]
fn segment(packet: Packet) -> Option<(Ip, Tcp)> {
    let ip = packet.ip()?;
    let tcp = packet.tcp(&ip)?;
    Some((ip, tcp))
}

/// A socket older than the take-over of its namespace, or one that got round it. It may talk to
/// anybody but to a workload that it should be sealed with.
#[inline(always)]
fn stranger(packet: Packet, ip: &Ip, tcp: &Tcp) -> i32 {
    let (local, remote) = (maps::endpoint(&ip.source), maps::endpoint(&ip.destination));
    if !local.is_own()
        || hold::path_to(&ip.destination, &remote) != Path::Seal
        || maps::config().flags & Config::KEEP_EXISTING != 0
    {
        return PASS;
    }
    maps::count(Counter::DropUnknown, packet.len());
    let conn = Conn {
        tuple: Tuple {
            local: ip.source,
            remote: ip.destination,
            local_port: tcp.source,
            remote_port: tcp.destination,
            v6: 0,
        },
        workload: local.workload,
        peer: remote.workload,
        ..Conn::default()
    };
    maps::tell(EventKind::Dropped, Drop::Unknown as u32, &conn);
    DROP
}

/// What a step of the walk needs. On the stack; `bpf_loop` passes its address on.
struct Walk {
    packet: Packet,
    flow: *mut Flow,
    segment: Segment,
    payload: u32,
    verdict: u32,
}

const UNDECIDED: u32 = 0;
const PASSED: u32 = 1;
const NOT_A_RECORD: u32 = 2;
/// The verdict of [`advance`] on bytes that were never seen.
pub const GAP: u32 = 3;

#[inline(always)]
fn sealed(packet: Packet, sock: Sock, tcp: Tcp) -> i32 {
    if tcp.segment.len == 0 {
        return PASS;
    }
    let flow = storage::flow(sock);
    if flow.is_null() {
        return DROP;
    }
    let mut walk = Walk {
        packet,
        flow,
        segment: tcp.segment,
        payload: tcp.payload,
        verdict: UNDECIDED,
    };
    // Most segments hold one record: its header, and then the end. The loop, which costs a call
    // through a pointer for each record, is for the others.
    if !walk.advance() && !walk.advance() {
        // SAFETY: `step` has the signature that bpf_loop calls, `walk` outlives the call.
        unsafe { bpf_loop(MAX_RECORDS, step as *mut c_void, (&raw mut walk).cast(), 0) };
    }
    match walk.verdict {
        PASSED if is_spent(sock, flow) => {
            dropped(sock, Drop::KeyLimit, Counter::DropKeyLimit, packet)
        }
        PASSED => {
            maps::count(Counter::SealedSegments, packet.len());
            PASS
        }
        GAP => dropped(sock, Drop::Gap, Counter::DropNotARecord, packet),
        _ => dropped(sock, Drop::NotARecord, Counter::DropNotARecord, packet),
    }
}

/// Whether a socket has sent more than its key may encrypt. Before that the helper is told. A socket is
/// sealed only after its limit is known, so one without is none of ours.
#[inline(always)]
fn is_spent(sock: Sock, flow: *mut Flow) -> bool {
    if CONTROLS.load() & NO_LIMIT != 0 {
        return false;
    }
    let Some(limit) = storage::key_limit(sock) else {
        return true;
    };
    // SAFETY: points into this socket's storage; `sealed` has looked whether it is null.
    let flow = unsafe { &mut *flow };
    match limit.judge(flow) {
        KeyUse::Fine => false,
        KeyUse::Spent => true,
        KeyUse::Tell => {
            if let Some(kept) = storage::socket(sock)
                && maps::tell(EventKind::KeyLimit, 0, &kept.conn)
            {
                flow.told = flow.used();
            }
            false
        }
    }
}

/// One record, as `bpf_loop` calls it. Returns 1 to end the loop.
unsafe extern "C" fn step(_index: u32, walk: *mut Walk) -> i64 {
    // SAFETY: bpf_loop passes the address of `sealed`'s own `walk`.
    i64::from(unsafe { &mut *walk }.advance())
}

impl Walk {
    /// Looks at the next header. True if the segment is decided.
    #[inline(always)]
    fn advance(&mut self) -> bool {
        self.verdict = apart::advance(self.packet, self.flow, self.segment, self.payload);
        self.verdict != UNDECIDED
    }
}

/// Looks at the next header of a segment. Called through `apart`.
#[inline(always)]
pub fn advance(packet: Packet, flow: &mut Flow, segment: Segment, payload: u32) -> u32 {
    let stepped = flow.step(
        segment,
        |offset| packet.payload(payload + offset),
        |offset| packet.payload(payload + offset).map(|[byte]| byte),
    );
    match stepped {
        Step::More => UNDECIDED,
        Step::Done(Verdict::Pass) => PASSED,
        Step::Done(Verdict::NotARecord) => NOT_A_RECORD,
        Step::Done(Verdict::Gap) => GAP,
    }
}

/// Counts the drop and tells the helper, which resets the connection: nobody else would learn of
/// it, and the application would wait for ever.
#[inline(always)]
fn dropped(sock: Sock, why: Drop, counter: Counter, packet: Packet) -> i32 {
    maps::count(counter, packet.len());
    if let Some(kept) = storage::socket(sock) {
        maps::tell(EventKind::Dropped, why as u32, &kept.conn);
    }
    DROP
}
