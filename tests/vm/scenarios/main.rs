//! The list of scenarios, one file each. `cargo test -p underseal-vm --test vm -- 6.12::smoke` runs one.

use std::process::ExitCode;

use underseal_vm::{LINES, Scenario, matrix};

mod apply_lock;
mod auto_cipher;
mod controls;
mod dns_names;
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
mod key_limit;
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
mod recheck;
mod refused;
mod rekey;
mod remote_recheck;
mod remote_rekey;
mod rotate_key;
mod seeing;
mod session;
mod shapes;
mod shapes_records;
mod smoke;
mod spire;
mod strict;
mod systemd_boot;
mod takeover;
mod takeover_mptcp;
mod units;
mod ways;
mod wire;

const ALL: &[Scenario] = &[
    in_turn(&["7.3"], one("judge", judge::run)),
    one("smoke", smoke::run),
    at_leisure(two("wire", wire::run)),
    in_turn(&["6.12"], one("systemd_boot", systemd_boot::run)),
    one("programs_load", programs_load::run),
    two("main_job", main_job::sealed),
    at_leisure(two("main_job_control", main_job::control)),
    in_turn(&["6.12"], two("modes", modes::run)),
    at_leisure(two("modes_switch", modes_switch::run)),
    at_leisure(one("eager", eager::run)),
    in_turn(&["6.1"], one("controls", controls::run)),
    one("helper", helper::run),
    in_turn(&["7.3"], one("lifecycle", lifecycle::run)),
    at_leisure(one("apply_lock", apply_lock::run)),
    in_turn(&["6.12"], one("takeover", takeover::run)),
    in_turn(&["7.3"], two("strict", strict::run)),
    in_turn(&["6.1"], one("refused", refused::run)),
    in_turn(&["6.12"], one("identities", identities::run)),
    in_turn(&["7.3"], one("non_tcp", non_tcp::run)),
    at_leisure(one("host_network", host_network::run)),
    in_turn(&["6.1"], two("policy", policy::run)),
    in_turn(&["7.3"], two("dns_names", dns_names::run)),
    at_leisure(one("preempt", preempt::run)),
    in_turn(&["7.3"], one("shapes", shapes::sealed)),
    at_leisure(one("shapes_plain", shapes::plain)),
    at_leisure(one("interop", interop::run)),
    in_turn(&["7.3"], one("preflight", preflight::run)),
    in_turn(&["6.12"], one("units", units::run)),
    in_turn(&["7.3"], one("pki", pki::run)),
    in_turn(&["6.1"], one("spire", spire::run)),
    at_leisure(one("real_databases", real_programs::databases)),
    in_turn(&["6.12"], one("real_web", real_programs::web)),
    at_leisure(one("real_runtimes", real_programs::runtimes)),
    at_leisure(one("real_restarts", real_restarts::run)),
    in_turn(&["6.1"], one("ways", ways::run)),
    in_turn(&["6.1"], two("seeing", seeing::run)),
    at_leisure(one("faults_apply", faults_apply::run)),
    at_leisure(one("faults_attacker", faults_attacker::run)),
    at_leisure(one("faults_life", faults_life::run)),
    in_turn(&["7.3"], one("faults_stops", faults_stops::run)),
    in_turn(&["6.1"], one("key_limit", key_limit::run)),
    at_leisure(one("rekey", rekey::run)),
    in_turn(&["7.3"], one("recheck", recheck::run)),
    at_leisure(two("remote_recheck", remote_recheck::run)),
    at_leisure(two("remote_rekey", remote_rekey::run)),
    at_leisure(two("rotate_key", rotate_key::two)),
    at_leisure(two("preshared_key", rotate_key::preshared)),
    at_leisure(three("rotate_key_three", rotate_key::three)),
    at_leisure(one("auto_cipher", auto_cipher::run)),
    at_leisure(one("faults_storm", faults_storm::run)),
    at_leisure(one("faults_scarce", faults_storm::scarce)),
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

const fn three(name: &'static str, run: Run) -> Scenario {
    Scenario {
        machines: 3,
        ..one(name, run)
    }
}

/// It passes on all kernels. What all of them showed once is shown by one of them in `make test`, which has an hour, and
/// they take turns: what is about one kernel's code stays on that kernel. `make vm-all` has everything everywhere.
const fn in_turn(everyday: &'static [&'static str], scenario: Scenario) -> Scenario {
    Scenario {
        everyday,
        ..scenario
    }
}

/// It passes on all kernels, and `make vm-all` alone has it: there is no time for it in `make test`.
const fn at_leisure(scenario: Scenario) -> Scenario {
    in_turn(&[], scenario)
}

fn main() -> ExitCode {
    matrix::run(ALL)
}
