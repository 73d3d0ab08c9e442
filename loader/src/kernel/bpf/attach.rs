//! Programs and what they are attached to. A pin below `links/` stands for each: a link, or on
//! interfaces without tcx the program in our filter.

mod busy;

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType};
use aya_obj::generated::bpf_attach_type::{self, *};
use underseal_abi::names::LINKS;

use super::object::Loaded;
use super::pin::{self, Kind};
use super::sys::{self, At, LinkInfo};
use super::tc;
use crate::config::value::AbsolutePath;
use crate::kernel::error::Error;
use crate::kernel::link::{self, Link};
use crate::state::{Attachment, Hook, Program, Target};

/// A pin and what is behind it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// What it is attached to; see [`Target::Gone`].
    pub attachment: Attachment,
    /// Id of the program.
    pub program_id: u32,
    /// Digest of the program's instructions, as `bpftool prog` shows it.
    pub tag: [u8; 8],
}

/// What was there before an [`attach`] or [`detach`].
#[must_use]
#[derive(Debug)]
pub struct Previous {
    /// What has been attached or detached.
    changed: Attachment,
    /// What the same pin stood for, with the program; `None` if it stood for nothing.
    before: Option<(Attachment, OwnedFd)>,
}

impl Previous {
    /// Puts it back.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn restore(self) -> Result<(), Error> {
        match &self.before {
            Some((attachment, program)) => put(attachment, program.as_fd()),
            None => remove(&self.changed),
        }
    }
}

/// Names and ids of the programs at an interface's hook, in the order in which they run; `None` on kernels without tcx, where
/// filters have priorities and ours the first.
#[must_use]
pub fn in_order(interface: &str, hook: Hook) -> Option<Vec<(String, u32)>> {
    let direction = match hook {
        Hook::Ingress => TcAttachType::Ingress,
        Hook::Egress => TcAttachType::Egress,
        Hook::Cgroup(_) | Hook::Kernel => return None,
    };
    let (_, programs) = SchedClassifier::query_tcx(interface, direction).ok()?;
    let programs = programs.into_iter();
    // Not aya's own way to a text, which tries out what the kernel can, by loading programs.
    let name = |it: &ProgramInfo| String::from_utf8_lossy(it.name()).into_owned();
    let named = programs.map(|it| (name(&it), it.id()));
    Some(named.collect())
}

/// Everything that is attached. `cgroup` is the folder that is looked at first to find out which
/// one a program is attached to.
///
/// # Errors
/// A pin or an interface cannot be read.
pub fn observe(cgroup: Option<&AbsolutePath>) -> Result<Vec<Attached>, Error> {
    let mut all = Vec::new();
    for name in pin::names(LINKS)? {
        all.extend(look(&name, cgroup)?.map(|(attached, _)| attached));
    }
    Ok(all)
}

/// Attaches a program. If its pin exists, in the place of the one before: cgroups and tcx swap the
/// program in the link, filters are replaced, and at kernel functions, where neither can be, both
/// run for a moment.
///
/// # Errors
/// The kernel's refusal; what was attached before is then attached still.
pub fn attach(loaded: &Loaded, attachment: &Attachment) -> Result<Previous, Error> {
    let program = loaded.program(&attachment.program.to_string())?;
    let previous = previous(attachment)?;
    put(attachment, program)?;
    Ok(previous)
}

/// Detaches a program: its pin goes, and whatever is behind it. Nothing if it is not there.
///
/// # Errors
/// The kernel's refusal.
pub fn detach(attachment: &Attachment) -> Result<Previous, Error> {
    let previous = previous(attachment)?;
    remove(attachment)?;
    Ok(previous)
}

/// Detaches what would outlive its pin: filters.
pub(super) fn detach_filters() -> Result<(), Error> {
    for name in pin::names(LINKS)? {
        let Some((program, Some(interface))) = parse(&name) else {
            continue;
        };
        if let Ok(interface) = interface.parse() {
            remove(&Attachment {
                program,
                target: Target::Gone(interface),
            })?;
        }
    }
    Ok(())
}

/// Whether the kernel has the function that a program is attached to; true for all that are not
/// attached to a function. Found by asking for the probe, which is not enabled.
///
/// # Errors
/// The kernel has no probes on functions.
pub fn has_function(program: Program) -> Result<bool, Error> {
    let Some(function) = function(program) else {
        return Ok(true);
    };
    match sys::kprobe_event(kprobe_pmu()?, function) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::new("probe", function, error)),
    }
}

/// File name of a pin. Names of VLAN interfaces have dots, which the BPF file system refuses; no
/// interface name has a colon.
fn pin_name(attachment: &Attachment) -> String {
    attachment.pin().replace('.', ":")
}

fn pin_path(attachment: &Attachment) -> PathBuf {
    pin::path(LINKS, &pin_name(attachment))
}

/// Reverse of [`pin_name`]; `None` for what is no attachment.
fn parse(name: &str) -> Option<(Program, Option<String>)> {
    match name.split_once('@') {
        Some((program, interface)) => Some((
            Program::from_name(program)?,
            Some(interface.replace(':', ".")),
        )),
        None => Some((Program::from_name(name)?, None)),
    }
}

/// The pin that says that we have added the qdisc of an interface. By index: an interface that is
/// made anew under the same name has another one.
fn qdisc_path(interface: &Link) -> PathBuf {
    pin::path(LINKS, &format!("clsact@{}", interface.index))
}

/// What a pin stands for, with the program; `None` if there is no such pin, or it is not ours.
fn look(name: &str, cgroup: Option<&AbsolutePath>) -> Result<Option<(Attached, OwnedFd)>, Error> {
    let Some((program, interface)) = parse(name) else {
        return Ok(None);
    };
    let Some(fd) = pin::open(&pin::path(LINKS, name))? else {
        return Ok(None);
    };
    let fail = |source| Error::new("look at the program of", name, source);
    let (target, fd) = match pin::kind(fd.as_fd())? {
        Kind::Link => {
            let link = sys::link_info(fd.as_fd()).map_err(fail)?;
            let target = link_target(program, interface, &link, cgroup)?;
            (target, sys::program(link.program).map_err(fail)?)
        }
        Kind::Program => (filter_target(program, interface, fd.as_fd())?, fd),
        Kind::Other => return Ok(None),
    };
    let Some(target) = target else {
        return Ok(None);
    };
    let info = sys::program_info(fd.as_fd()).map_err(fail)?;
    let attachment = Attachment { program, target };
    let attached = Attached {
        attachment,
        program_id: info.id,
        tag: info.tag,
    };
    Ok(Some((attached, fd)))
}

fn previous(attachment: &Attachment) -> Result<Previous, Error> {
    let hint = match &attachment.target {
        Target::Cgroup(folder) => Some(folder),
        _ => None,
    };
    let found = look(&pin_name(attachment), hint)?;
    Ok(Previous {
        changed: attachment.clone(),
        before: found
            .map(|(attached, fd)| (attached.attachment, fd))
            // Nobody can put a program back to an interface that is gone.
            .filter(|(before, _)| !matches!(before.target, Target::Gone(_))),
    })
}

fn put(attachment: &Attachment, program: BorrowedFd<'_>) -> Result<(), Error> {
    let path = pin_path(attachment);
    let fail = |source| {
        let object = match &attachment.target {
            Target::Cgroup(path) => format!("{} to {path}", attachment.program),
            Target::Interface(name) | Target::Gone(name) => {
                format!("{} to {name}", attachment.program)
            }
            Target::Kernel => attachment.program.to_string(),
        };
        Error::new("attach", object, source)
    };
    let link = match &attachment.target {
        Target::Cgroup(folder) => {
            let folder = File::open(folder.as_path()).map_err(fail)?;
            let id = folder.metadata().map_err(fail)?.ino();
            if update(&path, program, |link| link.target == id)? {
                return Ok(());
            }
            let at = At::Descriptor(folder.as_fd());
            sys::create_link(program, at, kind(attachment.program)).map_err(fail)?
        }
        Target::Kernel => match function(attachment.program) {
            Some(function) => {
                let event = sys::kprobe_event(kprobe_pmu()?, function).map_err(fail)?;
                sys::create_link(program, At::Descriptor(event.as_fd()), BPF_PERF_EVENT)
                    .map_err(fail)?
            }
            None => {
                let create = || sys::create_link(program, At::Program, BPF_LSM_MAC);
                busy::wait(create, busy::LIMIT).map_err(fail)?
            }
        },
        Target::Interface(name) => {
            let interface = link::named(name.as_str())?;
            if update(&path, program, |link| link.interface() == interface.index)? {
                return Ok(());
            }
            let at = At::Interface(interface.index);
            match sys::create_link(program, at, kind(attachment.program)) {
                // Kernels without tcx do not know this kind of link.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    return put_filter(attachment.program, &interface, program, &path);
                }
                other => other.map_err(fail)?,
            }
        }
        Target::Gone(_) => return Err(fail(io::ErrorKind::NotFound.into())),
    };
    pin::replace(link.as_fd(), &path)
}

/// Swaps the program in the pinned link, if there is one and it is attached to the right object.
fn update(
    path: &Path,
    program: BorrowedFd<'_>,
    is_right: impl Fn(&LinkInfo) -> bool,
) -> Result<bool, Error> {
    let Some(link) = pin::open(path)? else {
        return Ok(false);
    };
    if pin::kind(link.as_fd())? != Kind::Link {
        return Ok(false);
    }
    let fail = |source| Error::new("replace the program of", pin::show(path), source);
    let right = is_right(&sys::link_info(link.as_fd()).map_err(fail)?);
    if right {
        sys::update_link(link.as_fd(), program).map_err(fail)?;
    }
    Ok(right)
}

/// Attaches by a filter. The pin comes first: whoever finds a filter of ours finds its pin.
fn put_filter(
    program: Program,
    interface: &Link,
    fd: BorrowedFd<'_>,
    path: &Path,
) -> Result<(), Error> {
    let before = pin::open(path)?;
    pin::replace(fd, path)?;
    let attached = add_qdisc(interface, fd).and_then(|()| tc::attach(interface, program, fd));
    if attached.is_err() {
        match before {
            Some(before) => pin::replace(before.as_fd(), path)?,
            None => pin::remove(path)?,
        }
    }
    attached
}

fn add_qdisc(interface: &Link, any_program: BorrowedFd<'_>) -> Result<(), Error> {
    if tc::add_qdisc(interface)? {
        pin::replace(any_program, &qdisc_path(interface))?;
    }
    Ok(())
}

fn remove(attachment: &Attachment) -> Result<(), Error> {
    let path = pin_path(attachment);
    let Some(fd) = pin::open(&path)? else {
        return Ok(());
    };
    if let (Kind::Program, Target::Interface(name) | Target::Gone(name)) =
        (pin::kind(fd.as_fd())?, &attachment.target)
        && let Some(interface) = link::find(name.as_str())?
    {
        tc::detach(&interface, attachment.program)?;
        let qdisc = qdisc_path(&interface);
        if pin::open(&qdisc)?.is_some() && tc::remove_empty_qdisc(&interface)? {
            pin::remove(&qdisc)?;
        }
    }
    pin::remove(&path)
}

/// What a pinned link is attached to.
fn link_target(
    program: Program,
    interface: Option<String>,
    link: &LinkInfo,
    cgroup: Option<&AbsolutePath>,
) -> Result<Option<Target>, Error> {
    let Some(name) = interface else {
        return Ok(Some(match program.hook() {
            Hook::Cgroup(_) => Target::Cgroup(cgroup_of(link.target, cgroup)?),
            _ => Target::Kernel,
        }));
    };
    let Ok(target) = name.parse() else {
        return Ok(None);
    };
    let there = link::find(&name)?.is_some_and(|found| found.index == link.interface());
    Ok(Some(if there {
        Target::Interface(target)
    } else {
        Target::Gone(target)
    }))
}

/// What the program of a pin is attached to by a filter.
fn filter_target(
    program: Program,
    interface: Option<String>,
    fd: BorrowedFd<'_>,
) -> Result<Option<Target>, Error> {
    let Some(name) = interface else {
        return Ok(None);
    };
    let Ok(target) = name.parse() else {
        return Ok(None);
    };
    let there = match link::find(&name)? {
        Some(found) => {
            let info = sys::program_info(fd)
                .map_err(|source| Error::new("look at the program of", &name, source))?;
            tc::attached(&found, program)? == Some(info.id)
        }
        None => false,
    };
    Ok(Some(if there {
        Target::Interface(target)
    } else {
        Target::Gone(target)
    }))
}

/// The folder of a cgroup, by its id: the inode number (kernfs). Looks at `first`, then everywhere.
fn cgroup_of(id: u64, first: Option<&AbsolutePath>) -> Result<AbsolutePath, Error> {
    if let Some(first) = first
        && fs::metadata(first.as_path()).is_ok_and(|folder| folder.ino() == id)
    {
        return Ok(first.clone());
    }
    let mounts = fs::read_to_string("/proc/self/mounts")
        .map_err(|e| Error::new("read", "/proc/self/mounts", e))?;
    let mut folders: VecDeque<PathBuf> = mounts
        .lines()
        .filter_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
            [_, folder, "cgroup2", ..] => Some(PathBuf::from(folder)),
            _ => None,
        })
        .collect();
    while let Some(folder) = folders.pop_front() {
        let found = fs::metadata(&folder).is_ok_and(|folder| folder.ino() == id);
        if found && let Some(Ok(path)) = folder.to_str().map(str::parse) {
            return Ok(path);
        }
        // Cgroups come and go; one that is gone by now is not the one.
        let below = fs::read_dir(&folder).into_iter().flatten().flatten();
        folders.extend(
            below
                .filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()))
                .map(|entry| entry.path()),
        );
    }
    // The kernel's own way to show a folder that was removed.
    let gone = format!("/cgroup {id} (deleted)");
    gone.parse()
        .map_err(|error| Error::new("name", gone, io::Error::other(error)))
}

const fn kind(program: Program) -> bpf_attach_type {
    match program {
        Program::Egress => BPF_CGROUP_INET_EGRESS,
        Program::Ingress => BPF_CGROUP_INET_INGRESS,
        Program::SockCreate => BPF_CGROUP_INET_SOCK_CREATE,
        Program::Setsockopt => BPF_CGROUP_SETSOCKOPT,
        Program::SockRelease => BPF_CGROUP_INET_SOCK_RELEASE,
        Program::Connect4 => BPF_CGROUP_INET4_CONNECT,
        Program::Connect6 => BPF_CGROUP_INET6_CONNECT,
        Program::SocketOps => BPF_CGROUP_SOCK_OPS,
        Program::SpliceRead | Program::Sendpage => BPF_PERF_EVENT,
        Program::SocketSendmsg | Program::SocketRecvmsg | Program::SockGraft => BPF_LSM_MAC,
        Program::UplinkEgress | Program::ToWorkload | Program::ToWireguard => BPF_TCX_EGRESS,
        Program::UplinkIngress | Program::FromWireguard | Program::FromWorkload => BPF_TCX_INGRESS,
    }
}

/// The kernel function that a kprobe program is attached to.
const fn function(program: Program) -> Option<&'static str> {
    match program {
        Program::SpliceRead => Some("sock_splice_read"),
        Program::Sendpage => Some("sock_sendpage"),
        _ => None,
    }
}

/// Number of the kernel's source of kprobe events.
fn kprobe_pmu() -> Result<u32, Error> {
    const FILE: &str = "/sys/bus/event_source/devices/kprobe/type";
    let fail = |source| Error::new("read", FILE, source);
    fs::read_to_string(FILE)
        .map_err(fail)?
        .trim()
        .parse()
        .map_err(|error| fail(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_name_what_they_stand_for() {
        let attachment = Attachment {
            program: Program::UplinkEgress,
            target: Target::Interface("eth0.100".parse().unwrap()),
        };
        let name = &pin_name(&attachment);
        assert_eq!(name, "uplink_egress@eth0:100");
        assert_eq!(
            parse(name),
            Some((Program::UplinkEgress, Some("eth0.100".to_owned())))
        );
        assert_eq!(parse("egress"), Some((Program::Egress, None)));
        assert_eq!(parse("clsact@12"), None);
        assert_eq!(parse("strange"), None);
    }
}
