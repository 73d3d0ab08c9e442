//! Kubernetes' manifests.

use std::str::from_utf8;

use underseal::{
    config::{Format, Source},
    import::{self, Effect},
};

/// Manifests are refused, or become policies that the configuration takes; and whatever they say, no comment and no text
/// of theirs becomes anything else.
///
/// # Panics
/// They do not.
pub fn manifest(bytes: &[u8]) {
    let Ok(text) = from_utf8(bytes) else { return };
    let file = Source {
        name: "fuzz".into(),
        text: text.to_owned(),
        format: Format::Yaml,
    };
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
    let table: toml::Table = imported.toml.parse().expect("TOML");
    let known = ["pki", "workload", "network_policy"];
    assert!(
        table.keys().all(|key| known.contains(&key.as_str())),
        "{}",
        imported.toml
    );
}
