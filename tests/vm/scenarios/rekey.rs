//! New keys for open connections. Where the kernel replaces keys: connections under load get several, and every byte
//! is right; a reader that pauses keeps the old key and gets a new one afterwards; a helper killed in the middle harms no
//! connection that has no new key yet, and leaves none that has one half. Where it does not: reset at the limit, with
//! the reason. Nothing is ever readable on the wire. The control, a helper that replaces no keys, is in `key_limit`.
//!
//! ```text
//!   shop: storm run, python3 ── h-shop ── node: underseal-handshake ── h-cart ── cart: storm serve, python3
//! ```

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use underseal_vm::site::{Settings, Site};
use underseal_vm::{Lab, Process};

use crate::faults::{self, Count};

/// Under load. Who comes first may send for two seconds, under a new key, while the other end's is waited for: that must be
/// less than this.
const LIMIT: &str = "16MiB";
/// Where one connection is alone.
const SMALL_LIMIT: &str = "8MiB";
/// Bytes each way, for which a key of [`LIMIT`] must be replaced twice.
const MUCH: u64 = 41 << 20;
/// How many of the two kinds of programs each.
const CONNECTIONS: u64 = 2;
/// How often each direction must have been given a new key.
const OFTEN: u64 = 2;

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let vm = lab.boot(&faults::options())?;
    let site = Site::pair(&vm)?;
    vm.put(
        "/tmp/pausing_reader.py",
        include_bytes!("programs/pausing_reader.py"),
        0o644,
    )?;
    configure(&site, LIMIT)?;
    if lab.kernel.line == "7.3" {
        under_load(&site)?;
        configure(&site, SMALL_LIMIT)?;
        reader_pauses(&site)?;
        killed(&site)?;
    } else {
        unable(&site)?;
    }
    site.ensure_settled()?;
    site.down().map(drop)
}

fn configure(site: &Site, rekey_after: &'static str) -> Result<()> {
    site.configure(&Settings {
        rekey_after: Some(rekey_after),
        ..Settings::default()
    })?;
    site.apply().map(drop)
}

fn under_load(site: &Site) -> Result<()> {
    let helper = start(site)?;
    let said = talk(site)?;
    for (way, [client, server]) in said {
        ensure!(
            client.lived == CONNECTIONS && server.lived == CONNECTIONS,
            "{way}: {client:?} {server:?}\n{}",
            site.helper_log()?
        );
    }
    let log = site.helper_log()?;
    let rekeys = rekeys(&log);
    ensure!(
        rekeys.len() as u64 == 2 * 2 * CONNECTIONS && rekeys.values().all(|n| *n >= OFTEN),
        "too few new keys: {rekeys:?}"
    );
    ensure!(site.counter("rekeyed")? >= 2 * 2 * CONNECTIONS * OFTEN);
    ensure!(site.counter("reset_key_limit")? == 0, "{log}");
    stop(&helper)
}

/// How often each direction of each connection was given a new key, by its addresses and sender.
fn rekeys(log: &str) -> BTreeMap<&str, u64> {
    let mut rekeys = BTreeMap::new();
    for line in log.lines() {
        if let Some((_, route)) = line.split_once("rekeyed ") {
            *rekeys.entry(route).or_default() += 1;
        }
    }
    rekeys
}

/// What was sent is not read when the key should be replaced: it stays, and is replaced when the reader goes on.
fn reader_pauses(site: &Site) -> Result<()> {
    let helper = start(site)?;
    let recording = site.inside("shop").capture("eth0")?;
    let (before, put_off) = (site.counter("rekeyed")?, site.counter("rekey_put_off")?);
    let reader = site.inside("cart").spawn(
        "rm -f /tmp/go; exec python3 /tmp/pausing_reader.py read 7003 8340000 >/tmp/reader",
    )?;
    let cart = site.workload("cart");
    cart.wait_for_port(&site.vm, 7003)?;
    let sender = site.inside("shop").spawn(&format!(
        "exec python3 /tmp/pausing_reader.py send {} 7003 20000000",
        cart.v4
    ))?;
    let counted = format!(
        "underseal --json status | tr -d ' \\n' | grep -q '\"rekey_put_off\",\"count\":{}[,}}]'",
        put_off + 1
    );
    site.vm
        .wait_until(&counted, faults::PATIENCE, "a key that cannot be replaced")?;
    site.vm.sh("touch /tmp/go")?;
    let sent = sender.wait(faults::PATIENCE)?.successful()?.text();
    reader.wait(faults::PATIENCE)?.successful()?;
    let read = site.vm.sh("tail -n 1 /tmp/reader")?.text();
    ensure!(sent == read, "sent {sent}, read {read}");
    let rekeyed = site.counter("rekeyed")? - before;
    ensure!(rekeyed >= OFTEN, "{rekeyed} new keys after the pause");
    faults::ensure_sealed(recording, "a connection with new keys")?;
    stop(&helper)
}

/// What becomes of the connection whose keys are being replaced when the helper is killed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Lives,
    IsReset,
}

/// The names are those of `ktls/src/helper/controls.rs`. With how many MiB each end says: less than the second limit, which
/// nobody moves while no helper runs; or so much that a direction is on its way to its third key.
const STOPS: &[(&str, Fate, u64)] = &[
    ("pausing:1", Fate::Lives, 14),
    ("pausing:2", Fate::Lives, 14),
    ("pausing:3", Fate::Lives, 24),
    ("half:1", Fate::IsReset, 14),
    ("half:2", Fate::IsReset, 14),
    ("replaced:1", Fate::IsReset, 14),
    ("replaced:2", Fate::IsReset, 14),
];

/// One connection. Its other direction goes on while no helper runs, and must not come to its end by that.
fn killed(site: &Site) -> Result<()> {
    for (stop_at, fate, mebibytes) in STOPS {
        let interrupted = site.counter("reset_interrupted")?;
        let first = site.start_twin(&site.vm.node().env("UNDERSEAL_STOP", stop_at))?;
        let server = faults::serve(site, "cart", 7001, "threads", "/dev/null")?;
        let load = format!("1 {} threads 80", mebibytes << 20);
        let client = faults::run(site, ("shop", "cart"), 7001, &load)?;
        let stopped = format!("grep -q '^State:.T' /proc/{}/status", first.pid());
        site.vm
            .wait_until(&stopped, faults::PATIENCE, "the helper to stop")?;
        first.signal(faults::KILL)?;
        first.wait(faults::PATIENCE)?;
        let second = start(site)?;
        let counts = [faults::ended(&client)?, faults::end(&server)?];
        let log = site.helper_log()?;
        let wanted = u64::from(*fate == Fate::Lives);
        ensure!(
            counts.iter().all(|c| c.is_clean() && c.lived == wanted),
            "killed at {stop_at}: {counts:?}\n{log}"
        );
        let interrupted = site.counter("reset_interrupted")? - interrupted;
        ensure!(
            (interrupted > 0) == (*fate == Fate::IsReset),
            "killed at {stop_at}: {interrupted} counted\n{log}"
        );
        stop(&second)?;
    }
    Ok(())
}

/// The kernel does not replace keys: the connections are reset at their limit.
fn unable(site: &Site) -> Result<()> {
    let helper = start(site)?;
    let recording = site.inside("shop").capture("eth0")?;
    for (way, [client, server]) in talk(site)? {
        ensure!(
            client.is_clean() && server.is_clean() && client.lived + server.lived == 0,
            "{way}: {client:?} {server:?}"
        );
    }
    let counted = site.counter("reset_key_limit")?;
    ensure!(counted >= 2 * CONNECTIONS, "{counted} counted");
    ensure!(site.counter("rekeyed")? == 0, "it replaces keys");
    let log = site.helper_log()?;
    faults::ensure_sealed(recording, "connections at their limit")?;
    for line in [
        "this kernel does not replace the keys of open connections",
        "more was sent than twice seal.rekey_after",
    ] {
        ensure!(log.contains(line), "no {line} in: {log}");
    }
    stop(&helper)
}

/// What both ends have counted, for programs of either kind at once.
fn talk(site: &Site) -> Result<Vec<(&'static str, [Count; 2])>> {
    let mut under_way = Vec::new();
    for (way, port) in [("threads", 7001), ("epoll", 7002)] {
        let server = faults::serve(site, "cart", port, way, "/dev/null")?;
        let load = format!("{CONNECTIONS} {MUCH} {way} 85");
        let client = faults::run(site, ("shop", "cart"), port, &load)?;
        under_way.push((way, client, server));
    }
    let ended = under_way.into_iter().map(|(way, client, server)| {
        let client = faults::ended(&client).context(way)?;
        Ok((way, [client, faults::end(&server)?]))
    });
    ended.collect()
}

fn start(site: &Site) -> Result<Process<'_>> {
    site.start_helper_in(&site.vm.node().env("UNDERSEAL_LOG", "debug"))
}

fn stop(helper: &Process<'_>) -> Result<()> {
    helper.signal(faults::TERM)?;
    helper.wait(faults::PATIENCE)?;
    Ok(())
}
