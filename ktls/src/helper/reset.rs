//! Ends a connection that must not go on: both ends see a reset at once, blocked calls included.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    thread,
};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use underseal_abi::{Conn, Tuple};

use super::{maps::Maps, names::text};
use crate::diag;

/// Ends the socket that is this end of `conn`; its peer gets a RST. False if it is gone already.
///
/// # Errors
/// The namespace cannot be entered, or the kernel refuses.
pub(super) fn reset(maps: &Maps, conn: &Conn) -> Result<bool> {
    /// `INET_DIAG_NOCOOKIE`: the addresses alone say which socket.
    const ANY: u64 = u64::MAX;
    let workload = maps.workload(conn.workload)?;
    let path = text(&workload.netns);
    let namespace =
        File::open(path).with_context(|| format!("cannot open the network namespace {path}"))?;
    let cookie = if conn.cookie == 0 { ANY } else { conn.cookie };
    let tuple = addresses(&conn.tuple);
    in_namespace(&namespace, || diag::destroy(tuple, cookie)).with_context(|| {
        format!(
            "cannot reset the connection {} -> {}",
            tuple.local, tuple.remote
        )
    })
}

/// Runs `work` on a thread of its own inside `namespace`: a socket cannot be named from outside.
fn in_namespace<T: Send>(
    namespace: &File,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let inside = || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        work()
    };
    let failed = |_| io::Error::other("the thread that does it panicked");
    thread::scope(|scope| scope.spawn(inside).join().map_err(failed)?)
}

fn addresses(tuple: &Tuple) -> diag::Tuple {
    let address =
        |ip: [u8; 16], port| SocketAddr::new(IpAddr::V6(Ipv6Addr::from(ip)).to_canonical(), port);
    diag::Tuple {
        local: address(tuple.local, tuple.local_port),
        remote: address(tuple.remote, tuple.remote_port),
    }
}
