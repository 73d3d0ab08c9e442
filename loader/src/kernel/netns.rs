//! Network namespaces of workloads: open, identify, work inside, find the host side of a veth pair.
//!
//! Work inside a namespace runs in a thread of its own, which ends with it: the caller's thread
//! never leaves its namespace, not even if the work panics.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

use super::error::Error;
use super::link::{self, Link};
use super::netlink;
use crate::sys;

/// An open network namespace; it stays alive as long as this value.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
}

/// Both ends of the veth pair that connects a namespace with the caller's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The end inside; its index belongs to the inner namespace.
    pub inside: Link,
    /// The end in the caller's namespace.
    pub host: Link,
}

impl Netns {
    /// Opens the namespace at `path`. `None` if there is none: no file, or the empty file that
    /// `ip netns` and container runtimes leave as the place to mount it on.
    ///
    /// # Errors
    /// The file cannot be opened, or is something else than a namespace.
    pub fn open(path: &Path) -> Result<Option<Self>, Error> {
        let fail =
            |source| Error::new("open network namespace", path.display().to_string(), source);
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(fail)?,
        };
        let kind = fstatfs(&file)
            .map_err(|errno| fail(errno.into()))?
            .filesystem_type();
        if kind == NSFS_MAGIC {
            return Ok(Some(Self {
                file,
                path: path.to_owned(),
            }));
        }
        let metadata = file.metadata().map_err(fail)?;
        if metadata.is_file() && metadata.len() == 0 {
            return Ok(None);
        }
        Err(fail(io::Error::other("it is not a namespace")))
    }

    /// Where it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` inside the namespace, in a thread of its own, and waits for it.
    ///
    /// # Errors
    /// The namespace cannot be entered (`EINVAL`: it is not a network namespace). `work` has then not run.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let fail = |source| {
            Error::new(
                "enter network namespace",
                self.path.display().to_string(),
                source,
            )
        };
        thread::scope(|scope| {
            let inside = thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, || {
                    setns(&self.file, CloneFlags::CLONE_NEWNET).map(|()| work())
                })
                .map_err(fail)?;
            let result = inside.join().unwrap_or_else(|panic| resume_unwind(panic));
            result.map_err(|errno| fail(errno.into()))
        })
    }

    /// The namespace's cookie (`SO_NETNS_COOKIE`): unique until reboot, and what
    /// `bpf_get_netns_cookie` returns.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the kernel has no cookies (before 5.14).
    pub fn cookie(&self) -> Result<u64, Error> {
        self.run(|| UnixDatagram::unbound().and_then(|socket| sys::netns_cookie(socket.as_fd())))?
            .map_err(|source| {
                Error::new(
                    "read the cookie of network namespace",
                    self.path.display().to_string(),
                    source,
                )
            })
    }

    /// The veth pair whose inner end is called `interface`, its other end being in the caller's
    /// namespace. `None` if there is no such interface inside.
    ///
    /// # Errors
    /// The interface is not a veth, or its other end is in a third namespace.
    pub fn veth_pair(&self, interface: &str) -> Result<Option<Pair>, Error> {
        let Some(inside) = self.run(|| link::find(interface))?? else {
            return Ok(None);
        };
        let fail = |reason: &str| {
            let object = format!("{interface} in {}", self.path.display());
            Error::new(
                "find the host side of",
                object,
                io::Error::other(reason.to_owned()),
            )
        };
        if inside.kind.as_deref() != Some("veth") {
            return Err(fail(&format!(
                "it is {}, not veth",
                inside.kind.as_deref().unwrap_or("no virtual interface")
            )));
        }
        let elsewhere = || fail("its other end is not in this network namespace");
        let index = inside
            .peer
            .filter(|_| inside.peer_netns.is_some())
            .ok_or_else(elsewhere)?;
        let host = link::at(index)?.ok_or_else(elsewhere)?;
        // Indices are small numbers that every namespace hands out anew: only an interface that
        // points back, into this very namespace, is the other end.
        let points_back = host.kind.as_deref() == Some("veth")
            && host.peer == Some(inside.index)
            && host.peer_netns.is_some()
            && host.peer_netns == self.id()?;
        if points_back {
            Ok(Some(Pair { inside, host }))
        } else {
            Err(elsewhere())
        }
    }

    /// The id by which the caller's namespace knows this one; `None` if it has not needed any yet.
    fn id(&self) -> Result<Option<i32>, Error> {
        let fail = |refused: netlink::Refused| {
            refused.on(
                "read the id of network namespace",
                self.path.display().to_string(),
            )
        };
        let descriptor = u32::try_from(self.file.as_raw_fd())
            .map_err(|_| fail(io::Error::from(Errno::EBADF).into()))?;
        let mut message = NsidMessage::default();
        message.attributes = vec![NsidAttribute::Fd(descriptor)];
        let answer = netlink::request(RouteNetlinkMessage::GetNsId(message), 0).map_err(fail)?;
        Ok(answer.into_iter().find_map(|message| match message {
            RouteNetlinkMessage::NewNsId(message) => {
                message
                    .attributes
                    .iter()
                    .find_map(|attribute| match attribute {
                        NsidAttribute::Id(id) if *id >= 0 => Some(*id),
                        _ => None,
                    })
            }
            _ => None,
        }))
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::kernel::testing::{new_netns, veth, veth_into};

    fn own_cookie() -> u64 {
        sys::netns_cookie(UnixDatagram::unbound().unwrap().as_fd()).unwrap()
    }

    #[test]
    fn what_is_no_namespace_is_absent_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("netns");
        assert!(Netns::open(&path).unwrap().is_none());
        File::create(&path).unwrap();
        assert!(Netns::open(&path).unwrap().is_none());
        std::fs::write(&path, "text").unwrap();
        let error = Netns::open(&path).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "cannot open network namespace {}: it is not a namespace",
                path.display()
            )
        );
        assert!(Netns::open(folder.path()).is_err());
    }

    #[test]
    fn namespace_of_another_kind_is_refused() {
        let mount = Netns::open(Path::new("/proc/self/ns/mnt"))
            .unwrap()
            .unwrap();
        assert_eq!(mount.run(|| ()).unwrap_err().errno(), Some(Errno::EINVAL));
        assert!(mount.cookie().is_err());
    }

    #[test]
    fn cookie_is_of_the_namespace_and_the_caller_stays_outside() {
        let (first, second) = (new_netns(), new_netns());
        let own = own_cookie();
        assert_eq!(first.cookie().unwrap(), first.cookie().unwrap());
        assert_ne!(first.cookie().unwrap(), second.cookie().unwrap());
        assert_ne!(first.cookie().unwrap(), own);
        assert_eq!(first.run(own_cookie).unwrap(), first.cookie().unwrap());
        assert_eq!(own_cookie(), own);
        let panic = catch_unwind(AssertUnwindSafe(|| first.run(|| panic!("on purpose"))));
        assert!(panic.is_err());
        assert_eq!(own_cookie(), own);
    }

    #[test]
    fn both_ends_of_a_veth_pair_are_found() {
        let (host, workload) = (new_netns(), new_netns());
        host.run(|| {
            let outer = veth_into("host0", "eth0", &workload);
            let pair = workload.veth_pair("eth0").unwrap().unwrap();
            assert_eq!(
                (pair.host.index, pair.host.name.as_str()),
                (outer.index, "host0")
            );
            assert_eq!(pair.inside.name, "eth0");
            assert_eq!(workload.veth_pair("eth1").unwrap(), None);
        })
        .unwrap();
    }

    #[test]
    fn no_other_interface_is_taken_for_the_other_end() {
        let (host, middle, workload, stranger) =
            (new_netns(), new_netns(), new_netns(), new_netns());
        // Both pairs have the same indices: only the namespaces tell them apart.
        let decoy = host.run(|| veth_into("host0", "eth0", &stranger)).unwrap();
        middle
            .run(|| veth_into("host0", "eth0", &workload))
            .unwrap();
        let inside = workload.run(|| link::named("eth0")).unwrap().unwrap();
        assert_eq!(
            (inside.peer, Some(inside.index)),
            (Some(decoy.index), decoy.peer)
        );
        let refusal = |interface: &'static str| {
            host.run(|| workload.veth_pair(interface).unwrap_err().to_string())
                .unwrap()
        };
        assert!(refusal("eth0").ends_with("its other end is not in this network namespace"));
        assert!(refusal("lo").ends_with("not veth"), "{}", refusal("lo"));
        workload.run(|| veth("in0", "in1")).unwrap();
        assert!(refusal("in0").ends_with("its other end is not in this network namespace"));
    }
}
