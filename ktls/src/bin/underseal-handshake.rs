//! The handshake helper of Underseal: see `underseal_ktls::helper`.
//!
//! Takes no arguments and reads no file but certificates. Runs as a service; may be stopped,
//! killed or replaced at any time. `UNDERSEAL_LOG` is the level of its log (default: info).

use std::process::ExitCode;

use underseal_ktls::helper::{Controls, main as run};

fn main() -> ExitCode {
    run(Controls::default())
}
