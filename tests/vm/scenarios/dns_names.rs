//! Rules by DNS name, and certificates that have the name or not: inside a node and between nodes, at the client's end and
//! at the server's. A certificate without a name that a rule relies on is refused, for this reason, and no byte passes;
//! with the name, or a wildcard for it, unmodified programs talk; open connections end when it is gone. The control: a
//! helper that does not ask for names lets the same connections pass.
//!
//! ```text
//!   node-a: shop, cart ── eth0 ── wire (this process) ── eth0 ── node-b: till
//! ```

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use underseal_vm::capture::PathCount;
use underseal_vm::identities::{Authority, Validity};
use underseal_vm::main_job::{MARKER, Stage, seen};
use underseal_vm::site::{Helpers, Settings, Site, identity_folder, spiffe_id};
use underseal_vm::{Lab, VmOptions};

use crate::session::Session;

const PATIENCE: Duration = Duration::from_secs(60);
const PROGRAMS: &[&str] = &[
    "underseal",
    "underseal-handshake",
    "underseal-handshake-controls",
];
const CART: &str = "cart.shop.svc.cluster.local";
const SHOP: &str = "shop.shop.svc.cluster.local";
const TILL: &str = "till.shop.svc.cluster.local";
const WILDCARD: &str = "*.shop.svc.cluster.local";

/// Whom `shop` may connect to.
const EGRESS: &str = r#"
[[peer.workload]]
name = "till"
namespace = "shop"
addresses = ["10.2.0.12", "fd00:2::c"]
[[network_policy]]
name = "shop"
select = { labels = { "underseal/name" = "shop" } }
[[network_policy.egress]]
peers = [{ dns = "cart.shop.svc.cluster.local" }, { dns = "till.shop.svc.cluster.local" }]
mtls = "required"
"#;
/// And who may connect to `cart`.
const INGRESS: &str = r#"
[[network_policy]]
name = "cart"
select = { labels = { "underseal/name" = "cart" } }
[[network_policy.ingress]]
peers = [{ dns = "shop.shop.svc.cluster.local" }]
"#;

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let stage = Stage::set(
        |options| {
            let options = options.clone().map(|it| VmOptions {
                programs: PROGRAMS,
                deadline: Duration::from_secs(900),
                ..it
            });
            lab.boot_all(&options)
        },
        &settings(),
        &|_| {},
    )?;
    let names = Names {
        stage: &stage,
        authority: Authority::new("names authority")?,
    };
    for (site, name) in [(&stage.a, "shop"), (&stage.a, "cart"), (&stage.b, "till")] {
        names.give(site, name, &[])?;
    }
    names.clients_end().context("at the client's end")?;
    names.servers_end().context("at the server's end")?;
    names.open_connections().context("open connections")?;
    names.control().context("control")?;
    for site in [&stage.a, &stage.b] {
        site.ensure_settled()?;
        site.down()?;
    }
    Ok(())
}

fn settings() -> Settings {
    Settings {
        mode: "always",
        helpers: Some(Helpers::V4),
        ..Settings::default()
    }
}

struct Names<'a> {
    stage: &'a Stage,
    authority: Authority,
}

impl Names<'_> {
    /// A certificate with these DNS names for a workload.
    fn give(&self, site: &Site, name: &str, dns_names: &[&str]) -> Result<()> {
        let id = spiffe_id(name);
        let issued = self.authority.issue_named(&id, dns_names, Validity::Now)?;
        issued.put(&site.vm, &identity_folder(name))
    }

    /// Applies policies on node-a; what it said.
    fn apply(&self, recheck: Option<&'static str>, policies: &str) -> Result<String> {
        let (a, b) = (&self.stage.a, &self.stage.b);
        a.configure(&Settings {
            peers: vec![(b.node, b.public_key()?)],
            more: policies.to_owned(),
            recheck,
            ..settings()
        })?;
        Ok(a.apply()?.text())
    }

    fn clients_end(&self) -> Result<()> {
        let (a, b) = (&self.stage.a, &self.stage.b);
        // Nobody asks yet.
        passes(a, "10.1.0.11")?;
        passes(a, "10.2.0.12")?;
        let said = self.apply(None, EGRESS)?;
        let file = format!("{}/tls.crt", identity_folder("cart"));
        ensure!(
            said.contains("warning") && said.contains(CART) && said.contains(&file),
            "{said}"
        );
        let asked =
            a.vm.sh("underseal policy test shop/shop shop/cart 80; underseal policy dump")?;
        let asked = asked.text();
        ensure!(
            asked.contains(&format!(
                "certificate of shop/cart must have the DNS name {CART}"
            )) && asked.contains(&format!("shop/till at 10.2.0.12: {TILL}")),
            "{asked}"
        );
        is_refused(
            a,
            "10.1.0.11",
            &[&spiffe_id("shop"), &spiffe_id("cart"), &file, CART],
        )?;
        is_refused(a, "10.2.0.12", &["shop/shop with shop/till", TILL])?;
        let file = format!("{}/tls.crt", identity_folder("till"));
        let told = format!("grep -F {TILL} /tmp/helper.log | grep -qF {file}");
        b.vm.wait_until(&told, PATIENCE, "the other node's word")?;
        // A name of its own, and a wildcard.
        self.give(a, "cart", &["cart", CART])?;
        self.give(b, "till", &[WILDCARD])?;
        passes(a, "10.1.0.11")?;
        passes(a, "10.2.0.12")?;
        let said = a.vm.sh("underseal check")?.text();
        ensure!(!said.contains("warning"), "{said}");
        // Another name will not do, nor one label too many for the wildcard.
        self.give(a, "cart", &["cart", "*.svc.cluster.local"])?;
        is_refused(a, "10.1.0.11", &[CART])?;
        self.give(a, "cart", &[CART])?;
        passes(a, "10.1.0.11")
    }

    fn servers_end(&self) -> Result<()> {
        let a = &self.stage.a;
        self.apply(None, &format!("{EGRESS}{INGRESS}"))?;
        is_refused(a, "10.1.0.11", &["the server refused its peer", SHOP])?;
        self.give(a, "shop", &[SHOP])?;
        passes(a, "10.1.0.11")?;
        passes(a, "10.2.0.12")
    }

    fn open_connections(&self) -> Result<()> {
        let a = &self.stage.a;
        // A rule comes that relies on a name which the peer of an open connection has not shown.
        self.apply(None, "")?;
        self.give(a, "cart", &[])?;
        let open = Session::open(a, "shop", 7001)?;
        let before = a.counter("reset_revoked")?;
        self.apply(None, EGRESS)?;
        open.ends()?;
        ensure!(a.counter("reset_revoked")? > before, "it is not counted");
        let log = a.helper_log()?;
        let line = format!("shop/shop accepts {} no longer", spiffe_id("cart"));
        ensure!(log.contains(&line), "no {line} in: {log}");
        // New files without the name: open connections go on, until they are verified again.
        self.give(a, "cart", &[CART])?;
        let open = Session::open(a, "shop", 7002)?;
        self.give(a, "cart", &[])?;
        is_refused(a, "10.1.0.11", &[CART])?;
        open.says("with the old certificate")?;
        self.apply(Some("1s"), EGRESS)?;
        open.ends()?;
        ensure!(
            a.counter("refused_recheck")? > 0,
            "it is not counted: {}",
            a.helper_log()?
        );
        self.apply(None, EGRESS).map(drop)
    }

    /// What was refused passes if the helper does not ask.
    fn control(&self) -> Result<()> {
        let (a, b) = (&self.stage.a, &self.stage.b);
        self.give(b, "till", &[])?;
        is_refused(a, "10.1.0.11", &[CART])?;
        is_refused(a, "10.2.0.12", &[TILL])?;
        a.vm.sh("kill -9 $(pidof underseal-handshake)")?;
        a.start_twin(&a.vm.node().env("UNDERSEAL_WITHOUT", "dns_names"))?;
        passes(a, "10.1.0.11")?;
        passes(a, "10.2.0.12")
    }
}

/// `shop` fetches a page that nobody else could read.
fn passes(a: &Site, to: &str) -> Result<()> {
    let recording = a.inside("shop").capture("eth0")?;
    let got = fetch(a, to)?;
    ensure!(
        got.code == Some(0) && got.text().contains(MARKER),
        "{to}: {got:?} {}",
        a.helper_log()?
    );
    let count = seen(&recording.stop()?);
    ensure!(
        !count.is_readable() && count.tls_records > 0,
        "{to}: {count:?}"
    );
    Ok(())
}

/// It is reset for want of a DNS name, which is counted and told with these words; not a byte of data passes.
fn is_refused(a: &Site, to: &str, words: &[&str]) -> Result<()> {
    let before = a.counter("refused_dns_name")?;
    let others = a.counter("refused_id")?;
    let recording = a.inside("shop").capture("eth0")?;
    let said = fetch(a, to)?;
    ensure!(
        matches!(said.code, Some(7 | 52 | 55 | 56)) && said.stdout.is_empty(),
        "{to}: {said:?}"
    );
    let PathCount {
        tls_bytes,
        plaintext_bytes,
        ..
    } = seen(&recording.stop()?);
    ensure!(tls_bytes + plaintext_bytes == 0, "{to}: data has passed");
    let log = a.helper_log()?;
    ensure!(
        a.counter("refused_dns_name")? == before + 1,
        "{to}: not counted: {log}"
    );
    ensure!(
        a.counter("refused_id")? == others,
        "{to}: counted as another: {log}"
    );
    let mut last = log.lines().rev().filter(|line| line.contains("reset "));
    let told = last.next().unwrap_or_default();
    ensure!(
        words.iter().all(|word| told.contains(word)),
        "{to}: {words:?}: {told}"
    );
    Ok(())
}

fn fetch(a: &Site, to: &str) -> Result<underseal_vm::Output> {
    let script = format!("exec curl -sS --max-time 25 http://{to}/page");
    a.inside("shop").try_sh(&script)
}
