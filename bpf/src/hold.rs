//! The hold: which sockets of a workload may send. See ARCHITECTURE.md, "Hold, handshake, hand over".

#![deny(unsafe_code)]

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
};
use underseal_abi::{
    Conn, Counter, EventKind, Lowat, Path, Role, State, Unplaced, connection_of, is_loopback,
};

use crate::{
    ending,
    maps::{self, storage},
    offsets::{CONTROLS, NO_HOLD},
    sys::{self, Sock, SockAddr, SockOps, SockOpt},
};

const TCP_FIN_WAIT1: u32 = 4;
const TCP_CLOSE: u32 = 7;
const TCP_CLOSE_WAIT: u32 = 8;
/// Reports "not writable" whatever was set before, by the program or its listener: zero means the
/// namespace's default, and that is zero.
const HOLD: u32 = 0;

/// A TCP connection of a covered process changes.
#[inline(always)]
pub fn sockops(ctx: SockOps) {
    match ctx.op() {
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => established(ctx, Role::Client),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => established(ctx, Role::Server),
        BPF_SOCK_OPS_STATE_CB => match ctx.new_state() {
            TCP_CLOSE => closed(ctx),
            TCP_FIN_WAIT1 | TCP_CLOSE_WAIT => ending::one_side_shut(ctx),
            _ => {}
        },
        _ => {}
    }
}

/// Runs before the application wakes, so a socket is either let go or held before it can send.
/// Every early return leaves the socket as its namespace has it: held.
#[inline(always)]
fn established(ctx: SockOps, role: Role) {
    let netns_cookie = ctx.netns();
    let Some(netns) = maps::netns(netns_cookie) else {
        return;
    };
    let Some(sock) = ctx.sock() else { return };
    let Some(tuple) = ctx.tuple() else { return };
    let remote = maps::endpoint(&tuple.remote);
    // From a loopback address nothing leaves the namespace, whatever address it goes to.
    let path = if is_loopback(&tuple.local) {
        Path::Local
    } else {
        path_to(&tuple.remote, remote.as_ref())
    };
    match path {
        Path::Seal => {
            let conn = Conn {
                cookie: ctx.cookie(),
                netns: netns_cookie,
                since: sys::now(),
                tuple,
                workload: netns.workload,
                peer: remote.map_or(0, |r| r.workload),
                role: role as u32,
                tgid: 0,
                state: State::Held as u32,
                unrecorded: 0,
                node: remote.map_or(0, |r| r.node),
                reserved: 0,
            };
            if maps::endpoint(&tuple.local).is_none_or(|own| own.workload != netns.workload) {
                return foreign(ctx, sock, &conn);
            }
            hold(ctx, sock, conn);
        }
        Path::Deny => {
            storage::set_state(sock, State::New);
        }
        Path::Local | Path::Tunnel | Path::Outside => {
            if storage::set_state(sock, State::Released) {
                ctx.set_lowat(lowat_of(sock).on_release());
                maps::count(Counter::Released, 0);
            }
        }
    }
}

#[inline(always)]
fn hold(ctx: SockOps, sock: Sock, mut conn: Conn) {
    ctx.set_lowat(HOLD);
    if !storage::set_state(sock, State::Held) || !storage::start_flow(sock, ctx.snd_nxt()) {
        return unplaced(&conn);
    }
    let Some(kept) = storage::socket_or_new(sock) else {
        return unplaced(&conn);
    };
    conn.tgid = kept.conn.tgid;
    kept.conn = conn;
    if !maps::insert_conn(&conn) {
        return unplaced(&conn);
    }
    ctx.watch_state();
    if CONTROLS.load() & NO_HOLD != 0 {
        ctx.set_lowat(u32::MAX);
    }
    maps::count(Counter::Held, 0);
    maps::tell(EventKind::Held, 0, &conn);
}

/// The workload has given itself an address of somebody else, for instance to pass for an end of his
/// connection. Nothing of it leaves the namespace; here it gets no place beside the real one.
#[inline(always)]
fn foreign(ctx: SockOps, sock: Sock, conn: &Conn) {
    ctx.set_lowat(HOLD);
    storage::set_state(sock, State::New);
    maps::count(Counter::DropSpoofed, 0);
    maps::tell(EventKind::Unplaced, Unplaced::Foreign as u32, conn);
}

/// There is no room for the connection: it is held, and the helper, which could not find it, is told to
/// end it.
#[inline(always)]
fn unplaced(conn: &Conn) {
    maps::count(Counter::MapFull, 0);
    maps::tell(EventKind::Unplaced, Unplaced::Full as u32, conn);
}

#[inline(always)]
fn closed(ctx: SockOps) {
    let Some(sock) = ctx.sock() else { return };
    if let Some(kept) = storage::socket(sock) {
        maps::remove_conn(kept.conn.cookie);
        maps::tell(EventKind::Closed, 0, &kept.conn);
    }
}

/// A covered process calls connect. 1 lets it go on, 0 is EPERM.
#[inline(always)]
pub fn connect(ctx: SockAddr, destination: [u8; 16]) -> i32 {
    if !ctx.is_tcp() || maps::netns(ctx.netns()).is_none() {
        return 1;
    }
    match path_to(&destination, maps::endpoint(&destination).as_ref()) {
        Path::Deny => {
            maps::count(Counter::DeniedConnect, 0);
            0
        }
        Path::Seal => {
            let Some(sock) = ctx.sock() else { return 0 };
            // A socket has its cookie from the first call that asks for it, and a task that splices
            // while this connection is being made is known by the cookie alone.
            ctx.cookie();
            let Some(kept) = storage::socket_or_new(sock) else {
                return 0;
            };
            kept.conn.tgid = sys::tgid();
            i32::from(storage::set_state(sock, State::New))
        }
        Path::Local | Path::Tunnel | Path::Outside => 1,
    }
}

/// A covered process sets `TCP_NOTSENT_LOWAT`. On a socket that may not send yet the value is kept
/// and applied when it may: at once it would end the hold.
#[inline(always)]
pub fn setsockopt(ctx: SockOpt) {
    if !ctx.is_lowat() || maps::netns(ctx.netns()).is_none() {
        return ctx.leave_alone();
    }
    let (Some(sock), Some(value)) = (ctx.sock(), ctx.value()) else {
        return ctx.leave_alone();
    };
    let lowat = Lowat { value, set: 1 };
    match storage::state(sock) {
        Some(State::Released) => return ctx.set_value(lowat.on_release()),
        Some(State::Sealed) => {
            // Kept as well: it is set again after the socket was held for new keys.
            if let Some(kept) = storage::socket(sock) {
                kept.lowat = lowat;
            }
            // Zero would hold the socket; to the program it means "no limit of my own".
            return ctx.set_value(lowat.on_release());
        }
        Some(State::Pausing | State::Replacing) if is_helper(sock) => return ctx.leave_alone(),
        _ => {}
    }
    if let Some(kept) = storage::socket_or_new(sock) {
        kept.lowat = lowat;
    }
    ctx.swallow();
}

/// Whether the current task is the helper that replaces the socket's keys.
#[inline(always)]
fn is_helper(sock: Sock) -> bool {
    storage::key_limit(sock).is_some_and(|limit| limit.helper == sys::tgid())
}

/// accept has given a held connection to a process.
#[inline(always)]
pub fn accepted(sock: Sock) {
    if !matches!(storage::state(sock), Some(State::Held | State::Ending)) {
        return;
    }
    let Some(kept) = storage::socket(sock) else {
        return;
    };
    kept.conn.tgid = sys::tgid();
    maps::set_owner(kept.conn.cookie, kept.conn.tgid);
    maps::tell(EventKind::Accepted, 0, &kept.conn);
}

/// What becomes of a connection to `address`. A namespace may always talk to itself over loopback.
#[inline(always)]
pub fn path_to(address: &[u8; 16], endpoint: Option<&underseal_abi::Endpoint>) -> Path {
    if is_loopback(address) {
        return Path::Local;
    }
    connection_of(maps::policy(&maps::config()), endpoint)
}

#[inline(always)]
fn lowat_of(sock: Sock) -> Lowat {
    storage::socket(sock).map_or(Lowat::default(), |kept| kept.lowat)
}
