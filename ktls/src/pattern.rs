//! Patterns over SPIFFE IDs and DNS names, as policy writes them. Pure; a pattern that is ill-formed fits nothing.

use crate::spiffe::SpiffeId;

/// Whether `id` fits `pattern`: the same trust domain, and segment by segment the same path, where a segment `*` of the
/// pattern stands for any one segment, and `*` as its last one for any number of segments, at least one.
#[must_use]
pub fn spiffe_id(pattern: &str, id: &SpiffeId) -> bool {
    let Some((domain, wanted)) = pattern
        .strip_prefix("spiffe://")
        .and_then(|rest| rest.split_once('/'))
    else {
        return false;
    };
    let Some(path) = id.path().strip_prefix('/') else {
        return false;
    };
    domain == id.trust_domain() && path_fits(wanted, path)
}

fn path_fits(wanted: &str, path: &str) -> bool {
    let mut wanted = wanted.split('/').peekable();
    let mut path = path.split('/');
    while let Some(want) = wanted.next() {
        let Some(segment) = path.next() else {
            return false;
        };
        if want == "*" && wanted.peek().is_none() {
            return true;
        }
        if want != "*" && want != segment {
            return false;
        }
    }
    path.next().is_none()
}

/// Whether `name` fits `pattern`: the same name, or, if the pattern begins with `*.`, one label and then the rest of the
/// pattern (RFC 6125 §6.4.3). Case does not count.
#[must_use]
pub fn dns_name(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (trimmed(pattern), trimmed(name));
    if pattern.is_empty() || name.is_empty() {
        return false;
    }
    match pattern.strip_prefix("*.") {
        None => !pattern.contains('*') && pattern.eq_ignore_ascii_case(name),
        Some(rest) => name.split_once('.').is_some_and(|(label, parent)| {
            !label.is_empty() && !rest.contains('*') && parent.eq_ignore_ascii_case(rest)
        }),
    }
}

fn trimmed(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ids_fit_segment_by_segment() {
        let cart: SpiffeId = "spiffe://example.org/ns/shop/sa/cart".parse().unwrap();
        for (pattern, fits) in [
            ("spiffe://example.org/ns/shop/sa/cart", true),
            ("spiffe://example.org/ns/*/sa/cart", true),
            ("spiffe://example.org/ns/shop/sa/*", true),
            ("spiffe://example.org/ns/shop/*", true),
            ("spiffe://example.org/*", true),
            ("spiffe://example.org/ns/shop/sa/cart/*", false),
            ("spiffe://example.org/ns/shop/sa/car*", false),
            ("spiffe://example.org/ns/*/sa/till", false),
            ("spiffe://example.com/*", false),
            ("spiffe://*/ns/shop/sa/cart", false),
            ("spiffe://example.org", false),
            ("/ns/shop/sa/cart", false),
            ("*", false),
            ("", false),
        ] {
            assert_eq!(spiffe_id(pattern, &cart), fits, "{pattern}");
        }
    }

    #[test]
    fn a_star_is_one_label_and_only_the_first() {
        for (pattern, name, fits) in [
            ("cart.example.org", "CART.example.org.", true),
            ("*.example.org", "cart.example.org", true),
            ("*.example.org", "a.cart.example.org", false),
            ("*.example.org", "example.org", false),
            ("*.example.org", ".example.org", false),
            ("c*.example.org", "cart.example.org", false),
            ("*", "cart", false),
            ("*.*.org", "a.b.org", false),
            ("", "", false),
        ] {
            assert_eq!(dns_name(pattern, name), fits, "{pattern} {name}");
        }
    }

    proptest! {
        #[test]
        fn every_id_fits_itself_and_no_other(
            one in "[a-z]{1,3}(/[a-z]{1,2}){0,3}", other in "[a-z]{1,3}(/[a-z]{1,2}){0,3}",
        ) {
            let id = |path: &str| format!("spiffe://d/{path}");
            let parsed: SpiffeId = id(&one).parse().unwrap();
            prop_assert_eq!(spiffe_id(&id(&other), &parsed), one == other);
        }
    }
}
