//! Applies that meet, applies that are killed, and applies of which a step fails.
//!
//! With `-v` each step is written to standard error before it begins: a pipe there tells how far an apply has come, and
//! a full one stops it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use underseal_vm::site::{Settings, Site};
use underseal_vm::topology::Node;
use underseal_vm::{Lab, VmOptions, Wire};

use crate::lifecycle::{WORLD, ensure_back};

const PATIENCE: Duration = Duration::from_secs(60);
/// Makes the pipe as small as can be, and empties it into /tmp/steps.told when it is told to.
pub(crate) const READER: &str = "import fcntl, os, time
both = os.open('/tmp/steps', os.O_RDWR)
fcntl.fcntl(both, 1031, 4096)  # F_SETPIPE_SZ
open('/tmp/small', 'w')
while not os.path.exists('/tmp/go'): time.sleep(0.02)
with open('/tmp/steps', 'rb') as steps:
    os.close(both)
    open('/tmp/steps.told', 'wb').write(steps.read())
";

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let wire = Wire::new(1)?;
    let vm = lab.boot(&VmOptions {
        nics: vec![wire.port(0)],
        ..VmOptions::default()
    })?;
    Node(1).uplink(&vm)?;
    let site = Site::pair(&vm)?;
    site.configure(&Settings::with_peer())?;
    let untouched = vm.sh(WORLD)?.text();
    two_at_once(&site)?;
    site.down()?;
    ensure_back("two applies and down", &untouched, &vm)?;
    killed(&site, &untouched)?;
    in_the_way(&site, &untouched)
}

/// The first one's standard error is a pipe that is full before all steps are told: it waits in the middle of them. The
/// others see who it is, and one waits until it is done.
fn two_at_once(site: &Site) -> Result<()> {
    let vm = &site.vm;
    vm.put("/tmp/reader.py", READER.as_bytes(), 0o644)?;
    let reader = vm.spawn("mkfifo /tmp/steps && exec python3 /tmp/reader.py")?;
    let first = vm.spawn(
        "until test -e /tmp/small; do sleep 0.02; done; exec 2>/tmp/steps; head -c 2500 /dev/zero >&2; exec underseal -v apply",
    )?;
    let pid = first.pid();
    let holder = format!("process {pid} (underseal -v apply)");
    vm.wait_until(
        &format!("grep -q '^{pid} ' /run/underseal/lock && test -e /sys/fs/bpf/underseal/maps"),
        PATIENCE,
        "the first apply",
    )?;
    for command in ["apply --wait 0", "apply --wait 1", "down --wait 0"] {
        let said = vm.try_sh(&format!("underseal {command}"))?;
        ensure!(
            said.code == Some(1) && said.error_text().contains(&format!("held by {holder}")),
            "{command}: {said:?}"
        );
        ensure!(
            said.error_text().contains("waiting for") == command.ends_with('1'),
            "{command}: {said:?}"
        );
    }
    // To look is always possible.
    vm.sh("underseal --json status >/dev/null && underseal plan")?;

    let second = vm.spawn("exec underseal apply 2>/tmp/second")?;
    vm.wait_until("test -s /tmp/second", PATIENCE, "an apply that waits")?;
    let told = vm.sh("cat /tmp/second")?.text();
    ensure!(
        told == format!("waiting for {holder}, which is changing this node"),
        "{told}"
    );
    vm.sh("touch /tmp/go")?;
    first.wait(PATIENCE)?.successful()?;
    reader.wait(PATIENCE)?.successful()?;
    let said = second.wait(PATIENCE)?.successful()?.text();
    ensure!(said == "no changes", "the apply that waited said {said}");
    Ok(())
}

/// Killed when it has told of its first, of some, of most of its steps: the next apply completes what it finds, and
/// `down` removes it.
fn killed(site: &Site, untouched: &str) -> Result<()> {
    let steps = site.vm.sh("underseal plan | wc -l")?.text();
    // The last line of a plan is their number.
    let steps: usize = steps.parse::<usize>()? - 1;
    for (part, is_finished) in [(1, true), (2, false), (3, true), (4, false)] {
        let told = (steps * part / 5).max(1);
        let at = format!("killed after {told} of {steps} steps");
        site.vm
            .sh(&format!(
                "rm -f /tmp/told; mkfifo /tmp/told; exec 3<>/tmp/told
                underseal -v apply 2>&3 & pid=$!
                for step in $(seq {told}); do read -r line <&3; done
                kill -9 $pid; wait $pid; test $? = 137"
            ))
            .with_context(|| at.clone())?;
        // By turns the way on is tried, and the way back.
        if is_finished {
            site.apply().with_context(|| at.clone())?;
            site.ensure_settled().with_context(|| at.clone())?;
        }
        site.down().with_context(|| at.clone())?;
        ensure_back(&at, untouched, &site.vm)?;
    }
    Ok(())
}

/// Things of somebody else that have our names and places: they are named, and stay as they are. The route stands in the
/// way of a late step, so that everything before it is taken back.
fn in_the_way(site: &Site, untouched: &str) -> Result<()> {
    for (thing, gone, named) in [
        (
            "ip link add underseal0 type dummy",
            "ip link del underseal0",
            "cannot use underseal0: there is an interface of this name that is no WireGuard device",
        ),
        (
            "ip route add 10.2.0.0/24 via 192.0.2.2",
            "ip route del 10.2.0.0/24",
            "there is a route of somebody else to it",
        ),
    ] {
        site.vm.sh(thing)?;
        let before = site.vm.sh(WORLD)?.text();
        let said = site.vm.try_sh("underseal apply")?;
        ensure!(
            said.code == Some(1) && said.error_text().contains(named),
            "{thing}: {said:?}"
        );
        ensure_back(thing, &before, &site.vm)?;
        site.vm.sh(gone)?;
        ensure_back(gone, untouched, &site.vm)?;
    }
    Ok(())
}
