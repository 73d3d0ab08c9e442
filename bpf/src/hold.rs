//! The hold: which sockets of a workload may send. See ARCHITECTURE.md, "Hold, handshake, hand over".

#![deny(unsafe_code)]

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
    BPF_SOCK_OPS_TCP_CONNECT_CB,
};
use underseal_abi::{
    Conn, Counter, Endpoint, EventKind, Lowat, Path, Role, Ruling, State, Tuple, Unplaced,
    connection_of, is_loopback,
};

use crate::{
    apart, ending,
    maps::{self, storage},
    offsets::{CONTROLS, NO_HOLD},
    packet::IPPROTO_TCP,
    policy::{self, CLIENT, Case, SERVER},
    refuse,
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
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(ctx),
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

/// The SYN is about to be sent. Should the connection fail, whoever was recorded on it is to be forgotten.
#[inline(always)]
fn connecting(ctx: SockOps) {
    if let Some(sock) = ctx.sock()
        && storage::state(sock) == Some(State::New)
    {
        ctx.watch_state();
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
    let mut tuple = Tuple::default();
    if !ctx.read_tuple(&mut tuple) {
        return;
    }
    if sys::is_subflow(sock) {
        return turned_away(ctx, sock, &tuple, Unplaced::Mptcp);
    }
    let remote = maps::endpoint(&tuple.remote);
    let config = maps::config();
    // From a loopback address nothing leaves the namespace, whatever address it goes to.
    let mut path = if is_loopback(&tuple.local) {
        Path::Local
    } else {
        path_to(&tuple.remote, &remote)
    };
    if config.policy != 0 && !is_loopback(&tuple.local) && !is_loopback(&tuple.remote) {
        let ruling = apart::judge_connection(&tuple, netns.workload, role as u32);
        if !ruling.passes() {
            return turned_away(ctx, sock, &tuple, Unplaced::Refused);
        }
        if ruling == Ruling::PassPlain {
            path = Path::Local;
        }
        // For the take-over after a change of policies, which cannot tell who has connected.
        if path != Path::Seal
            && let Some(kept) = storage::socket_or_new(sock)
        {
            kept.conn.role = role as u32;
        }
    }
    match path {
        Path::Seal => {
            let own = maps::endpoint(&tuple.local);
            if !own.is_known() || own.workload != netns.workload {
                return turned_away(ctx, sock, &tuple, Unplaced::Foreign);
            }
            hold(ctx, sock, &tuple, role as u32);
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

/// An end of a connection, to be kept with the socket.
#[inline(always)]
fn conn_of(ctx: SockOps, tuple: &Tuple, role: u32) -> Conn {
    let netns = ctx.netns();
    let remote = maps::endpoint(&tuple.remote);
    Conn {
        cookie: ctx.cookie(),
        netns,
        since: sys::now(),
        tuple: *tuple,
        workload: maps::netns(netns).map_or(0, |netns| netns.workload),
        peer: remote.workload,
        role,
        tgid: 0,
        state: State::Held as u32,
        unrecorded: 0,
        node: remote.node,
        reserved: 0,
    }
}

/// Not inlined, like `turned_away`, so that it has a stack of its own.
#[inline(never)]
fn hold(ctx: SockOps, sock: Sock, tuple: &Tuple, role: u32) {
    let conn = &mut conn_of(ctx, tuple, role);
    ctx.set_lowat(HOLD);
    if !storage::set_state(sock, State::Held) || !storage::start_flow(sock, ctx.snd_nxt()) {
        return unplaced(conn);
    }
    let Some(kept) = storage::socket_or_new(sock) else {
        return unplaced(conn);
    };
    conn.tgid = kept.conn.tgid;
    kept.conn = *conn;
    if !maps::insert_conn(conn) {
        return unplaced(conn);
    }
    ctx.watch_state();
    if CONTROLS.load() & NO_HOLD != 0 {
        ctx.set_lowat(u32::MAX);
    }
    maps::count(Counter::Held, 0);
    maps::tell(EventKind::Held, 0, conn);
}

/// A connection that must not be: it is held, and the helper, which looks for its socket in vain, is told to end it.
///
/// [`Unplaced::Foreign`]: the workload has given itself an address of somebody else, for instance to pass for an end of
/// his connection. Nothing of it leaves the namespace; here it gets no place beside the real one.
/// [`Unplaced::Refused`]: policies were changed after its first packet had passed.
/// [`Unplaced::Mptcp`]: see `refuse.rs`.
#[inline(never)]
fn turned_away(ctx: SockOps, sock: Sock, tuple: &Tuple, why: Unplaced) {
    ctx.set_lowat(HOLD);
    storage::set_state(sock, State::New);
    let counter = match why {
        Unplaced::Foreign => Counter::DropSpoofed,
        Unplaced::Refused => Counter::RefusedPolicy,
        Unplaced::Mptcp => Counter::RefusedMptcp,
        Unplaced::Full => Counter::MapFull,
    };
    maps::count(counter, 0);
    let conn = conn_of(ctx, tuple, 0);
    maps::tell(EventKind::Unplaced, why as u32, &conn);
}

/// What network policies say of a connection of a workload, whatever its own address is. `role` is [`Role`] as u32; 0 if
/// it is not known who has connected: then it is enough that either end might have. Called through `apart`.
#[inline(always)]
pub fn judge(tuple: &Tuple, workload: u32, role: u32) -> Ruling {
    let config = maps::config();
    if config.policy == 0 {
        // They have been taken away since the caller looked.
        return Ruling::Pass;
    }
    let remote = maps::endpoint(&tuple.remote);
    let own = if remote.is_own() {
        CLIENT | SERVER
    } else {
        CLIENT
    };
    let mut case = Case {
        generation: config.policy,
        client: workload,
        server: policy::number(config.policy, &tuple.remote, &remote),
        own,
        protocol: IPPROTO_TCP.into(),
        port: tuple.remote_port,
        way: policy::way_of(&config, &remote),
        bytes: 0,
    };
    if role == Role::Server as u32 {
        case.reverse(tuple.local_port);
    }
    let ruling = apart::judge(&case);
    if ruling.passes() || role != 0 {
        return ruling;
    }
    case.reverse(tuple.local_port);
    apart::judge(&case)
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
    let had_no_keys = matches!(storage::state(sock), Some(State::New | State::Held));
    // Before the helper is told: it deletes the records of this socket's tasks, and there must be none after that.
    if had_no_keys {
        storage::set_state(sock, State::Closed);
        sys::barrier(sys::now());
    }
    if let Some(kept) = storage::socket(sock) {
        maps::remove_conn(kept.conn.cookie);
        kept.conn.since = sys::now();
        maps::tell(EventKind::Closed, u32::from(had_no_keys), &kept.conn);
    }
}

/// A covered process calls connect. 1 lets it go on, 0 is EPERM.
#[inline(always)]
pub fn connect(ctx: SockAddr, destination: [u8; 16]) -> i32 {
    if !ctx.is_tcp() {
        return 1;
    }
    let Some(netns) = maps::netns(ctx.netns()) else {
        return 1;
    };
    if ctx.sock().is_some_and(refuse::subflow) {
        return 0;
    }
    let mut path = path_to(&destination, &maps::endpoint(&destination));
    let config = maps::config();
    if config.policy != 0 && !is_loopback(&destination) {
        let tuple = Tuple {
            remote: destination,
            remote_port: ctx.port(),
            ..Tuple::default()
        };
        let ruling = apart::judge_connection(&tuple, netns.workload, Role::Client as u32);
        if let Some(counter) = policy::refusal(ruling) {
            maps::count(counter, 0);
            return 0;
        }
        if ruling == Ruling::PassPlain {
            path = Path::Local;
        }
    }
    match path {
        Path::Deny => {
            maps::count(Counter::DeniedConnect, 0);
            0
        }
        Path::Seal => {
            let Some(sock) = ctx.sock() else { return 0 };
            let Some(kept) = storage::socket_or_new(sock) else {
                return 0;
            };
            kept.conn = Conn {
                // A socket has its cookie from the first call that asks for it, and a task that splices
                // while this connection is being made is known by the cookie alone.
                cookie: ctx.cookie(),
                tgid: sys::tgid(),
                ..Conn::default()
            };
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
pub fn path_to(address: &[u8; 16], endpoint: &Endpoint) -> Path {
    if is_loopback(address) {
        return Path::Local;
    }
    connection_of(maps::policy(&maps::config()), endpoint)
}

#[inline(always)]
fn lowat_of(sock: Sock) -> Lowat {
    storage::socket(sock).map_or(Lowat::default(), |kept| kept.lowat)
}
