//! The list of scenarios, one file each. `cargo test -p underseal-vm --test vm -- 6.12::smoke` runs one.

use std::process::ExitCode;

use underseal_vm::{Scenario, matrix};

mod smoke;
mod systemd_boot;
mod wire;

const ALL: &[Scenario] = &[
    Scenario {
        name: "smoke",
        machines: 1,
        run: smoke::run,
    },
    Scenario {
        name: "wire",
        machines: 2,
        run: wire::run,
    },
    Scenario {
        name: "systemd_boot",
        machines: 1,
        run: systemd_boot::run,
    },
];

fn main() -> ExitCode {
    matrix::run(ALL)
}
