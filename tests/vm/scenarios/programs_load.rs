//! Every program passes this kernel's verifier and can be attached, replaced, observed, put back and removed;
//! pins that do not fit are refused. `load` is an example of the loader's crate. The verifier has little to do: its time
//! is that of every first apply, and of most scenarios.

use std::time::Duration;

use anyhow::{Result, ensure};
use underseal_vm::{Lab, VmOptions};

/// Interfaces of VLANs have a dot in their name, which pins cannot have.
const INTERFACES: [&str; 2] = ["plain0", "tagged0.100"];

/// It loads everything several times, and the verifier is emulated, too.
const LOADING: Duration = Duration::from_secs(300);

/// The object has more instructions than this: whoever counts fewer has missed some.
const PROGRAMS: u32 = 10_000;

/// Instructions that the verifier may go through for all programs. It was 41,000 to 44,000 when this was written, and a
/// million before `bpf/src/apart.rs`: a function that is checked again in every state of its caller shows at once.
const MOST: u32 = 80_000;

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let vm = lab.boot(&VmOptions {
        programs: &["examples/load"],
        ..VmOptions::default()
    })?;
    vm.sh("mkdir /sys/fs/cgroup/covered")?;
    for (interface, cgroup) in INTERFACES.into_iter().zip(["", "/covered"]) {
        vm.sh(&format!(
            "ip link add {interface} type dummy && ip link set {interface} up"
        ))?;
        let shown = vm
            .node()
            .sh_for(&format!("load /sys/fs/cgroup{cgroup} {interface}"), LOADING)?
            .text();
        ensure!(shown.ends_with("load: passed"), "{interface}: {shown}");
        let verified = verified(&shown)?;
        ensure!(
            (PROGRAMS..MOST).contains(&verified),
            "the verifier went through {verified} instructions: {shown}"
        );
        let left = vm
            .sh(&format!("tc qdisc show dev {interface} clsact"))?
            .text();
        ensure!(left.is_empty(), "left on {interface}: {left}");
    }
    // What was there before stays: a filter that has the place that ours want where there is no tcx.
    vm.sh("tc qdisc add dev plain0 clsact")?;
    vm.sh("tc filter add dev plain0 egress prio 1 bpf bytecode '1,6 0 0 4294967295,'")?;
    let before = vm.sh(FILTERS)?.text();
    vm.node().sh_for("load /sys/fs/cgroup plain0", LOADING)?;
    let after = vm.sh(FILTERS)?.text();
    ensure!(
        after == before && after.contains("bytecode"),
        "before: {before}\nafter: {after}"
    );
    Ok(())
}

/// The sum of what the verifier went through for each program.
fn verified(shown: &str) -> Result<u32> {
    let counts = shown.lines().filter_map(|line| {
        let (_, count) = line.strip_prefix("verified ")?.split_once(' ')?;
        Some(count)
    });
    counts.map(|count| Ok(count.parse::<u32>()?)).sum()
}

const FILTERS: &str = "tc filter show dev plain0 egress";
