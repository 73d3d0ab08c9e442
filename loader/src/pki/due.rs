//! When a certificate is to be renewed, and when an old CA may go. Pure.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use super::certificate::Names;
use super::record::{CaNumber, Issued, State};

/// What has become of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Good.
    Valid,
    /// Good, but its end is near.
    Due,
    /// Over.
    Expired,
    /// Taken back.
    Revoked,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Valid => "valid",
            Self::Due => "due",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        })
    }
}

/// What has become of a certificate, at a time, if it is renewed so many seconds before its end.
#[must_use]
pub fn standing(issued: &Issued, state: &State, now: i64, renew_before: i64) -> Standing {
    if state.is_revoked(&issued.serial) {
        Standing::Revoked
    } else if now > issued.not_after {
        Standing::Expired
    } else if issued.not_after.saturating_sub(now) < renew_before {
        Standing::Due
    } else {
        Standing::Valid
    }
}

/// Whether `renew` makes a new certificate in the place of this one.
///
/// Not for a revoked one: whoever has revoked it wants it gone, and says so again by `issue`.
#[must_use]
pub fn is_due(issued: &Issued, state: &State, now: i64, renew_before: i64) -> bool {
    match standing(issued, state, now, renew_before) {
        Standing::Due | Standing::Expired => true,
        Standing::Valid => !state.trusted().contains(&issued.ca) || left_behind(issued, state),
        Standing::Revoked => false,
    }
}

/// Whether a certificate says something else than the configuration does by now.
#[must_use]
pub fn is_renamed(has: &Names, wanted: &Names) -> bool {
    let set = |names: &Names| -> BTreeSet<String> { names.dns.iter().cloned().collect() };
    has.spiffe_id != wanted.spiffe_id || set(has) != set(wanted)
}

/// Whether a switch to another CA has not reached this certificate.
#[must_use]
pub fn left_behind(issued: &Issued, state: &State) -> bool {
    issued.ca != state.active
}

/// When a certificate that is made now ends: never after its CA.
#[must_use]
pub fn end(now: i64, lifetime: i64, authority_end: i64) -> i64 {
    now.saturating_add(lifetime).min(authority_end)
}

/// Certificates of `ca` that somebody may still show, or have shown at the start of a connection.
#[must_use]
pub fn alive<'a>(index: &'a [Issued], state: &State, ca: CaNumber, now: i64) -> Vec<&'a Issued> {
    index
        .iter()
        .filter(|it| it.ca == ca && it.not_after >= now && !state.is_revoked(&it.serial))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn certificate(not_after: i64) -> Issued {
        Issued {
            serial: "41".into(),
            ca: 1,
            workload: None,
            spiffe_id: String::new(),
            not_before: 0,
            not_after,
            requested: false,
        }
    }

    #[test]
    fn borders() {
        let state = State::new("example.org".into());
        let at = |now| standing(&certificate(1000), &state, now, 100);
        assert_eq!(at(900), Standing::Valid);
        assert_eq!(at(901), Standing::Due);
        assert_eq!(at(1000), Standing::Due);
        assert_eq!(at(1001), Standing::Expired);
    }

    proptest! {
        /// As time goes by a certificate is good, due, over, in this order; a timer that comes
        /// at least every `renew_before` seconds meets it while it is due.
        #[test]
        fn a_timer_meets_it_in_time(
            now in 0i64..4_000_000_000, lifetime in 2i64..7_776_000, before in 0i64..7_776_000,
            period in 0i64..7_776_000, first in 0i64..7_776_000,
        ) {
            let before = 1 + before % (lifetime - 1);
            let period = 1 + period % before;
            let first = first % period;
            let state = State::new("example.org".into());
            let it = certificate(end(now, lifetime, i64::MAX));
            let mut at = now + first;
            while !is_due(&it, &state, at, before) {
                prop_assert_eq!(standing(&it, &state, at, before), Standing::Valid);
                // Straight to the last tick that may still be early.
                at += ((it.not_after - before - at) / period).max(1) * period;
            }
            prop_assert_eq!(standing(&it, &state, at, before), Standing::Due);
        }

        #[test]
        fn never_after_its_authority(now in 0i64..4_000_000_000, lifetime in 1i64..i64::MAX, ca in 0i64..5_000_000_000) {
            let end = end(now, lifetime, ca);
            prop_assert!(end <= ca && (end == ca || end - now == lifetime));
        }
    }

    #[test]
    fn revoked_ones_are_left_alone_and_do_not_keep_a_ca() {
        let mut state = State::new("example.org".into());
        let it = certificate(1000);
        assert_eq!(alive(std::slice::from_ref(&it), &state, 1, 1000).len(), 1);
        assert!(alive(std::slice::from_ref(&it), &state, 1, 1001).is_empty());
        state.revoke(&[&it], 10);
        assert!(!is_due(&it, &state, 2000, 100));
        assert!(alive(std::slice::from_ref(&it), &state, 1, 500).is_empty());
    }

    #[test]
    fn names_count_but_not_their_order() {
        let names = |dns: &[&str]| Names {
            spiffe_id: "spiffe://example.org/ns/shop/sa/cart".to_owned(),
            dns: dns.iter().map(|it| (*it).to_owned()).collect(),
        };
        assert!(!is_renamed(&names(&["a", "b"]), &names(&["b", "a"])));
        for other in [&["a"][..], &["a", "b", "c"], &["a", "c"]] {
            assert!(is_renamed(&names(other), &names(&["a", "b"])));
        }
        let other = Names {
            spiffe_id: "spiffe://example.org/ns/shop/sa/till".to_owned(),
            ..names(&["a"])
        };
        assert!(is_renamed(&other, &names(&["a"])));
    }

    #[test]
    fn a_switch_makes_everything_of_the_old_one_due() {
        let mut state = State::new("example.org".into());
        let it = certificate(1000);
        assert!(!is_due(&it, &state, 0, 100));
        state.active = 2;
        state.rotation = crate::pki::record::Rotation::Switched(1);
        assert!(is_due(&it, &state, 0, 100));
    }
}
