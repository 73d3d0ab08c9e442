//! Helper calls and reads of kernel memory: the border to the kernel. Nothing here decides.

mod context;
mod iterator;

use core::{ffi::c_void, ptr::read_volatile};

use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_ktime_get_ns,
    generated::{
        bpf_get_socket_cookie, bpf_probe_read_kernel, bpf_send_signal_thread, bpf_set_retval,
        bpf_setsockopt,
    },
};
use underseal_abi::Sleeper;

pub use self::{
    context::{Created, SockAddr, SockOps, SockOpt},
    iterator::{
        Seq, TaskFileContext, TcpContext, read_tuple, set_lowat_of, sock_of_file, tcp_sock,
        tcp_state, write,
    },
};
use crate::offsets;

const AF_INET6: u32 = 10;
const IPPROTO_TCP: i32 = 6;
/// Flag of sendmsg(2): connect, with the data in the SYN.
pub const MSG_FASTOPEN: u32 = 0x2000_0000;
const TCP_NOTSENT_LOWAT: i32 = 25;

/// A socket as the verifier knows it: `bpf_sock`, or a BTF pointer to `struct sock`.
#[derive(Clone, Copy)]
pub struct Sock(pub *mut c_void);

/// Adds to a map value. (`AtomicU64` does not exist on this target.)
///
/// # Safety
/// `p` points into a map value.
#[inline(always)]
pub unsafe fn add(p: *mut u64, by: u64) {
    use core::intrinsics::{AtomicOrdering::Relaxed, atomic_xadd};
    // SAFETY: the caller's promise.
    unsafe { atomic_xadd::<u64, u64, { Relaxed }>(p, by) };
}

/// A full memory barrier: an atomic operation that returns the old value is fully ordered
/// (Documentation/bpf/standardization/instruction-set.rst, `BPF_FETCH`).
#[inline(always)]
pub fn barrier(now: u64) -> u64 {
    use core::intrinsics::{AtomicOrdering::SeqCst, atomic_xchg};
    let mut slot = 0u64;
    // SAFETY: an aligned slot on this program's stack.
    unsafe { atomic_xchg::<u64, { SeqCst }>(&raw mut slot, now) + read_volatile(&raw const slot) }
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// Process id of the current task in the initial PID namespace.
#[inline(always)]
pub fn tgid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// The current task, about to enter send or recv on the socket with this cookie.
#[inline(always)]
pub fn sleeper(cookie: u64) -> Sleeper {
    let task = bpf_get_current_pid_tgid();
    Sleeper {
        cookie,
        tid: task as u32,
        tgid: (task >> 32) as u32,
    }
}

/// Cookie of a socket that an LSM hook or an iterator was given.
#[inline(always)]
pub fn cookie(sock: Sock) -> u64 {
    // SAFETY: the verifier checks that this is a socket.
    unsafe { bpf_get_socket_cookie(sock.0) }
}

#[inline(always)]
fn set_lowat(target: *mut c_void, mut value: u32) -> bool {
    // SAFETY: four bytes on this program's stack; the verifier checks `target`.
    unsafe {
        bpf_setsockopt(
            target,
            IPPROTO_TCP,
            TCP_NOTSENT_LOWAT,
            (&raw mut value).cast(),
            4,
        ) == 0
    }
}

/// The error that the refused system call returns, instead of EPERM.
#[inline(always)]
pub fn set_errno(errno: i32) {
    // SAFETY: an integer.
    unsafe { bpf_set_retval(-errno) };
}

/// `socket->sk`, as a BTF pointer.
#[inline(always)]
pub fn sk_of_socket(socket: *const u8) -> Option<Sock> {
    // SAFETY: `socket` is a BTF pointer to `struct socket`; the offset is the kernel's own.
    let sk = unsafe {
        read_volatile(
            socket
                .add(offsets::OFF_SOCKET_SK.load() as usize)
                .cast::<*mut c_void>(),
        )
    };
    if sk.is_null() { None } else { Some(Sock(sk)) }
}

/// Cookie of the network namespace of a socket that an LSM hook was given.
#[inline(always)]
pub fn netns_of(sock: Sock) -> u64 {
    let net: u64 = read_kernel(sock.0.cast(), offsets::OFF_SKC_NET.load());
    read_kernel(net as *const u8, offsets::OFF_NET_COOKIE.load())
}

/// `T` at `base + offset` in kernel memory; zero if it cannot be read.
#[inline(always)]
pub fn read_kernel<T: Default + Copy>(base: *const u8, offset: u32) -> T {
    let mut value = T::default();
    // SAFETY: the helper copies at most the size of `value` and fails on a bad address.
    unsafe {
        bpf_probe_read_kernel(
            (&raw mut value).cast(),
            size_of::<T>() as u32,
            base.wrapping_add(offset as usize).cast(),
        )
    };
    value
}

/// Address of the `struct sock` behind a socket, as a number: the verifier allows no arithmetic on
/// the pointers of most programs, and none is read through this one but by `read_kernel`.
#[inline(always)]
fn address(sock: Sock) -> *const u8 {
    let slot = sock.0;
    read_kernel::<u64>((&raw const slot).cast(), 0) as *const u8
}

/// Whether an upper layer protocol is in the socket (`TCP_ULP`).
#[inline(always)]
pub fn has_ulp(sock: Sock) -> bool {
    read_kernel::<u64>(address(sock), offsets::OFF_ICSK_ULP_OPS.load()) != 0
}

/// Whether a socket is a subflow of an MPTCP socket (net/mptcp/subflow.c, `subflow_ulp_ops`). One that has fallen back to
/// TCP at a listener is none; one of a client stays one.
#[inline(always)]
pub fn is_subflow(sock: Sock) -> bool {
    let ops: u64 = read_kernel(address(sock), offsets::OFF_ICSK_ULP_OPS.load());
    ops != 0
        && read_kernel::<u64>(ops as *const u8, offsets::OFF_ULP_NAME.load())
            == u64::from_ne_bytes(*b"mptcp\0\0\0")
}

/// Bits of `sk_shutdown` (include/net/sock.h).
#[inline(always)]
pub fn shutdown_of(sock: Sock) -> u8 {
    read_kernel(address(sock), offsets::OFF_SK_SHUTDOWN.load())
}

/// Whether kTLS keeps something that TCP does not have yet: a record which waits for more
/// (net/tls/tls_sw.c, `open_rec`), or records for which there was no room (net/tls/tls_main.c,
/// `partially_sent_record`). Both are thrown away when the socket is closed.
#[inline(always)]
pub fn keeps_unsent(sock: Sock) -> bool {
    let tls: u64 = read_kernel(address(sock), offsets::OFF_ICSK_ULP_DATA.load());
    let partial: u64 = read_kernel(tls as *const u8, offsets::OFF_TLS_PARTIAL.load());
    let sends: u64 = read_kernel(tls as *const u8, offsets::OFF_TLS_PRIV_TX.load());
    let record: u64 = read_kernel(sends as *const u8, offsets::OFF_TLS_OPEN_REC.load());
    if partial != 0 || record == 0 {
        return partial != 0;
    }
    let size = offsets::OFF_TLS_REC_PLAIN.load()
        + offsets::OFF_SK_MSG_SG.load()
        + offsets::OFF_SK_MSG_SG_SIZE.load();
    read_kernel::<u32>(record as *const u8, size) > 0
}

/// Flags of a message that an LSM hook was given.
#[inline(always)]
pub fn flags_of(message: *const u8) -> u32 {
    read_kernel(message, offsets::OFF_MSG_FLAGS.load())
}

/// Sends SIGPIPE to the current thread, as the kernel does with EPIPE.
#[inline(always)]
pub fn raise_sigpipe() {
    const SIGPIPE: u32 = 13;
    // SAFETY: a plain integer. That it fails for a thread that is ending does not matter.
    unsafe { bpf_send_signal_thread(SIGPIPE) };
}

/// A socket as a kprobe sees it: an untyped pointer.
#[derive(Clone, Copy)]
pub struct Spliced {
    /// Its cookie; 0 if it has none.
    pub cookie: u64,
    /// Its TCP state.
    pub state: u8,
}

/// The socket behind `file`; all zeros if it is none.
#[inline(always)]
pub fn spliced(file: *const u8) -> Spliced {
    let socket: u64 = read_kernel(file, offsets::OFF_FILE_PRIVATE.load());
    let sk: u64 = read_kernel(socket as *const u8, offsets::OFF_SOCKET_SK.load());
    Spliced {
        cookie: read_kernel(sk as *const u8, offsets::OFF_SKC_COOKIE.load()),
        state: read_kernel(sk as *const u8, offsets::OFF_SKC_STATE.load()),
    }
}
