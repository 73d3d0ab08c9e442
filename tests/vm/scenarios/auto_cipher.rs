//! `seal.cipher = "auto"`: apply measures, the choice stays, and connections are sealed with it.
//!
//! ```text
//!   shop: curl ── h-shop ── node: underseal-handshake ── h-cart ── cart: http.server
//! ```

use anyhow::{Result, bail, ensure};
use underseal_vm::main_job::{MARKER, seen};
use underseal_vm::site::{Settings, Site};
use underseal_vm::{Lab, VmOptions};

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let vm = lab.boot(&VmOptions::default())?;
    let settings = Settings {
        cipher: "auto",
        ..Settings::default()
    };
    let site = Site::up(&vm, &settings)?;
    let chosen = chosen(&site)?;
    ensure!(
        ["aes-128-gcm", "chacha20-poly1305"].contains(&chosen.as_str()),
        "{chosen} was chosen"
    );
    // Measured again it might be another one.
    for _ in 0..3 {
        site.ensure_settled()?;
    }
    vm.put("/srv/page", MARKER.as_bytes(), 0o644)?;
    site.serve_http("cart", 80)?;
    let recording = site.inside("shop").capture("eth0")?;
    let cart = site.workload("cart").v4;
    let said = site
        .inside("shop")
        .sh(&format!("curl -sS --max-time 30 http://{cart}/page"))?;
    ensure!(said.text() == MARKER, "{said:?}");
    let count = seen(&recording.stop()?);
    ensure!(!count.is_readable() && count.tls_records > 0, "{count:?}");
    site.down().map(drop)
}

/// The cipher that the workloads have, which is one.
fn chosen(site: &Site) -> Result<String> {
    let status: serde_json::Value =
        serde_json::from_str(&site.vm.sh("underseal --json status")?.text())?;
    let workloads = status["state"]["datapath"]["workloads"].as_object();
    let ciphers = workloads.into_iter().flat_map(|all| all.values());
    let mut ciphers: Vec<&str> = ciphers.filter_map(|w| w["cipher"].as_str()).collect();
    ciphers.dedup();
    let [cipher] = ciphers[..] else {
        bail!("not one cipher: {status}");
    };
    Ok(cipher.to_owned())
}
