//! The built-in CA on a node: issued, sealed with, renewed by the shipped units, also for another name, changed to another
//! CA under load.
//!
//! ```text
//!   underseal pki ─▶ identities ─▶ helper          shop ══ TLS ══ cart
//!   underseal-pki.service (renew)                   └ curl, over and over ┘
//! ```

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use underseal_vm::capture::{self, Question};
use underseal_vm::main_job::MARKER;
use underseal_vm::site::{CONFIG, Settings, Site, identity_folder};
use underseal_vm::topology::Node;
use underseal_vm::{Lab, VmOptions};

const PATIENCE: Duration = Duration::from_secs(60);
const SHIPPED: [(&str, &str); 4] = [
    (
        "underseal.service",
        include_str!("../../../systemd/underseal.service"),
    ),
    (
        "underseal-handshake.service",
        include_str!("../../../systemd/underseal-handshake.service"),
    ),
    (
        "underseal-pki.service",
        include_str!("../../../systemd/underseal-pki.service"),
    ),
    (
        "underseal-pki.timer",
        include_str!("../../../systemd/underseal-pki.timer"),
    ),
];
/// Connections one after the other; a line for each.
const LOAD: &str = "until test -e /tmp/enough; do
    if curl -sS --max-time 20 -o /dev/null http://10.1.0.11/page 2>>/tmp/errors; then echo fetched; else echo failed; fi
done >>/tmp/load";

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let vm = lab.boot(&VmOptions {
        systemd: true,
        ..VmOptions::default()
    })?;
    let node = Node(1);
    let site = Site {
        workloads: vec![node.workload("shop", 10), node.workload("cart", 11)],
        vm: Arc::clone(&vm),
        node,
    };
    install(&site)?;
    vm.sh("underseal pki init && underseal pki issue && underseal pki list")?;
    vm.node()
        .sh_for("systemctl start underseal underseal-handshake", PATIENCE)?;
    vm.put("/srv/page", MARKER.as_bytes(), 0o644)?;
    let _server = site.serve_http("cart", 80)?;
    sealed(&site)?;
    renewed_by_the_unit(&site)?;
    renamed_by_the_unit(&site)?;
    another_ca_under_load(&site)?;
    a_ca_that_is_swapped(&site)
}

fn install(site: &Site) -> Result<()> {
    let vm = &site.vm;
    vm.put_units(SHIPPED)?;
    site.node.add(vm, &site.workloads)?;
    site.configure(&Settings::default())?;
    vm.sh(&format!(
        "printf '\\n[pki]\\nlifetime = \"600s\"\\nrenew_before = \"60s\"\\n' >>{CONFIG}; systemctl daemon-reload"
    ))
    .map(drop)
}

/// A transfer arrives whole, and the client's interface shows records only.
fn sealed(site: &Site) -> Result<()> {
    let recording = site.vm.capture("h-shop")?;
    let got = fetch(site)?;
    ensure!(got == MARKER, "curl got {got}");
    let networks = site.node.networks();
    let question = Question {
        networks: &networks,
        wireguard_port: 51871,
        markers: &[MARKER.as_bytes()],
    };
    let count = capture::count(&recording.stop()?, &question);
    ensure!(
        !count.is_readable() && count.tls_records > 0 && count.missing_bytes == 0,
        "{count:?}"
    );
    Ok(())
}

/// Not before it is due; then by the unit in its sandbox, and the next connection is sealed with it.
fn renewed_by_the_unit(site: &Site) -> Result<()> {
    let vm = &site.vm;
    vm.sh("systemctl start underseal-pki.service")?;
    let before = certificates(site)?;
    ensure!(listed(site)? == 2, "renewed before it was due");
    vm.sh(&format!("sed -i 's/\"60s\"/\"599s\"/' {CONFIG}"))?;
    vm.wait_until(
        "test $(underseal pki renew --dry-run | grep -c 'would be renewed') = 2",
        PATIENCE,
        "certificates that are due",
    )?;
    // The timer finds that it is past the time after boot at which it would have run.
    vm.sh("systemctl start underseal-pki.timer")?;
    vm.wait_until(
        "test $(underseal pki list | grep -c replaced) -ge 2",
        PATIENCE,
        "a renewal by the timer",
    )?;
    vm.sh("systemctl stop underseal-pki.timer")?;
    vm.sh(&format!("sed -i 's/\"599s\"/\"60s\"/' {CONFIG}"))?;
    let after = certificates(site)?;
    ensure!(before != after, "the files are the same");
    sealed(site)
}

/// A workload gets another DNS name, on which a rule relies: `apply`, by its unit and in its sandbox, issues a certificate
/// that has it. Before that the name is missing.
fn renamed_by_the_unit(site: &Site) -> Result<()> {
    let vm = &site.vm;
    vm.sh(&format!(
        "sed -i '/^name = \"cart\"/a dns_names = [\"basket.example.org\"]' {CONFIG} && printf '{RULE}' >>{CONFIG}"
    ))?;
    let said = vm.sh("underseal check")?.text();
    ensure!(
        said.contains("warning") && said.contains("basket.example.org"),
        "no word of the name that is missing: {said}"
    );
    vm.sh("systemctl reload underseal")?;
    let said = vm.sh("journalctl -q -o cat -u underseal")?.text();
    ensure!(said.contains("issued shop/cart"), "{said}");
    let said = vm.sh("underseal check && underseal policy dump")?.text();
    ensure!(
        !said.contains("warning") && said.contains("shop/cart: basket.example.org"),
        "{said}"
    );
    sealed(site)
}

/// `shop` may connect to whoever has the name.
const RULE: &str = "\n[[network_policy]]\nname = \"shop\"\nselect = { labels = { \"underseal/name\" = \"shop\" } }\n\
    [[network_policy.egress]]\npeers = [{ dns = \"basket.example.org\" }]\n";

/// Connections come and go all the time; not one fails.
fn another_ca_under_load(site: &Site) -> Result<()> {
    let vm = &site.vm;
    let load = site.inside("shop").spawn(LOAD)?;
    progress(site)?;
    for step in ["begin", "switch", "finish --replaced"] {
        vm.sh(&format!("underseal pki rotate-ca {step}"))?;
        progress(site)?;
    }
    vm.sh("touch /tmp/enough")?;
    load.wait(PATIENCE)?.successful()?;
    let failed = vm.sh("grep -c failed /tmp/load || true; cat /tmp/errors")?;
    ensure!(
        failed.text() == "0",
        "connections failed: {}",
        failed.text()
    );
    let trusted = vm.sh(&format!(
        "grep -c BEGIN {0}/ca.crt {0}/ca.crl | cut -d: -f2",
        identity_folder("cart")
    ))?;
    ensure!(trusted.text() == "1\n1", "trusted: {}", trusted.text());
    sealed(site)
}

/// The control: another CA for one workload, which the other one does not trust.
fn a_ca_that_is_swapped(site: &Site) -> Result<()> {
    let vm = &site.vm;
    vm.sh("mv /var/lib/underseal/pki /root/pki && underseal pki init && underseal pki issue shop/cart")?;
    let refused = site
        .inside("shop")
        .try_sh("curl -sS --max-time 20 http://10.1.0.11/page")?;
    ensure!(
        refused.code != Some(0) && refused.code != Some(28) && refused.text().is_empty(),
        "a certificate of a CA that nobody trusts was accepted: {refused:?}"
    );
    vm.sh("underseal pki issue shop/shop")?;
    sealed(site)
}

fn fetch(site: &Site) -> Result<String> {
    let client = site.inside("shop");
    Ok(client
        .sh("curl -sS --max-time 20 http://10.1.0.11/page")?
        .text())
}

/// Some connections that begin from now on have ended.
fn progress(site: &Site) -> Result<()> {
    let done: u64 = site
        .vm
        .sh("touch /tmp/load; wc -l </tmp/load")?
        .text()
        .parse()?;
    let condition = format!("test $(wc -l </tmp/load) -ge {}", done + 5);
    site.vm.wait_until(&condition, PATIENCE, "more connections")
}

fn certificates(site: &Site) -> Result<String> {
    let folders = ["shop", "cart"].map(identity_folder);
    let [shop, cart] = folders;
    Ok(site
        .vm
        .sh(&format!("cat {shop}/tls.crt {cart}/tls.crt"))?
        .text())
}

fn listed(site: &Site) -> Result<usize> {
    let list = site.vm.sh("underseal pki --json list")?.text();
    let list: serde_json::Value = serde_json::from_str(&list)?;
    Ok(list["certificates"].as_array().map_or(0, Vec::len))
}
