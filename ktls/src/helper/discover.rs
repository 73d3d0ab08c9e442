//! From a socket's cookie to a descriptor of it that this process holds.

use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
};

use underseal_abi::Conn;

use super::{maps::Maps, sys};

/// A duplicate of the socket of `conn`, out of the process that called connect or accept, or of
/// another one of its network namespace: it may have been inherited or passed on.
///
/// # Errors
/// Failures of the iterator itself. That no process has the socket is `None`.
pub(super) fn socket(maps: &Maps, conn: &Conn) -> io::Result<Option<OwnedFd>> {
    if conn.tgid != 0
        && let Some(socket) = in_process(maps, conn.tgid, conn.cookie)?
    {
        return Ok(Some(socket));
    }
    for tgid in neighbours(conn.tgid) {
        if let Some(socket) = in_process(maps, tgid, conn.cookie)? {
            return Ok(Some(socket));
        }
    }
    Ok(None)
}

fn in_process(maps: &Maps, tgid: u32, cookie: u64) -> io::Result<Option<OwnedFd>> {
    let descriptors = match maps.descriptors(tgid, cookie) {
        Ok(descriptors) => descriptors,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    if descriptors.is_empty() {
        return Ok(None);
    }
    let Ok(pidfd) = sys::pidfd_open(tgid) else {
        return Ok(None);
    };
    for fd in descriptors {
        // The number may mean another file by now: the cookie decides.
        if let Ok(socket) = sys::pidfd_getfd(pidfd.as_fd(), fd)
            && crate::cookie(socket.as_fd()).is_ok_and(|c| c == cookie)
        {
            return Ok(Some(socket));
        }
    }
    Ok(None)
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ESRCH | libc::ENOENT | libc::EINVAL)
    )
}

/// The other processes in the network namespace of `tgid`; all that can be seen if it is gone, or
/// not known (0).
fn neighbours(tgid: u32) -> Vec<u32> {
    let namespace = |tgid: u32| {
        fs::metadata(format!("/proc/{tgid}/ns/net"))
            .ok()
            .map(|m| (m.dev(), m.ino()))
    };
    let wanted = namespace(tgid);
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let ids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    ids.filter(|id| *id != tgid && (wanted.is_none() || namespace(*id) == wanted))
        .collect()
}
