use std::collections::HashMap;

use super::*;

#[test]
fn pem_is_in_lines_and_comes_back() {
    for length in [0, 1, 47, 48, 49, 1000] {
        let der: Vec<u8> = (0..length).map(|i| i as u8).collect();
        let text = pem("X509 CRL", &der);
        let lines: Vec<&str> = text.lines().collect();
        let (first, last) = (lines[0], lines[lines.len() - 1]);
        assert_eq!(first, "-----BEGIN X509 CRL-----");
        assert_eq!(last, "-----END X509 CRL-----");
        let body = &lines[1..lines.len() - 1];
        assert!(body.iter().all(|line| (1..=64).contains(&line.len())));
        assert_eq!(BASE64.decode(body.concat()).unwrap(), der);
        assert!(text.ends_with("-----\n"));
    }
}

#[test]
fn domains_of_ids() {
    for (id, of) in [
        ("spiffe://example.org/ns/shop/sa/cart", "example.org"),
        ("spiffe://example.org", "example.org"),
        ("spiffe://example.org/", "example.org"),
        ("example.org", "example.org"),
        ("", ""),
    ] {
        assert_eq!(domain(id), of);
    }
}

#[test]
fn the_agents_words_are_one_line() {
    let mut told = Told::default();
    let svid = X509svid {
        spiffe_id: "spiffe://a/b\nc\x1b[31m".to_owned(),
        ..X509svid::default()
    };
    told.svids(X509svidResponse {
        svids: vec![svid],
        ..X509svidResponse::default()
    });
    let others: Vec<String> = told.others(&BTreeSet::new()).into_iter().collect();
    assert_eq!(others, ["spiffe://a/b c [31m"]);
}

/// The newer message counts for the domains that it names, the older one for the rest.
#[test]
fn the_last_word_on_each_domain_counts() {
    let of = |told: &Told, domain: &str| -> Option<Vec<u8>> {
        let [newer, older] = told.newer_first();
        let der = newer.bundles.get(domain);
        der.or_else(|| older.bundles.get(domain)).cloned()
    };
    let bundles = |all: &[(&str, u8)]| -> HashMap<String, Vec<u8>> {
        let all = all.iter();
        all.map(|(id, byte)| (format!("spiffe://{id}"), vec![*byte]))
            .collect()
    };
    let mut told = Told::default();
    told.bundles(X509BundlesResponse {
        bundles: bundles(&[("a", 1), ("b", 2)]),
        crl: vec![vec![9]],
    });
    told.svids(X509svidResponse {
        federated_bundles: bundles(&[("a", 3), ("c", 4)]),
        ..X509svidResponse::default()
    });
    let all = |told: &Told| ["a", "b", "c", "d"].map(|domain| of(told, domain));
    let some = |byte: u8| Some(vec![byte]);
    assert_eq!(all(&told), [some(3), some(2), some(4), None]);
    // It was silent about lists, which is no word.
    assert_eq!(told.lists().collect::<Vec<_>>(), [&vec![9]]);
    told.bundles(X509BundlesResponse {
        bundles: bundles(&[("a", 5)]),
        crl: Vec::new(),
    });
    assert_eq!(all(&told), [some(5), None, some(4), None]);
}
