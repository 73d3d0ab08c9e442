//! Certificates of open connections between nodes are verified again, by the two nodes' helpers: of two clients one is
//! revoked on the server's node, while `close_revoked` is off so that nothing else ends its connection. It is reset on
//! both nodes, with a reason and a counter; the other one goes on, also while a helper is away, and also if only the
//! server's node looks. Then two clients have certificates that expire while their connections are open: the one that is
//! renewed goes on, the other one is reset on both nodes. The controls: with `recheck = "off"` all stay.
//!
//! ```text
//!   node-a: nc in shop, cart ── wire ── node-b: nc in till
//!   node-a: helper ════════ link inside of WireGuard ════════ node-b: helper
//! ```

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use underseal_vm::Lab;
use underseal_vm::identities::{Authority, Validity};
use underseal_vm::main_job::Stage;
use underseal_vm::site::{CONFIG, Helpers, Settings, Site, identity_folder, spiffe_id};

use crate::session::Session;

const PATIENCE: Duration = Duration::from_secs(90);
/// How many seconds a certificate lives that is to expire: enough for two connections to be made.
const LIFE: u32 = 45;

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let settings = settings("off");
    let stage = Stage::up(lab, &settings)?;
    let (a, b) = (&stage.a, &stage.b);
    let authority = Authority::new("test authority")?;
    let shop = authority.issue(&spiffe_id("shop"), Validity::Now)?;
    shop.put(&a.vm, &identity_folder("shop"))?;
    for (site, name) in [(a, "cart"), (b, "till")] {
        let identity = authority.issue(&spiffe_id(name), Validity::Now)?;
        identity.put(&site.vm, &identity_folder(name))?;
    }
    for (site, other) in [(a, b), (b, a)] {
        configure(site, other, "off")?;
    }
    let refused = Session::between((a, "shop"), (b, "till"), 7001)?;
    let good = Session::between((a, "cart"), (b, "till"), 7002)?;
    let list = authority.revoke(&[&shop])?;
    let lists = format!("{}/ca.crl", identity_folder("till"));
    b.vm.put(&lists, list.as_bytes(), 0o644)?;
    control(&stage, &refused)?;

    for (site, other) in [(a, b), (b, a)] {
        configure(site, other, "1s")?;
    }
    refused.ends()?;
    ensure_refused(&stage, 1)?;
    let log = a.helper_log()?;
    ensure!(log.contains("revoked"), "no reason in: {log}");
    good.says("after the other has gone")?;
    more(&stage, "rechecked", 3)?;
    if lab.kernel.line == "7.3" {
        more(&stage, "rekeyed", 3)?;
    }
    good.says("verified again")?;
    helper_away(&stage, &good)?;
    server_alone(&stage, &good)?;
    expired(&stage, &authority)?;
    for site in [a, b] {
        site.ensure_settled()?;
        site.down()?;
    }
    Ok(())
}

fn settings(recheck: &'static str) -> Settings {
    Settings {
        mode: "always",
        helpers: Some(Helpers::V4),
        recheck: Some(recheck),
        ..Settings::default()
    }
}

fn configure(site: &Site, other: &Site, recheck: &'static str) -> Result<()> {
    site.configure(&Settings {
        peers: vec![(other.node, other.public_key()?)],
        ..settings(recheck)
    })?;
    site.vm.sh(&format!(
        "sed -i 's/^\\[seal\\]/[seal]\\nclose_revoked = false/' {CONFIG}"
    ))?;
    site.apply().map(drop)
}

/// New connections are refused, so the list has been read; the open one stays.
fn control(stage: &Stage, refused: &Session<'_>) -> Result<()> {
    let till = stage.b.workload("till").v4;
    let connect = format!("! nc -N -w 5 {till} 7003 </dev/null");
    let listen = "while true; do nc -l 7003; done";
    let listener = stage.b.inside("till").spawn(listen)?;
    stage.b.workload("till").wait_for_port(&stage.b.vm, 7003)?;
    stage
        .a
        .inside("shop")
        .wait_until(&connect, PATIENCE, "a refusal")?;
    listener.signal(crate::faults::KILL)?;
    refused.says("nobody looks")?;
    for site in [&stage.a, &stage.b] {
        ensure!(site.counter("rechecked")? == 0, "somebody looks");
    }
    Ok(())
}

/// The helper of node-b is away: nothing ends, and it is tried again.
fn helper_away(stage: &Stage, good: &Session<'_>) -> Result<()> {
    let (a, b) = (&stage.a, &stage.b);
    crate::faults::stop_helper(b)?;
    let before = a.counter("node_unreachable")?;
    let tried = at_least("node_unreachable", before + 2);
    a.vm.wait_until(&tried, PATIENCE, "a try in vain")?;
    good.says("while a helper is away")?;
    b.start_helper()?;
    more(stage, "rechecked", 2)?;
    good.says("when it is back")
}

/// The client's node does not look: the server's does, a little later.
fn server_alone(stage: &Stage, good: &Session<'_>) -> Result<()> {
    configure(&stage.a, &stage.b, "off")?;
    more(stage, "rechecked", 2)?;
    good.says("verified as the server asks")
}

/// Two certificates expire, and one of them has been renewed until then.
fn expired(stage: &Stage, authority: &Authority) -> Result<()> {
    let sites = [(&stage.a, &stage.b), (&stage.b, &stage.a)];
    let configure_all = |recheck| {
        let mut sites = sites.into_iter();
        sites.try_for_each(|(site, other)| configure(site, other, recheck))
    };
    configure_all("off")?;
    let (a, b) = (&stage.a, &stage.b);
    let put = |name: &str, validity| {
        let identity = authority.issue(&spiffe_id(name), validity)?;
        identity.put(&a.vm, &identity_folder(name))
    };
    put("shop", Validity::Seconds(LIFE))?;
    put("cart", Validity::Seconds(LIFE))?;
    let old = Session::between((a, "shop"), (b, "till"), 7004)?;
    let renewed = Session::between((a, "cart"), (b, "till"), 7005)?;
    put("cart", Validity::Now)?;
    let folder = identity_folder("shop");
    let over = format!("! openssl x509 -in {folder}/tls.crt -noout -checkend 0");
    a.vm.wait_until(&over, PATIENCE, "the end of a certificate")?;
    old.says("nobody looks at its end")?;
    ensure_refused(stage, 1)?;

    configure_all("1s")?;
    old.ends()?;
    ensure_refused(stage, 2)?;
    for site in [a, b] {
        let log = site.helper_log()?;
        ensure!(log.contains("expired"), "no reason in: {log}");
    }
    more(stage, "rechecked", 2)?;
    renewed.says("with a certificate that was renewed")
}

/// So many connections have been refused when they were verified again, as both nodes count.
fn ensure_refused(stage: &Stage, count: u64) -> Result<()> {
    for site in [&stage.a, &stage.b] {
        let log = || site.helper_log().unwrap_or_default();
        site.vm
            .wait_until(&at_least("refused_recheck", count), PATIENCE, "a count")
            .with_context(log)?;
        let counted = site.counter("refused_recheck")?;
        ensure!(counted == count, "{counted} are counted: {}", log());
        ensure!(
            site.counter("reset_refused")? >= count,
            "no reset is counted"
        );
    }
    Ok(())
}

/// A counter of both nodes grows by so many.
fn more(stage: &Stage, name: &str, by: u64) -> Result<()> {
    for site in [&stage.a, &stage.b] {
        let wanted = site.counter(name)? + by;
        let said = site
            .vm
            .wait_until(&at_least(name, wanted), PATIENCE, "a counter to grow");
        said.with_context(|| format!("{name}: {}", site.helper_log().unwrap_or_default()))?;
    }
    Ok(())
}

/// A condition: a counter has reached this number.
pub(crate) fn at_least(name: &str, least: u64) -> String {
    format!(
        "test $(underseal --json status | tr -d ' \\n' | grep -o '\"{name}\",\"count\":[0-9]*' | cut -d: -f2) -ge {least}"
    )
}
