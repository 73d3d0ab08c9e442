//! The system calls for which no safe wrapper exists; the only unsafe code of the guest.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Error, Write as _};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// Moves the calling thread, and what it starts, into a network namespace.
pub(crate) fn enter_netns(netns: &File) -> Result<()> {
    // SAFETY: setns takes two integers; the descriptor is open for the whole call.
    cerr(unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) }).context("setns")?;
    Ok(())
}

/// Makes `command` start in a network namespace.
pub(crate) fn start_in_netns(command: &mut Command, netns: File) {
    let enter = move || {
        // SAFETY: as in `enter_netns`.
        cerr(unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; setns is a bare system call and
    // the closure allocates nothing.
    unsafe { command.pre_exec(enter) };
}

/// Makes `command` start in the cgroup whose `cgroup.procs` is given.
pub(crate) fn start_in_cgroup(command: &mut Command, mut procs: File) {
    // SAFETY: the closure makes one write system call with a constant and allocates nothing.
    unsafe { command.pre_exec(move || procs.write_all(b"0")) };
}

/// Sets the loopback interface up.
pub(crate) fn loopback_up() -> Result<()> {
    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    // SAFETY: ifreq is plain data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo\0") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which outlives the call.
    cerr(unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as _,
            &raw const request,
        )
    })
    .context("lo up")?;
    Ok(())
}

/// A packet socket that sees everything an interface receives and sends.
pub(crate) struct Packets(OwnedFd);

impl Packets {
    /// Opens and binds in the calling thread's network namespace.
    pub(crate) fn open(interface: &str) -> Result<Self> {
        let name = CString::new(interface)?;
        // SAFETY: the name is a C string that outlives the call.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            bail!("no such interface");
        }
        // Protocol 0 receives nothing until bind names a protocol, so nothing of other interfaces is queued.
        let socket = socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
        let room: libc::c_int = 256 << 20;
        // SAFETY: SO_RCVBUFFORCE reads one c_int of the given size.
        cerr(unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVBUFFORCE,
                (&raw const room).cast(),
                size_of::<libc::c_int>() as u32,
            )
        })
        .context("receive buffer")?;
        // SAFETY: sockaddr_ll is plain data, for which all zeroes is a value.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index as i32;
        // SAFETY: bind reads one sockaddr_ll of the given size.
        cerr(unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        })
        .context("bind")?;
        Ok(Self(socket))
    }

    /// LINKTYPE_ of a pcap file for what this interface carries: Ethernet, or bare IP.
    pub(crate) fn link_type(&self) -> Result<u32> {
        // SAFETY: sockaddr_ll is plain data, for which all zeroes is a value.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        let mut length = size_of::<libc::sockaddr_ll>() as u32;
        // SAFETY: getsockname writes at most `length` bytes to `address`, which has that size.
        cerr(unsafe {
            libc::getsockname(
                self.0.as_raw_fd(),
                (&raw mut address).cast(),
                &raw mut length,
            )
        })?;
        Ok(match address.sll_hatype {
            libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => 1,
            libc::ARPHRD_NONE => 101,
            other => bail!("interfaces of type {other} cannot be recorded"),
        })
    }

    /// Copies the next queued packet to `buffer` and returns its length; none when the queue is empty.
    pub(crate) fn next(&self, buffer: &mut [u8]) -> Result<Option<usize>> {
        // SAFETY: recv writes at most `buffer.len()` bytes to `buffer`.
        let length = unsafe {
            let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
            libc::recv(
                self.0.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                flags,
            )
        };
        if let Ok(length) = usize::try_from(length) {
            if length > buffer.len() {
                bail!("a packet of {length} bytes does not fit");
            }
            return Ok(Some(length));
        }
        let error = Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR) => Ok(None),
            // The interface went down or away, which a scenario may well want; it may come back.
            Some(libc::ENETDOWN) => Ok(None),
            _ => Err(error).context("receive"),
        }
    }

    /// Sleeps until there is a packet, or a short time.
    pub(crate) fn wait(&self) {
        let mut poll = libc::pollfd {
            fd: self.0.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: poll reads and writes one pollfd. Its result does not matter: the caller looks again.
        unsafe { libc::poll(&raw mut poll, 1, 20) };
    }

    /// How many packets the kernel could not queue since this was last asked.
    pub(crate) fn dropped(&self) -> Result<u64> {
        let mut statistics = libc::tpacket_stats {
            tp_packets: 0,
            tp_drops: 0,
        };
        let mut length = size_of::<libc::tpacket_stats>() as u32;
        // SAFETY: PACKET_STATISTICS writes at most `length` bytes to `statistics`, which has that size.
        cerr(unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &raw mut length,
            )
        })
        .context("statistics")?;
        Ok(statistics.tp_drops.into())
    }
}

fn socket(family: i32, kind: i32, protocol: i32) -> Result<OwnedFd> {
    // SAFETY: socket takes three integers.
    let fd = cerr(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) })
        .context("socket")?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn cerr(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(Error::last_os_error())
    } else {
        Ok(result)
    }
}
