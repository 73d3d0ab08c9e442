//! The only unsafe code of this folder: the commands of bpf(2) that aya keeps to itself, and
//! kprobe events.
//!
//! Attributes are own structs rather than the kernel's one big union: the kernel takes the length
//! along and reads what is missing as zero (`bpf_check_uarg_tail_zero`, kernel/bpf/syscall.c).
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::Pod;
use aya_obj::generated::{bpf_attach_type, bpf_cmd};

/// The value whose bytes stand at the start of `bytes`; `None` if they are too few.
pub(super) fn read<T: Pod>(bytes: &[u8]) -> Option<T> {
    let bytes = bytes.get(..mem::size_of::<T>())?;
    // SAFETY: the slice has just been cut to the size of T, read_unaligned asks for no alignment,
    // and any bytes are a value of a Pod type.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Opens the map, program or link that is pinned at `path`.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_string(path)?;
    let mut attr = Object {
        path: address(&path),
        fd: 0,
        flags: 0,
    };
    // SAFETY: BPF_OBJ_GET reads the terminated path behind `path`, which lives until the call is
    // over, and returns a new descriptor.
    unsafe { bpf_fd(bpf_cmd::BPF_OBJ_GET, &mut attr) }
}

/// Pins a map, program or link at `path`, where nothing may be.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_string(path)?;
    let mut attr = Object {
        path: address(&path),
        fd: number(object),
        flags: 0,
    };
    // SAFETY: BPF_OBJ_PIN reads the terminated path behind `path`, which lives until the call is
    // over; the descriptor is borrowed, so it is open.
    unsafe { bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// What a link is attached to.
#[derive(Clone, Copy)]
pub(super) enum At<'a> {
    /// Whatever the program itself names: an LSM hook or an iterator.
    Program,
    /// A cgroup folder or a perf event.
    Descriptor(BorrowedFd<'a>),
    /// An interface, in front of whatever is attached there.
    Interface(u32),
}

/// Attaches a program. The link ends with its last descriptor and pin.
pub(super) fn create_link(
    program: BorrowedFd<'_>,
    at: At<'_>,
    kind: bpf_attach_type,
) -> io::Result<OwnedFd> {
    let (target, flags) = match at {
        At::Program => (0, 0),
        At::Descriptor(fd) => (number(fd), 0),
        At::Interface(index) => (index, aya_obj::generated::BPF_F_BEFORE),
    };
    let mut attr = LinkCreate {
        program: number(program),
        target,
        kind: kind as u32,
        flags,
    };
    // SAFETY: BPF_LINK_CREATE takes no address in this form; the descriptors are borrowed, so they
    // are open. It returns a new descriptor.
    unsafe { bpf_fd(bpf_cmd::BPF_LINK_CREATE, &mut attr) }
}

/// Puts another program into a link, atomically. Cgroup and tcx links can do that.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdate {
        link: number(link),
        program: number(program),
        flags: 0,
        old: 0,
    };
    // SAFETY: BPF_LINK_UPDATE takes no address; the descriptors are borrowed, so they are open.
    unsafe { bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr) }.map(drop)
}

/// Starts one run of an iterator in the network namespace of the calling thread; the descriptor
/// reads what it writes.
pub(super) fn create_iterator(link: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attr = IterCreate {
        link: number(link),
        flags: 0,
    };
    // SAFETY: BPF_ITER_CREATE takes no address; it returns a new descriptor.
    unsafe { bpf_fd(bpf_cmd::BPF_ITER_CREATE, &mut attr) }
}

/// The program with this id.
pub(super) fn program(id: u32) -> io::Result<OwnedFd> {
    let mut attr = ById {
        id,
        next: 0,
        flags: 0,
    };
    // SAFETY: BPF_PROG_GET_FD_BY_ID takes no address; it returns a new descriptor.
    unsafe { bpf_fd(bpf_cmd::BPF_PROG_GET_FD_BY_ID, &mut attr) }
}

/// The first bytes of `struct bpf_link_info`. What `target` holds depends on the kind of link:
/// id of a cgroup (u64), or index of an interface (first u32); zero once that is gone.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct LinkInfo {
    pub(super) kind: u32,
    pub(super) id: u32,
    pub(super) program: u32,
    reserved: u32,
    pub(super) target: u64,
    rest: [u64; 6],
}

impl LinkInfo {
    /// Index of the interface that a tcx link is attached to; 0 once it is gone.
    pub(super) const fn interface(&self) -> u32 {
        let [a, b, c, d, ..] = self.target.to_ne_bytes();
        u32::from_ne_bytes([a, b, c, d])
    }
}

// SAFETY: repr(C) integers without padding: four u32, then eight-byte-aligned u64.
unsafe impl Pod for LinkInfo {}

/// The first bytes of `struct bpf_prog_info`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct ProgramInfo {
    pub(super) kind: u32,
    pub(super) id: u32,
    pub(super) tag: [u8; 8],
}

// SAFETY: repr(C) integers without padding.
unsafe impl Pod for ProgramInfo {}

/// Describes a link.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    info(link)
}

/// Describes a program.
pub(super) fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    info(program)
}

fn info<T: Pod + Default>(object: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::default();
    let mut attr = InfoByFd {
        fd: number(object),
        length: mem::size_of::<T>() as u32,
        info: (&raw mut info).addr() as u64,
    };
    // SAFETY: BPF_OBJ_GET_INFO_BY_FD writes at most `length` bytes, the size of `info`, which
    // lives until the call is over and may hold any bytes (Pod). The buffers that `info` could
    // name are absent: it is all zeros.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// A perf event that fires at the entry of a kernel function (perf_event_open(2), PMU `kprobe`,
/// whose number is `pmu`). `ENOENT` if the kernel has no such function.
pub(super) fn kprobe_event(pmu: u32, function: &str) -> io::Result<OwnedFd> {
    const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
    let function = CString::new(function)?;
    let attr = PerfEvent {
        kind: pmu,
        size: mem::size_of::<PerfEvent>() as u32,
        function: address(&function),
        ..PerfEvent::default()
    };
    // SAFETY: perf_event_open reads `size` bytes of `attr` and the terminated name it points to;
    // both live until the call is over. The other arguments are integers: any process, CPU 0 (a
    // kprobe program runs on every CPU all the same), no group.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attr,
            -1,
            0,
            -1,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    let fd = cerr(fd)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[repr(C)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    kind: u32,
    flags: u32,
}

#[repr(C)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old: u32,
}

#[repr(C)]
struct IterCreate {
    link: u32,
    flags: u32,
}

#[repr(C)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

#[repr(C)]
struct InfoByFd {
    fd: u32,
    length: u32,
    info: u64,
}

/// `struct perf_event_attr` up to `config2` (`PERF_ATTR_SIZE_VER1`).
#[derive(Default)]
#[repr(C)]
struct PerfEvent {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup: u32,
    bp_type: u32,
    function: u64,
    offset: u64,
}

/// Calls bpf(2).
///
/// # Safety
/// `A` is repr(C), without padding, and the layout that `command` expects; every address in it
/// satisfies what the command does with it.
unsafe fn bpf<A>(command: bpf_cmd, attr: &mut A) -> io::Result<i32> {
    // SAFETY: `attr` is live and as long as said; the rest is the caller's promise.
    cerr(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as u32,
            &raw mut *attr,
            mem::size_of::<A>(),
        )
    })
}

/// Calls bpf(2) for a command that returns a new descriptor (close-on-exec: bpf(2) knows no other).
///
/// # Safety
/// As for [`bpf`], and `command` returns a descriptor.
unsafe fn bpf_fd<A>(command: bpf_cmd, attr: &mut A) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { bpf(command, attr) }?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn cerr(result: libc::c_long) -> io::Result<i32> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}

fn c_string(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn address(text: &CString) -> u64 {
    text.as_ptr().addr() as u64
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}
