//! What fuzzing does with every parser of text and bytes that somebody else has written.
//!
//! Each target is a function that takes any bytes and panics where something does not hold. Two things call it: the
//! test `short`, which changes the seeds a little in thousands of ways, always the same ones, and the programs in
//! `fuzz/`, which libFuzzer drives for as long as you like (CONTRIBUTING.md, "Fuzzing").

mod certificates;
mod config;
mod import;
mod kernel;
mod keys;
mod pki;

pub use certificates::{chain, identity};
pub use config::config;
pub use import::manifest;
pub use kernel::{conns, walker};
pub use keys::wireguard_key;
pub use pki::{certificate, record, request};
pub use underseal_ktls::helper::fuzz::{events, letters, table};

/// A target.
pub type Target = fn(&[u8]);

/// All of them, each with the name of its folder in `seeds` and of its program in `fuzz/fuzz_targets`.
pub const TARGETS: &[(&str, Target)] = &[
    ("certificate", certificate),
    ("chain", chain),
    ("config", config),
    ("conns", conns),
    ("events", events),
    ("identity", identity),
    ("letters", letters),
    ("manifest", manifest),
    ("record", record),
    ("request", request),
    ("table", table),
    ("walker", walker),
    ("wireguard_key", wireguard_key),
];
