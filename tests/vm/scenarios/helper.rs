//! The helper may go at any time: while it is away new connections wait and go on when it is back; open ones do not
//! notice; one that it was killed over is reset, never half-sealed.
//!
//! ```text
//!   shop: curl, nc ── h-shop ── node: underseal-handshake ── h-cart ── cart: http.server, nc
//! ```

use std::time::Duration;

use anyhow::{Result, ensure};
use underseal_vm::main_job::{MARKER, seen};
use underseal_vm::site::{Settings, Site};
use underseal_vm::{Lab, VmOptions};

const PATIENCE: Duration = Duration::from_secs(60);
const KILL: i32 = 9;

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let vm = lab.boot(&VmOptions::default())?;
    let site = Site::pair(&vm)?;
    site.configure(&Settings::default())?;
    site.apply()?;
    vm.put("/srv/page", MARKER.as_bytes(), 0o644)?;
    site.serve_http("cart", 80)?;
    let recording = site.inside("shop").capture("eth0")?;
    let page = format!("http://{}/page", site.workload("cart").v4);

    let fetch = site
        .inside("shop")
        .spawn(&format!("exec curl -sS --max-time 60 {page}"))?;
    vm.wait_until(
        "underseal --json status | grep -q '\"state\": *\"held\"'",
        PATIENCE,
        "a held connection",
    )?;
    let helper = site.start_helper()?;
    ensure!(
        fetch.wait(PATIENCE)?.successful()?.text() == MARKER,
        "the held connection did not go on"
    );

    open_connection_survives(&site, &helper)?;

    let fetch = site
        .inside("shop")
        .spawn(&format!("exec curl -sS --max-time 60 {page}"))?;
    vm.wait_until(
        "underseal --json status | grep -q '\"state\": *\"held\"'",
        PATIENCE,
        "a held connection",
    )?;
    site.start_helper()?;
    ensure!(
        fetch.wait(PATIENCE)?.successful()?.text() == MARKER,
        "the second helper did not take over"
    );

    let count = seen(&recording.stop()?);
    ensure!(!count.is_readable() && count.tls_records > 0, "{count:?}");
    Ok(())
}

/// A session over which a line is sent before and after the helper is killed.
fn open_connection_survives(site: &Site, helper: &underseal_vm::Process<'_>) -> Result<()> {
    let cart = site.workload("cart");
    site.vm.sh("mkfifo /tmp/typed")?;
    site.inside("cart").spawn("exec nc -l 7000 >/tmp/heard")?;
    cart.wait_for_port(&site.vm, 7000)?;
    site.inside("shop")
        .spawn(&format!("exec nc {} 7000 </tmp/typed", cart.v4))?;
    site.vm.spawn("exec 3>/tmp/typed; echo before >&3; until test -e /tmp/killed; do sleep 0.02; done; echo after >&3; sleep 60")?;
    site.vm
        .wait_until("grep -q before /tmp/heard", PATIENCE, "the first line")?;
    helper.signal(KILL)?;
    helper.wait(PATIENCE)?;
    site.vm.sh("touch /tmp/killed")?;
    site.vm.wait_until(
        "grep -q after /tmp/heard",
        PATIENCE,
        "a line over a connection whose helper was killed",
    )
}
