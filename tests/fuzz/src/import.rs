//! Kubernetes' manifests.

use std::str::from_utf8;

use underseal::{
    config::{Config, Format, Source},
    import::{self, Effect},
};

/// Manifests are refused, or become policies that the configuration takes; and whatever they say, no comment and no text
/// of theirs becomes anything else.
///
/// # Panics
/// They do not.
pub fn manifest(bytes: &[u8]) {
    let Ok(text) = from_utf8(bytes) else { return };
    let source = |text: String, format| Source {
        name: "fuzz".into(),
        text,
        format,
    };
    let file = source(text.to_owned(), Format::Yaml);
    let Ok(imported) = import::read(&[file], "default") else {
        return;
    };
    let refused = imported
        .left
        .iter()
        .any(|left| left.effect == Effect::Refused);
    assert!(!refused || imported.toml.is_empty());
    for left in &imported.left {
        assert!(!left.path.is_empty() || !left.why.is_empty());
    }
    // What a Certificate does not say.
    let mut number = 9;
    let filled = imported
        .toml
        .split("addresses = []")
        .map(str::to_owned)
        .reduce(|before, after| {
            number += 1;
            format!("{before}addresses = [\"10.1.0.{number}\"]{after}")
        });
    let config = source(
        format!("{NODE}{}", filled.unwrap_or_default()),
        Format::Toml,
    );
    if let Err(error) = Config::parse(&config) {
        let error = error.to_string();
        // Two Certificates may be for one workload, which is not ours to decide.
        let is_double = error
            .lines()
            .filter(|line| line.starts_with("fuzz:"))
            .all(|line| line.contains("is the same as"));
        assert!(is_double, "{error}\n{}", imported.toml);
    }
}

const NODE: &str =
    "[node]\nname = \"node-a\"\nnetworks = [\"10.1.0.0/16\"]\ntrust_domain = \"example.org\"\n\n";
