//! The programs that Underseal attaches. This file holds the entry points and nothing else: each
//! hands its context to the module that decides.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features)]

mod apart;
mod ending;
mod forward;
mod guard;
mod hold;
mod iterate;
mod maps;
mod notice;
mod offsets;
mod packet;
mod policy;
mod refuse;
mod sleepers;
mod sys;

use aya_ebpf::{
    macros::{
        cgroup_skb, cgroup_sock, cgroup_sock_addr, cgroup_sockopt, classifier, kprobe, lsm,
        sock_ops,
    },
    programs::{
        LsmContext, ProbeContext, SkBuffContext, SockAddrContext, SockContext, SockOpsContext,
        SockoptContext, TcContext,
    },
};
use underseal_abi::Counter;

use crate::{
    maps::storage,
    packet::Packet,
    sys::{Created, Sock, SockAddr, SockOps, SockOpt, TaskFileContext, TcpContext},
};

#[sock_ops]
pub fn socket_ops(ctx: SockOpsContext) -> u32 {
    hold::sockops(SockOps(ctx.ops));
    1
}

#[cgroup_sock(sock_create)]
pub fn sock_create(ctx: SockContext) -> i32 {
    refuse::create(Created(ctx.sock))
}

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr(ctx.sock_addr);
    hold::connect(ctx, ctx.ip4())
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr(ctx.sock_addr);
    hold::connect(ctx, ctx.ip6())
}

#[cgroup_sockopt(setsockopt)]
pub fn setsockopt(ctx: SockoptContext) -> i32 {
    let ctx = SockOpt(ctx.sockopt);
    if !refuse::fast_open_option(ctx) {
        hold::setsockopt(ctx);
    }
    1
}

#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    ending::closed(Sock(ctx.sock.cast()));
    1
}

#[cgroup_skb(egress)]
pub fn egress(ctx: SkBuffContext) -> i32 {
    guard::egress(Packet(ctx.skb.skb))
}

#[cgroup_skb(ingress)]
pub fn ingress(ctx: SkBuffContext) -> i32 {
    guard::ingress(Packet(ctx.skb.skb))
}

#[lsm(hook = "socket_sendmsg")]
pub fn socket_sendmsg(ctx: LsmContext) -> i32 {
    let Some(sock) = sys::sk_of_socket(ctx.arg(0)) else {
        return 0;
    };
    match storage::state(sock) {
        Some(state) => {
            sleepers::enter(sock, state);
            ending::may_send(sock, state, sys::flags_of(ctx.arg(1)))
        }
        None => refuse::fast_open_message(sock, sys::flags_of(ctx.arg(1))),
    }
}

#[lsm(hook = "socket_recvmsg")]
pub fn socket_recvmsg(ctx: LsmContext) -> i32 {
    if let Some(sock) = sys::sk_of_socket(ctx.arg(0))
        && let Some(state) = storage::state(sock)
    {
        sleepers::enter(sock, state);
    }
    0
}

#[lsm(hook = "sock_graft")]
pub fn sock_graft(ctx: LsmContext) -> i32 {
    hold::accepted(Sock(ctx.arg(0)));
    0
}

#[kprobe]
pub fn splice_read(ctx: ProbeContext) -> u32 {
    if let Some(file) = ctx.arg(0) {
        sleepers::enter_splice(sys::spliced(file));
    }
    0
}

#[kprobe]
pub fn sendpage(ctx: ProbeContext) -> u32 {
    if let Some(file) = ctx.arg(0) {
        sleepers::enter_splice(sys::spliced(file));
    }
    0
}

#[classifier]
pub fn from_workload(ctx: TcContext) -> i32 {
    forward::from_workload(Packet(ctx.skb.skb))
}

#[classifier]
pub fn to_workload(ctx: TcContext) -> i32 {
    forward::to_workload(Packet(ctx.skb.skb))
}

#[classifier]
pub fn from_wireguard(ctx: TcContext) -> i32 {
    forward::from_wireguard(Packet(ctx.skb.skb))
}

#[classifier]
pub fn to_wireguard(ctx: TcContext) -> i32 {
    forward::to_wireguard(Packet(ctx.skb.skb))
}

#[classifier]
pub fn uplink_egress(ctx: TcContext) -> i32 {
    forward::uplink(Packet(ctx.skb.skb), Counter::DropStrictEgress)
}

#[classifier]
pub fn uplink_ingress(ctx: TcContext) -> i32 {
    forward::uplink(Packet(ctx.skb.skb), Counter::DropStrictIngress)
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub fn task_file(ctx: *const TaskFileContext) -> i32 {
    iterate::task_file(ctx);
    0
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub fn take_over(ctx: *const TcpContext) -> i32 {
    iterate::take_over(ctx);
    0
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub fn let_go(ctx: *const TcpContext) -> i32 {
    iterate::let_go(ctx);
    0
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub fn stranded(ctx: *const TcpContext) -> i32 {
    iterate::stranded(ctx);
    0
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub fn usage(ctx: *const TcpContext) -> i32 {
    iterate::usage(ctx);
    0
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
