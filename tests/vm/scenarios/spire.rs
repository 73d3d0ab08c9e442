//! Identities from a SPIRE agent, by the shipped unit on Debian's systemd: SVIDs are fetched and installed, unmodified
//! programs talk sealed by them; a rotation serves the next connection while an open one goes on; another CA comes and the
//! old one goes; and with the agent away the files serve on. The agent is a small server of the official Workload API.
//! Controls: before anything is applied the same page is readable, and no connection has been sealed by an SVID that was
//! only just installed.
//!
//! ```text
//!   spire-agent.service ═ unix socket ═ underseal-spire.service ─▶ identities ─▶ helper      shop ══ TLS ══ cart
//! ```

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use underseal_vm::main_job::{MARKER, seen};
use underseal_vm::site::{CONFIG, Settings, Site, identity_folder, spiffe_id};
use underseal_vm::topology::Node;
use underseal_vm::{Lab, VmOptions};

use crate::session::Session;

const PATIENCE: Duration = Duration::from_secs(120);
const PROGRAMS: &[&str] = &[
    "underseal",
    "underseal-handshake",
    "underseal-spire",
    "examples/spire-agent",
];
const SHIPPED: [(&str, &str); 3] = [
    (
        "underseal.service",
        include_str!("../../../systemd/underseal.service"),
    ),
    (
        "underseal-handshake.service",
        include_str!("../../../systemd/underseal-handshake.service"),
    ),
    (
        "underseal-spire.service",
        include_str!("../../../systemd/underseal-spire.service"),
    ),
];
/// Where SPIRE's agent listens unless told otherwise.
const SOCKET: &str = "/tmp/spire-agent/public/api.sock";
const CHAINS: &str = "/sys/fs/bpf/underseal/maps/CHAINS";

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let vm = lab.boot(&VmOptions {
        systemd: true,
        programs: PROGRAMS,
        ..VmOptions::default()
    })?;
    let node = Node(1);
    let site = Site {
        workloads: vec![node.workload("shop", 10), node.workload("cart", 11)],
        vm: Arc::clone(&vm),
        node,
    };
    install(&site)?;
    vm.put("/srv/page", MARKER.as_bytes(), 0o644)?;
    let _server = site.serve_http("cart", 80)?;
    node.forward(&vm)?;
    ensure!(is_readable(&site)?, "control: plaintext is not seen");
    let units = "underseal-spire underseal underseal-handshake";
    vm.node()
        .sh_for(&format!("systemctl start {units}"), PATIENCE)?;
    let open = waits_for_an_agent(&site)?;
    let open = rotated(&site, &open)?;
    let open = another_ca(&site, &open)?;
    agent_away(&site, &open)?;
    vm.node()
        .sh_for(&format!("systemctl stop {units}"), PATIENCE)
        .map(drop)
}

fn install(site: &Site) -> Result<()> {
    let vm = &site.vm;
    let agent = format!(
        "[Service]\nExecStartPre=/bin/sh -c 'mkdir -p /tmp/spire-agent/public; test -p /run/told || mkfifo /run/told'\n\
         ExecStart=/bin/sh -c 'exec spire-agent {SOCKET} {} {} <>/run/told'\n",
        spiffe_id("shop"),
        spiffe_id("cart")
    );
    vm.put_units(
        SHIPPED
            .into_iter()
            .chain([("spire-agent.service", agent.as_str())]),
    )?;
    site.node.add(vm, &site.workloads)?;
    site.configure(&Settings {
        more: format!("\n[spire]\nsocket = \"unix://{SOCKET}\"\n"),
        ..Settings::default()
    })?;
    vm.sh(&format!(
        "sed -i 's/^netns/spire = true\\n&/' {CONFIG} && systemctl daemon-reload"
    ))
    .map(drop)
}

/// It is tried again until there is one; then both workloads have what the agent gives.
fn waits_for_an_agent(site: &Site) -> Result<Session<'_>> {
    says(site, "No such file")?;
    let before = mark(site)?;
    site.vm.sh("systemctl start spire-agent")?;
    says_since(site, &before, "shop/shop: new certificate")?;
    says_since(site, &before, "shop/cart: new certificate")?;
    ensure!(!is_readable(site)?, "with SVIDs it is readable");
    // Certificates of connections that are over may be forgotten.
    let open = Session::open(site, "shop", 7001)?;
    for name in ["shop", "cart"] {
        ensure!(serves(site, name)?, "not sealed by the SVID of {name}");
    }
    Ok(open)
}

/// New SVIDs: the next connection is sealed by them, and one that is open does not notice.
fn rotated<'a>(site: &'a Site, old: &Session<'a>) -> Result<Session<'a>> {
    let before = mark(site)?;
    tell(site, "say")?;
    says_since(site, &before, "shop/shop: new certificate")?;
    says_since(site, &before, "shop/cart: new certificate")?;
    for name in ["shop", "cart"] {
        ensure!(
            !serves(site, name)?,
            "control: {name}'s SVID has served before any connection"
        );
    }
    ensure!(!is_readable(site)?, "with new SVIDs it is readable");
    let open = Session::open(site, "shop", 7002)?;
    for name in ["shop", "cart"] {
        ensure!(serves(site, name)?, "not sealed by the new SVID of {name}");
    }
    old.says("after the rotation")?;
    Ok(open)
}

/// Both CAs are trusted, then new SVIDs come by the new one, then the old one is trusted no more, and what was sealed by
/// its certificates ends.
fn another_ca<'a>(site: &'a Site, old: &Session<'a>) -> Result<Session<'a>> {
    let trusted = |count: usize| {
        let file = format!("{}/ca.crt", identity_folder("shop"));
        let condition = format!("test $(grep -c BEGIN {file}) = {count}");
        site.vm.wait_until(&condition, PATIENCE, "the bundle")
    };
    tell(site, "ca")?;
    trusted(2)?;
    ensure!(!is_readable(site)?, "with two CAs it is readable");
    let before = mark(site)?;
    tell(site, "switch")?;
    says_since(site, &before, "shop/cart: new certificate")?;
    says_since(site, &before, "shop/shop: new certificate")?;
    let new = Session::open(site, "shop", 7003)?;
    old.says("while both are trusted")?;
    tell(site, "finish")?;
    trusted(1)?;
    old.ends()?;
    new.says("without the old CA")?;
    ensure!(!is_readable(site)?, "with the new CA it is readable");
    Ok(new)
}

/// Also for a helper that has just started.
fn agent_away(site: &Site, open: &Session<'_>) -> Result<()> {
    let before = mark(site)?;
    site.vm.sh("systemctl stop spire-agent")?;
    says_since(site, &before, "api.sock")?;
    open.says("without an agent")?;
    site.vm.node().sh_for(
        "systemctl restart underseal-handshake underseal-spire",
        PATIENCE,
    )?;
    ensure!(!is_readable(site)?, "without an agent it is readable");
    open.says("without an agent, and with another helper")?;
    let state = site
        .vm
        .sh("systemctl is-active underseal-spire underseal-handshake")?;
    ensure!(state.text() == "active\nactive", "{state:?}");
    Ok(())
}

/// Fetches the page; whether somebody at the client's interface could read it. What is not is TLS.
fn is_readable(site: &Site) -> Result<bool> {
    let recording = site.inside("shop").capture("eth0")?;
    let cart = site.workload("cart").v4;
    let got = site
        .inside("shop")
        .sh(&format!("exec curl -sS --max-time 60 http://{cart}/page"))?;
    ensure!(got.text() == MARKER, "curl got {got:?}");
    let count = seen(&recording.stop()?);
    ensure!(count.is_readable() || count.tls_records > 0, "{count:?}");
    Ok(count.is_readable())
}

/// Whether a connection has been sealed by the certificates that are in a workload's folder now.
fn serves(site: &Site, name: &str) -> Result<bool> {
    let file = format!("{}/tls.crt", identity_folder(name));
    let key = site.vm.sh(&format!("python3 -c \"{KEY}\" {file}"))?.text();
    let said = site.vm.try_sh(&format!(
        "bpftool map lookup pinned {CHAINS} key hex {key} >/dev/null"
    ))?;
    Ok(said.code == Some(0))
}

/// The SHA-256 of a chain, as bpftool wants it.
const KEY: &str = "import hashlib, re, ssl, sys
pem = open(sys.argv[1]).read()
chain = re.findall('-----BEGIN CERT.*?-----END CERTIFICATE-----', pem, re.S)
der = b''.join(ssl.PEM_cert_to_DER_cert(one) for one in chain)
print(' '.join('%02x' % byte for byte in hashlib.sha256(der).digest()))";

fn tell(site: &Site, line: &str) -> Result<()> {
    site.vm.sh(&format!("echo {line} >/run/told")).map(drop)
}

/// Where the journal of the program ends now.
fn mark(site: &Site) -> Result<String> {
    let cursor = "journalctl -q -n 0 --show-cursor | sed -n 's/^-- cursor: //p'";
    Ok(site.vm.sh(cursor)?.text())
}

fn says_since(site: &Site, mark: &str, words: &str) -> Result<()> {
    let said = format!("journalctl -q -o cat -u underseal-spire --after-cursor='{mark}'");
    let condition = format!("{said} | grep -qF '{words}'");
    site.vm.wait_until(&condition, PATIENCE, words)
}

fn says(site: &Site, words: &str) -> Result<()> {
    let condition = format!("journalctl -q -o cat -u underseal-spire | grep -qF '{words}'");
    site.vm.wait_until(&condition, PATIENCE, words)
}
