//! New keys for open connections between nodes. Where the kernels replace keys: connections under load get several in
//! each direction, and every byte is right; a helper that is killed in the middle, on either node, harms no connection
//! that has no new key yet, and leaves none that has one half. Where they do not: reset at the limit, with the reason.
//! Nothing is ever readable on the way. The control: helpers that replace no keys.
//!
//! ```text
//!   node-a: storm run in shop ── wire ── node-b: storm serve in till
//!   node-a: helper ════════ link inside of WireGuard ════════ node-b: helper
//! ```

use anyhow::{Context as _, Result, ensure};
use underseal_vm::main_job::Stage;
use underseal_vm::site::{Helpers, Settings, Site};
use underseal_vm::{Lab, Process, VmOptions};

use crate::faults::{self, Count};

const LIMIT: &str = "6MiB";
/// Bytes each way, for which a key of [`LIMIT`] must be replaced three times.
const MUCH: u64 = 20 << 20;
/// How many of the two kinds of programs each.
const CONNECTIONS: u64 = 1;
/// How often each direction must have been given a new key.
const OFTEN: u64 = 2;

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let settings = settings(LIMIT);
    let boot = |options: &[VmOptions; 2]| {
        let with_twins = |options: &VmOptions| VmOptions {
            programs: faults::PROGRAMS,
            ..options.clone()
        };
        lab.boot_all(&options.each_ref().map(with_twins))
    };
    let stage = Stage::set(boot, &settings, &|_| {})?;
    let sites = [&stage.a, &stage.b];
    sites.into_iter().try_for_each(faults::stop_helper)?;
    if lab.kernel.line == "7.3" {
        under_load(&stage)?;
        at_the_limit(&stage, "control")?;
        killed(&stage)?;
    } else {
        at_the_limit(&stage, "nothing")?;
    }
    for site in sites {
        site.ensure_settled()?;
        site.down()?;
    }
    Ok(())
}

fn settings(rekey_after: &'static str) -> Settings {
    Settings {
        mode: "always",
        helpers: Some(Helpers::V4),
        rekey_after: Some(rekey_after),
        ..Settings::default()
    }
}

fn under_load(stage: &Stage) -> Result<()> {
    let helpers = [start(&stage.a)?, start(&stage.b)?];
    let recording = stage.a.inside("shop").capture("eth0")?;
    for (way, [client, server]) in talk(stage)? {
        ensure!(
            client.lived == CONNECTIONS && server.lived == CONNECTIONS,
            "{way}: {client:?} {server:?}\n{}",
            logs(stage)?
        );
    }
    faults::ensure_sealed(recording, "connections with new keys")?;
    for site in [&stage.a, &stage.b] {
        let rekeyed = site.counter("rekeyed")?;
        ensure!(
            rekeyed >= 2 * CONNECTIONS * OFTEN,
            "{rekeyed} new keys on node {}: {}",
            site.node.0,
            logs(stage)?
        );
        ensure!(site.counter("reset_key_limit")? == 0, "{}", logs(stage)?);
    }
    stop(&helpers)
}

/// What becomes of the connection whose keys are being replaced when the helper is killed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Lives,
    IsReset,
}

/// Where the helper of the client's node, or that of the server's, is killed. The names are those of
/// `ktls/src/helper/controls.rs`. Either end may be the first to send enough.
const STOPS: &[(usize, &str, Fate)] = &[
    (0, "pausing:1", Fate::Lives),
    (1, "pausing:1", Fate::Lives),
    (0, "half:1", Fate::IsReset),
    (1, "half:1", Fate::IsReset),
    (0, "replaced:1", Fate::IsReset),
    (1, "replaced:1", Fate::IsReset),
];

/// One connection. It goes on while no helper runs, and must not come to its end by that: what it says is more than the
/// first limit and less than the second.
fn killed(stage: &Stage) -> Result<()> {
    let sites = [&stage.a, &stage.b];
    for (site, other) in [(sites[0], sites[1]), (sites[1], sites[0])] {
        site.configure(&Settings {
            peers: vec![(other.node, other.public_key()?)],
            ..settings("8MiB")
        })?;
        site.apply()?;
    }
    for (which, stop_at, fate) in STOPS {
        let (killed, other) = (sites[*which], sites[1 - which]);
        let first = killed.start_twin(&killed.vm.node().env("UNDERSEAL_STOP", stop_at))?;
        let beside = start(other)?;
        let (client, server) = load(stage, 7001, "threads", 14 << 20)?;
        let stopped = format!("grep -q '^State:.T' /proc/{}/status", first.pid());
        killed
            .vm
            .wait_until(&stopped, faults::PATIENCE, "the helper to stop")?;
        first.signal(faults::KILL)?;
        first.wait(faults::PATIENCE)?;
        let second = start(killed)?;
        let counts = [faults::ended(&client)?, faults::end(&server)?];
        let wanted = u64::from(*fate == Fate::Lives);
        ensure!(
            counts.iter().all(|c| c.is_clean() && c.lived == wanted),
            "node {} killed at {stop_at}: {counts:?}\n{}",
            killed.node.0,
            logs(stage)?
        );
        stop(&[beside, second])?;
    }
    Ok(())
}

/// Nobody replaces keys, as `why` says: the connections are reset at their limit.
fn at_the_limit(stage: &Stage, why: &str) -> Result<()> {
    let helpers = [start_as(&stage.a, why)?, start_as(&stage.b, why)?];
    let before = stage.a.counter("rekeyed")?;
    let recording = stage.a.inside("shop").capture("eth0")?;
    for (way, [client, server]) in talk(stage)? {
        ensure!(
            client.is_clean() && server.is_clean() && client.lived + server.lived == 0,
            "{way}: {client:?} {server:?}\n{}",
            logs(stage)?
        );
    }
    faults::ensure_sealed(recording, "connections at their limit")?;
    let counted = stage.a.counter("reset_key_limit")? + stage.b.counter("reset_key_limit")?;
    ensure!(counted >= 2 * CONNECTIONS, "{counted} counted");
    ensure!(stage.a.counter("rekeyed")? == before, "it replaces keys");
    stop(&helpers)
}

/// What both ends have counted, for programs of either kind at once.
fn talk(stage: &Stage) -> Result<Vec<(&'static str, [Count; 2])>> {
    let mut under_way = Vec::new();
    for (way, port) in [("threads", 7001), ("epoll", 7002)] {
        let (client, server) = load(stage, port, way, MUCH)?;
        under_way.push((way, client, server));
    }
    let ended = under_way.into_iter().map(|(way, client, server)| {
        let client = faults::ended(&client).context(way)?;
        Ok((way, [client, faults::end(&server)?]))
    });
    ended.collect()
}

/// A client in `shop` and a server in `till`, which say so many bytes each way.
fn load<'s>(
    stage: &'s Stage,
    port: u16,
    way: &str,
    bytes: u64,
) -> Result<(Process<'s>, Process<'s>)> {
    let server = faults::serve(&stage.b, "till", port, way, "/dev/null")?;
    let till = stage.b.workload("till").v4;
    let client = stage.a.inside("shop").spawn(&format!(
        "exec storm run {till}:{port} {CONNECTIONS} {bytes} {way} 85"
    ))?;
    Ok((client, server))
}

fn logs(stage: &Stage) -> Result<String> {
    let (a, b) = (stage.a.helper_log()?, stage.b.helper_log()?);
    Ok(format!("node 1:\n{a}\nnode 2:\n{b}"))
}

fn start(site: &Site) -> Result<Process<'_>> {
    site.start_helper_in(&site.vm.node().env("UNDERSEAL_LOG", "debug"))
}

/// One that replaces no keys, if this is the control.
fn start_as<'s>(site: &'s Site, why: &str) -> Result<Process<'s>> {
    match why {
        "control" => site.start_twin(&site.vm.node().env("UNDERSEAL_WITHOUT", "rekey")),
        _ => start(site),
    }
}

fn stop(helpers: &[Process<'_>]) -> Result<()> {
    for helper in helpers {
        helper.signal(faults::TERM)?;
        helper.wait(faults::PATIENCE)?;
    }
    Ok(())
}
