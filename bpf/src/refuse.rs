//! What a socket of a workload cannot have, because nobody could seal it: MPTCP, whose subflows are
//! sockets that no process has, and TCP Fast Open, whose first data leaves before there is a
//! connection to seal. Programs are told what a kernel without these would tell them, and fall back.
//! In mode `never` they may have Fast Open. MPTCP never: since 6.11 it looks at the namespace's
//! `tcp_notsent_lowat` itself (net/mptcp/protocol.h, `mptcp_notsent_lowat`), and would wait for ever.
//!
//! An MPTCP socket that is older than the take-over of its namespace is there all the same. Its subflows are TCP sockets
//! that the programs see: their connects are refused, and what is established is ended. The end of its only subflow ends
//! the socket itself, at once or by MPTCP's own timeout of a minute (net/mptcp/protocol.c, `mptcp_close_tout_expired`).

#![deny(unsafe_code)]

use underseal_abi::{Counter, Mode};

use crate::{
    maps,
    sys::{self, Created, Sock, SockOpt},
};

/// errno.h
const EPROTONOSUPPORT: i32 = 93;
const EOPNOTSUPP: i32 = 95;

/// A covered process makes a socket. 1 lets it have it.
#[inline(always)]
pub fn create(ctx: Created) -> i32 {
    if !ctx.is_mptcp() || maps::netns(ctx.netns()).is_none() {
        return 1;
    }
    maps::count(Counter::RefusedMptcp, 0);
    sys::set_errno(EPROTONOSUPPORT);
    0
}

/// Whether a socket that a covered process connects is a subflow of an MPTCP socket, which is older than the take-over of
/// its namespace: that is refused in the same way.
#[inline(always)]
pub fn subflow(sock: Sock) -> bool {
    let is_subflow = sys::is_subflow(sock);
    if is_subflow {
        maps::count(Counter::RefusedMptcp, 0);
        sys::set_errno(EPROTONOSUPPORT);
    }
    is_subflow
}

/// A covered process asks for Fast Open on a socket. It is told that it has it: a client that gets
/// an ordinary handshake, or a server to which nobody ever sends data in a SYN, sees no difference.
/// True if that is what happened.
#[inline(always)]
pub fn fast_open_option(ctx: SockOpt) -> bool {
    if !ctx.is_fast_open() || ctx.value() == Some(0) || !is_sealing(ctx.netns()) {
        return false;
    }
    maps::count(Counter::RefusedFastOpen, 0);
    ctx.swallow();
    true
}

/// A process sends with these flags on a socket that has no state: not connected. 0 lets it; the error is that of a kernel in which Fast Open is
/// switched off, for which programs call connect.
#[inline(always)]
pub fn fast_open_message(sock: Sock, flags: u32) -> i32 {
    if flags & sys::MSG_FASTOPEN == 0 || !is_sealing(sys::netns_of(sock)) {
        return 0;
    }
    maps::count(Counter::RefusedFastOpen, 0);
    -EOPNOTSUPP
}

/// Whether connections of the namespace with this cookie may have to be sealed.
#[inline(always)]
fn is_sealing(netns: u64) -> bool {
    maps::netns(netns).is_some() && maps::policy(&maps::config()).mode != Mode::Never
}
