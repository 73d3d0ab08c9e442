//! Golden plans: `golden/<case>/{config.toml, observed.json}` → `plan.txt`. `observed.json` holds
//! what the machine is like (`facts`) and what is there (`state`). A case without `config.toml` is
//! a `down`. The plan is also carried out on a model, and then there must be nothing left to do.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fmt::Write, fs, path::Path};

use serde::Deserialize;
use support::{golden, model::Model};
use underseal::{
    config::{Config, Format, Source},
    desired::{absent, desired},
    execute,
    plan::plan,
    state::{Facts, State},
};

mod support;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Observed {
    facts: Facts,
    state: State,
}

#[test]
fn golden() {
    for case in golden::entries("golden") {
        check(&case);
    }
}

fn check(case: &Path) {
    let text = fs::read_to_string(case.join("observed.json")).unwrap();
    let Observed { facts, state } = serde_json::from_str(&text)
        .unwrap_or_else(|e| panic!("{}/observed.json: {e}", case.display()));
    let mut shown = String::new();
    let mut wanted = match fs::read_to_string(case.join("config.toml")) {
        Err(_) => State::default(),
        Ok(text) => {
            let source = Source {
                name: "config.toml".to_owned(),
                text,
                format: Format::Toml,
            };
            let config = Config::parse(&source).unwrap_or_else(|e| panic!("{e}"));
            for (name, missing) in absent(&config, &facts) {
                writeln!(shown, "# {name}: {missing}").unwrap();
            }
            desired(&config, &facts)
        }
    };
    let ops = plan(&wanted, &state);
    for op in &ops {
        writeln!(shown, "{op}").unwrap();
    }
    if ops.is_empty() {
        shown.push_str("# no changes\n");
    }
    golden::compare(&case.join("plan.txt"), &shown);

    let mut model = Model::new(state);
    let devices = wanted
        .wireguard
        .iter_mut()
        .chain(wanted.beside.values_mut());
    for device in devices.filter(|device| device.key.file.is_some()) {
        // A key that is made in the plan is known after it.
        model.key = *device.key.public.get_or_insert(model.key);
    }
    let failed = execute::remove(&mut model, &ops, |_| {});
    assert!(failed.is_empty(), "{}: {failed:#?}", case.display());
    let left = plan(&wanted, &model.state);
    assert!(left.is_empty(), "{}: left over: {left:#?}", case.display());
}
