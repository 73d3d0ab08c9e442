//! `underseal-handshake` with a step left out: `UNDERSEAL_WITHOUT=restart`. For the scenario `controls` alone.

use std::process::ExitCode;

use underseal_ktls::helper::{Controls, main as run};

fn main() -> ExitCode {
    let without = std::env::var("UNDERSEAL_WITHOUT").unwrap_or_default();
    run(Controls {
        no_restart: without.split(',').any(|step| step == "restart"),
    })
}
