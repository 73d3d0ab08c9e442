//! What Underseal's parts cost by themselves: the recorder on a socket that is none of ours, the guard on a packet, a
//! connection in memory; and how many connections a second are sealed.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use underseal_vm::site::{Settings, Site};

use crate::{PATIENCE, PORT, median};

/// How often a pair of variants is measured, in turns; odd.
const TURNS: usize = 5;
/// Round trips of one byte on the node's own loopback, in each turn.
const ROUNDS: u32 = 2500;
/// Clients that connect at once, and connections of each.
const CROWD: (u32, u32) = (4, 25);
/// Connections that are open while memory is read.
const OPEN: u64 = 1000;
const PORT_OUTSIDE: u16 = 7002;
const PORT_IDLE: u16 = 7003;

/// A number, and of what.
pub(crate) struct Cost {
    pub(crate) what: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
}

impl Cost {
    fn new(what: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            what: what.into(),
            value,
            unit,
        }
    }

    pub(crate) fn json(&self) -> Value {
        json!({ "what": self.what, "value": self.value, "unit": self.unit })
    }
}

/// Measures those whose names contain `only`. The helper runs, and is stopped and started on the way.
pub(crate) fn all(site: &Site, only: &str, progress: &dyn Fn(&str)) -> Result<Vec<Cost>> {
    let parts: [(&str, Part); 4] = [
        ("connections a second", crowd),
        ("the recorder on other sockets", outside),
        ("the guard", guard),
        ("memory", memory),
    ];
    let mut costs = Vec::new();
    for (name, part) in parts.into_iter().filter(|(name, _)| name.contains(only)) {
        progress(name);
        for cost in part(site)? {
            progress(&format!("{}: {:.3} {}", cost.what, cost.value, cost.unit));
            costs.push(cost);
        }
    }
    Ok(costs)
}

type Part = fn(&Site) -> Result<Vec<Cost>>;

fn apply(site: &Site, mode: &'static str) -> Result<()> {
    site.configure(&Settings {
        mode,
        ..Settings::default()
    })?;
    site.apply().map(drop)
}

/// Several clients at once.
fn crowd(site: &Site) -> Result<Vec<Cost>> {
    let (clients, each) = CROWD;
    let address = format!("{}:{PORT}", site.workload("cart").v4);
    let script = format!(
        "from=$(date +%s%N); for i in $(seq {clients}); do traffic connects {address} {each} 0 >/dev/null & done; wait; echo $(($(date +%s%N) - from))"
    );
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..TURNS {
        for (mode, rates) in ["never", "same-node"].into_iter().zip(&mut rates) {
            apply(site, mode)?;
            rates.push(number(
                &site.inside("shop").sh_for(&script, PATIENCE)?.text(),
            )?);
        }
    }
    let rate = |samples| median(samples).map(|ns| f64::from(clients * each) * 1e9 / ns as f64);
    let (plain, sealed) = (rate(&rates[0])?, rate(&rates[1])?);
    Ok(vec![
        Cost::new("connections a second, plain", plain, "/s"),
        Cost::new("connections a second, sealed", sealed, "/s"),
        Cost::new(
            "connections a second, sealed / plain",
            sealed / plain,
            "ratio",
        ),
    ])
}

/// A send and receive loop of the node's own, with the programs attached and without.
fn outside(site: &Site) -> Result<Vec<Cost>> {
    let address = format!("127.0.0.1:{PORT_OUTSIDE}");
    site.vm.spawn(&format!("exec traffic serve {address}"))?;
    site.vm.wait_until(
        &format!("ss -Hltn 'sport = :{PORT_OUTSIDE}' | grep -q ."),
        PATIENCE,
        "the server",
    )?;
    let rounds = |site: &Site| -> Result<u64> {
        let script = format!("exec traffic rounds {address} 0 {ROUNDS}");
        number(&site.vm.node().sh_for(&script, PATIENCE)?.text())
    };
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        apply(site, "same-node")?;
        with.push(rounds(site)?);
        site.down()?;
        without.push(rounds(site)?);
    }
    apply(site, "same-node")?;
    let before = Runs::read(site, "socket_sendmsg")?;
    with_stats(site, || rounds(site).map(drop))?;
    let after = Runs::read(site, "socket_sendmsg")?;
    let (with, without) = (median(&with)? as f64, median(&without)? as f64);
    Ok(vec![
        Cost::new(
            "round trip of a socket that is none of ours, attached / not",
            with / without,
            "ratio",
        ),
        Cost::new(
            "the recorder, each send of such a socket",
            after.nanoseconds_since(&before)?,
            "ns",
        ),
    ])
}

/// Round trips and bulk with the guard and without it; and what its programs say they took.
fn guard(site: &Site) -> Result<Vec<Cost>> {
    let address = format!("{}:{PORT}", site.workload("cart").v4);
    let traffic = |words: &str| -> Result<u64> {
        let script = format!("exec traffic rounds {address} {words}");
        number(&site.inside("shop").sh_for(&script, PATIENCE)?.text())
    };
    let mut samples = [const { Vec::new() }; 4];
    for _ in 0..TURNS {
        for (way, without) in ["", "guard"].into_iter().enumerate() {
            let place = site.vm.node().env("UNDERSEAL_WITHOUT", without);
            place.sh("underseal-controls apply")?;
            samples[way].push(traffic("0 1250")?);
            samples[2 + way].push(traffic("22 4")?);
        }
    }
    apply(site, "same-node")?;
    let names = ["egress", "ingress"];
    let before = names.map(|name| Runs::read(site, name));
    with_stats(site, || traffic("22 4").map(drop))?;
    let mut costs = Vec::new();
    for (name, before) in names.into_iter().zip(before) {
        let took = Runs::read(site, name)?.nanoseconds_since(&before?)?;
        costs.push(Cost::new(format!("guard, {name}, each packet"), took, "ns"));
    }
    let ratio = |with: &[u64], without: &[u64]| -> Result<f64> {
        Ok(median(with)? as f64 / median(without)? as f64)
    };
    let rounds = ratio(&samples[0], &samples[1])?;
    let bulk = ratio(&samples[2], &samples[3])?;
    costs.push(Cost::new(
        "round trip, sealed, with / without guard",
        rounds,
        "ratio",
    ));
    costs.push(Cost::new(
        "time for bulk, sealed, with / without guard",
        bulk,
        "ratio",
    ));
    Ok(costs)
}

/// Memory of the whole machine with connections open that nobody uses.
fn memory(site: &Site) -> Result<Vec<Cost>> {
    let mut costs = Vec::new();
    apply(site, "never")?;
    let (_, plain) = opened(site, |_| Ok(()))?;
    costs.push(Cost::new("memory of a connection, plain", plain, "KiB"));
    apply(site, "same-node")?;
    site.vm.sh("kill -STOP $(pidof underseal-handshake)")?;
    let mut helper = 0.0;
    let (held, sealed) = opened(site, |site| {
        let before = site.sealed()?;
        site.vm.sh("kill -CONT $(pidof underseal-handshake)")?;
        site.wait_for_sealed(before + OPEN, Duration::from_secs(400))
            .with_context(|| site.helper_log().unwrap_or_default())?;
        let script = "awk '/^VmRSS/ { print $2 }' /proc/$(pidof underseal-handshake)/status";
        helper = number(&site.vm.sh(script)?.text())? as f64;
        Ok(())
    })?;
    costs.push(Cost::new("memory of a connection, held", held, "KiB"));
    costs.push(Cost::new("memory of a connection, sealed", sealed, "KiB"));
    costs.push(Cost::new(
        format!("helper, resident, {OPEN} sealed"),
        helper,
        "KiB",
    ));
    Ok(costs)
}

/// Opens connections, and says what memory each takes before and after `then`.
fn opened(site: &Site, then: impl FnOnce(&Site) -> Result<()>) -> Result<(f64, f64)> {
    let server = site.inside("cart").spawn(&format!(
        "ulimit -n 4096; exec traffic accept 0.0.0.0:{PORT_IDLE}"
    ))?;
    site.workload("cart").wait_for_port(&site.vm, PORT_IDLE)?;
    let before = free(site)?;
    let address = format!("{}:{PORT_IDLE}", site.workload("cart").v4);
    let client = site.inside("shop").spawn(&format!(
        "ulimit -n 4096; exec traffic open {address} {OPEN}"
    ))?;
    let accepted =
        format!("[ $(ss -Hnt state established sport = :{PORT_IDLE} | wc -l) = {OPEN} ]");
    site.inside("cart")
        .wait_until(&accepted, PATIENCE, "all to be open")?;
    let each = |now: u64| (before as f64 - now as f64) / OPEN as f64;
    let first = each(free(site)?);
    then(site)?;
    let second = each(free(site)?);
    for process in [client, server] {
        process.signal(9)?;
        process.wait(PATIENCE)?;
    }
    Ok((first, second))
}

/// Free memory of the machine without its caches, KiB.
fn free(site: &Site) -> Result<u64> {
    let script =
        "sync; echo 3 >/proc/sys/vm/drop_caches; awk '/^MemFree/ { print $2 }' /proc/meminfo";
    number(&site.vm.sh(script)?.text())
}

fn with_stats(site: &Site, work: impl FnOnce() -> Result<()>) -> Result<()> {
    site.vm.sh("sysctl -qw kernel.bpf_stats_enabled=1")?;
    work()?;
    site.vm
        .sh("sysctl -qw kernel.bpf_stats_enabled=0")
        .map(drop)
}

/// What the kernel has counted of a program while statistics were on.
struct Runs {
    count: u64,
    nanoseconds: u64,
}

impl Runs {
    fn read(site: &Site, name: &str) -> Result<Self> {
        let said = site.vm.sh("bpftool -j prog show")?.text();
        let programs: Value = serde_json::from_str(&said)?;
        let of_name = |program: &&Value| program["name"] == name;
        let mut found = programs.as_array().into_iter().flatten().filter(of_name);
        let program = found
            .next()
            .with_context(|| format!("no program {name}: {said}"))?;
        ensure!(found.next().is_none(), "two programs {name}");
        Ok(Self {
            count: program["run_cnt"].as_u64().unwrap_or(0),
            nanoseconds: program["run_time_ns"].as_u64().unwrap_or(0),
        })
    }

    fn nanoseconds_since(&self, before: &Self) -> Result<f64> {
        ensure!(self.count > before.count, "it has not run");
        let nanoseconds = self.nanoseconds - before.nanoseconds;
        Ok(nanoseconds as f64 / (self.count - before.count) as f64)
    }
}

fn number(text: &str) -> Result<u64> {
    text.parse()
        .with_context(|| format!("not a number: {text:?}"))
}
