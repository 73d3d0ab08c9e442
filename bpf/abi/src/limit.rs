//! How much one key may encrypt, and what becomes of a socket that comes near to that.

use crate::Flow;

/// What the key that a sealed socket sends with may still be used for: value of `KEY_LIMITS`. Both limits are in the
/// terms of [`Flow::used`], which goes on counting from key to key.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyLimit {
    /// From here on the helper is told, so that it replaces the key.
    pub soft: u64,
    /// Beyond this nothing is sent any more.
    pub hard: u64,
    /// Process id of the helper that replaces the key now, in the initial PID namespace.
    pub helper: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(core::mem::size_of::<KeyLimit>() == 24);

/// What the iterator [`crate::names::ITER_USAGE`] writes for each sealed socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Socket cookie.
    pub cookie: u64,
    /// Bytes of records that it has sent, without headers.
    pub bytes: u64,
    /// Records that it has sent.
    pub records: u64,
    /// How much more its key may encrypt before it is to be replaced; [`u64::MAX`]: any amount.
    pub left: u64,
}

const _: () = assert!(core::mem::size_of::<Usage>() == 32);

/// What is to be done about a key.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyUse {
    /// It may be used.
    Fine,
    /// It may be used, and the helper is to be told that it should be replaced.
    Tell,
    /// It must not be used any more.
    Spent,
}

impl KeyLimit {
    /// No limit.
    pub const NONE: Self = Self {
        soft: u64::MAX,
        hard: u64::MAX,
        helper: 0,
        reserved: 0,
    };

    /// How often the helper is told between the two limits: a helper that was killed, or could not do it, is told
    /// again, without a timer.
    const TOLD: u64 = 8;

    /// For a key that is used from `used` on: it should be replaced `soft` later, and must not be used `hard` later.
    #[must_use]
    pub const fn from(used: u64, soft: u64, hard: u64) -> Self {
        Self {
            soft: used.saturating_add(soft),
            hard: used.saturating_add(hard),
            ..Self::NONE
        }
    }

    /// How much may still be sent before the key is to be replaced.
    #[inline(always)]
    #[must_use]
    pub const fn left(&self, flow: &Flow) -> u64 {
        if self.soft == u64::MAX {
            return u64::MAX;
        }
        self.soft.saturating_sub(flow.used())
    }

    /// Holds what a socket has sent against its limit.
    #[inline(always)]
    pub const fn judge(&self, flow: &Flow) -> KeyUse {
        let used = flow.used();
        if used < self.soft {
            return KeyUse::Fine;
        }
        if used > self.hard {
            return KeyUse::Spent;
        }
        let step = (self.hard - self.soft) / Self::TOLD;
        if flow.told < self.soft || used - flow.told >= step {
            return KeyUse::Tell;
        }
        KeyUse::Fine
    }
}

impl Flow {
    /// What its keys have been used for, bytes: the records' own and two blocks for each record, because the bounds of
    /// AES-GCM count every block that is encrypted (RFC 8446 §5.5 and the paper it cites).
    #[inline(always)]
    #[must_use]
    pub const fn used(&self) -> u64 {
        self.bytes + 32 * self.records
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(bytes: u64, records: u64) -> Flow {
        Flow {
            bytes,
            records,
            ..Flow::default()
        }
    }

    #[test]
    fn the_helper_is_told_eight_times_and_then_it_ends() {
        let limit = KeyLimit::from(1000, 8000, 16000);
        let mut told = 0;
        let mut flow = flow(1000, 0);
        let mut last = KeyUse::Fine;
        while flow.bytes <= 17000 {
            last = limit.judge(&flow);
            assert!(last == KeyUse::Fine || flow.bytes >= 9000);
            if last == KeyUse::Tell {
                flow.told = flow.used();
                told += 1;
            }
            flow.bytes += 100;
        }
        assert_eq!((told, last), (9, KeyUse::Tell), "at both limits, too");
        assert_eq!(limit.judge(&flow), KeyUse::Spent);
    }

    #[test]
    fn a_new_limit_begins_anew() {
        let mut flow = flow(9000, 0);
        flow.told = 9000;
        let limit = KeyLimit::from(9000, 1000, 2000);
        assert_eq!(limit.judge(&flow), KeyUse::Fine);
        flow.bytes = 10000;
        assert_eq!(limit.judge(&flow), KeyUse::Tell);
    }

    #[test]
    fn small_records_count_for_more_than_their_bytes() {
        assert_eq!(flow(17, 1).used(), 49);
        assert_eq!(
            KeyLimit::NONE.judge(&flow(u64::MAX / 64, 1 << 40)),
            KeyUse::Fine
        );
    }
}
