//! The only unsafe code of the loader outside `kernel/bpf`: what neither std nor nix offers.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The cookie of the network namespace that a socket belongs to.
///
/// # Errors
/// `ENOPROTOOPT` on kernels before 5.14.
pub(crate) fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = mem::size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: the descriptor is borrowed, so it is open during the call. The kernel writes at most
    // `length` bytes to the third pointer, and `length` is the size of the live, writable u64
    // behind it; any eight bytes are a u64. It writes a socklen_t to the last pointer, which is
    // one. It keeps neither pointer.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A packet socket on an interface without a link-layer header. It sees IP packets of one `protocol`, before tc programs
/// do, and sends past them.
///
/// # Errors
/// The kernel's refusal.
pub(crate) fn packet_socket(interface: u32, protocol: u8) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: plain integers. Protocol 0: it sees nothing before it is bound.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that was made just now, and that nobody else has.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut program = only(protocol);
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    set(&socket, (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER), &filter)?;
    set(&socket, (libc::SOL_PACKET, PACKET_QDISC_BYPASS), &1_i32)?;
    let address = link_layer(interface, libc::ETH_P_ALL as u16);
    // SAFETY: the descriptor is open; the address is a live sockaddr_ll of the length that is given, and is not kept.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            mem::size_of_val(&address) as libc::socklen_t,
        )
    };
    if bound == 0 {
        Ok(socket)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sends an IP packet by a [`packet_socket`].
///
/// # Errors
/// The kernel's refusal.
pub(crate) fn send_packet(socket: BorrowedFd<'_>, interface: u32, packet: &[u8]) -> io::Result<()> {
    let is_v6 = packet.first().is_some_and(|first| first >> 4 == 6);
    let protocol = if is_v6 {
        libc::ETH_P_IPV6
    } else {
        libc::ETH_P_IP
    };
    let address = link_layer(interface, protocol as u16);
    // SAFETY: the descriptor is borrowed, so it is open; the packet and the address are live for the length that is given
    // with each, and the kernel keeps neither.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            0,
            (&raw const address).cast(),
            mem::size_of_val(&address) as libc::socklen_t,
        )
    };
    if sent >= 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Not in libc: `linux/if_packet.h`.
const PACKET_QDISC_BYPASS: libc::c_int = 20;

fn set<T>(
    socket: &OwnedFd,
    (level, option): (libc::c_int, libc::c_int),
    value: &T,
) -> io::Result<()> {
    // SAFETY: the descriptor is open; the kernel reads as many bytes as the live value has, and keeps nothing of it: a
    // filter is copied (net/core/filter.c, `__get_filter`).
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const *value).cast(),
            mem::size_of::<T>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn link_layer(interface: u32, protocol: u16) -> libc::sockaddr_ll {
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: interface as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    }
}

/// Classic BPF: IPv4 and IPv6 packets of this protocol, whole.
fn only(protocol: u8) -> [libc::sock_filter; 9] {
    let op = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let load = |offset| op(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, offset, 0, 0);
    let equal = |k: u32, jt, jf| op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k, jt, jf);
    let end = |length| op(libc::BPF_RET | libc::BPF_K, length, 0, 0);
    // Jumps count from the next instruction.
    [
        load(0),
        op(libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K, 4, 0, 0),
        equal(6, 0, 2),
        load(6),
        equal(protocol.into(), 3, 2),
        load(9),
        equal(protocol.into(), 1, 0),
        end(0),
        end(u32::MAX),
    ]
}
