//! Generations of WireGuard keys: which of a node's devices a pair of keys lives on. Pure.
//!
//! Each node counts its keys. A pair of keys, one of this node and one of a peer, must live on one device of each node and
//! nowhere else: two devices that talk to the same peer under the same keys would take its session and its endpoint
//! from each other. Which ones follows from the two generations alone, so both nodes agree without a word, right after any
//! reboot. Two pairs of which one key differs by one generation are on different devices, on both nodes: so packets
//! can go on under one pair while the other comes up.

use std::fmt;

use crate::config::value::InterfaceName;

/// Number of one of a node's devices, from 0 to 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Number(u8);

impl Number {
    /// The device that has the addresses and the routes. It is always there.
    pub const FACE: Self = Self(0);
    /// The others, which carry packets and nothing else.
    pub const OTHERS: [Self; 3] = [Self(1), Self(2), Self(3)];
    /// The highest one.
    pub const LAST: u16 = 3;

    /// Its name, if that is not too long for one.
    #[must_use]
    pub fn interface(self, face: &InterfaceName) -> Option<InterfaceName> {
        match self {
            Self::FACE => Some(face.clone()),
            Self(number) => format!("{face}-{number}").parse().ok(),
        }
    }

    /// Its UDP port, where the face has `base`. The configuration sees to it that there is one.
    #[must_use]
    pub fn port(self, base: u16) -> u16 {
        base.saturating_add(self.0.into())
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The generations of a pair of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Of this node's key.
    pub own: u32,
    /// Of the peer's.
    pub peer: u32,
}

impl Pair {
    /// The device of this node that the pair lives on.
    #[must_use]
    pub const fn here(self) -> Number {
        let (own, sum) = (self.own & 1, (self.own ^ self.peer) & 1);
        Number((2 * own + sum) as u8)
    }

    /// The device of the peer that it lives on.
    #[must_use]
    pub const fn there(self) -> Number {
        Self {
            own: self.peer,
            peer: self.own,
        }
        .here()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    proptest::proptest! {
        /// Whatever a rotation of one side or of both has at a time, each pair has devices of its own, on both sides, and
        /// a device has one own key.
        #[test]
        fn no_two_pairs_share_a_device(a in 0..u32::MAX, b in 0..u32::MAX) {
            let pairs = [(a, b), (a, b + 1), (a + 1, b), (a + 1, b + 1)].map(|(own, peer)| Pair { own, peer });
            let here: BTreeSet<Number> = pairs.iter().map(|pair| pair.here()).collect();
            let there: BTreeSet<Number> = pairs.iter().map(|pair| pair.there()).collect();
            assert_eq!((here.len(), there.len()), (4, 4));
            for one in pairs {
                let back = Pair { own: one.peer, peer: one.own };
                assert_eq!((one.here(), one.there()), (back.there(), back.here()), "the nodes do not agree");
                for other in pairs {
                    assert!(one.own == other.own || one.here() != other.here(), "two keys on one device");
                }
            }
        }
    }

    #[test]
    fn without_generations_all_is_on_the_face() {
        let pair = Pair { own: 0, peer: 0 };
        assert_eq!((pair.here(), pair.there()), (Number::FACE, Number::FACE));
        let face: InterfaceName = "underseal0".parse().unwrap();
        assert_eq!(Number::FACE.interface(&face), Some(face.clone()));
        assert_eq!(Number::FACE.port(51871), 51871);
        let next = Pair { own: 0, peer: 1 };
        assert_eq!(
            next.here().interface(&face).unwrap().as_str(),
            "underseal0-1"
        );
        assert_eq!(
            (next.here().port(1000), next.there().port(1000)),
            (1001, 1003)
        );
    }
}
