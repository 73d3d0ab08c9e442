//! Test-only (feature `fuzz`): the helper's parsers and its table, which nobody else may reach. Each function takes any
//! bytes and panics where something does not hold.

use std::time::Instant;

use rustls::pki_types::CertificateDer;
use underseal_abi::{Chain, Conn, Event, EventKind, Sleeper, TaskFile};

use super::{
    message::{GREETING, Inbox, Letter, Malformed},
    names::{Route, text},
    review, sys,
    table::Table,
};

pub use super::table::fuzz::table;

/// What another node's helper sends: however it is cut, the same letters come out, and they come out again once they
/// have been written.
///
/// # Panics
/// They do not.
pub fn letters(bytes: &[u8]) {
    let (whole, verdict) = read(&[bytes]);
    let cut = bytes.first().map_or(0, |at| usize::from(*at) % bytes.len());
    let (first, second) = bytes.split_at(cut);
    let (parts, again) = read(&[first, second]);
    assert_eq!(verdict, again, "cut at {cut}");
    if verdict.is_ok() {
        assert_eq!(whole, parts, "cut at {cut}");
    }
    let mut written = GREETING.to_vec();
    for letter in &whole {
        letter.write(&mut written);
    }
    assert_eq!(read(&[&written]), (whole, Ok(())));
}

fn read(parts: &[&[u8]]) -> (Vec<Letter>, Result<(), Malformed>) {
    let (mut inbox, mut all) = (Inbox::default(), Vec::new());
    for part in parts {
        inbox.push(part);
        match inbox.letters() {
            Ok(letters) => all.extend(letters),
            Err(malformed) => return (all, Err(malformed)),
        }
    }
    (all, Ok(()))
}

/// What the ring buffer and the iterators say: whole records alone are read, and the table takes any of them.
///
/// # Panics
/// One is made up, or the table is not whole afterwards.
pub fn events(bytes: &[u8]) {
    records::<Conn>(bytes);
    records::<TaskFile>(bytes);
    records::<Sleeper>(bytes);
    let _ = text(bytes);
    let (mut table, now) = (Table::<()>::new(), Instant::now());
    for event in records::<Event>(bytes) {
        let conn = event.conn;
        // Both ends are written in the same way.
        let route = Route(&conn).to_string();
        assert_eq!(route.matches(" -> ").count(), 1, "{route}");
        match event.kind {
            kind if kind == EventKind::Closed as u32 => drop(table.closed(conn.cookie, now)),
            kind if kind == EventKind::Ending as u32 => drop(table.forget(conn.cookie)),
            _ => table.note(conn, now),
        }
        table.assert_whole(now);
    }
}

fn records<T: aya::Pod>(bytes: &[u8]) -> Vec<T> {
    let records = sys::records::<T>(bytes);
    assert_eq!(records.len(), bytes.len() / size_of::<T>());
    assert_eq!(sys::record::<T>(bytes).is_some(), !records.is_empty());
    records
}

/// The certificates of a chain as the map `CHAINS` has it; `None` if these bytes are no chain, or are too many.
///
/// # Panics
/// They are not what the bytes are made of.
#[must_use]
pub fn certificates(bytes: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let mut chain = Chain {
        len: u32::try_from(bytes.len()).ok()?,
        reserved: 0,
        der: [0; Chain::MAX_LEN],
    };
    if let Some(place) = chain.der.get_mut(..bytes.len()) {
        place.copy_from_slice(bytes);
    }
    let certificates = review::certificates(&chain)?;
    let all: Vec<u8> = certificates.iter().flat_map(|one| one.to_vec()).collect();
    assert_eq!(all, bytes);
    Some(certificates)
}
