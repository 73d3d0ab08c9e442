//! From a socket's cookie to a descriptor of it that this process holds.

use std::{
    collections::HashMap,
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
};

use underseal_abi::Conn;

use super::{maps::Maps, sys};

/// What came of a search: that no process has the socket is `None`.
pub(super) type Found = io::Result<Option<OwnedFd>>;

/// Sockets that were seen when their process was read for others, by cookie. Reading a process takes as long as it has
/// descriptors; when ten thousand wait and few are taken at a time, it is not to be read each time.
#[derive(Debug, Default)]
pub(super) struct Seen(HashMap<u64, Descriptor>);

/// A descriptor of another process. By the time that it is used it may mean another file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Descriptor {
    tgid: u32,
    fd: u32,
}

/// Duplicates of the sockets of `conns`, of which no others are looked for.
pub(super) fn now(maps: &Maps, conns: &[Conn]) -> Vec<Found> {
    sockets(maps, conns, &mut Seen::default(), |_| false)
}

/// Duplicates of the sockets of `conns`, in their order: out of the process that called connect or
/// accept, or of another one of its network namespace: a descriptor may have been inherited or
/// passed on. Each process is read once, however many of the sockets it has, and not at all if
/// they have been `seen`. What else is found of those that wait is noted there.
pub(super) fn sockets(
    maps: &Maps,
    conns: &[Conn],
    seen: &mut Seen,
    waits: impl Fn(u64) -> bool,
) -> Vec<Found> {
    let mut found: Vec<Found> = seen.take(conns);
    let mut by_owner: HashMap<u32, Vec<usize>> = HashMap::new();
    for (at, conn) in conns.iter().enumerate() {
        if matches!(found[at], Ok(None)) {
            by_owner.entry(conn.tgid).or_default().push(at);
        }
    }
    if !by_owner.is_empty() {
        seen.0.retain(|cookie, _| waits(*cookie));
    }
    for (owner, mut wanted) in by_owner {
        if owner != 0 {
            let descriptors = in_process(maps, owner, conns, &mut wanted, &mut found);
            let others = descriptors.into_iter().filter(|(cookie, _)| waits(*cookie));
            seen.note(owner, others);
        }
        if wanted.is_empty() {
            continue;
        }
        match neighbours(owner) {
            Ok(near) => {
                for tgid in near {
                    in_process(maps, tgid, conns, &mut wanted, &mut found);
                }
            }
            Err(error) => fail(&error, &mut wanted, &mut found),
        }
    }
    found
}

impl Seen {
    fn note(&mut self, tgid: u32, descriptors: impl Iterator<Item = (u64, Vec<u32>)>) {
        for (cookie, fds) in descriptors {
            if let Some(fd) = fds.first() {
                self.0.insert(cookie, Descriptor { tgid, fd: *fd });
            }
        }
    }

    /// Those of `conns` that were seen and are still where they were.
    fn take(&mut self, conns: &[Conn]) -> Vec<Found> {
        let mut processes: HashMap<u32, io::Result<OwnedFd>> = HashMap::new();
        let mut take = |conn: &Conn| {
            let Descriptor { tgid, fd } = self.0.remove(&conn.cookie)?;
            let process = processes
                .entry(tgid)
                .or_insert_with(|| sys::pidfd_open(tgid));
            let socket = sys::pidfd_getfd(process.as_ref().ok()?.as_fd(), fd).ok()?;
            is_it(&socket, conn.cookie).then_some(socket)
        };
        conns.iter().map(|conn| Ok(take(conn))).collect()
    }
}

/// The number of a descriptor may mean another file by now: the cookie decides.
fn is_it(socket: &OwnedFd, cookie: u64) -> bool {
    crate::cookie(socket.as_fd()).is_ok_and(|own| own == cookie)
}

/// Which of `conns` some process still has.
///
/// # Errors
/// A process cannot be read, for want of descriptors or memory.
pub(super) fn alive(maps: &Maps, conns: &[Conn]) -> io::Result<Vec<bool>> {
    let mut alive = vec![false; conns.len()];
    let mut by_owner: HashMap<u32, Vec<usize>> = HashMap::new();
    for (at, conn) in conns.iter().enumerate() {
        by_owner.entry(conn.tgid).or_default().push(at);
    }
    for (owner, mut wanted) in by_owner {
        let mut look_in = |tgid: u32, wanted: &mut Vec<usize>| -> io::Result<()> {
            let descriptors = descriptors(maps, tgid)?;
            wanted.retain(|at| {
                alive[*at] = descriptors.contains_key(&conns[*at].cookie);
                !alive[*at]
            });
            Ok(())
        };
        if owner != 0 {
            look_in(owner, &mut wanted)?;
        }
        if !wanted.is_empty() {
            for tgid in neighbours(owner)? {
                look_in(tgid, &mut wanted)?;
            }
        }
    }
    Ok(alive)
}

/// Looks in one process for those of `conns` whose places are in `wanted`, and takes out of it the
/// places that are decided: found, or failed for a reason that has nothing to do with this process.
/// Returns all sockets of the process.
fn in_process(
    maps: &Maps,
    tgid: u32,
    conns: &[Conn],
    wanted: &mut Vec<usize>,
    found: &mut [Found],
) -> HashMap<u64, Vec<u32>> {
    let descriptors = match descriptors(maps, tgid) {
        Ok(descriptors) => descriptors,
        Err(error) => {
            fail(&error, wanted, found);
            return HashMap::new();
        }
    };
    // Of a process that has none of them no handle is needed.
    if !wanted
        .iter()
        .any(|at| descriptors.contains_key(&conns[*at].cookie))
    {
        return descriptors;
    }
    let pidfd = match sys::pidfd_open(tgid) {
        Ok(pidfd) => pidfd,
        Err(error) => {
            if is_shortage(&error) {
                fail(&error, wanted, found);
            }
            return descriptors;
        }
    };
    wanted.retain(|at| {
        let cookie = conns[*at].cookie;
        for fd in descriptors.get(&cookie).into_iter().flatten() {
            match sys::pidfd_getfd(pidfd.as_fd(), *fd) {
                Ok(socket) if is_it(&socket, cookie) => {
                    found[*at] = Ok(Some(socket));
                    return false;
                }
                Err(error) if is_shortage(&error) => {
                    found[*at] = Err(error);
                    return false;
                }
                _ => {}
            }
        }
        true
    });
    descriptors
}

/// The sockets of a process: cookie to descriptor numbers. None if the process is gone.
fn descriptors(maps: &Maps, tgid: u32) -> io::Result<HashMap<u64, Vec<u32>>> {
    let records = match maps.descriptors(tgid) {
        Err(error) if is_gone(&error) => Vec::new(),
        other => other?,
    };
    let mut descriptors: HashMap<u64, Vec<u32>> = HashMap::new();
    for record in records {
        descriptors
            .entry(record.cookie)
            .or_default()
            .push(record.fd);
    }
    Ok(descriptors)
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ESRCH | libc::ENOENT | libc::EINVAL)
    )
}

/// Whether this process, or the machine, is short of something: no statement about the socket.
pub(super) fn is_shortage(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EAGAIN)
    )
}

/// Decides all that is still wanted: it could not be looked for.
fn fail(error: &io::Error, wanted: &mut Vec<usize>, found: &mut [Found]) {
    for at in wanted.drain(..) {
        found[at] = Err(match error.raw_os_error() {
            Some(number) => io::Error::from_raw_os_error(number),
            None => io::Error::other(error.to_string()),
        });
    }
}

/// The other processes in the network namespace of `tgid`; all that can be seen if it is gone, or
/// not known (0). This one is none of them: it has duplicates.
fn neighbours(tgid: u32) -> io::Result<Vec<u32>> {
    let namespace = |tgid: u32| {
        fs::metadata(format!("/proc/{tgid}/ns/net"))
            .ok()
            .map(|m| (m.dev(), m.ino()))
    };
    let wanted = namespace(tgid);
    let processes = fs::read_dir("/proc")?;
    let ids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_near = |id: &u32| wanted.is_none() || namespace(*id) == wanted;
    let own = std::process::id();
    let near = ids.filter(|id| *id != tgid && *id != own && is_near(id));
    Ok(near.collect())
}
