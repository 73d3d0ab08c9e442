//! What the kernel's side hands over, and what its own record walker makes of packets.

use underseal::kernel::bpf::iterate;
use underseal_abi::{Conn, Flow, Segment, Step, Verdict};

/// What an iterator has written: whole records, or nothing.
///
/// # Panics
/// A record is made up or lost.
pub fn conns(bytes: &[u8]) {
    let found = iterate::whole::<Conn>(bytes);
    let whole = bytes.len().is_multiple_of(size_of::<Conn>());
    assert_eq!(
        found.map(|found| found.len()),
        whole.then_some(bytes.len() / size_of::<Conn>())
    );
}

/// A stream in segments, whose length the first byte tells: the walker lets pass what is records and nothing else,
/// wherever the segments begin.
///
/// # Panics
/// It does not.
pub fn walker(bytes: &[u8]) {
    let Some((length, stream)) = bytes.split_first() else {
        return;
    };
    let expected = is_records(stream);
    for length in [usize::from(*length).max(1), stream.len().max(1)] {
        // Sequence numbers wrap around in the middle.
        let mut seq = u32::MAX - 20;
        let mut flow = Flow::starting_at(seq);
        let mut passes = true;
        for payload in stream.chunks(length) {
            let verdict = walk(&mut flow, seq, payload);
            assert_ne!(verdict, Verdict::Gap, "nothing is missing");
            passes = verdict == Verdict::Pass;
            if !passes {
                break;
            }
            let again = walk(&mut flow.clone(), seq, payload);
            assert_eq!(again, Verdict::Pass, "a retransmission");
            seq = seq.wrapping_add(u32::try_from(payload.len()).unwrap_or(u32::MAX));
        }
        assert_eq!(passes, expected, "in segments of {length}");
    }
}

fn walk(flow: &mut Flow, seq: u32, payload: &[u8]) -> Verdict {
    let segment = Segment {
        seq,
        len: u32::try_from(payload.len()).unwrap_or(u32::MAX),
    };
    // A step either decides or takes in a header.
    for _ in 0..=payload.len() {
        let header = |at: u32| payload.get(at as usize..)?.first_chunk().copied();
        let byte = |at: u32| payload.get(at as usize).copied();
        if let Step::Done(verdict) = flow.step(segment, header, byte) {
            return verdict;
        }
    }
    panic!("it does not come to an end");
}

/// The same, said plainly: RFC 8446 §5.2.
fn is_records(mut stream: &[u8]) -> bool {
    loop {
        let begun = &stream[..stream.len().min(3)];
        if !b"\x17\x03\x03".starts_with(begun) {
            return false;
        }
        let Some((&[_, _, _, high, low], rest)) = stream.split_first_chunk() else {
            return true;
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if !(17..=(1 << 14) + 256).contains(&length) {
            return false;
        }
        stream = rest.get(length..).unwrap_or_default();
    }
}
