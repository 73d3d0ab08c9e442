//! apply and down are killed again and again, each time later, until they end, while programs talk. A node that is taken over
//! stays so: replacing every program under traffic, killed at each, shows no plaintext and harms no connection.
//!
//! ```text
//!   shop: storm run, again and again ── h-shop ── node: underseal-controls, killed ── h-cart ── cart: storm serve
//! ```

use anyhow::{Context as _, Result, ensure};
use underseal_vm::site::{Settings, Site};
use underseal_vm::topology::Node;
use underseal_vm::{Lab, Process, VmOptions, Wire};

use crate::faults::{self, Count, PATIENCE};
use crate::lifecycle::{WORLD, ensure_back};

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
    site.configure(&Settings::with_peer())?;
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
