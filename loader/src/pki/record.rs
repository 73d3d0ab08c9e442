//! What the CA remembers: which CAs there are, what was issued, what was revoked. Pure.
//!
//! `state.json` is replaced whole. `index.jsonl` grows by a line for each certificate, before the
//! certificate leaves; a last line without its end is of a write that was cut off, before any
//! certificate left, so it counts for nothing.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Number of a CA, from 1.
pub type CaNumber = u32;

/// How far the change to another CA has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rotation {
    /// There is one CA.
    None,
    /// This one is trusted, and issues nothing yet.
    Begun(CaNumber),
    /// This one is trusted still, and issues nothing any more.
    Switched(CaNumber),
}

/// `state.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The trust domain.
    pub trust_domain: String,
    /// The CA that issues.
    pub active: CaNumber,
    /// The other one.
    pub rotation: Rotation,
    /// Number of the last revocation list.
    pub crl_number: u64,
    /// What was revoked.
    pub revoked: Vec<Revoked>,
}

/// A revoked certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoked {
    /// Its serial number.
    pub serial: String,
    /// Who issued it.
    pub ca: CaNumber,
    /// When it was revoked, seconds since the epoch.
    pub at: i64,
    /// When it ends: the list need not have it afterwards.
    pub not_after: i64,
}

/// A line of `index.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Issued {
    /// Its serial number, lower-case hexadecimal.
    pub serial: String,
    /// Who issued it.
    pub ca: CaNumber,
    /// The workload; `None` for a request with an allowed ID.
    pub workload: Option<String>,
    /// Its SPIFFE ID.
    pub spiffe_id: String,
    /// Seconds since the epoch.
    pub not_before: i64,
    /// Seconds since the epoch.
    pub not_after: i64,
    /// Whether it was made from a request: where it is now, this machine does not know.
    pub requested: bool,
}

impl State {
    /// Of a new CA.
    #[must_use]
    pub const fn new(trust_domain: String) -> Self {
        Self {
            trust_domain,
            active: 1,
            rotation: Rotation::None,
            crl_number: 0,
            revoked: Vec::new(),
        }
    }

    /// Those that are trusted, the one that issues first.
    #[must_use]
    pub fn trusted(&self) -> Vec<CaNumber> {
        match self.rotation {
            Rotation::None => vec![self.active],
            Rotation::Begun(other) | Rotation::Switched(other) => vec![self.active, other],
        }
    }

    /// Whether this certificate was revoked.
    #[must_use]
    pub fn is_revoked(&self, serial: &str) -> bool {
        self.revoked.iter().any(|revoked| revoked.serial == serial)
    }

    /// The numbers that the list of `ca` must have, at least.
    #[must_use]
    pub fn revoked_of(&self, ca: CaNumber, now: i64) -> BTreeSet<&str> {
        let of = |it: &&Revoked| it.ca == ca && it.not_after.saturating_add(AFTERWARDS) > now;
        let revoked = self.revoked.iter().filter(of);
        revoked.map(|revoked| revoked.serial.as_str()).collect()
    }

    /// Notes that these were revoked; those that were before stay as they are.
    pub fn revoke(&mut self, issued: &[&Issued], now: i64) {
        for it in issued {
            if !self.is_revoked(&it.serial) {
                self.revoked.push(Revoked {
                    serial: it.serial.clone(),
                    ca: it.ca,
                    at: now,
                    not_after: it.not_after,
                });
            }
        }
    }

    /// Forgets what no list needs any more.
    pub fn forget(&mut self, now: i64) {
        self.revoked
            .retain(|revoked| revoked.not_after.saturating_add(REMEMBERED) > now);
    }
}

/// The certificates of an index, and how many of its bytes are whole lines.
///
/// # Errors
/// A whole line is not one of ours; with its number.
pub fn parse_index(text: &str) -> Result<(Vec<Issued>, usize), String> {
    let whole = text.rfind('\n').map_or(0, |at| at + 1);
    let lines = text[..whole].lines().enumerate();
    let parse = |(i, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|error| format!("line {}: {error}", i + 1))
    };
    Ok((lines.map(parse).collect::<Result<_, _>>()?, whole))
}

/// A line for the index.
#[must_use]
pub fn index_line(issued: &Issued) -> String {
    let line = serde_json::to_string(issued).expect("plain values are written without an error");
    line + "\n"
}

/// What the index need not have any more.
#[must_use]
pub const fn is_forgotten(issued: &Issued, now: i64) -> bool {
    issued.not_after.saturating_add(REMEMBERED) <= now
}

/// RFC 5280 §3.3: a list has an entry until after the certificate's end.
const AFTERWARDS: i64 = 86400;
/// What has ended is shown by `list` for 30 days.
const REMEMBERED: i64 = 30 * 86400;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn issued(serial: &str) -> Issued {
        Issued {
            serial: serial.into(),
            ca: 1,
            workload: Some("shop/cart".into()),
            spiffe_id: "spiffe://example.org/ns/shop/sa/cart".into(),
            not_before: 0,
            not_after: 100,
            requested: false,
        }
    }

    proptest! {
        /// However an append is cut off: what was there before is read, and nothing of the new line.
        #[test]
        fn a_line_that_was_cut_off_counts_for_nothing(before in 0usize..4, cut in any::<prop::sample::Index>()) {
            let old: Vec<Issued> = (0..before).map(|i| issued(&format!("4{i}"))).collect();
            let text: String = old.iter().map(index_line).collect();
            let line = index_line(&issued("new"));
            let torn = format!("{text}{}", &line[..cut.index(line.len())]);
            let (read, whole) = parse_index(&torn).unwrap();
            prop_assert_eq!(read, old);
            prop_assert_eq!(whole, text.len());
        }
    }

    #[test]
    fn a_bad_line_is_named() {
        let text = index_line(&issued("41")) + "{}\n" + &index_line(&issued("42"));
        assert!(parse_index(&text).unwrap_err().starts_with("line 2: "));
    }

    #[test]
    fn revoked_ones_stay_on_the_list_for_a_day_after_their_end() {
        let mut state = State::new("example.org".into());
        state.revoke(&[&issued("41")], 50);
        state.revoke(&[&issued("41")], 60);
        assert_eq!(state.revoked.len(), 1);
        assert_eq!(state.revoked_of(1, 100 + AFTERWARDS - 1).len(), 1);
        assert!(state.revoked_of(1, 100 + AFTERWARDS).is_empty());
        assert!(state.revoked_of(2, 60).is_empty());
        state.forget(100 + REMEMBERED);
        assert!(!state.is_revoked("41"));
    }
}
