//! Ends a connection that must not go on: both ends see a reset at once, blocked calls included.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::BorrowedFd,
    thread,
};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use underseal_abi::{Conn, Tuple};

use super::{maps::Maps, names::text, sys};
use crate::diag;

/// Ends the socket that is this end of `conn`; its peer gets a RST. False if it is gone already.
/// The namespace is that of `socket`, a duplicate of it, if there is one; else what the
/// configuration says of the workload; else that of the process which had the socket.
///
/// # Errors
/// No namespace can be entered, or the kernel refuses.
pub(super) fn reset(maps: &Maps, conn: &Conn, socket: Option<BorrowedFd<'_>>) -> Result<bool> {
    let mut refused = None;
    for namespace in namespaces(maps, conn, socket) {
        match namespace.and_then(|file| destroy_in(&file, conn)) {
            Ok(true) => return Ok(true),
            Ok(false) => refused = Some(Ok(false)),
            Err(error) => refused = refused.or(Some(Err(error))),
        }
    }
    refused.unwrap_or(Ok(false))
}

fn namespaces(
    maps: &Maps,
    conn: &Conn,
    socket: Option<BorrowedFd<'_>>,
) -> impl Iterator<Item = Result<File>> {
    let own = socket.map(|socket| {
        sys::namespace_of(socket).context("cannot open the network namespace of a socket")
    });
    let configured = maps.workload(conn.workload).and_then(|workload| {
        let path = text(&workload.netns);
        File::open(path).with_context(|| format!("cannot open the network namespace {path}"))
    });
    let owner = (conn.tgid != 0).then(|| {
        let path = format!("/proc/{}/ns/net", conn.tgid);
        File::open(&path).with_context(|| format!("cannot open {path}"))
    });
    own.into_iter().chain([configured]).chain(owner)
}

fn destroy_in(namespace: &File, conn: &Conn) -> Result<bool> {
    let tuple = addresses(&conn.tuple);
    let destroy = || match conn.cookie {
        0 => diag::destroy_connection(tuple),
        cookie => diag::destroy(tuple, cookie),
    };
    in_namespace(namespace, destroy).with_context(|| {
        format!(
            "cannot reset the connection {} -> {}",
            tuple.local, tuple.remote
        )
    })
}

/// Runs `work` on a thread of its own inside `namespace`: a socket cannot be named, nor a namespace
/// listed, from outside.
pub(super) fn in_namespace<T: Send>(
    namespace: &File,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let inside = || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        work()
    };
    let failed = |_| io::Error::other("the thread that does it panicked");
    thread::scope(|scope| {
        // The builder, because it can say that there is no room for a thread.
        let thread = thread::Builder::new().spawn_scoped(scope, inside)?;
        thread.join().map_err(failed)?
    })
}

fn addresses(tuple: &Tuple) -> diag::Tuple {
    let address =
        |ip: [u8; 16], port| SocketAddr::new(IpAddr::V6(Ipv6Addr::from(ip)).to_canonical(), port);
    diag::Tuple {
        local: address(tuple.local, tuple.local_port),
        remote: address(tuple.remote, tuple.remote_port),
    }
}
