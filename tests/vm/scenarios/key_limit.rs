//! A key encrypts so much and no more. A helper that does not replace keys (a control; on 6.1 and 6.12 none can):
//! connections that say more are reset, on both sides, with a reason and a counter, and no byte is wrong; one that says
//! less lives. The control: with the guard's check left out they go on.
//!
//! ```text
//!   shop: storm run ── h-shop ── node: underseal-handshake-controls ── h-cart ── cart: storm serve
//! ```

use anyhow::{Result, ensure};
use underseal_vm::site::{Settings, Site};
use underseal_vm::{Lab, Process};

use crate::faults::{self, Count};

const LIMIT: &str = "1MiB";
/// Bytes each way: beyond twice the limit, and below it.
const MUCH: u64 = 4 << 20;
const LITTLE: u64 = 300_000;
const CONNECTIONS: u64 = 2;
const PORT: u16 = 7001;

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let vm = lab.boot(&faults::options())?;
    let site = Site::pair(&vm)?;
    site.configure(&Settings {
        rekey_after: Some(LIMIT),
        ..Settings::default()
    })?;
    site.apply()?;
    let helper = site.start_twin(&vm.node().env("UNDERSEAL_WITHOUT", "rekey"))?;
    reset_at_the_limit(&site)?;
    site.ensure_settled()?;
    stop(&helper)?;
    site.down()?;
    control(&site)
}

fn reset_at_the_limit(site: &Site) -> Result<()> {
    let recording = site.inside("shop").capture("eth0")?;
    for way in ["threads", "epoll"] {
        let before = site.counter("reset_key_limit")?;
        let [client, server] = talk(site, way, MUCH)?;
        ensure!(
            client.is_clean() && server.is_clean() && client.lived + server.lived == 0,
            "{way}: {client:?} {server:?}"
        );
        let counted = site.counter("reset_key_limit")? - before;
        ensure!(counted >= CONNECTIONS, "{way}: {counted} counted");
        let [client, server] = talk(site, way, LITTLE)?;
        ensure!(
            client.lived == CONNECTIONS && server.lived == CONNECTIONS,
            "{way}: {client:?} {server:?}"
        );
    }
    faults::ensure_sealed(recording, "connections at their limit")?;
    ensure!(
        site.counter("drop_key_limit")? > 0,
        "the guard drops nothing"
    );
    let log = site.helper_log()?;
    let line = "more was sent than twice seal.rekey_after";
    ensure!(log.contains(line), "no {line} in: {log}");
    // One key for each end: what has passed is what they allow, and what was under way.
    let passed = bytes_sealed(site)?;
    let most = 2 * 2 * CONNECTIONS * (2 << 20) + 4 * CONNECTIONS * LITTLE;
    ensure!(
        passed < most + most / 4,
        "{passed} bytes passed where the keys allow {most}"
    );
    Ok(())
}

/// Without the check in the guard the same connections live.
fn control(site: &Site) -> Result<()> {
    let place = site.vm.node().env("UNDERSEAL_WITHOUT", "limit");
    place.sh("underseal-controls apply")?;
    let helper = site.start_twin(&site.vm.node().env("UNDERSEAL_WITHOUT", "rekey"))?;
    let [client, server] = talk(site, "threads", MUCH)?;
    ensure!(
        client.lived == CONNECTIONS && server.lived == CONNECTIONS,
        "the control finds nothing: {client:?} {server:?}"
    );
    stop(&helper)?;
    site.down().map(drop)
}

/// What both ends have counted.
fn talk(site: &Site, way: &str, bytes: u64) -> Result<[Count; 2]> {
    let server = faults::serve(site, "cart", PORT, way, "/dev/null")?;
    let load = format!("{CONNECTIONS} {bytes} {way} 80");
    let client = faults::run(site, ("shop", "cart"), PORT, &load)?;
    let said = faults::ended(&client)?;
    Ok([said, faults::end(&server)?])
}

/// Bytes of packets of sealed sockets that the guard let pass.
fn bytes_sealed(site: &Site) -> Result<u64> {
    let status: serde_json::Value =
        serde_json::from_str(&site.vm.sh("underseal --json status")?.text())?;
    let counters = status["counters"].as_array();
    let mut sealed = counters
        .into_iter()
        .flatten()
        .filter(|c| c["name"] == "sealed_segments");
    Ok(sealed
        .next()
        .and_then(|c| c["bytes"].as_u64())
        .unwrap_or(u64::MAX))
}

fn stop(helper: &Process<'_>) -> Result<()> {
    helper.signal(faults::TERM)?;
    helper.wait(faults::PATIENCE)?;
    Ok(())
}
