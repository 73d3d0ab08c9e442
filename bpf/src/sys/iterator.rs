//! Contexts of iterators, and what they walk over.

use core::{ffi::c_void, ptr::read_volatile};

use aya_ebpf::helpers::generated::{bpf_seq_write, bpf_skc_to_tcp_sock, bpf_sock_from_file};
use underseal_abi::{Tuple, ip_key};

use super::{AF_INET6, Sock, read_kernel, set_lowat, sk_of_socket};
use crate::offsets;

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
