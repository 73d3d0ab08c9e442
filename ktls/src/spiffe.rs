//! SPIFFE IDs, checked when they are made.
//!
//! The rules are those of the SPIFFE-ID specification, section 2:
//! <https://github.com/spiffe/spiffe/blob/v1.0.0/standards/SPIFFE-ID.md>.

use std::{fmt, str::FromStr};

/// A SPIFFE ID: `spiffe://<trust domain>[/<path>]`.
///
/// Made by [`FromStr`] alone, so that every value is well-formed. Two IDs are the same if and only
/// if their texts are, because the specification leaves no room for a second spelling.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    text: String,
    /// Where the path begins in `text`; its length if there is no path.
    path_at: usize,
}

impl SpiffeId {
    /// The longest ID that an implementation has to take, in bytes; longer ones are refused.
    pub const MAX_LEN: usize = 2048;

    /// The whole ID, scheme included.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain, without the scheme: `example.org`.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..self.path_at]
    }

    /// The path with its leading slash, `/ns/shop/sa/cart`; empty for the ID of a trust domain.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.text[self.path_at..]
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        if text.len() > Self::MAX_LEN {
            return Err(SpiffeIdError::TooLong(text.len()));
        }
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeIdError::Scheme)?;
        let (trust_domain, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        check_trust_domain(trust_domain)?;
        if let Some(segments) = path.strip_prefix('/') {
            segments.split('/').try_for_each(check_segment)?;
        }
        Ok(Self {
            text: text.to_owned(),
            path_at: text.len() - path.len(),
        })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

/// Why a text is no SPIFFE ID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// It is longer than [`SpiffeId::MAX_LEN`].
    #[error("it is {0} bytes long, more than {max}", max = SpiffeId::MAX_LEN)]
    TooLong(usize),
    /// It does not begin with the scheme.
    #[error("it does not begin with `spiffe://`")]
    Scheme,
    /// Nothing stands between the scheme and the path.
    #[error("its trust domain is empty")]
    NoTrustDomain,
    /// The trust domain is longer than 255 bytes.
    #[error("its trust domain is {0} bytes long, more than 255")]
    TrustDomainTooLong(usize),
    /// A character that a trust domain may not hold; ports and user names fall under this.
    #[error("{0:?} may not stand in a trust domain (only a-z, 0-9, `.`, `-` and `_`)")]
    TrustDomainCharacter(char),
    /// A path segment is empty: a doubled or a trailing slash.
    #[error("its path has an empty segment (a doubled or a trailing slash)")]
    EmptySegment,
    /// A path segment is `.` or `..`.
    #[error("its path has the relative segment `{0}`")]
    RelativeSegment(String),
    /// A character that a path may not hold; queries, fragments and `%` fall under this.
    #[error("{0:?} may not stand in a path (only letters, digits, `.`, `-` and `_`)")]
    PathCharacter(char),
}

fn check_trust_domain(name: &str) -> Result<(), SpiffeIdError> {
    if name.is_empty() {
        return Err(SpiffeIdError::NoTrustDomain);
    }
    if name.len() > TRUST_DOMAIN_MAX_LEN {
        return Err(SpiffeIdError::TrustDomainTooLong(name.len()));
    }
    match name.chars().find(|c| !is_trust_domain_char(*c)) {
        Some(c) => Err(SpiffeIdError::TrustDomainCharacter(c)),
        None => Ok(()),
    }
}

fn check_segment(segment: &str) -> Result<(), SpiffeIdError> {
    match segment {
        "" => return Err(SpiffeIdError::EmptySegment),
        "." | ".." => return Err(SpiffeIdError::RelativeSegment(segment.to_owned())),
        _ => {}
    }
    match segment.chars().find(|c| !is_path_char(*c)) {
        Some(c) => Err(SpiffeIdError::PathCharacter(c)),
        None => Ok(()),
    }
}

const fn is_trust_domain_char(c: char) -> bool {
    matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_')
}

const fn is_path_char(c: char) -> bool {
    matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_')
}

/// In lower case only: an upper-case scheme is another text, and IDs are compared as texts.
const SCHEME: &str = "spiffe://";
const TRUST_DOMAIN_MAX_LEN: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parts_of_an_id() {
        let id: SpiffeId = "spiffe://example.org/ns/shop/sa/cart".parse().unwrap();
        assert_eq!(id.trust_domain(), "example.org");
        assert_eq!(id.path(), "/ns/shop/sa/cart");
        let domain: SpiffeId = "spiffe://example.org".parse().unwrap();
        assert_eq!((domain.trust_domain(), domain.path()), ("example.org", ""));
    }

    #[test]
    fn what_the_specification_forbids() {
        use SpiffeIdError::*;
        for (text, error) in [
            ("", Scheme),
            ("https://example.org/a", Scheme),
            ("SPIFFE://example.org/a", Scheme),
            ("spiffe://", NoTrustDomain),
            ("spiffe:///a", NoTrustDomain),
            ("spiffe://Example.org/a", TrustDomainCharacter('E')),
            ("spiffe://example.org:80/a", TrustDomainCharacter(':')),
            ("spiffe://me@example.org/a", TrustDomainCharacter('@')),
            ("spiffe://example.org?a", TrustDomainCharacter('?')),
            ("spiffe://example.org/", EmptySegment),
            ("spiffe://example.org/a/", EmptySegment),
            ("spiffe://example.org/a//b", EmptySegment),
            ("spiffe://example.org/a/../b", RelativeSegment("..".into())),
            ("spiffe://example.org/./b", RelativeSegment(".".into())),
            ("spiffe://example.org/a%20b", PathCharacter('%')),
            ("spiffe://example.org/a?b", PathCharacter('?')),
            ("spiffe://example.org/a#b", PathCharacter('#')),
            ("spiffe://example.org/ä", PathCharacter('ä')),
        ] {
            assert_eq!(text.parse::<SpiffeId>(), Err(error), "{text}");
        }
    }

    #[test]
    fn lengths_at_the_limit() {
        let domain = |n: usize| format!("spiffe://{}", "a".repeat(n)).parse::<SpiffeId>();
        assert!(domain(255).is_ok());
        assert_eq!(domain(256), Err(SpiffeIdError::TrustDomainTooLong(256)));
        let whole = |n: usize| format!("spiffe://a/{}", "b".repeat(n - 11)).parse::<SpiffeId>();
        assert!(whole(2048).is_ok());
        assert_eq!(whole(2049), Err(SpiffeIdError::TooLong(2049)));
    }

    proptest! {
        #[test]
        fn well_formed_ids_come_back_whole(
            domain in "[a-z0-9._-]{1,64}",
            segments in prop::collection::vec("[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,20}", 0..6),
        ) {
            let path: String = segments.iter().map(|s| format!("/{s}")).collect();
            let text = format!("spiffe://{domain}{path}");
            let id: SpiffeId = text.parse().unwrap();
            prop_assert_eq!(id.trust_domain(), domain);
            prop_assert_eq!(id.path(), path);
            prop_assert_eq!(id.to_string(), text);
        }

        #[test]
        fn any_text_is_taken_unchanged_or_refused(text in "(spiffe://)?.{0,80}") {
            if let Ok(id) = text.parse::<SpiffeId>() {
                prop_assert_eq!(id.as_str(), &text);
                let parts = format!("spiffe://{}{}", id.trust_domain(), id.path());
                prop_assert_eq!(parts, text);
            }
        }
    }
}
