//! Helper calls and reads of contexts: the border to the kernel. Nothing here decides.
//!
//! Context members are read with `read_volatile`, each at its own width: the verifier refuses the
//! wider loads into which LLVM would merge them.
use core::{
    ffi::c_void,
    ptr::{addr_of, read_volatile},
};

use aya_ebpf::{
    bindings::{BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sock, bpf_sock_addr, bpf_sock_ops, bpf_sockopt},
    helpers::{
        bpf_get_current_pid_tgid, bpf_ktime_get_ns,
        generated::{
            bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_probe_read_kernel,
            bpf_send_signal_thread, bpf_seq_write, bpf_set_retval, bpf_setsockopt,
            bpf_skc_to_tcp_sock, bpf_sock_from_file, bpf_sock_ops_cb_flags_set,
        },
    },
};
use underseal_abi::{Sleeper, Tuple, ip_key};

use crate::offsets;

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const IPPROTO_TCP: i32 = 6;
const IPPROTO_MPTCP: u32 = 262;
const TCP_FASTOPEN: i32 = 23;
const TCP_FASTOPEN_CONNECT: i32 = 30;
/// Flag of sendmsg(2): connect, with the data in the SYN.
pub const MSG_FASTOPEN: u32 = 0x2000_0000;
const TCP_NOTSENT_LOWAT: i32 = 25;
const SOCK_STREAM: u32 = 1;

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

/// Four words of a context, read one by one.
///
/// # Safety
/// `words` points to four u32 inside a context that the verifier lets this program read.
#[inline(always)]
unsafe fn ip6(words: *const u32) -> [u8; 16] {
    let mut ip = [0u8; 16];
    let mut i = 0;
    while i < 4 {
        // SAFETY: the caller's promise.
        let word = unsafe { read_volatile(words.add(i)) }.to_ne_bytes();
        ip[i * 4] = word[0];
        ip[i * 4 + 1] = word[1];
        ip[i * 4 + 2] = word[2];
        ip[i * 4 + 3] = word[3];
        i += 1;
    }
    ip
}

macro_rules! field {
    ($ctx:expr, $($member:ident).+) => {
        // SAFETY: a member of this program's own context; the verifier checks the access.
        unsafe { read_volatile(addr_of!((*$ctx).$($member).+)) }
    };
}

/// Context of a sockops program.
#[derive(Clone, Copy)]
pub struct SockOps(pub *mut bpf_sock_ops);

impl SockOps {
    /// Which callback this is.
    #[inline(always)]
    pub fn op(self) -> u32 {
        field!(self.0, op)
    }

    /// The new TCP state in a state callback.
    #[inline(always)]
    pub fn new_state(self) -> u32 {
        // SAFETY: as in `field!`; args[1] is the new state (include/uapi/linux/bpf.h).
        unsafe {
            read_volatile(
                addr_of!((*self.0).__bindgen_anon_1.args)
                    .cast::<u32>()
                    .add(1),
            )
        }
    }

    /// Cookie of the socket's network namespace.
    #[inline(always)]
    pub fn netns(self) -> u64 {
        // SAFETY: the helper takes this context.
        unsafe { bpf_get_netns_cookie(self.0.cast()) }
    }

    /// Cookie of the socket.
    #[inline(always)]
    pub fn cookie(self) -> u64 {
        // SAFETY: the helper takes this context.
        unsafe { bpf_get_socket_cookie(self.0.cast()) }
    }

    /// The socket.
    #[inline(always)]
    pub fn sock(self) -> Option<Sock> {
        let sk: *mut bpf_sock = field!(self.0, __bindgen_anon_2.sk);
        if sk.is_null() {
            None
        } else {
            Some(Sock(sk.cast()))
        }
    }

    /// Sequence number of the next byte to be sent.
    #[inline(always)]
    pub fn snd_nxt(self) -> u32 {
        field!(self.0, snd_nxt)
    }

    /// Reads addresses and ports; false for a family other than IPv4 and IPv6. Not inlined, so that it has a stack of its
    /// own.
    #[inline(never)]
    pub fn read_tuple(self, tuple: &mut Tuple) -> bool {
        match self.tuple() {
            Some(read) => {
                *tuple = read;
                true
            }
            None => false,
        }
    }

    #[inline(always)]
    fn tuple(self) -> Option<Tuple> {
        // All are read before the branch: LLVM would merge two reads in two branches into one
        // through a computed pointer, which the verifier refuses.
        let family: u32 = field!(self.0, family);
        let v4 = (
            ip_key(field!(self.0, local_ip4).to_ne_bytes()),
            ip_key(field!(self.0, remote_ip4).to_ne_bytes()),
        );
        // SAFETY: both arrays have four words in this context.
        let v6 = unsafe {
            (
                ip6(addr_of!((*self.0).local_ip6).cast()),
                ip6(addr_of!((*self.0).remote_ip6).cast()),
            )
        };
        let (local, remote) = match family {
            AF_INET => v4,
            AF_INET6 => v6,
            _ => return None,
        };
        Some(Tuple {
            local,
            remote,
            local_port: field!(self.0, local_port) as u16,
            remote_port: u32::from_be(field!(self.0, remote_port)) as u16,
            v6: u32::from(family == AF_INET6),
        })
    }

    /// Sets `TCP_NOTSENT_LOWAT`, bytes.
    #[inline(always)]
    pub fn set_lowat(self, value: u32) -> bool {
        set_lowat(self.0.cast(), value)
    }

    /// Asks for a callback at every change of TCP state.
    #[inline(always)]
    pub fn watch_state(self) {
        // SAFETY: the helper takes this context.
        unsafe { bpf_sock_ops_cb_flags_set(self.0, BPF_SOCK_OPS_STATE_CB_FLAG as i32) };
    }
}

/// Context of a sock_create program: a socket that has just been made.
#[derive(Clone, Copy)]
pub struct Created(pub *mut bpf_sock);

impl Created {
    /// Whether this is MPTCP.
    #[inline(always)]
    pub fn is_mptcp(self) -> bool {
        field!(self.0, protocol) == IPPROTO_MPTCP
    }

    /// Cookie of the socket's network namespace.
    #[inline(always)]
    pub fn netns(self) -> u64 {
        // SAFETY: the helper takes this context.
        unsafe { bpf_get_netns_cookie(self.0.cast()) }
    }
}

/// The error that the refused system call returns, instead of EPERM.
#[inline(always)]
pub fn set_errno(errno: i32) {
    // SAFETY: an integer.
    unsafe { bpf_set_retval(-errno) };
}

/// Context of a connect4 or connect6 program.
#[derive(Clone, Copy)]
pub struct SockAddr(pub *mut bpf_sock_addr);

impl SockAddr {
    /// Cookie of the socket.
    #[inline(always)]
    pub fn cookie(self) -> u64 {
        // SAFETY: the helper takes this context.
        unsafe { bpf_get_socket_cookie(self.0.cast()) }
    }

    /// Whether this is TCP.
    #[inline(always)]
    pub fn is_tcp(self) -> bool {
        field!(self.0, type_) == SOCK_STREAM && field!(self.0, protocol) == IPPROTO_TCP as u32
    }

    /// Cookie of the socket's network namespace.
    #[inline(always)]
    pub fn netns(self) -> u64 {
        // SAFETY: the helper takes this context.
        unsafe { bpf_get_netns_cookie(self.0.cast()) }
    }

    /// The socket.
    #[inline(always)]
    pub fn sock(self) -> Option<Sock> {
        let sk: *mut bpf_sock = field!(self.0, __bindgen_anon_1.sk);
        if sk.is_null() {
            None
        } else {
            Some(Sock(sk.cast()))
        }
    }

    /// Destination port of a connect call.
    #[inline(always)]
    pub fn port(self) -> u16 {
        u16::from_be(field!(self.0, user_port) as u16)
    }

    /// Destination of a connect4 call.
    #[inline(always)]
    pub fn ip4(self) -> [u8; 16] {
        ip_key(field!(self.0, user_ip4).to_ne_bytes())
    }

    /// Destination of a connect6 call.
    #[inline(always)]
    pub fn ip6(self) -> [u8; 16] {
        // SAFETY: four words in this context.
        unsafe { ip6(addr_of!((*self.0).user_ip6).cast()) }
    }
}

/// Context of a setsockopt program.
#[derive(Clone, Copy)]
pub struct SockOpt(pub *mut bpf_sockopt);

impl SockOpt {
    /// Whether the call sets `TCP_NOTSENT_LOWAT`.
    #[inline(always)]
    pub fn is_lowat(self) -> bool {
        field!(self.0, level) == IPPROTO_TCP && field!(self.0, optname) == TCP_NOTSENT_LOWAT
    }

    /// Whether the call asks for TCP Fast Open.
    #[inline(always)]
    pub fn is_fast_open(self) -> bool {
        field!(self.0, level) == IPPROTO_TCP
            && matches!(field!(self.0, optname), TCP_FASTOPEN | TCP_FASTOPEN_CONNECT)
    }

    /// Cookie of the socket's network namespace.
    #[inline(always)]
    pub fn netns(self) -> u64 {
        // SAFETY: the helper takes this context.
        unsafe { bpf_get_netns_cookie(self.0.cast()) }
    }

    /// The socket.
    #[inline(always)]
    pub fn sock(self) -> Option<Sock> {
        let sk: *mut bpf_sock = field!(self.0, __bindgen_anon_1.sk);
        if sk.is_null() {
            None
        } else {
            Some(Sock(sk.cast()))
        }
    }

    /// The value, if it is at least four bytes long.
    #[inline(always)]
    pub fn value(self) -> Option<u32> {
        // SAFETY: `slot` has compared the address with the end of the buffer.
        self.slot().map(|slot| unsafe { *slot })
    }

    /// Replaces the value.
    #[inline(always)]
    pub fn set_value(self, value: u32) {
        if let Some(slot) = self.slot() {
            // SAFETY: as in `value`.
            unsafe { *slot = value }
        }
    }

    #[inline(always)]
    fn slot(self) -> Option<*mut u32> {
        let start: *mut c_void = field!(self.0, __bindgen_anon_2.optval);
        let end: *mut c_void = field!(self.0, __bindgen_anon_3.optval_end);
        // The verifier wants to see the pointer itself compared with the end.
        if start.wrapping_byte_add(4) > end {
            None
        } else {
            Some(start.cast())
        }
    }

    /// The kernel goes on with the value as it is in user memory. Must be said for each option
    /// that is not handled: otherwise 7.3 warns when kTLS keys are set through this hook.
    #[inline(always)]
    pub fn leave_alone(self) {
        // SAFETY: a writable member of this context.
        unsafe { addr_of!((*self.0).optlen).cast_mut().write_volatile(0) }
    }

    /// The kernel reports success without calling the protocol.
    #[inline(always)]
    pub fn swallow(self) {
        // SAFETY: a writable member of this context.
        unsafe { addr_of!((*self.0).optlen).cast_mut().write_volatile(-1) }
    }
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

/// Context of an `iter/task_file` program (kernel/bpf/task_iter.c, `struct bpf_iter__task_file`).
#[repr(C)]
pub struct TaskFileContext {
    /// `struct bpf_iter_meta`, whose first member is the seq_file.
    pub meta: *const *mut c_void,
    /// `struct task_struct`; null at the end.
    pub task: *mut c_void,
    /// Descriptor number.
    pub fd: u32,
    /// Zero.
    pub reserved: u32,
    /// `struct file`; null at the end.
    pub file: *mut c_void,
}

/// Context of an `iter/tcp` program (net/ipv4/tcp_ipv4.c, `struct bpf_iter__tcp`).
#[repr(C)]
pub struct TcpContext {
    /// `struct bpf_iter_meta`, whose first member is the seq_file.
    pub meta: *const *mut c_void,
    /// `struct sock_common`; null at the end.
    pub sk_common: *mut c_void,
}

impl TaskFileContext {
    /// The seq_file, the descriptor number and the file; `None` at the end.
    ///
    /// # Safety
    /// `ctx` is the context of an `iter/task_file` program.
    #[inline(always)]
    pub unsafe fn item(ctx: *const Self) -> Option<(Seq, u32, *mut c_void)> {
        // SAFETY: the caller's promise.
        let (meta, task, fd, file) = unsafe { ((*ctx).meta, (*ctx).task, (*ctx).fd, (*ctx).file) };
        if task.is_null() || file.is_null() {
            None
        } else {
            Some((Seq(meta), fd, file))
        }
    }
}

impl TcpContext {
    /// The seq_file and the socket; `None` at the end.
    ///
    /// # Safety
    /// `ctx` is the context of an `iter/tcp` program.
    #[inline(always)]
    pub unsafe fn item(ctx: *const Self) -> Option<(Seq, *mut c_void)> {
        // SAFETY: the caller's promise.
        let (meta, sk_common) = unsafe { ((*ctx).meta, (*ctx).sk_common) };
        if sk_common.is_null() {
            None
        } else {
            Some((Seq(meta), sk_common))
        }
    }
}

/// Where the records of an iterator go: `struct bpf_iter_meta`, whose first member is the seq_file.
#[derive(Clone, Copy)]
pub struct Seq(*const *mut c_void);

/// The socket behind a file of `iter/task_file`.
#[inline(always)]
pub fn sock_of_file(file: *mut c_void) -> Option<Sock> {
    // SAFETY: a BTF pointer to `struct file`, not null.
    let socket = unsafe { bpf_sock_from_file(file.cast()) };
    if socket.is_null() {
        None
    } else {
        sk_of_socket(socket.cast())
    }
}

/// Writes one record to the reader of an iterator.
#[inline(always)]
pub fn write<T>(seq: Seq, record: &T) {
    // SAFETY: taken from the context; `record` is whole.
    unsafe {
        let seq = read_volatile(seq.0);
        bpf_seq_write(
            seq.cast(),
            core::ptr::from_ref(record).cast(),
            size_of::<T>() as u32,
        );
    }
}

/// The full TCP socket behind a socket of `iter/tcp`; `None` for one that is only a request or
/// waits for its time to pass.
#[inline(always)]
pub fn tcp_sock(sk_common: *mut c_void) -> Option<Sock> {
    // SAFETY: a BTF pointer to `struct sock_common`, not null.
    let tp = unsafe { bpf_skc_to_tcp_sock(sk_common) };
    if tp.is_null() {
        None
    } else {
        Some(Sock(tp.cast()))
    }
}

/// Sets `TCP_NOTSENT_LOWAT` of a socket in an iterator, bytes. Wakes whoever waits to send.
#[inline(always)]
pub fn set_lowat_of(sock: Sock, value: u32) -> bool {
    set_lowat(sock.0, value)
}

/// Reads addresses and ports of a socket of `iter/tcp`. Not inlined, so that it has a stack of its own.
#[inline(never)]
pub fn read_tuple(sk_common: *const c_void, tuple: &mut Tuple) {
    *tuple = tuple_of(sk_common);
}

#[inline(always)]
fn tuple_of(sk_common: *const c_void) -> Tuple {
    let sk = sk_common.cast::<u8>();
    let family: u16 = read_kernel(sk, offsets::OFF_SKC_FAMILY.load());
    let v6 = u32::from(family) == AF_INET6;
    let (local, remote) = if v6 {
        (
            read_kernel::<[u8; 16]>(sk, offsets::OFF_SKC_V6_RCV_SADDR.load()),
            read_kernel::<[u8; 16]>(sk, offsets::OFF_SKC_V6_DADDR.load()),
        )
    } else {
        (
            ip_key(read_kernel::<[u8; 4]>(
                sk,
                offsets::OFF_SKC_RCV_SADDR.load(),
            )),
            ip_key(read_kernel::<[u8; 4]>(sk, offsets::OFF_SKC_DADDR.load())),
        )
    };
    Tuple {
        local,
        remote,
        local_port: read_kernel(sk, offsets::OFF_SKC_NUM.load()),
        remote_port: u16::from_be(read_kernel(sk, offsets::OFF_SKC_DPORT.load())),
        v6: u32::from(v6),
    }
}

/// TCP state of a socket of `iter/tcp` (include/net/tcp_states.h).
#[inline(always)]
pub fn tcp_state(sk_common: *const c_void) -> u8 {
    read_kernel(sk_common.cast(), offsets::OFF_SKC_STATE.load())
}
