//! Network policies: who may talk to whom, inside a node, between nodes and with the outside, by labels, ports, protocols
//! and networks; what must be sealed, and what is not; and that a change of policies ends connections. Without policies
//! all that is denied here is possible.
//!
//! ```text
//!   node-a: shop, cart ── eth0 ── wire (this process) ── eth0 ── node-b: till
//!           192.0.2.1 and 198.51.100.1 are the node's own
//! ```

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use underseal_vm::main_job::{MARKER, Stage, seen};
use underseal_vm::site::{CONFIG, Helpers, Settings, Site};
use underseal_vm::{Lab, Process};

const PATIENCE: Duration = Duration::from_secs(90);
/// Where the outside is.
const NEAR: &str = "192.0.2.1";
const FAR: &str = "198.51.100.1";

/// Whoever is not named here is denied; `till` is on the other node.
const POLICIES: &str = r#"
[[peer.workload]]
name = "till"
namespace = "shop"
addresses = ["10.2.0.12", "fd00:2::c"]

[[network_policy]]
name = "cart"
namespace = "shop"
select = { labels = { "underseal/name" = "cart" } }
[[network_policy.ingress]]
peers = [{ select = { labels = { "underseal/name" = "shop" } }, node = "same" }]
ports = [{ port = 80, protocol = "tcp" }]
mtls = "required"
[[network_policy.ingress]]
peers = [{ spiffe = "spiffe://example.org/ns/*/sa/till" }]
ports = [{ port = 6000, end_port = 6400, protocol = "tcp" }]

[[network_policy]]
name = "shop"
select = { expressions = [{ key = "underseal/name", operator = "In", values = ["shop"] }] }
ingress = []
[[network_policy.egress]]
peers = [{ select = { labels = { "underseal/name" = "cart" } } }]
[[network_policy.egress]]
peers = [{ select = { labels = { "underseal/name" = "till" } }, node = "other" }]
ports = [{ port = 9000, protocol = "udp" }, { protocol = "icmp" }]
[[network_policy.egress]]
peers = [{ cidr = "192.0.2.0/24", except = ["192.0.2.2/32"] }]
ports = [{ port = 8080 }]
[[network_policy.egress]]
peers = [{ dns = "till.shop.svc.cluster.local" }]
ports = [{ port = 6379, protocol = "tcp" }]
mtls = "required"
"#;

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let stage = Stage::up(lab, &Settings::default())?;
    let (a, b) = (&stage.a, &stage.b);
    a.vm.sh(&format!("ip addr add {FAR}/32 dev lo"))?;
    let _outside =
        a.vm.node()
            .spawn("cd /srv && exec python3 -m http.server --bind 0.0.0.0 8080")?;
    a.vm.wait_until(
        "ss -Hltn 'sport = :8080' | grep -q .",
        PATIENCE,
        "the outside",
    )?;
    for (site, name) in [(a, "shop"), (b, "till")] {
        site.vm.put("/tmp/udp.py", UDP.as_bytes(), 0o644)?;
        site.inside(name)
            .spawn("exec python3 /tmp/udp.py serve 9000")?;
        let bound = "ss -Hlun 'sport = :9000' | grep -q .";
        site.inside(name)
            .wait_until(bound, PATIENCE, "the UDP server")?;
    }
    for it in cases() {
        ensure!(it.succeeds(&stage)?, "control: {it:?}");
    }
    ensure!(
        a.counter("refused_policy")? == 0,
        "refused without policies"
    );
    enforced(&stage).context("policies")?;
    plaintext(&stage).context("mtls off")?;
    changes(&stage).context("a change")?;
    certificates(&stage).context("certificates")?;
    for site in [a, b] {
        site.ensure_settled()?;
        site.down()?;
    }
    Ok(())
}

/// Writes and applies the configuration of node-a with these policies.
fn apply(stage: &Stage, policies: &str) -> Result<String> {
    let (a, b) = (&stage.a, &stage.b);
    a.configure(&Settings {
        peers: vec![(b.node, b.public_key()?)],
        more: policies.to_owned(),
        ..Settings::default()
    })?;
    Ok(a.apply()?.text())
}

/// Somebody tries to reach somebody.
#[derive(Debug)]
struct Case {
    from: &'static str,
    command: String,
    allowed: bool,
}

impl Case {
    fn succeeds(&self, stage: &Stage) -> Result<bool> {
        let site = if self.from == "till" {
            &stage.b
        } else {
            &stage.a
        };
        let said = site.inside(self.from).try_sh(&self.command)?;
        Ok(said.code == Some(0))
    }
}

fn cases() -> Vec<Case> {
    let http = |to: &str, port: u16| {
        format!(
            "exec curl -sS --connect-timeout 6 --max-time 50 -o /dev/null http://{to}:{port}/page"
        )
    };
    let redis = |to: &str| format!("test $(timeout 6 redis-cli -h {to} ping) = PONG");
    let udp = |to: &str, port: u16| format!("exec python3 /tmp/udp.py ask {to} {port}");
    let case = |from, command, allowed| Case {
        from,
        command,
        allowed,
    };
    vec![
        case("shop", http("10.1.0.11", 80), true),
        case("shop", http("[fd00:1::b]", 80), true),
        case("shop", redis("10.1.0.11"), false),
        case("till", redis("10.1.0.11"), true),
        case("till", redis("fd00:1::b"), true),
        case("till", http("10.1.0.11", 80), false),
        case("till", http("[fd00:1::b]", 80), false),
        case("shop", http("10.2.0.12", 80), false),
        case("shop", udp("10.2.0.12", 9000), true),
        case("shop", udp("fd00:2::c", 9000), true),
        case("till", udp("10.1.0.10", 9000), false),
        case("shop", "exec ping -c 1 -W 10 10.2.0.12".to_owned(), true),
        case("till", "exec ping -c 1 -W 6 10.1.0.10".to_owned(), false),
        case("shop", http(NEAR, 8080), true),
        case("shop", http(FAR, 8080), false),
        // What must be sealed and is not, in this mode.
        case("shop", redis("10.2.0.12"), false),
    ]
}

fn enforced(stage: &Stage) -> Result<()> {
    let a = &stage.a;
    let said = apply(stage, POLICIES)?;
    ensure!(said.contains("policies selected 2"), "{said}");
    let recording = a.inside("shop").capture("eth0")?;
    for it in cases() {
        ensure!(it.succeeds(stage)? == it.allowed, "{it:?}");
    }
    // What must be sealed is.
    ensure!(
        seen(&recording.stop()?).tls_records > 0,
        "nothing was sealed"
    );
    ensure!(
        a.counter("refused_policy")? >= 7,
        "refusals are not counted"
    );
    ensure!(
        a.counter("refused_mtls")? >= 1,
        "nor those for want of mTLS"
    );
    let list: serde_json::Value =
        serde_json::from_str(&a.vm.sh("underseal --json policy list")?.text())?;
    let packets = |rule: usize| list["rules"][rule]["packets"].as_u64();
    for rule in 0..5 {
        ensure!(
            packets(rule) > Some(0),
            "rule {rule} has counted nothing: {list}"
        );
    }
    ensure!(
        packets(5) == Some(0),
        "what is refused is counted as let pass: {list}"
    );
    let asked =
        a.vm.sh("underseal policy test shop/shop shop/cart 6379")?
            .text();
    ensure!(asked.contains("6379/tcp: denied"), "{asked}");
    let dump =
        a.vm.sh("underseal policy dump && underseal ipcache")?
            .text();
    ensure!(
        dump.contains("ingress shop/till -> shop/cart tcp 6144-6399: rule 2")
            && dump.contains("10.2.0.12/32 of node-2: shop/till"),
        "{dump}"
    );
    Ok(())
}

/// One rule takes the seal away inside the node; where another one requires it, that wins.
fn plaintext(stage: &Stage) -> Result<()> {
    let a = &stage.a;
    let off = r#"
[[network_policy]]
name = "shop"
select = { labels = { "underseal/name" = "shop" } }
[[network_policy.egress]]
mtls = "off"
"#;
    apply(stage, off)?;
    let recording = a.inside("shop").capture("eth0")?;
    fetch(a)?;
    let plain = seen(&recording.stop()?);
    ensure!(
        plain.marker_hits > 0 && plain.tls_records == 0,
        "it was sealed: {plain:?}"
    );
    let required = r#"
[[network_policy]]
name = "cart"
select = { labels = { "underseal/name" = "cart" } }
[[network_policy.ingress]]
mtls = "required"
"#;
    let before = a.counter("refused_mtls")?;
    apply(stage, &format!("{off}{required}"))?;
    ensure!(fetch(a).is_err(), "in plaintext, though it must be sealed");
    ensure!(a.counter("refused_mtls")? > before, "not counted");
    apply(stage, required)?;
    let recording = a.inside("shop").capture("eth0")?;
    fetch(a)?;
    let sealed = seen(&recording.stop()?);
    ensure!(
        !sealed.is_readable() && sealed.tls_records > 0,
        "{sealed:?}"
    );
    Ok(())
}

fn fetch(a: &Site) -> Result<()> {
    let cart = a.workload("cart").v4;
    let page = a
        .inside("shop")
        .sh(&format!("exec curl -sS --max-time 50 http://{cart}/page"))?;
    ensure!(page.text().contains(MARKER), "not the page");
    Ok(())
}

/// Connections that are open end when a change does not allow them any more; unless they are to be left, and then they
/// go on.
fn changes(stage: &Stage) -> Result<()> {
    let (a, b) = (&stage.a, &stage.b);
    apply(stage, "")?;
    let deny = r#"
[[network_policy]]
name = "nobody"
ingress = []
egress = []
"#;
    let open = || -> Result<[Process<'_>; 3]> {
        let open = [
            a.inside("shop").spawn("exec nc -d 10.1.0.11 80")?,
            a.inside("shop").spawn("exec nc -d 10.2.0.12 80")?,
            b.inside("till").spawn("exec nc -d 10.1.0.11 6379")?,
        ];
        for (site, name, to) in [
            (a, "shop", "10.1.0.11:80"),
            (a, "shop", "10.2.0.12:80"),
            (b, "till", "10.1.0.11:6379"),
        ] {
            let there = format!("ss -Htn state established dst {to} | grep -q .");
            site.inside(name)
                .wait_until(&there, PATIENCE, "a connection")?;
        }
        let sealed = "underseal --json status | grep -c '\"state\": *\"sealed\"' | grep -qx 2";
        a.vm.wait_until(
            sealed,
            PATIENCE,
            "both ends of the one inside the node to be sealed",
        )?;
        Ok(open)
    };
    let ended = open()?;
    let said = apply(stage, deny)?;
    ensure!(said.contains("reset"), "{said}");
    for it in ended {
        it.wait(PATIENCE)
            .context("a connection that is denied now")?;
    }
    apply(stage, "")?;
    let kept = open()?;
    a.configure(&Settings {
        peers: vec![(b.node, b.public_key()?)],
        more: deny.to_owned(),
        ..Settings::default()
    })?;
    a.vm.sh(&format!(
        "sed -i '/^.seal.$/a close_revoked = false' {CONFIG}"
    ))?;
    let said = a.apply()?.text();
    ensure!(!said.contains("reset,"), "{said}");
    ensure!(fetch(a).is_err(), "a new one is denied all the same");
    for (site, it) in [a, a, b].into_iter().zip(kept) {
        site.vm
            .sh(&format!("kill -0 {}", it.pid()))
            .context("a connection that was to be left")?;
        it.signal(9)?;
    }
    apply(stage, "").map(drop)
}

/// Between nodes the certificate must be that of the workload that has the address, if the file names one.
fn certificates(stage: &Stage) -> Result<()> {
    let (a, b) = (&stage.a, &stage.b);
    let settings = Settings {
        mode: "always",
        helpers: Some(Helpers::V4),
        ..Settings::default()
    };
    b.configure(&Settings {
        peers: vec![(a.node, a.public_key()?)],
        ..settings.clone()
    })?;
    b.apply()?;
    let named = |account: &str| -> Result<()> {
        let addresses = "addresses = [\"10.2.0.12\", \"fd00:2::c\"]";
        let named =
            format!("name = \"till\"\nnamespace = \"shop\"\nservice_account = \"{account}\"");
        a.configure(&Settings {
            peers: vec![(b.node, b.public_key()?)],
            more: format!("\n[[peer.workload]]\n{named}\n{addresses}\n"),
            ..settings.clone()
        })?;
        a.apply().map(drop)
    };
    let fetch = || {
        a.inside("shop")
            .try_sh("exec curl -sS --max-time 80 -o /dev/null http://10.2.0.12/page")
    };
    named("till")?;
    ensure!(fetch()?.code == Some(0), "the one that was expected");
    let before = a.counter("refused_id")?;
    named("other")?;
    ensure!(fetch()?.code != Some(0), "another one than was expected");
    ensure!(
        a.counter("refused_id")? > before,
        "not counted: {}",
        a.helper_log()?
    );
    Ok(())
}

/// Answers, or asks and wants an answer.
const UDP: &str = r#"
import socket, sys
if sys.argv[1] == "serve":
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    s.bind(("::", int(sys.argv[2])))
    while True:
        data, peer = s.recvfrom(9000)
        s.sendto(data, peer)
kind = socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET
s = socket.socket(kind, socket.SOCK_DGRAM)
s.settimeout(3)
s.connect((sys.argv[2], int(sys.argv[3])))
for _ in range(3):
    s.send(b"question" * 400)
    try:
        if s.recv(9000) == b"question" * 400:
            sys.exit(0)
    except OSError:
        pass
sys.exit(1)
"#;
