//! Files in the BPF file system that keep maps, programs and links alive.
//!
//! A pin is replaced by pinning under a temporary name and renaming, so that at every moment one of
//! the two is there. Temporary names end in `%new`: no interface name has a `%`, and a dot, which
//! would be more usual, is refused by that file system (`bpf_lookup`, kernel/bpf/inode.c).

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use underseal_abi::names::{LINKS, MAPS, PIN_ROOT, PROGS};

use super::sys;
use crate::kernel::error::Error;

const TEMPORARY: &str = "%new";

/// What kind of object a descriptor of a pin is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Link,
    Program,
    Other,
}

/// The path of a pin in one of the folders of [`underseal_abi::names`].
pub(super) fn path(folder: &str, name: &str) -> PathBuf {
    Path::new(PIN_ROOT).join(folder).join(name)
}

/// Makes the folders, and removes what an interrupted run has left under a temporary name.
pub(super) fn prepare() -> Result<(), Error> {
    let root = Path::new(PIN_ROOT);
    let parent = root.parent().unwrap_or(root);
    let system = statfs(parent).map_err(|errno| Error::new("look at", show(parent), errno))?;
    if system.filesystem_type() != BPF_FS_MAGIC {
        let why = io::Error::other("it is no BPF file system");
        let hint = format!("mount -t bpf bpf {}", parent.display());
        return Err(Error::new("keep programs in", show(parent), why).explained(hint));
    }
    for folder in [MAPS, LINKS, PROGS] {
        let folder = root.join(folder);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|source| Error::new("make", show(&folder), source))?;
    }
    for folder in [LINKS, PROGS] {
        for name in all_names(folder)?
            .iter()
            .filter(|name| name.ends_with(TEMPORARY))
        {
            remove(&path(folder, name))?;
        }
    }
    Ok(())
}

/// Names of the pins in a folder, temporary ones left out; none if there is no such folder.
pub(super) fn names(folder: &str) -> Result<Vec<String>, Error> {
    let mut names = all_names(folder)?;
    names.retain(|name| !name.ends_with(TEMPORARY));
    names.sort();
    Ok(names)
}

fn all_names(folder: &str) -> Result<Vec<String>, Error> {
    let folder = Path::new(PIN_ROOT).join(folder);
    let fail = |source| Error::new("list", show(&folder), source);
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(fail)?,
    };
    entries
        .map(|entry| {
            Ok(entry
                .map_err(fail)?
                .file_name()
                .to_string_lossy()
                .into_owned())
        })
        .collect()
}

/// Opens what is pinned; `None` if nothing is.
pub(super) fn open(path: &Path) -> Result<Option<OwnedFd>, Error> {
    match sys::open_pin(path) {
        Ok(fd) => Ok(Some(fd)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::new("open", show(path), error)),
    }
}

/// Pins an object, in the place of whatever is pinned there.
pub(super) fn replace(object: BorrowedFd<'_>, path: &Path) -> Result<(), Error> {
    let fail = |source| Error::new("pin", show(path), source);
    let mut name = path.as_os_str().to_owned();
    name.push(TEMPORARY);
    let temporary = PathBuf::from(name);
    remove(&temporary)?;
    sys::pin(object, &temporary).map_err(fail)?;
    fs::rename(&temporary, path).map_err(fail)
}

/// Removes a pin if it is there. A link without another pin or descriptor is detached by that.
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::new("remove", show(path), error))
        }
        _ => Ok(()),
    }
}

/// Removes the root with all that is in it.
pub(super) fn remove_all() -> Result<(), Error> {
    match fs::remove_dir_all(PIN_ROOT) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::new("remove", PIN_ROOT, error))
        }
        _ => Ok(()),
    }
}

/// What kind of object `fd` is, by the name that kernel/bpf/syscall.c gives to such files.
pub(super) fn kind(fd: BorrowedFd<'_>) -> Result<Kind, Error> {
    let file = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let name = fs::read_link(&file).map_err(|source| Error::new("look at", &file, source))?;
    Ok(match name.to_str() {
        Some("anon_inode:bpf_link" | "anon_inode:bpf-link") => Kind::Link,
        Some("anon_inode:bpf-prog") => Kind::Program,
        _ => Kind::Other,
    })
}

pub(super) fn show(path: &Path) -> String {
    path.display().to_string()
}
