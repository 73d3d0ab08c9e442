//! A number of bytes.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::value::{Invalid, by_text};

by_text! { Bytes }

const UNITS: [(&str, u32); 3] = [("GiB", 30), ("MiB", 20), ("KiB", 10)];

/// A number of bytes, at least 1 MiB: a number and `KiB`, `MiB` or `GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bytes(u64);

impl Bytes {
    /// How many.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl From<u64> for Bytes {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

impl FromStr for Bytes {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        const LEAST: u64 = 1 << 20;
        let wrong = || {
            Invalid(
                "a number of bytes is a number and `KiB`, `MiB` or `GiB`, such as `64GiB`"
                    .to_owned(),
            )
        };
        let unit = |(unit, bits): &(&str, u32)| Some((text.strip_suffix(unit)?, *bits));
        let (digits, bits) = UNITS.iter().find_map(unit).ok_or_else(wrong)?;
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong());
        }
        let number = digits.parse::<u64>().ok();
        let number = number.and_then(|number| number.checked_mul(1 << bits));
        let number = number.filter(|number| *number <= i64::MAX.cast_unsigned());
        match number {
            Some(number) if number >= LEAST => Ok(Self(number)),
            Some(_) => Err(Invalid("must be 1MiB or more".to_owned())),
            None => Err(Invalid("is too large".to_owned())),
        }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |(_, bits): &&(&str, u32)| self.0 != 0 && self.0.is_multiple_of(1 << bits);
        match UNITS.iter().find(whole) {
            Some((unit, bits)) => write!(f, "{}{unit}", self.0 >> bits),
            // What somebody else has written into a map.
            None => write!(f, "{} bytes", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_shown_in_its_largest_unit() {
        for (read, shown) in [
            ("64GiB", "64GiB"),
            ("2048KiB", "2MiB"),
            ("1536MiB", "1536MiB"),
        ] {
            assert_eq!(read.parse::<Bytes>().unwrap().to_string(), shown);
        }
        for wrong in [
            "",
            "64",
            "GiB",
            "64GB",
            "-1MiB",
            "1.5GiB",
            "1023KiB",
            "99999999999GiB",
        ] {
            assert!(wrong.parse::<Bytes>().is_err(), "{wrong}");
        }
    }
}
