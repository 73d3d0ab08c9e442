//! Certificates of open connections are verified again: of two clients one is revoked, while `close_revoked` is off so
//! that nothing else ends its connection. It is reset, with a reason and a counter; the other one goes on, with new keys
//! where the kernel replaces keys. The control: with `recheck = "off"` both stay.
//!
//! ```text
//!   shop, web: nc ── h-shop, h-web ── node: underseal-handshake ── h-cart ── cart: nc
//! ```

use std::time::Duration;

use anyhow::{Result, ensure};
use underseal_vm::identities::{Authority, Validity};
use underseal_vm::site::{CONFIG, Settings, Site, identity_folder, spiffe_id};
use underseal_vm::topology::Node;
use underseal_vm::{Lab, VmOptions};

use crate::session::Session;

const PATIENCE: Duration = Duration::from_secs(60);
const NAMES: [(&str, u8); 3] = [("shop", 10), ("cart", 11), ("web", 12)];

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let vm = lab.boot(&VmOptions::default())?;
    let authority = Authority::new("test authority")?;
    let site = Site::prepare(&vm, Node(1), &authority, &NAMES)?;
    let shop = authority.issue(&spiffe_id("shop"), Validity::Now)?;
    shop.put(&vm, &identity_folder("shop"))?;
    configure(&site, "off")?;
    site.start_helper()?;
    let refused = Session::open(&site, "shop", 7001)?;
    let good = Session::open(&site, "web", 7002)?;
    let list = authority.revoke(&[&shop])?;
    let lists = format!("{}/ca.crl", identity_folder("cart"));
    vm.put(&lists, list.as_bytes(), 0o644)?;
    // The control. The helper has seen the list when new connections are refused.
    let connect = format!("! nc -N -w 5 {} 7003 </dev/null", site.workload("cart").v4);
    site.inside("shop")
        .wait_until(&connect, PATIENCE, "a refusal")?;
    refused.says("nobody looks")?;
    ensure!(site.counter("rechecked")? == 0, "somebody looks");

    configure(&site, "1s")?;
    refused.ends()?;
    let log = site.helper_log()?;
    ensure!(
        site.counter("refused_recheck")? == 1,
        "it is not counted: {log}"
    );
    good.says("after the other has gone")?;
    vm.wait_until(&at_least("rechecked", 4), PATIENCE, "more verifications")?;
    if lab.kernel.line == "7.3" {
        vm.wait_until(&at_least("rekeyed", 4), PATIENCE, "new keys")?;
    }
    good.says("with new keys")?;
    site.ensure_settled()?;
    site.down().map(drop)
}

fn configure(site: &Site, recheck: &'static str) -> Result<()> {
    site.configure(&Settings {
        recheck: Some(recheck),
        ..Settings::default()
    })?;
    site.vm.sh(&format!(
        "sed -i 's/^\\[seal\\]/[seal]\\nclose_revoked = false/' {CONFIG}"
    ))?;
    site.apply().map(drop)
}

/// A condition: a counter has reached this number.
fn at_least(name: &str, least: u32) -> String {
    format!(
        "test $(underseal --json status | tr -d ' \\n' | grep -o '\"{name}\",\"count\":[0-9]*' | cut -d: -f2) -ge {least}"
    )
}
