//! Iterators: pinned programs that run once over the TCP sockets of a network namespace and report
//! what they find.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;

use aya::Pod;
use aya_obj::generated::bpf_attach_type::BPF_TRACE_ITER;
use underseal_abi::names::{ITER_LET_GO, ITER_TAKE_OVER, ITER_USAGE, PROGS};
use underseal_abi::{Conn, Usage};

use super::{pin, sys};
use crate::kernel::error::Error;
use crate::kernel::netns::Netns;

/// Takes over the sockets that are open in a namespace: those that need no TLS are released.
/// Returns the connections that must not go on in plaintext, for the caller to reset; with
/// `KEEP_EXISTING` in the configuration they go on, and their state says so
/// ([`underseal_abi::State::Released`]).
///
/// # Errors
/// The namespace cannot be entered, or the iterator is not pinned or fails.
pub fn take_over(namespace: &Netns) -> Result<Vec<Conn>, Error> {
    namespace.run(|| run(ITER_TAKE_OVER))?
}

/// Lets go of the sockets of a namespace: those that its default held are released. Returns the
/// connections that wait for their keys, for the caller to reset.
///
/// # Errors
/// The namespace cannot be entered, or the iterator is not pinned or fails.
pub fn let_go(namespace: &Netns) -> Result<Vec<Conn>, Error> {
    namespace.run(|| run(ITER_LET_GO))?
}

/// What the keys of the sealed sockets of a namespace have been used for.
///
/// # Errors
/// As [`take_over`].
pub fn usage(namespace: &Netns) -> Result<Vec<Usage>, Error> {
    namespace.run(|| run(ITER_USAGE))?
}

/// Runs a pinned iterator in the namespace of the calling thread.
fn run<T: Pod>(name: &str) -> Result<Vec<T>, Error> {
    let fail = |source| Error::new("run iterator", name, source);
    let program = pin::open(&pin::path(PROGS, name))?
        .ok_or_else(|| fail(io::Error::other("it is not loaded")))?;
    let link = sys::create_link(program.as_fd(), sys::At::Program, BPF_TRACE_ITER).map_err(fail)?;
    let mut found = Vec::new();
    let mut records = File::from(sys::create_iterator(link.as_fd()).map_err(fail)?);
    records.read_to_end(&mut found).map_err(fail)?;
    whole(&found).ok_or_else(|| fail(io::Error::other("its last record is cut off")))
}

/// The records that an iterator has written; `None` if the last one is cut off.
#[must_use]
pub fn whole<T: Pod>(bytes: &[u8]) -> Option<Vec<T>> {
    let records = bytes.chunks_exact(size_of::<T>());
    records
        .remainder()
        .is_empty()
        .then(|| records.filter_map(sys::read).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_whole() {
        let mut bytes = vec![0; 2 * size_of::<Conn>()];
        bytes[size_of::<Conn>()..][..8].copy_from_slice(&7_u64.to_ne_bytes());
        let found = whole::<Conn>(&bytes).unwrap();
        assert_eq!(found.iter().map(|c| c.cookie).collect::<Vec<_>>(), [0, 7]);
        assert_eq!(whole::<Conn>(&bytes[1..]), None);
        assert_eq!(whole::<Conn>(&[]), Some(vec![]));
    }
}
