//! The record walker: follows the TLS records of one direction of a sealed TCP connection by
//! sequence number and tells whether a segment continues them.
//!
//! It is the second, independent line of defence: it knows nothing of states and keys, only that
//! every payload byte of a sealed socket lies inside a record whose header it has seen (RFC 8446
//! §5.2: opaque type 23, legacy version 0x0303, at most 2^14 + 256 bytes). Retransmissions lie
//! before the next header and pass. The caller feeds one segment by calling [`Flow::step`] until
//! it returns something other than [`Step::More`]; this way the BPF verifier sees one short body.

/// Largest `length` field of a TLS 1.3 record, bytes (RFC 8446 §5.2).
const MAX_LENGTH: u32 = (1 << 14) + 256;
/// Smallest one: the content type byte and a 16 byte tag.
const MIN_LENGTH: u32 = 17;
/// Bytes of a record header.
const HEADER: u32 = 5;

/// Where one direction of a sealed connection stands; kept in socket storage.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// TCP sequence number of the next record's header.
    pub next: u32,
    /// How many bytes of that header have been seen, 0 to 4.
    pub seen: u32,
    /// The bytes seen.
    pub header: [u8; 8],
    /// Bytes of records, without headers.
    pub bytes: u64,
    /// Records.
    pub records: u64,
    /// [`Flow::used`] when the helper was told last that the key should be replaced.
    pub told: u64,
}

const _: () = assert!(core::mem::size_of::<Flow>() == 40);

/// One TCP segment: the payload covers `seq .. seq + len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number of the first payload byte.
    pub seq: u32,
    /// Payload bytes.
    pub len: u32,
}

/// What is to be done with the segment.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every byte lies inside a record.
    Pass,
    /// A header was expected and something else was there.
    NotARecord,
    /// Bytes between the last record and this segment were never seen.
    Gap,
}

/// Result of [`Flow::step`].
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A whole header was read; the segment may hold another one.
    More,
    /// The segment is decided.
    Done(Verdict),
}

impl Flow {
    /// The start of a record stream whose first header has sequence number `next`.
    #[inline(always)]
    #[must_use]
    pub const fn starting_at(next: u32) -> Self {
        Self {
            next,
            seen: 0,
            header: [0; 8],
            bytes: 0,
            records: 0,
            told: 0,
        }
    }

    /// Looks at the next header in `segment`. `header(offset)` reads a whole header at `offset` of
    /// the payload, `byte(offset)` one byte of a header that a segment border cuts; what cannot be
    /// read counts as not a record.
    #[inline(always)]
    pub fn step(
        &mut self,
        segment: Segment,
        header: impl Fn(u32) -> Option<[u8; HEADER as usize]>,
        byte: impl Fn(u32) -> Option<u8>,
    ) -> Step {
        let ahead = self.next.wrapping_sub(segment.seq).cast_signed();
        let len = segment.len.cast_signed();
        if ahead >= len {
            return Step::Done(Verdict::Pass);
        }
        if ahead.wrapping_add(self.seen.cast_signed()) < 0 {
            return Step::Done(Verdict::Gap);
        }
        if self.seen == 0 && ahead.wrapping_add(HEADER.cast_signed()) <= len {
            return match header(ahead.cast_unsigned()) {
                Some(header) => self.begin_record(header),
                None => Step::Done(Verdict::NotARecord),
            };
        }
        let mut i = 0;
        while i < HEADER {
            if i >= self.seen {
                let offset = ahead.wrapping_add(i.cast_signed());
                if offset >= len {
                    self.seen = i;
                    return Step::Done(Verdict::Pass);
                }
                let Some(read) = byte(offset.cast_unsigned()) else {
                    return Step::Done(Verdict::NotARecord);
                };
                if !starts_record(i, read) {
                    return Step::Done(Verdict::NotARecord);
                }
                self.header[(i & 7) as usize] = read;
            }
            i += 1;
        }
        let h = self.header;
        self.begin_record([h[0], h[1], h[2], h[3], h[4]])
    }

    #[inline(always)]
    fn begin_record(&mut self, header: [u8; HEADER as usize]) -> Step {
        let [kind, major, minor, high, low] = header;
        let length = (high as u32) << 8 | low as u32;
        let is_data = starts_record(0, kind) && starts_record(1, major) && starts_record(2, minor);
        if !is_data || !(MIN_LENGTH..=MAX_LENGTH).contains(&length) {
            return Step::Done(Verdict::NotARecord);
        }
        self.next = self.next.wrapping_add(HEADER + length);
        self.seen = 0;
        self.records += 1;
        self.bytes += length as u64;
        Step::More
    }
}

/// Whether `byte` may stand at position `i` of a header. Checked byte by byte, so that a header
/// cut by a segment border is refused at its first wrong byte.
#[inline(always)]
const fn starts_record(i: u32, byte: u8) -> bool {
    match i {
        0 => byte == 0x17,
        1 | 2 => byte == 0x03,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    fn walk(flow: &mut Flow, seq: u32, payload: &[u8]) -> Verdict {
        let segment = Segment {
            seq,
            len: u32::try_from(payload.len()).unwrap(),
        };
        loop {
            let header = |o: u32| payload.get(o as usize..)?.first_chunk().copied();
            let byte = |o: u32| payload.get(o as usize).copied();
            if let Step::Done(verdict) = flow.step(segment, header, byte) {
                return verdict;
            }
        }
    }

    fn record(length: u16) -> Vec<u8> {
        let mut r = vec![0x17, 3, 3];
        r.extend(length.to_be_bytes());
        r.extend(core::iter::repeat_n(0xaa, length.into()));
        r
    }

    #[test]
    fn golden() {
        let mut flow = Flow::starting_at(u32::MAX - 1);
        let one = record(20);
        assert_eq!(walk(&mut flow, u32::MAX - 1, &one), Verdict::Pass);
        assert_eq!(flow.next, (u32::MAX - 1).wrapping_add(25));
        assert_eq!(
            walk(&mut flow, u32::MAX - 1, &one),
            Verdict::Pass,
            "retransmission"
        );
        let next = flow.next;
        assert_eq!(
            walk(&mut flow, next.wrapping_add(1), b"hello"),
            Verdict::Gap
        );
        let too_short = [0x17, 3, 3, 0, 16];
        let too_long = [0x17, 3, 3, 0x41, 1];
        for wrong in [b"hello", &[0x16, 3, 3, 0, 20], &too_short, &too_long] {
            assert_eq!(
                walk(&mut flow, next, wrong),
                Verdict::NotARecord,
                "{wrong:?}"
            );
        }
    }

    proptest! {
        /// However a stream of records is cut into segments, with retransmissions, all pass.
        #[test]
        fn records_pass(lengths in prop::collection::vec(17u16..=600, 1..20), cuts in prop::collection::vec(1usize..700, 1..60), start: u32) {
            let stream: Vec<u8> = lengths.iter().flat_map(|l| record(*l)).collect();
            let mut flow = Flow::starting_at(start);
            let (mut at, mut previous) = (0, 0);
            for cut in cuts.iter().cycle() {
                if at >= stream.len() { break; }
                let end = (at + cut).min(stream.len());
                prop_assert_eq!(walk(&mut flow, start.wrapping_add(u32::try_from(at).unwrap()), &stream[at..end]), Verdict::Pass);
                prop_assert_eq!(walk(&mut flow, start.wrapping_add(u32::try_from(previous).unwrap()), &stream[previous..end]), Verdict::Pass);
                previous = at;
                at = end;
            }
            prop_assert_eq!(flow.records, lengths.len() as u64);
        }

        /// One byte changed in any header's first three is found, whatever the cut.
        #[test]
        fn a_wrong_header_is_found(lengths in prop::collection::vec(17u16..=600, 1..20), cut in 1usize..300, which: prop::sample::Index, byte in 0usize..3, start: u32) {
            let headers: Vec<usize> = lengths.iter().scan(0, |at, l| { let h = *at; *at += 5 + *l as usize; Some(h) }).collect();
            let mut stream: Vec<u8> = lengths.iter().flat_map(|l| record(*l)).collect();
            stream[headers[which.index(headers.len())] + byte] ^= 0x40;
            let mut flow = Flow::starting_at(start);
            let found = stream.chunks(cut).enumerate().any(|(i, chunk)| {
                walk(&mut flow, start.wrapping_add(u32::try_from(i * cut).unwrap()), chunk) != Verdict::Pass
            });
            prop_assert!(found);
        }
    }
}
