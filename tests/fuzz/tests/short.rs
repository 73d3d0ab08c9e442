//! A short run of every target: the seeds, each changed a little in thousands of ways, always the same ones. What
//! fails is made as small as it can be before it is shown.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, env, fs, path::Path};

use change::{Change, changes};
use proptest::{
    prelude::*,
    sample::select,
    test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner},
};
use underseal_fuzz::TARGETS;

mod change;

/// How many inputs each target gets beside the seeds, unless `PROPTEST_CASES` says so.
const CASES: u32 = 2000;

macro_rules! short {
    ($($target:ident),*) => {
        $(#[test] fn $target() { run(stringify!($target)); })*

        #[test]
        fn every_target_has_a_test_and_a_program() {
            let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, [$(stringify!($target)),*]);
            let folder = top().join("../../fuzz");
            let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
            for name in &names {
                assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
                let program = folder.join(format!("fuzz_targets/{name}.rs"));
                let program = fs::read_to_string(program).unwrap();
                assert!(program.contains(&format!("underseal_fuzz::{name}(")), "{name}");
            }
            assert_eq!(fs::read_dir(folder.join("fuzz_targets")).unwrap().count(), names.len());
        }
    };
}

short!(
    certificate,
    chain,
    config,
    conns,
    events,
    identity,
    letters,
    manifest,
    record,
    request,
    table,
    walker,
    wireguard_key
);

fn run(name: &str) {
    let (_, target) = TARGETS.iter().find(|(target, _)| *target == name).unwrap();
    let seeds = seeds(name);
    for seed in &seeds {
        target(seed);
    }
    let all = seeds.clone();
    let inputs = (select(seeds), changes()).prop_map(move |(seed, changes)| {
        let apply = |bytes, change: &Change| change.apply(bytes, &all);
        changes.iter().fold(seed, apply)
    });
    let default = Config::default();
    let is_chosen = env::var_os("PROPTEST_CASES").is_some();
    let config = Config {
        cases: if is_chosen { default.cases } else { CASES },
        failure_persistence: None,
        ..default
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let outcome = runner.run(&inputs, |bytes| {
        target(&bytes);
        Ok(())
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(why, bytes)) => {
            let text = String::from_utf8_lossy(&bytes);
            panic!("{why}\nthe input, as bytes: {bytes:?}\nand as text:\n{text}");
        }
        Err(error) => panic!("{error}"),
    }
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = top().join("seeds").join(name);
    let paths: BTreeSet<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(!paths.is_empty(), "{} is empty", folder.display());
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
