//! The system calls that no safe crate offers. The only file of this crate with `unsafe`.
#![allow(unsafe_code)]

#[cfg(feature = "maps")]
use aya::{Pod, maps::MapData};
#[cfg(feature = "maps")]
use aya_obj::generated::bpf_cmd;
use nix::errno::Errno;
#[cfg(feature = "helper")]
use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};
#[cfg(feature = "maps")]
use std::mem::MaybeUninit;
use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    ptr,
};

/// The kernel's lasting and unique number of a socket, the one that BPF programs see.
///
/// # Errors
///
/// That of `getsockopt`.
pub fn cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut len = len_of::<u64>();
    // SAFETY: the kernel writes at most `len` bytes, the size of `cookie`, and both outlive the
    // call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    Errno::result(result)?;
    Ok(cookie)
}

/// Sets how many bytes of unsent data make the socket not writable, `TCP_NOTSENT_LOWAT`.
///
/// 0 means "as the network namespace says" (`net.ipv4.tcp_notsent_lowat`), [`u32::MAX`] "never".
///
/// # Errors
///
/// That of `setsockopt`.
pub fn set_notsent_lowat(socket: BorrowedFd<'_>, bytes: u32) -> io::Result<()> {
    // SAFETY: the kernel reads the four bytes of `bytes`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NOTSENT_LOWAT,
            (&raw const bytes).cast(),
            len_of::<u32>(),
        )
    };
    Errno::result(result)?;
    Ok(())
}

/// All entries of a hash map of BPF that are in it all the while that it is read: a thousand with each call, where reading
/// one after the other takes two calls for each (`BPF_MAP_LOOKUP_BATCH`, kernel/bpf/hashtab.c since 5.6).
///
/// # Errors
///
/// That of bpf(2); [`io::ErrorKind::InvalidData`] if keys or values of the map have another size than `K` and `V`.
#[cfg(feature = "maps")]
pub fn map_entries<K: Pod, V: Pod>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    ensure_sizes::<K, V>(map)?;
    let (mut entries, mut room) = (Vec::new(), 1024);
    let (mut place, mut next) = (None::<u32>, 0_u32);
    loop {
        let mut keys: Vec<MaybeUninit<K>> = vec![MaybeUninit::uninit(); room];
        let mut values: Vec<MaybeUninit<V>> = vec![MaybeUninit::uninit(); room];
        let mut attr = Batch {
            from: place
                .as_ref()
                .map_or(0, |place| (&raw const *place).addr() as u64),
            next: (&raw mut next).addr() as u64,
            keys: keys.as_mut_ptr().addr() as u64,
            values: values.as_mut_ptr().addr() as u64,
            count: u32::try_from(room).map_err(io::Error::other)?,
            map: map.as_raw_fd().cast_unsigned(),
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: BPF_MAP_LOOKUP_BATCH writes at most `count` keys and values, for which there is room, and a place,
        // which is a u32 for hash maps; all of it lives until the call is over. `attr` has the size that is said.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                bpf_cmd::BPF_MAP_LOOKUP_BATCH as u32,
                &raw mut attr,
                mem::size_of::<Batch>(),
            )
        };
        let result = Errno::result(result);
        if result == Err(Errno::ENOSPC) {
            // A bucket has more than there is room for.
            room *= 2;
            continue;
        }
        let is_last = result == Err(Errno::ENOENT);
        if !is_last {
            result?;
        }
        let copied = keys.iter().zip(&values).take(attr.count as usize);
        // SAFETY: the kernel has written `count` keys and values of the map's sizes, which have been compared with those of
        // K and V. Any bytes are values of Pod types.
        let copied = copied.map(|(key, value)| unsafe { (key.assume_init(), value.assume_init()) });
        entries.extend(copied);
        if is_last {
            return Ok(entries);
        }
        place = Some(next);
    }
}

#[cfg(feature = "maps")]
fn ensure_sizes<K, V>(map: BorrowedFd<'_>) -> io::Result<()> {
    let info = MapData::from_fd(map.try_clone_to_owned()?).and_then(|map| map.info());
    let info = info.map_err(io::Error::other)?;
    let has = (info.key_size() as usize, info.value_size() as usize);
    let wanted = (mem::size_of::<K>(), mem::size_of::<V>());
    if has == wanted {
        return Ok(());
    }
    let why = format!("its keys and values have {has:?} bytes, not {wanted:?}");
    Err(io::Error::new(io::ErrorKind::InvalidData, why))
}

/// Attributes of the command; the kernel takes the length along and reads what is missing as zero
/// (`bpf_check_uarg_tail_zero`, kernel/bpf/syscall.c).
#[cfg(feature = "maps")]
#[repr(C)]
struct Batch {
    from: u64,
    next: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

#[cfg(feature = "helper")]
sockopt_impl!(
    /// Which buffers the program has fixed the size of: 1 that for sending, 2 that for receiving (Linux 5.14,
    /// include/uapi/linux/socket.h).
    BufLock, Both, libc::SOL_SOCKET, libc::SO_BUF_LOCK, u32
);

/// A direction of traffic, as the kernel's TLS names it.
#[cfg(feature = "helper")]
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
pub(crate) enum Way {
    /// What the socket sends.
    Send = libc::TLS_TX,
    /// What it receives.
    Receive = libc::TLS_RX,
}

/// Whether the kernel's TLS in the socket has keys, for either direction.
///
/// # Errors
///
/// That of `getsockopt`: the socket has no TLS.
#[cfg(feature = "helper")]
pub(crate) fn has_keys(socket: BorrowedFd<'_>) -> io::Result<bool> {
    for way in [Way::Send, Way::Receive] {
        match cipher_of(socket, way) {
            Ok(_) => return Ok(true),
            // What it says of a direction without keys.
            Err(Errno::EBUSY) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(false)
}

/// The cipher of the keys of one direction, as `TLS_CIPHER_*`.
///
/// # Errors
///
/// `EBUSY` if there are no keys; another one if there is no TLS.
#[cfg(feature = "helper")]
pub(crate) fn cipher_of(socket: BorrowedFd<'_>, way: Way) -> Result<u16, Errno> {
    // So short a buffer gets version and cipher, and not the key (net/tls/tls_main.c,
    // do_tls_getsockopt_conf).
    let mut info = [0_u16; 2];
    read_info(socket, way, &mut info)?;
    Ok(info[1])
}

/// The number of the next record of one direction.
///
/// # Errors
///
/// As [`cipher_of`].
#[cfg(feature = "helper")]
pub(crate) fn record_number(socket: BorrowedFd<'_>, way: Way) -> Result<u64, Errno> {
    // The key comes along, in clear. The number is the last member of every tls12_crypto_info_*
    // (include/uapi/linux/tls.h), whose size the kernel demands exactly.
    let mut info = zeroize::Zeroizing::new([0_u8; LONGEST_INFO]);
    let len = if cipher_of(socket, way)? == libc::TLS_CIPHER_AES_GCM_128 {
        size_of::<libc::tls12_crypto_info_aes_gcm_128>()
    } else {
        LONGEST_INFO
    };
    read_info(socket, way, &mut info[..len])?;
    let number = info[..len].last_chunk().copied();
    Ok(u64::from_be_bytes(number.unwrap_or_default()))
}

#[cfg(feature = "helper")]
const LONGEST_INFO: usize = size_of::<libc::tls12_crypto_info_aes_gcm_256>();
#[cfg(feature = "helper")]
const _: () = assert!(size_of::<libc::tls12_crypto_info_chacha20_poly1305>() == LONGEST_INFO);

/// Fills `info` with what the kernel's TLS says of a direction.
#[cfg(feature = "helper")]
fn read_info<T: zeroize::DefaultIsZeroes>(
    socket: BorrowedFd<'_>,
    way: Way,
    info: &mut [T],
) -> Result<(), Errno> {
    let mut len = size_of_val(info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, the size of `info`, and both outlive the call.
    // T is an integer (there are no other callers), for which all bytes are values.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_TLS,
            way as libc::c_int,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    Errno::result(result).map(drop)
}

/// Sends one record of a type other than data on a socket with `TLS_TX`.
pub(crate) fn send_record(socket: impl AsFd, kind: u8, payload: &[u8]) -> io::Result<()> {
    let mut data = libc::iovec {
        iov_base: payload.as_ptr().cast_mut().cast(),
        iov_len: payload.len(),
    };
    let mut control = ControlBuffer([0; CONTROL_LEN]);
    // SAFETY: msghdr is a C struct of integers and pointers, for which all bits zero is a value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut data;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = CONTROL_LEN;
    // SAFETY: msg_control and msg_controllen describe `control`, which is aligned for cmsghdr and
    // CMSG_SPACE(1) bytes long, so the first header and its one data byte lie within it.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_TLS;
        (*header).cmsg_type = libc::TLS_SET_RECORD_TYPE;
        (*header).cmsg_len = libc::CMSG_LEN(1) as usize;
        ptr::write(libc::CMSG_DATA(header), kind);
    }
    // SAFETY: `message` points at `data` and `control`, both alive during the call, and `data` at
    // `payload`, which sendmsg only reads (hence the cast_mut above).
    let sent = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const message, 0) };
    match Errno::result(sent)? {
        sent if usize::try_from(sent).is_ok_and(|sent| sent == payload.len()) => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

const fn len_of<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}

/// Room for one control message of one byte, aligned as the kernel wants its header.
#[repr(align(8))]
struct ControlBuffer([u8; CONTROL_LEN]);

const _: () = assert!(align_of::<ControlBuffer>() >= align_of::<libc::cmsghdr>());

// SAFETY: CMSG_SPACE only computes a size.
const CONTROL_LEN: usize = unsafe { libc::CMSG_SPACE(1) } as usize;
