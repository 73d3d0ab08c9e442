//! How often the certificates of open connections are verified again.

use std::str::FromStr;

use super::{pki::Span, value::Invalid};

/// A span of time, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recheck(Option<Span>);

impl Recheck {
    /// The span in seconds; 0 for never.
    #[must_use]
    pub fn seconds(self) -> u32 {
        // At most 90 days: it fits.
        let seconds = self.0.map_or(0, Span::seconds);
        u32::try_from(seconds).unwrap_or(u32::MAX)
    }
}

impl FromStr for Recheck {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "off" => Ok(Self(None)),
            span => span
                .parse()
                .map(|span| Self(Some(span)))
                .map_err(|Invalid(why)| Invalid(format!("{why}, or `off`"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_or_off() {
        let seconds = |text: &str| text.parse::<Recheck>().map(Recheck::seconds);
        assert_eq!(seconds("24h"), Ok(86400));
        assert_eq!(seconds("off"), Ok(0));
        assert!(seconds("never").is_err());
        assert!(seconds("0s").is_err());
    }
}
