//! The list of scenarios, one file each. `cargo test -p underseal-vm --test vm -- 6.12::smoke` runs one.

use std::process::ExitCode;

use underseal_vm::{LINES, Scenario, matrix};

mod apply_lock;
mod controls;
mod eager;
mod faults;
mod faults_apply;
mod faults_attacker;
mod faults_life;
mod faults_stops;
mod faults_storm;
mod helper;
mod host_network;
mod identities;
mod interop;
mod judge;
mod lifecycle;
mod main_job;
mod modes;
mod modes_switch;
mod non_tcp;
mod pki;
mod policy;
mod preempt;
mod preflight;
mod programs;
mod programs_load;
mod real_jobs;
mod real_programs;
mod real_restarts;
mod real_servers;
mod refused;
mod shapes;
mod smoke;
mod strict;
mod systemd_boot;
mod takeover;
mod units;
mod ways;
mod wire;

const ALL: &[Scenario] = &[
    one("judge", judge::run),
    one("smoke", smoke::run),
    two("wire", wire::run),
    one("systemd_boot", systemd_boot::run),
    one("programs_load", programs_load::run),
    two("main_job", main_job::sealed),
    two("main_job_control", main_job::control),
    two("modes", modes::run),
    long(&["7.3"], two("modes_switch", modes_switch::run)),
    one("eager", eager::run),
    one("controls", controls::run),
    one("helper", helper::run),
    one("lifecycle", lifecycle::run),
    one("apply_lock", apply_lock::run),
    one("takeover", takeover::run),
    two("strict", strict::run),
    one("refused", refused::run),
    long(&["6.12"], one("identities", identities::run)),
    one("non_tcp", non_tcp::run),
    one("host_network", host_network::run),
    proven(&["7.3"], two("policy", policy::run)),
    one("preempt", preempt::run),
    long(&["6.1", "7.3"], one("shapes", shapes::sealed)),
    long(&["6.1", "7.3"], one("shapes_plain", shapes::plain)),
    one("interop", interop::run),
    one("preflight", preflight::run),
    one("units", units::run),
    long(&["7.3"], one("pki", pki::run)),
    long(&["6.1"], one("real_databases", real_programs::databases)),
    long(&["6.12"], one("real_web", real_programs::web)),
    long(&["7.3"], one("real_runtimes", real_programs::runtimes)),
    long(&["6.12"], one("real_restarts", real_restarts::run)),
    one("ways", ways::run),
    long(&["6.1"], one("faults_apply", faults_apply::run)),
    one("faults_attacker", faults_attacker::run),
    one("faults_life", faults_life::run),
    long(&["7.3"], one("faults_stops", faults_stops::run)),
    proven(&[], one("faults_storm", faults_storm::run)),
    proven(&[], one("faults_scarce", faults_storm::scarce)),
];

type Run = fn(&underseal_vm::Lab) -> anyhow::Result<()>;

const fn one(name: &'static str, run: Run) -> Scenario {
    Scenario {
        name,
        everyday: &LINES,
        machines: 1,
        run,
    }
}

const fn two(name: &'static str, run: Run) -> Scenario {
    Scenario {
        name,
        everyday: &LINES,
        machines: 2,
        run,
    }
}

/// It passes on all kernels, and takes so long that `make test` has it on these alone. They take turns.
const fn long(everyday: &'static [&'static str], scenario: Scenario) -> Scenario {
    Scenario {
        everyday,
        ..scenario
    }
}

/// It has not passed on the others as it is.
const fn proven(everyday: &'static [&'static str], scenario: Scenario) -> Scenario {
    long(everyday, scenario)
}

fn main() -> ExitCode {
    matrix::run(ALL)
}
