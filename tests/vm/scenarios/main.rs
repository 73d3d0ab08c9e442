//! The list of scenarios, one file each. `cargo test -p underseal-vm --test vm -- 6.12::smoke` runs one.

use std::process::ExitCode;

use underseal_vm::{Scenario, matrix};

mod judge;
mod programs_load;
mod smoke;
mod systemd_boot;
mod wire;

const ALL: &[Scenario] = &[
    Scenario {
        name: "judge",
        machines: 1,
        run: judge::run,
    },
    Scenario {
        name: "programs_load",
        machines: 1,
        run: programs_load::run,
    },
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
