//! apply and down are killed again and again, each time later, until they end, while programs talk. A node that is taken over
//! stays so: replacing every program under traffic, killed at each, shows no plaintext and harms no connection. An apply whose
//! second round fails takes back both.
//!
//! ```text
//!   shop: storm run, again and again ── h-shop ── node: underseal-controls, killed ── h-cart ── cart: storm serve
//! ```

use anyhow::{Context as _, Result, ensure};
use underseal_vm::site::{CONFIG, Settings, Site};
use underseal_vm::topology::Node;
use underseal_vm::{Lab, Process, Vm, VmOptions, Wire};

use crate::apply_lock::READER;
use crate::faults::{self, Count, PATIENCE};
use crate::lifecycle::{WORLD, ensure_back, ensure_same};

/// $1 command, $2 stride. Killed when one step is done, when a stride more are, and so on, each on what the one before
/// has left, until it ends by itself; prints how often it was killed.
const KILLED: &str = r#"killed=0 steps=1
while :; do
    UNDERSEAL_STEPS=$steps underseal-controls $1 >/dev/null 2>/tmp/said; code=$?
    test $code = 137 || break
    killed=$((killed + 1)) steps=$((steps + $2))
done
test $code = 0 || { cat /tmp/said >&2; exit $code; }
echo $killed"#;
/// Two connections at a time, until /tmp/enough exists; one count a line.
const TRAFFIC: &str = "rm -f /tmp/enough; until test -e /tmp/enough; do storm run 10.1.0.11:7000 2 20000 epoll 60; done";
/// What the kernel has, keys by their public halves and digests.
const STATE: &str = "underseal --json status | python3 -c 'import json, sys; print(json.dumps(json.load(sys.stdin)[\"state\"], indent=1))'";
/// Ids of programs, of iterators and of those that are attached.
const PROGRAMS: &str = "for pin in /sys/fs/bpf/underseal/progs/*; do bpftool -j prog show pinned $pin | grep -o '\"id\":[0-9]*'; done
bpftool -j link | tr '{' '\\n' | grep -o '\"prog_id\":[0-9]*' | sed 's/prog_//' | sort";
/// The steps of a plan, one a line.
const STEPS: &str = "underseal --json plan | python3 -c 'import json, sys; [print(step[\"line\"]) for step in json.load(sys.stdin)[\"steps\"]]'";
/// As if other programs were attached: an apply has to replace all of them.
const FORGET: &str = "bpftool map update pinned /sys/fs/bpf/underseal/maps/CONFIG key 0 0 0 0 value $(bpftool -j map lookup pinned /sys/fs/bpf/underseal/maps/CONFIG key 0 0 0 0 | sed 's/.*\"value\":\\[//; s/\\].*//; s/[\",]/ /g' | awk '{for (i = 1; i <= NF; i++) printf \"%s \", (i > 16 && i <= 32 ? 0 : $i)}')";

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let wire = Wire::new(1)?;
    let vm = lab.boot(&VmOptions {
        nics: vec![wire.port(0)],
        ..faults::options()
    })?;
    Node(1).uplink(&vm)?;
    // Without the programs it is the node that forwards between workloads.
    Node(1).forward(&vm)?;
    let site = Site::pair(&vm)?;
    site.configure(&with_peers(&[2]))?;
    site.vm.put("/tmp/killed.sh", KILLED.as_bytes(), 0o755)?;
    let untouched = site.vm.sh(WORLD)?.text();
    let server = faults::serve(&site, "cart", 7000, "epoll", "/dev/null")?;

    // From nothing: by then connections may be reset once, because they are older than the take-over.
    let traffic = site.inside("shop").spawn(TRAFFIC)?;
    let killed = kill_at_steps(&site, "apply", 4)?;
    site.ensure_settled()?;
    site.start_helper()?;
    let counts = stop(&site, &traffic)?;
    ensure!(killed >= 4, "apply killed {killed} times: {counts:?}");

    replaced_under_traffic(&site)?;
    replaced_and_taken_back(&site)?;
    second_round_fails(&site)?;

    let traffic = site.inside("shop").spawn(TRAFFIC)?;
    let killed = kill_at_steps(&site, "down", 1)?;
    let counts = stop(&site, &traffic)?;
    ensure!(
        killed >= 5 && counts.iter().all(Count::is_clean),
        "down killed {killed} times: {counts:?}"
    );
    site.down()?;
    ensure_back("down killed at each step", &untouched, &site.vm)?;
    // Nothing holds what is established now, nor what was established meanwhile.
    let count = faults::ended(&faults::run(
        &site,
        ("shop", "cart"),
        7000,
        "2 20000 epoll 60",
    )?)?;
    ensure!(count.lived == 2, "after down: {count:?}");
    let count = faults::end(&server)?;
    ensure!(count.wrong == 0 && count.open == 0, "the server: {count:?}");
    Ok(())
}

fn with_peers(numbers: &[u8]) -> Settings {
    let keys = [
        (2, "C8LHcQxrDOFUSUP9ZMJFtvAWDLLWxIQNGQYFvcEBCU8="),
        (3, "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="),
    ];
    let peers = keys
        .into_iter()
        .filter(|(number, _)| numbers.contains(number));
    Settings {
        peers: peers
            .map(|(number, key)| (Node(number), key.to_owned()))
            .collect(),
        ..Settings::default()
    }
}

fn kill_at_steps(site: &Site, command: &str, stride: u32) -> Result<u64> {
    let script = format!("sh /tmp/killed.sh {command} {stride}");
    // Many programs start.
    let said = site.vm.node().sh_for(&script, 3 * PATIENCE);
    Ok(said
        .with_context(|| format!("{command} killed at each step"))?
        .text()
        .parse()?)
}

fn replaced_under_traffic(site: &Site) -> Result<()> {
    let recordings = [
        site.inside("shop").capture("eth0")?,
        site.inside("cart").capture("eth0")?,
    ];
    let traffic = site.inside("shop").spawn(TRAFFIC)?;
    site.vm.sh(FORGET)?;
    ensure!(
        site.vm.sh("underseal plan | grep -c attach")?.text() != "0",
        "apply would replace nothing: the test misses its point"
    );
    let killed = kill_at_steps(site, "apply", 4)?;
    site.ensure_settled()?;
    let counts = stop(site, &traffic)?;
    ensure!(
        counts.len() > 1
            && counts.iter().all(Count::is_clean)
            && counts.iter().all(|c| c.lived == 2),
        "programs replaced, killed {killed} times: {counts:?}"
    );
    for recording in recordings {
        faults::ensure_sealed(recording, "programs replaced")?;
    }
    Ok(())
}

/// All programs are replaced, and then a route is in the way: those from before are back, iterators as well.
fn replaced_and_taken_back(site: &Site) -> Result<()> {
    let vm = &site.vm;
    vm.sh(FORGET)?;
    site.configure(&with_peers(&[2, 3]))?;
    vm.sh("ip route add 10.3.0.0/24 via 192.0.2.2")?;
    let before = vm.sh(PROGRAMS)?.text();
    let said = vm.try_sh("underseal apply")?;
    ensure!(
        said.code == Some(1)
            && said
                .error_text()
                .contains("all steps before it were taken back"),
        "a route in the way: {said:?}"
    );
    ensure_same("apply that failed", &before, &vm.sh(PROGRAMS)?.text())?;
    // Control: they would have been others.
    vm.sh("ip route del 10.3.0.0/24")?;
    site.apply()?;
    let after = vm.sh(PROGRAMS)?.text();
    ensure!(
        before
            .lines()
            .all(|id| !after.lines().any(|other| other == id)),
        "not all programs are others:\n{before}\n{after}"
    );
    site.configure(&with_peers(&[2]))?;
    site.apply().map(drop)
}

/// The device gets other keys, a peer, and loses its only IPv4 address, with all its routes; before they are put back, somebody
/// else takes one of the new ones.
fn second_round_fails(site: &Site) -> Result<()> {
    let vm = &site.vm;
    vm.sh("cd /var/lib/underseal; umask 077; for key in other shared-1 shared-2; do head -c 32 /dev/urandom | base64 > $key.key; done")?;
    let configure = |peers: &[u8], own: &str, shared: &str| -> Result<()> {
        site.configure(&with_peers(peers))?;
        vm.sh(&format!(
            "sed -i '/^.wireguard.$/a {own}' {CONFIG}
            sed -i '/^public_key = .C8LH/a preshared_key_file = \"/var/lib/underseal/{shared}.key\"' {CONFIG}"
        ))
        .map(drop)
    };
    configure(&[2], "addresses = [\"10.1.0.1/32\"]", "shared-1")?;
    site.apply()?;
    let (world, state) = (vm.sh(WORLD)?.text(), vm.sh(STATE)?.text());

    let other = "private_key_file = \"/var/lib/underseal/other.key\"";
    configure(&[2, 3], other, "shared-2")?;
    let (code, said) = stopped_between_rounds(vm, "ip route add 10.3.0.0/24 via 192.0.2.2")?;
    for part in [
        "somebody else",
        "\n  step: ip route add 10.3.0.0/24 dev underseal0",
        "\n  all steps before it were taken back",
    ] {
        ensure!(
            code == Some(1) && said.contains(part),
            "{code:?}: no {part:?} in {said}"
        );
    }
    vm.sh("ip route del 10.3.0.0/24")?;
    ensure_back("a second round that fails", &world, vm)?;
    let now = vm.sh(STATE)?.text();
    ensure!(now == state, "another state:\n{state}\n{now}");

    // Control: without the other route it is another state, and a second apply finds nothing to do.
    site.apply()?;
    site.ensure_settled()?;
    ensure!(vm.sh(STATE)?.text() != state, "the same state: {state}");
    site.configure(&with_peers(&[2]))?;
    site.apply()?;
    site.ensure_settled()
}

/// An apply that is stopped by a pipe with room for the steps of its first round alone, until `meanwhile` has run. Returns
/// its exit code and what it has said.
fn stopped_between_rounds(vm: &Vm, meanwhile: &str) -> Result<(Option<i32>, String)> {
    let steps = vm.sh(STEPS)?.text();
    // With -v each has a mark in front of it.
    let told: usize = steps.lines().map(|line| line.len() + 3).sum();
    let filled = 4096_usize.checked_sub(told + 10).context("a long plan")?;
    vm.put("/tmp/reader.py", READER.as_bytes(), 0o644)?;
    let reader =
        vm.spawn("rm -f /tmp/small /tmp/go; mkfifo /tmp/steps && exec python3 /tmp/reader.py")?;
    let apply = vm.spawn(&format!(
        "until test -e /tmp/small; do sleep 0.02; done; exec 2>/tmp/steps; head -c {filled} /dev/zero >&2; exec underseal -v apply"
    ))?;
    vm.wait_until(
        "! ip route show 10.2.0.0/24 | grep -q .",
        PATIENCE,
        "the first round",
    )?;
    vm.sh(&format!("{meanwhile}; touch /tmp/go"))?;
    let code = apply.wait(PATIENCE)?.code;
    reader.wait(PATIENCE)?.successful()?;
    let said = vm.sh("tr -d '\\000' < /tmp/steps.told")?.text();
    Ok((code, said))
}

/// Ends the traffic after the turn that is under way. No byte of it was lost, doubled or changed.
fn stop(site: &Site, traffic: &Process<'_>) -> Result<Vec<Count>> {
    site.vm.sh("touch /tmp/enough")?;
    let said = traffic.wait(PATIENCE)?;
    let text = said.text();
    let counts = text.lines().map(Count::parse);
    let counts: Vec<Count> = counts
        .collect::<Result<_>>()
        .with_context(|| said.error_text())?;
    ensure!(
        counts.iter().all(|count| count.wrong == 0),
        "{counts:?}: {}",
        said.error_text()
    );
    Ok(counts)
}
