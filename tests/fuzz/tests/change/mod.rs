//! Small changes to an input: of bytes, of lines, and by what parsers have stumbled over before.

use proptest::{collection::vec, prelude::*, sample::Index};

/// One change; where it is made depends on how long the input is by then.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    kind: Kind,
    at: Index,
    more: Index,
    byte: u8,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Flip,
    Put,
    Remove,
    Cut,
    Insert,
    Copy,
    Repeat,
    Splice,
    DropLine,
    CopyLine,
}

/// Up to five of them.
pub(crate) fn changes() -> impl Strategy<Value = Vec<Change>> {
    let kind = prop::sample::select(KINDS);
    let change = (kind, any::<Index>(), any::<Index>(), any::<u8>());
    let change = change.prop_map(|(kind, at, more, byte)| Change {
        kind,
        at,
        more,
        byte,
    });
    vec(change, 0..=5)
}

impl Change {
    /// The input after the change. `seeds` are where a splice comes from.
    pub(crate) fn apply(&self, mut bytes: Vec<u8>, seeds: &[Vec<u8>]) -> Vec<u8> {
        let at = self.at.index(bytes.len() + 1);
        let end = bytes.len().min(at + 1 + self.more.index(32));
        match self.kind {
            Kind::Flip | Kind::Put => {
                if let Some(byte) = bytes.get_mut(at) {
                    let flipped = *byte ^ 1 << (self.byte % 8);
                    *byte = if matches!(self.kind, Kind::Flip) {
                        flipped
                    } else {
                        self.byte
                    };
                }
            }
            Kind::Remove => drop(bytes.drain(at..end)),
            Kind::Cut => bytes.truncate(at),
            Kind::Insert => insert(&mut bytes, at, TOKENS[self.more.index(TOKENS.len())]),
            Kind::Copy => {
                let copy = bytes[at..end].to_vec();
                let to = self.more.index(bytes.len() + 1);
                insert(&mut bytes, to, &copy);
            }
            Kind::Repeat => {
                let times = 1 + usize::from(self.byte) * 4;
                let many = bytes[at..end.min(at + 8)].repeat(times);
                insert(&mut bytes, at, &many);
            }
            Kind::Splice => {
                let other = self.more.get(seeds);
                bytes.truncate(at);
                bytes.extend(&other[self.at.index(other.len() + 1)..]);
            }
            Kind::DropLine | Kind::CopyLine => self.change_line(&mut bytes),
        }
        bytes.truncate(LONGEST);
        bytes
    }

    fn change_line(&self, bytes: &mut Vec<u8>) {
        let mut lines: Vec<Vec<u8>> = bytes
            .split_inclusive(|byte| *byte == b'\n')
            .map(<[u8]>::to_vec)
            .collect();
        if lines.is_empty() {
            return;
        }
        let (from, to) = (self.at.index(lines.len()), self.more.index(lines.len()));
        if matches!(self.kind, Kind::DropLine) {
            lines.remove(from);
        } else {
            lines.insert(to, lines[from].clone());
        }
        *bytes = lines.concat();
    }
}

fn insert(bytes: &mut Vec<u8>, at: usize, more: &[u8]) {
    bytes.splice(at..at, more.iter().copied());
}

const KINDS: &[Kind] = &[
    Kind::Flip,
    Kind::Put,
    Kind::Remove,
    Kind::Cut,
    Kind::Insert,
    Kind::Copy,
    Kind::Repeat,
    Kind::Splice,
    Kind::DropLine,
    Kind::CopyLine,
];

/// What has a meaning to one parser or another, or to none.
const TOKENS: &[&[u8]] = &[
    b"\0",
    b"\xff",
    b"\x80",
    b"\n",
    b"\r\n",
    b"\t",
    b"\"",
    b"'",
    b"\\",
    b"[",
    b"]",
    b"{",
    b"}",
    b"[[",
    b"[{",
    b": ",
    b"- ",
    b"---\n",
    b"|",
    b">",
    b"&a ",
    b"*a",
    b"<<: ",
    b"!!int ",
    b"? ",
    b"#",
    b"=",
    b",",
    b"0",
    b"-1",
    b"65536",
    b"4294967296",
    b"9223372036854775807",
    b"18446744073709551616",
    b"1e999",
    b"null",
    b"~",
    b"true",
    b"\xc3\xa4",
    b"\xef\xbb\xbf",
    b"\xe2\x80\xae",
    b"\xf0\x9f\x98\x80",
    b"====\n",
    b"-----BEGIN CERTIFICATE-----\n",
    b"-----END CERTIFICATE-----\n",
    b"\x30\x82\xff\xff",
    b"\x30\x80",
    b"                    ",
];

/// Bytes; repeated repeats would have no end.
const LONGEST: usize = 8 << 10;
