//! What nodes say to each other inside of WireGuard about the pair of keys that they use: single IP packets of a protocol
//! that nobody else has, which never leave the programs at both ends.

/// IP protocol for experiments (RFC 3692, RFC 4727 §6).
pub const NOTICE_PROTOCOL: u8 = 253;
/// Length of a notice behind its IP header.
pub const NOTICE_BYTES: usize = 16;
/// What a notice begins with: nobody else's experiment.
const MAGIC: [u8; 8] = *b"undrseal";

/// What a notice says.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticeKind {
    /// From now on the network of the source is to be reached by the device that this came by. To be answered.
    Use = 1,
    /// Is the network of the source reached by the device that this came by? To be answered if so.
    Ask = 2,
    /// Yes.
    Answer = 3,
}

/// The bytes of a notice. The answer has the same `nonce`.
#[must_use]
pub fn notice(kind: NoticeKind, nonce: [u8; 4]) -> [u8; NOTICE_BYTES] {
    let mut bytes = [0; NOTICE_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8] = kind as u8;
    bytes[12..].copy_from_slice(&nonce);
    bytes
}

/// What a notice says; `None` if it is none.
#[inline(always)]
#[must_use]
pub fn notice_kind(bytes: &[u8; NOTICE_BYTES]) -> Option<NoticeKind> {
    let mut byte = 0;
    while byte < MAGIC.len() {
        if bytes[byte] != MAGIC[byte] {
            return None;
        }
        byte += 1;
    }
    match bytes[8] {
        1 => Some(NoticeKind::Use),
        2 => Some(NoticeKind::Ask),
        3 => Some(NoticeKind::Answer),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_is_read_back_and_nothing_else_is_one() {
        for kind in [NoticeKind::Use, NoticeKind::Ask, NoticeKind::Answer] {
            let bytes = notice(kind, [1, 2, 3, 4]);
            assert_eq!(notice_kind(&bytes), Some(kind));
            for spoilt in 0..9 {
                let mut other = bytes;
                other[spoilt] ^= 0x80;
                assert_eq!(notice_kind(&other), None);
            }
        }
    }
}
