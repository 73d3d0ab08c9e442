//! Iterators: what user space starts itself. Each writes records to whoever reads it.

use core::ffi::c_void;

use underseal_abi::{
    Config, Conn, Counter, Path, Ruling, State, TaskFile, Tuple, Usage, is_loopback,
};

use crate::{
    apart, hold,
    maps::{self, storage},
    sys::{self, Seq, Sock, TaskFileContext, TcpContext},
};

const TCP_ESTABLISHED: u8 = 1;
const TCP_SYN_SENT: u8 = 2;
const TCP_LISTEN: u8 = 10;
/// The value that ends every hold: no limit.
const LET_GO: u32 = u32::MAX;

/// Lists the sockets among the descriptors of a process.
#[inline(always)]
pub fn task_file(ctx: *const TaskFileContext) {
    // SAFETY: the context of this program.
    let Some((seq, fd, file)) = (unsafe { TaskFileContext::item(ctx) }) else {
        return;
    };
    if let Some(sock) = sys::sock_of_file(file) {
        // The tgid is the reader's to know: it asked for one process.
        sys::write(
            seq,
            &TaskFile {
                cookie: sys::cookie(sock),
                tgid: 0,
                fd,
            },
        );
    }
}

/// Takes over the connections that are older than the take-over of their namespace: lets go of
/// those that need no TLS, and lists those that do (unless they are to be kept). Also those that
/// an earlier configuration let go and this one would not, and MPTCP.
#[inline(always)]
pub fn take_over(ctx: *const TcpContext) {
    let Some((seq, sk_common)) = full_socket(ctx) else {
        return;
    };
    let Some(sock) = sys::tcp_sock(sk_common) else {
        return;
    };
    let mut tuple = Tuple::default();
    sys::read_tuple(sk_common, &mut tuple);
    let role = storage::socket(sock).map_or(0, |kept| kept.conn.role);
    if let Some(state) = fate(sock, &tuple, ruling(&tuple, role)) {
        list(seq, sock, &tuple, state);
    }
}

/// What becomes of a connection: `None` if it simply goes on; else the state to list it with, 0 if it must end.
#[inline(always)]
fn fate(sock: Sock, tuple: &Tuple, ruling: Ruling) -> Option<u32> {
    // Whoever its peer is: the kernel would hold it for ever (`refuse.rs`).
    if sys::is_subflow(sock) {
        maps::count(Counter::RefusedMptcp, 0);
        return Some(0);
    }
    let flags = maps::config().flags;
    if !ruling.passes() && flags & Config::KEEP_REVOKED == 0 {
        return Some(0);
    }
    let state = storage::state(sock);
    if !matches!(state, None | Some(State::Released)) {
        return None;
    }
    let mut path = hold::path_to(&tuple.remote, &maps::endpoint(&tuple.remote));
    if ruling == Ruling::PassPlain {
        path = Path::Local;
    }
    let must_end = matches!(path, Path::Seal | Path::Deny);
    if must_end && flags & Config::KEEP_EXISTING == 0 {
        return Some(0);
    }
    if state.is_none() && storage::set_state(sock, State::Released) {
        sys::set_lowat_of(sock, LET_GO);
    }
    must_end.then_some(State::Released as u32)
}

/// Lets go of a namespace: lists the connections that wait for keys (they must be reset, not sent
/// in plaintext) and wakes every other socket that the namespace's default held.
#[inline(always)]
pub fn let_go(ctx: *const TcpContext) {
    let Some((seq, sk_common)) = full_socket(ctx) else {
        return;
    };
    let Some(sock) = sys::tcp_sock(sk_common) else {
        return;
    };
    match storage::state(sock) {
        Some(State::Released | State::Sealed) => {}
        // Nobody would end the pause. A helper that is about to replace the keys writes its state first.
        Some(State::Pausing) => {
            storage::set_state(sock, State::Sealed);
            sys::set_lowat_of(sock, LET_GO);
        }
        Some(state) => {
            let mut tuple = Tuple::default();
            sys::read_tuple(sk_common, &mut tuple);
            list(seq, sock, &tuple, state as u32);
        }
        None => {
            sys::set_lowat_of(sock, LET_GO);
        }
    }
}

/// Lists the connections that wait for keys and are not in the table, because that was full: nobody
/// would ever seal them. Of sockets without a state only those are meant that had to have one.
#[inline(always)]
pub fn stranded(ctx: *const TcpContext) {
    let Some((seq, sk_common)) = full_socket(ctx) else {
        return;
    };
    let Some(sock) = sys::tcp_sock(sk_common) else {
        return;
    };
    let mut tuple = Tuple::default();
    sys::read_tuple(sk_common, &mut tuple);
    let path = hold::path_to(&tuple.remote, &maps::endpoint(&tuple.remote));
    let keep = maps::config().flags & Config::KEEP_EXISTING != 0;
    let waits = match storage::state(sock) {
        Some(State::New | State::Held) => true,
        None => !keep,
        Some(_) => false,
    };
    let cookie = sys::cookie(sock);
    if waits && path == Path::Seal && !maps::has_conn(cookie) {
        list(seq, sock, &tuple, 0);
    }
}

/// What network policies say of a connection.
#[inline(always)]
fn ruling(tuple: &Tuple, role: u32) -> Ruling {
    if maps::config().policy == 0 || is_loopback(&tuple.local) || is_loopback(&tuple.remote) {
        return Ruling::Pass;
    }
    let own = maps::endpoint(&tuple.local);
    if own.is_own() {
        apart::judge_connection(tuple, own.workload, role)
    } else {
        Ruling::Pass
    }
}

/// Writes a connection to the reader. Not inlined: the stack of all functions together is short.
#[inline(never)]
fn list(seq: Seq, sock: Sock, tuple: &Tuple, state: u32) {
    sys::write(
        seq,
        &Conn {
            cookie: sys::cookie(sock),
            tuple: *tuple,
            state,
            ..Conn::default()
        },
    );
}

/// Tells what the keys of a sealed socket have been used for.
#[inline(always)]
pub fn usage(ctx: *const TcpContext) {
    let Some((seq, sk_common)) = full_socket(ctx) else {
        return;
    };
    let Some(sock) = sys::tcp_sock(sk_common) else {
        return;
    };
    if !storage::state(sock).is_some_and(State::is_sealed) {
        return;
    }
    if let (Some(flow), Some(limit)) = (storage::counted(sock), storage::key_limit(sock)) {
        sys::write(
            seq,
            &Usage {
                cookie: sys::cookie(sock),
                bytes: flow.bytes,
                records: flow.records,
                left: limit.left(&flow),
            },
        );
    }
}

/// The socket an iterator has come to, unless it is a listener, or so young that the hooks will
/// see it established.
#[inline(always)]
fn full_socket(ctx: *const TcpContext) -> Option<(Seq, *mut c_void)> {
    // SAFETY: the context of this program.
    let (seq, sk_common) = unsafe { TcpContext::item(ctx) }?;
    match sys::tcp_state(sk_common) {
        TCP_SYN_SENT | TCP_LISTEN => None,
        state if state < TCP_ESTABLISHED => None,
        _ => Some((seq, sk_common)),
    }
}
