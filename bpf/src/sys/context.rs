//! Contexts of programs at cgroups. Members are read with `read_volatile`, each at its own width: the verifier refuses the
//! wider loads into which LLVM would merge them.

use core::{
    ffi::c_void,
    ptr::{addr_of, read_volatile},
};

use aya_ebpf::{
    bindings::{BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sock, bpf_sock_addr, bpf_sock_ops, bpf_sockopt},
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_sock_ops_cb_flags_set},
};
use underseal_abi::{Tuple, ip_key};

use super::{AF_INET6, IPPROTO_TCP, Sock, TCP_NOTSENT_LOWAT, set_lowat};

const AF_INET: u32 = 2;
const IPPROTO_MPTCP: u32 = 262;
const TCP_FASTOPEN: i32 = 23;
const TCP_FASTOPEN_CONNECT: i32 = 30;
const SOCK_STREAM: u32 = 1;

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

// What several contexts have. Each is a type of its own to the kernel, so there is no trait of theirs to call.

macro_rules! netns_cookie {
    () => {
        /// Cookie of the socket's network namespace.
        #[inline(always)]
        pub fn netns(self) -> u64 {
            // SAFETY: the helper takes this context.
            unsafe { bpf_get_netns_cookie(self.0.cast()) }
        }
    };
}

macro_rules! socket_cookie {
    () => {
        /// Cookie of the socket.
        #[inline(always)]
        pub fn cookie(self) -> u64 {
            // SAFETY: the helper takes this context.
            unsafe { bpf_get_socket_cookie(self.0.cast()) }
        }
    };
}

macro_rules! socket {
    ($member:ident) => {
        /// The socket.
        #[inline(always)]
        pub fn sock(self) -> Option<Sock> {
            let sk: *mut bpf_sock = field!(self.0, $member.sk);
            if sk.is_null() {
                None
            } else {
                Some(Sock(sk.cast()))
            }
        }
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

    netns_cookie!();

    socket_cookie!();

    socket!(__bindgen_anon_2);

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

    netns_cookie!();
}

/// Context of a connect4 or connect6 program.
#[derive(Clone, Copy)]
pub struct SockAddr(pub *mut bpf_sock_addr);

impl SockAddr {
    socket_cookie!();

    /// Whether this is TCP.
    #[inline(always)]
    pub fn is_tcp(self) -> bool {
        field!(self.0, type_) == SOCK_STREAM && field!(self.0, protocol) == IPPROTO_TCP as u32
    }

    netns_cookie!();

    socket!(__bindgen_anon_1);

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

    netns_cookie!();

    socket!(__bindgen_anon_1);

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
