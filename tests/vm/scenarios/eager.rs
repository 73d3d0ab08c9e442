//! Programs that do not wait: a client that sends, and another of its threads that reads, before the server has
//! accepted; with and without timeouts on the socket; and a client that is never blocked (epoll). Nothing leaves
//! before the keys are there, and then everything arrives.
//!
//! ```text
//!   shop: eager_client.py ── h-shop ── node ── h-cart ── cart: late_server.py
//! ```

use std::time::Duration;

use anyhow::{Result, ensure};
use underseal_vm::main_job::{MARKER, seen};
use underseal_vm::site::{Settings, Site};
use underseal_vm::{Lab, VmOptions};

use crate::programs;

const PATIENCE: Duration = Duration::from_secs(90);
/// Marker, 16 times 64 KiB, END.
const SENT: usize = MARKER.len() + 1 + 16 * 65536 + 3;

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let vm = lab.boot(&VmOptions::default())?;
    let site = Site::up(&vm, &Settings::default())?;
    programs::put(&site)?;
    let recording = site.inside("shop").capture("eth0")?;
    let cart = site.workload("cart").clone();
    for (host, flag) in [
        (cart.v4.to_string(), ""),
        (cart.v6.to_string(), ""),
        (cart.v4.to_string(), "timeouts"),
    ] {
        let said = programs::eager(&site, &host, flag)?
            .wait(PATIENCE)?
            .successful()?
            .text();
        ensure!(
            said.contains("greeting") && said.ends_with(&format!("{SENT} bytes")),
            "{host} {flag}: {said}"
        );
    }
    site.serve_redis("cart")?;
    let load = format!(
        "redis-benchmark -h {} -n 2000 -c 50 -P 4 -d 512 -q set key {MARKER}",
        cart.v6
    );
    site.inside("shop").sh_for(&load, PATIENCE)?;
    let count = seen(&recording.stop()?);
    ensure!(
        !count.is_readable() && count.tls_records > 200 && count.missing_bytes == 0,
        "{count:?}"
    );
    ensure!(
        site.counter("drop_unsealed")? == 0 && site.counter("drop_not_a_record")? == 0,
        "the guard had work"
    );
    ensure!(
        site.counter("restarted")? >= 3,
        "no sleeper was restarted: the test misses its point"
    );
    Ok(())
}
