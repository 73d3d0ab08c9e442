//! The helper is killed (-9) at each step between the event and the hand-over, and another one is started. Two
//! connections are under way: one of blocking programs with somebody asleep in send and recv on both sides, one of
//! edge-triggered ones. Each lives, byte for byte, or both its ends see a reset: by the step at which it happened.
//! The control: a helper that takes what it finds for finished, without the guard, leaks.
//!
//! ```text
//!   shop: storm run ── h-shop ── node: underseal-handshake-controls, killed ── h-cart ── cart: storm serve
//! ```

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use underseal_vm::Lab;
use underseal_vm::main_job::seen;
use underseal_vm::site::Site;

use crate::faults::{self, Count};

/// What becomes of the connection over which the helper was killed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Nothing has been done that cannot be done again: both connections live.
    BothLive,
    /// The next helper ends what this one has begun; the other connection may be reset.
    Lives,
    /// Some keys are in, or tasks may be in the old code.
    IsReset,
}

use Fate::{BothLive, IsReset, Lives};

/// The names are those of `ktls/src/helper/controls.rs`. Both connections pass each step once for each end, the later
/// steps maybe one after the other.
const STOPS: &[(&str, Fate)] = &[
    ("event:1", BothLive),
    ("event:2", BothLive),
    ("event:5", BothLive),
    ("descriptor:1", BothLive),
    ("descriptor:3", BothLive),
    ("protocol:1", BothLive),
    ("protocol:2", BothLive),
    ("protocol:3", BothLive),
    ("handshake:1", BothLive),
    ("key:1", IsReset),
    ("key:2", IsReset),
    ("key:3", IsReset),
    ("key:4", IsReset),
    ("key:6", IsReset),
    ("keyed:1", IsReset),
    ("keyed:2", IsReset),
    ("keyed:4", IsReset),
    ("restart:1", IsReset),
    ("restart:2", IsReset),
    ("restarted:1", IsReset),
    ("restarted:2", IsReset),
    ("sealed:1", IsReset),
    ("sealed:2", Lives),
    ("released:1", Lives),
    ("released:2", Lives),
    ("released:4", Lives),
];

/// $1 stop point, $2 what the second helper leaves out, $3 seconds for the clients. Prints four lines: what client and
/// server have counted, blocking and edge-triggered.
const TRIAL: &str = r#"set -u; cd /tmp; rm -f gate first second client.* server.*
wait_for() { until sh -c "$1" 2>/dev/null; do sleep 0.01; done; }
UNDERSEAL_STOP=$1 underseal-handshake-controls 2>first & helper=$!
port=7000; servers=
for way in threads epoll; do
    port=$((port + 1))
    ip netns exec cart storm serve '[::]':$port $way /tmp/gate >server.$way 2>&1 & servers="$servers $!"
done
wait_for 'grep -q ready first && test $(ip netns exec cart ss -Hltn | grep -c :700) = 2'
port=7000; clients=
for way in threads epoll; do
    port=$((port + 1))
    ip netns exec shop storm run 10.1.0.11:$port 1 300000 $way $3 >client.$way 2>&1 & clients="$clients $!"
done
wait_for 'test $(ip netns exec shop ss -Htn state established | wc -l) = 2'
touch gate
wait_for "grep -q '^State:.T' /proc/$helper/status"
kill -9 $helper; wait $helper 2>/dev/null
UNDERSEAL_WITHOUT=$2 underseal-handshake-controls 2>second & helper=$!
wait $clients
kill $servers; wait $servers
kill $helper; wait $helper
cat client.threads server.threads client.epoll server.epoll"#;

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let site = faults::site(lab, &[("shop", 10), ("cart", 11)])?;
    site.vm.put("/tmp/trial.sh", TRIAL.as_bytes(), 0o755)?;
    site.apply()?;
    let recordings = [
        site.inside("shop").capture("eth0")?,
        site.inside("cart").capture("eth0")?,
    ];
    for (stop, fate) in STOPS {
        let counts = trial(&site, stop, "", 60).context(*stop)?;
        judge(counts, *fate).with_context(|| format!("killed at {stop}: {counts:?}"))?;
        faults::wait_until_empty(&site).context(*stop)?;
    }
    for recording in recordings {
        faults::ensure_sealed(recording, "a helper killed at each step")?;
    }
    ensure!(
        std::env::var_os("DBG").is_some() || site.counter("reset_interrupted")? >= 10,
        "too few were reset: the test misses its point"
    );
    site.down()?;
    control(&site)
}

/// Client and server of the blocking connection, then of the edge-triggered one.
type Counts = [Count; 4];

fn trial(site: &Site, stop: &str, without: &str, seconds: u32) -> Result<Counts> {
    let script = format!("sh -x /tmp/trial.sh {stop} '{without}' {seconds} 2>/tmp/trace");
    let said = site.vm.node().sh_for(&script, faults::PATIENCE);
    let said = said.with_context(|| {
        let logs = site.vm.sh(
            "tail -n 7 /tmp/trace /tmp/first /tmp/second /tmp/server.*; ps ax | tail -n 12; true",
        );
        logs.map_or_else(|e| e.to_string(), |logs| logs.text())
    })?;
    // Before each count there may be reasons.
    let text = said.text();
    let lines: Vec<&str> = text.lines().filter(|l| l.starts_with("lived=")).collect();
    let lines: [&str; 4] = lines
        .try_into()
        .map_err(|_| anyhow::anyhow!("not four counts: {text}"))?;
    let mut counts = Counts::default();
    for (count, line) in counts.iter_mut().zip(lines) {
        *count = Count::parse(line)?;
    }
    Ok(counts)
}

fn judge(counts: Counts, fate: Fate) -> Result<()> {
    ensure!(
        counts.iter().all(Count::is_clean),
        "bytes were lost or changed, or something hangs"
    );
    for [client, server] in [[counts[0], counts[1]], [counts[2], counts[3]]] {
        ensure!(
            client.lived == server.lived,
            "one end has all, and the other has not"
        );
    }
    let lived = counts[0].lived + counts[2].lived;
    match fate {
        BothLive => ensure!(lived == 2, "a connection was reset"),
        Lives => ensure!(lived >= 1, "the connection was reset"),
        IsReset => ensure!(lived <= 1, "the connection lives"),
    }
    Ok(())
}

/// The same without what is tested: the tasks that were not restarted go on in the old code.
fn control(site: &Site) -> Result<()> {
    let controls = site.vm.node().env("UNDERSEAL_WITHOUT", "guard");
    controls.sh("underseal-controls apply")?;
    let recording = site.inside("shop").capture("eth0")?;
    let counts = trial(site, "restart:1", "interrupted", 20)?;
    let count = seen(&recording.stop()?);
    let logs = site
        .vm
        .sh("tail -n 20 /tmp/first /tmp/second; true")?
        .text();
    ensure!(
        count.is_readable() && !counts.iter().all(Count::is_clean),
        "the control finds nothing: {count:?} {counts:?}\n{logs}"
    );
    // The programs are at their wits' end; so is the connection.
    site.vm
        .wait_until("! pgrep -x storm", Duration::from_secs(30), "the programs")?;
    site.down().map(drop)
}
