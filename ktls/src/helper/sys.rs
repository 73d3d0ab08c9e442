//! The system calls that no crate offers: socket storage by descriptor, an iterator limited to one
//! process, a descriptor out of another process, and tracing with any signal. The only unsafe file of the helper.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    mem::{self, MaybeUninit},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    path::Path,
    time::Duration,
};

use aya::Pod;
use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd};
use nix::{
    sys::{
        signal::{SigSet, Signal},
        time::TimeSpec,
    },
    unistd::Pid,
};

/// How a task that is traced has stopped.
#[must_use]
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// Because it was asked to, or because its process is stopped.
    Asked,
    /// To be given this signal, which is lost unless [`detach`] passes it on. nix knows no
    /// real-time signals, so it is a number.
    Signal(i32),
    /// It has ended.
    Gone,
}

/// How the traced task `pid` has stopped; `None` if it has not yet.
pub(super) fn stop_of(pid: Pid) -> io::Result<Option<Stop>> {
    let mut status = 0;
    // SAFETY: the kernel writes one integer to `status`.
    let found =
        unsafe { libc::waitpid(pid.as_raw(), &raw mut status, libc::WNOHANG | libc::__WALL) };
    match cerr(found.into())? {
        0 => Ok(None),
        _ if !libc::WIFSTOPPED(status) => Ok(Some(Stop::Gone)),
        _ if status >> 16 == libc::PTRACE_EVENT_STOP => Ok(Some(Stop::Asked)),
        _ => Ok(Some(Stop::Signal(libc::WSTOPSIG(status)))),
    }
}

/// Sleeps until some child or traced task changes, at most `limit`. SIGCHLD must be blocked.
pub(super) fn wait_for_child_signal(limit: Duration) -> io::Result<()> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    let limit = TimeSpec::from(limit);
    // SAFETY: reads a signal set and a time, which outlive the call; no siginfo is asked for.
    let caught = unsafe { libc::sigtimedwait(set.as_ref(), std::ptr::null_mut(), limit.as_ref()) };
    match cerr(caught.into()) {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Lets a stopped task go on, untraced, with `signal` delivered to it (0: none).
pub(super) fn detach(pid: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: PTRACE_DETACH takes integers; it reads and writes no memory of this process.
    let result = unsafe {
        libc::ptrace(
            libc::PTRACE_DETACH,
            pid.as_raw(),
            std::ptr::null_mut::<libc::c_void>(),
            i64::from(signal),
        )
    };
    cerr(result).map(drop)
}

/// The object pinned at `path`.
pub(super) fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let mut attr = zeroed();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    owned(bpf(bpf_cmd::BPF_OBJ_GET, &mut attr)?)
}

/// What a socket storage map holds for the socket behind `socket`.
pub(super) fn storage_get<T: Pod>(
    map: BorrowedFd<'_>,
    socket: BorrowedFd<'_>,
) -> io::Result<Option<T>> {
    let key: RawFd = socket.as_raw_fd();
    let mut value = MaybeUninit::<T>::uninit();
    let mut attr = element(map, &key, value.as_mut_ptr(), 0);
    match bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) {
        // SAFETY: the kernel has written the map's value size, which is that of T: names and
        // layouts come from underseal-abi, whose version was checked when the maps were opened.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces what a socket storage map holds for the socket behind `socket`; it must hold something.
pub(super) fn storage_set<T: Pod>(
    map: BorrowedFd<'_>,
    socket: BorrowedFd<'_>,
    mut value: T,
) -> io::Result<()> {
    const BPF_EXIST: u64 = 2;
    let key: RawFd = socket.as_raw_fd();
    let mut attr = element(map, &key, &raw mut value, BPF_EXIST);
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// The same, whether it holds something or not.
pub(super) fn storage_create<T: Pod>(
    map: BorrowedFd<'_>,
    socket: BorrowedFd<'_>,
    mut value: T,
) -> io::Result<()> {
    const BPF_ANY: u64 = 0;
    let key: RawFd = socket.as_raw_fd();
    let mut attr = element(map, &key, &raw mut value, BPF_ANY);
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// A reader of the iterator `program` over the descriptors of process `tgid`.
pub(super) fn iterate_process(program: BorrowedFd<'_>, tgid: u32) -> io::Result<File> {
    // union bpf_iter_link_info, member task (include/uapi/linux/bpf.h since 6.0).
    #[repr(C)]
    struct Task {
        tid: u32,
        pid: u32,
        pid_fd: u32,
        reserved: u32,
    }
    let info = Task {
        tid: 0,
        pid: tgid,
        pid_fd: 0,
        reserved: 0,
    };
    let mut attr = zeroed();
    attr.link_create.__bindgen_anon_3.__bindgen_anon_1.iter_info = (&raw const info) as u64;
    attr.link_create
        .__bindgen_anon_3
        .__bindgen_anon_1
        .iter_info_len = mem::size_of::<Task>() as u32;
    iterator(program, attr)
}

/// A reader of the iterator `program`, which asks for nothing; it is about the calling thread's
/// network namespace.
pub(super) fn iterate(program: BorrowedFd<'_>) -> io::Result<File> {
    iterator(program, zeroed())
}

/// `attr` may point to what lives until this returns.
fn iterator(program: BorrowedFd<'_>, mut attr: bpf_attr) -> io::Result<File> {
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd().cast_unsigned();
    attr.link_create.attach_type = bpf_attach_type::BPF_TRACE_ITER as u32;
    let link = owned(bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr)?)?;
    let mut attr = zeroed();
    attr.iter_create.link_fd = link.as_raw_fd().cast_unsigned();
    owned(bpf(bpf_cmd::BPF_ITER_CREATE, &mut attr)?).map(File::from)
}

/// Time by `CLOCK_MONOTONIC`, which is what BPF stamps records with.
pub(super) fn monotonic() -> Duration {
    use nix::time::{ClockId, clock_gettime};
    // A clock that every kernel has; at zero every record would seem new, which keeps it.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// The network namespace that `socket` belongs to.
pub(super) fn namespace_of(socket: BorrowedFd<'_>) -> io::Result<File> {
    // include/uapi/linux/sockios.h; libc has no name for it.
    const SIOCGSKNS: libc::Ioctl = 0x894C;
    // SAFETY: the request takes no argument and returns a new descriptor.
    owned(cerr(
        unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) }.into(),
    )?)
    .map(File::from)
}

/// Bytes that the TCP of `socket` has to send or has not had acknowledged.
pub(super) fn unsent(socket: BorrowedFd<'_>) -> io::Result<u32> {
    queued(socket, libc::TIOCOUTQ)
}

/// Bytes that the TCP of `socket` has received and nobody has taken.
pub(super) fn unread(socket: BorrowedFd<'_>) -> io::Result<u32> {
    queued(socket, libc::FIONREAD)
}

/// SIOCOUTQ and SIOCINQ (include/uapi/linux/sockios.h), by the names of the terminal's requests, whose numbers they
/// have.
fn queued(socket: BorrowedFd<'_>, request: libc::Ioctl) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: both requests write one integer to `bytes`.
    cerr(unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw mut bytes) }.into())?;
    Ok(bytes.cast_unsigned())
}

/// A handle on process `tgid`.
pub(super) fn pidfd_open(tgid: u32) -> io::Result<OwnedFd> {
    // SAFETY: two integers; the kernel validates both.
    owned(cerr(unsafe {
        libc::syscall(libc::SYS_pidfd_open, tgid, 0)
    })?)
}

/// A duplicate of descriptor `fd` of the process behind `pidfd`, close-on-exec.
pub(super) fn pidfd_getfd(pidfd: BorrowedFd<'_>, fd: u32) -> io::Result<OwnedFd> {
    // SAFETY: three integers; the kernel validates all.
    owned(cerr(unsafe {
        libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0)
    })?)
}

/// The whole records in `bytes`, one after the other.
pub(super) fn records<T: Pod>(bytes: &[u8]) -> Vec<T> {
    let records = bytes.chunks_exact(mem::size_of::<T>());
    records.filter_map(record).collect()
}

/// The record at the start of `bytes`; `None` if they are too few.
pub(super) fn record<T: Pod>(bytes: &[u8]) -> Option<T> {
    // SAFETY: enough bytes, any of them make a T (Pod), and read_unaligned asks for no alignment.
    (bytes.len() >= mem::size_of::<T>())
        .then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

fn element<T>(map: BorrowedFd<'_>, key: &RawFd, value: *mut T, flags: u64) -> bpf_attr {
    let mut attr = zeroed();
    // SAFETY: writes plain integers into the union member that the element commands read.
    let fields = unsafe { &mut attr.__bindgen_anon_2 };
    fields.map_fd = map.as_raw_fd().cast_unsigned();
    fields.key = std::ptr::from_ref(key) as u64;
    fields.__bindgen_anon_1.value = value as u64;
    fields.flags = flags;
    attr
}

fn zeroed() -> bpf_attr {
    // SAFETY: a union of structs of integers; the kernel demands zeros where nothing is set.
    unsafe { mem::zeroed() }
}

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: attr lives across the call and has the size that is passed; pointers inside it were
    // taken from values that the caller keeps alive.
    cerr(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as u32,
            &raw mut *attr,
            mem::size_of::<bpf_attr>(),
        )
    })
}

fn cerr(result: i64) -> io::Result<i64> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn owned(fd: i64) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: just returned by the kernel to this call, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
