//! The configuration, in its three formats.

use std::{collections::BTreeMap, str::from_utf8};

use underseal::{
    config::{
        Config, Format, Source,
        value::{Digest, PublicKey},
    },
    desired::{absent, desired},
    plan::plan,
    state::{Facts, State},
};

/// A configuration is refused with the place of each mistake, or it has a state, a way there, and none beyond.
///
/// # Panics
/// It is neither.
pub fn config(bytes: &[u8]) {
    let Ok(text) = from_utf8(bytes) else { return };
    for format in [Format::Toml, Format::Yaml, Format::Json] {
        let source = Source {
            name: "fuzz".into(),
            text: text.to_owned(),
            format,
        };
        match Config::parse(&source) {
            Ok(config) => apply(&config),
            Err(error) => {
                assert!(!error.diagnostics.is_empty());
                for mistake in &error.diagnostics {
                    // One more than `lines` counts: the end of a text that ends with its last line.
                    let last = text.lines().count() + 1;
                    assert!((1..=last).contains(&mistake.line), "{mistake}");
                    assert!(mistake.column >= 1 && !mistake.message.is_empty());
                    let shown = mistake.to_string();
                    assert!(
                        shown.starts_with("fuzz:") && shown.ends_with('^'),
                        "{shown}"
                    );
                }
            }
        }
    }
}

fn apply(config: &Config) {
    let facts = Facts {
        object: Digest([1; 16]),
        public_key: Some(PublicKey([2; 32])),
        next_public_key: Some(PublicKey([3; 32])),
        next_preshared_keys: BTreeMap::new(),
        leading: BTreeMap::new(),
        sessions: BTreeMap::new(),
        preshared_keys: BTreeMap::new(),
        uplinks: BTreeMap::new(),
        sendpage: true,
        cipher: None,
        ids: BTreeMap::new(),
        namespaces: BTreeMap::new(),
    };
    assert_eq!(absent(config, &facts).len(), config.workloads.len());
    let state = desired(config, &facts);
    for op in plan(&state, &State::default()) {
        assert!(!op.to_string().is_empty());
    }
    for op in plan(&State::default(), &state) {
        assert!(!op.to_string().is_empty());
    }
    let more = plan(&state, &state);
    assert!(more.is_empty(), "{more:?}");
}
