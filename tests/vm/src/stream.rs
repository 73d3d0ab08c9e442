//! One direction of a TCP connection, put together from segments and walked record by record.

/// Header of a TLS record.
const HEADER: usize = 5;
/// The longest ciphertext of TLS 1.3, RFC 8446 section 5.2.
const LONGEST: usize = (1 << 14) + 256;

/// Segments as they were seen.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    segments: Vec<Segment>,
    /// Sequence number and offset of the segment seen last, from which offsets of others are told.
    last: Option<(u32, i64)>,
    first: Option<u32>,
}

#[derive(Debug)]
struct Segment {
    offset: i64,
    data: Vec<u8>,
}

/// What a stream consists of.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Walked {
    pub(crate) records: u64,
    pub(crate) record_bytes: u64,
    pub(crate) plaintext_segments: u64,
    pub(crate) plaintext_bytes: u64,
    pub(crate) missing_bytes: u64,
    /// The bytes of the stream; more than one piece when some are missing, or came twice and differed.
    pub(crate) pieces: Vec<Vec<u8>>,
}

impl Stream {
    /// Whether a SYN with this number belongs to this connection.
    pub(crate) fn began_at(&self, sequence: u32) -> bool {
        self.first == Some(sequence)
    }

    /// Adds a segment in the order of capture.
    pub(crate) fn add(&mut self, sequence: u32, syn: bool, payload: &[u8]) {
        if syn {
            self.first = Some(sequence);
        }
        // A SYN takes a number of its own; its data, if any, comes after.
        let sequence = sequence.wrapping_add(syn.into());
        // Numbers wrap around, so a segment is placed by its distance from the one before.
        let offset = self.last.map_or(0, |(last, offset)| {
            offset + i64::from(sequence.wrapping_sub(last) as i32)
        });
        self.last = Some((sequence, offset));
        if !payload.is_empty() {
            self.segments.push(Segment {
                offset,
                data: payload.to_vec(),
            });
        }
    }

    /// Walks the whole stream.
    pub(crate) fn walk(mut self) -> Walked {
        let mut walk = Walk::default();
        // Stable: of two that begin at the same place, the one seen first stays first.
        self.segments.sort_by_key(|segment| segment.offset);
        for segment in &self.segments {
            walk.segment(segment);
        }
        walk.walked
    }
}

#[derive(Default)]
struct Walk {
    walked: Walked,
    /// Where the piece that grows began, and so where it ends.
    start: i64,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// A record's header comes next; so many bytes of it have been seen.
    Header { seen: [u8; HEADER], count: usize },
    /// So many bytes of a record are still to come.
    Record(usize),
    /// What came was no record. Only the start of a segment can end this.
    Lost,
}

impl Default for State {
    fn default() -> Self {
        Self::Header {
            seen: [0; HEADER],
            count: 0,
        }
    }
}

impl Walk {
    fn segment(&mut self, segment: &Segment) {
        if self.walked.pieces.is_empty() {
            self.start = segment.offset;
            self.walked.pieces.push(Vec::new());
        }
        let mut plaintext = 0;
        let end = self.start + self.piece().len() as i64;
        let mut new = segment.data.as_slice();
        if segment.offset > end {
            self.walked.missing_bytes += (segment.offset - end) as u64;
            plaintext += self.unfinished();
            self.walked.pieces.push(Vec::new());
            self.start = segment.offset;
            self.state = State::Lost;
        } else {
            // Sent again, at least in part. Were it other bytes than before, somebody could have read one of them.
            let before = self
                .piece()
                .get((segment.offset - self.start) as usize..)
                .unwrap_or_default();
            let again = before.len().min(new.len());
            let differ = before[..again] != new[..again];
            new = &new[again..];
            if differ {
                plaintext += again as u64;
                let place = self.walked.pieces.len() - 1;
                self.walked.pieces.insert(place, segment.data.clone());
            }
        }
        self.walked
            .pieces
            .last_mut()
            .into_iter()
            .for_each(|piece| piece.extend(new));
        plaintext += self.bytes(new);
        self.walked.plaintext_bytes += plaintext;
        self.walked.plaintext_segments += u64::from(plaintext > 0);
    }

    fn piece(&self) -> &[u8] {
        self.walked.pieces.last().map_or(&[], Vec::as_slice)
    }

    /// Walks new bytes and returns how many of them, and of a header they complete, are in no record.
    fn bytes(&mut self, mut new: &[u8]) -> u64 {
        let mut plaintext = 0;
        if self.state == State::Lost && new.starts_with(&[0x17, 3, 3]) {
            self.state = State::default();
        }
        while !new.is_empty() {
            match self.state {
                State::Lost => {
                    plaintext += new.len() as u64;
                    new = &[];
                }
                State::Record(left) => {
                    let part = left.min(new.len());
                    new = &new[part..];
                    self.walked.record_bytes += part as u64;
                    self.state = if part == left {
                        State::default()
                    } else {
                        State::Record(left - part)
                    };
                }
                State::Header {
                    mut seen,
                    mut count,
                } => {
                    let part = (HEADER - count).min(new.len());
                    seen[count..count + part].copy_from_slice(&new[..part]);
                    (count, new) = (count + part, &new[part..]);
                    self.state = State::Header { seen, count };
                    if !begins_record(&seen[..count]) {
                        plaintext += count as u64;
                        self.state = State::Lost;
                    } else if count == HEADER {
                        self.walked.records += 1;
                        self.walked.record_bytes += HEADER as u64;
                        self.state = State::Record(length(seen));
                    }
                }
            }
        }
        plaintext
    }

    /// Bytes of a header that will never be complete.
    fn unfinished(&self) -> u64 {
        match self.state {
            State::Header { count, .. } => count as u64,
            _ => 0,
        }
    }
}

/// Whether bytes can be the start of a record of application data, which in TLS 1.3 all are after the handshake.
fn begins_record(seen: &[u8]) -> bool {
    let begins = seen
        .iter()
        .zip([0x17, 3, 3])
        .all(|(byte, expected)| *byte == expected);
    // A record has at least its content type and a tag of 16 bytes.
    begins
        && seen
            .try_into()
            .map_or(true, |header| (17..=LONGEST).contains(&length(header)))
}

fn length(header: [u8; HEADER]) -> usize {
    usize::from(u16::from_be_bytes([header[3], header[4]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(length: usize) -> Vec<u8> {
        let mut record = vec![0x17, 3, 3, (length >> 8) as u8, length as u8];
        record.resize(HEADER + length, 0xaa);
        record
    }

    fn walk(segments: &[(u32, &[u8])]) -> Walked {
        let mut stream = Stream::default();
        stream.add(u32::MAX - 20, true, &[]);
        for (offset, data) in segments {
            stream.add((u32::MAX - 19).wrapping_add(*offset), false, data);
        }
        stream.walk()
    }

    #[test]
    fn records_across_segments_out_of_order_and_wrapped() {
        let bytes = [record(100), record(17), record(LONGEST)].concat();
        let walked = walk(&[
            (3, &bytes[3..110]),
            (0, &bytes[..3]),
            (108, &bytes[108..]),
            (3, &bytes[3..50]),
        ]);
        let expected = (3, bytes.len() as u64, 0, 0);
        let Walked {
            records,
            record_bytes,
            plaintext_bytes,
            missing_bytes,
            ..
        } = walked;
        assert_eq!(
            (records, record_bytes, plaintext_bytes, missing_bytes),
            expected
        );
        assert_eq!(walked.pieces, [bytes]);
    }

    #[test]
    fn plaintext_between_records_is_found_and_records_after_it_too() {
        let (first, last) = (record(20), record(30));
        let walked = walk(&[(0, &first), (25, b"GET / HTTP/1.1"), (39, &last)]);
        assert_eq!(
            (
                walked.records,
                walked.plaintext_segments,
                walked.plaintext_bytes
            ),
            (2, 1, 14)
        );
    }

    #[test]
    fn plaintext_after_a_record_in_one_segment_counts() {
        let walked = walk(&[(0, &[record(20), b"hello".to_vec()].concat())]);
        assert_eq!(
            (
                walked.records,
                walked.plaintext_segments,
                walked.plaintext_bytes
            ),
            (1, 1, 5)
        );
    }

    #[test]
    fn lengths_that_no_record_has_are_plaintext() {
        let walked = walk(&[
            (0, &[0x17, 3, 3, 0, 16, 1, 2, 3]),
            (8, &[0x17, 3, 3, 0x7f, 0xff, 1]),
        ]);
        assert_eq!(
            (
                walked.records,
                walked.plaintext_segments,
                walked.plaintext_bytes
            ),
            (0, 2, 14)
        );
    }

    #[test]
    fn holes_are_counted() {
        let walked = walk(&[(0, &record(20)), (30, b"x"), (31, &record(20))]);
        assert_eq!(
            (walked.records, walked.missing_bytes, walked.plaintext_bytes),
            (2, 5, 1)
        );
        assert_eq!(walked.pieces.len(), 2);
    }

    #[test]
    fn other_bytes_in_the_same_place_count() {
        let walked = walk(&[(0, &record(20)), (0, b"secret")]);
        assert_eq!(
            (
                walked.records,
                walked.plaintext_segments,
                walked.plaintext_bytes
            ),
            (1, 1, 6)
        );
        assert!(walked.pieces.contains(&b"secret".to_vec()));
        let walked = walk(&[(0, b"secret"), (0, &record(20))]);
        assert!(walked.plaintext_segments >= 1 && walked.plaintext_bytes >= 6);
    }
}
