//! What `metrics` and `doctor` see: the metrics of a node at work are what was done on it, and `doctor` finds nothing. Then
//! things are broken one by one, and it names just that; mended, it finds nothing again. Neither changes anything.
//!
//! ```text
//!   node-a: shop, cart ── eth0 ── wire (this process) ── eth0 ── node-b: till
//! ```

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use underseal_vm::identities::{Authority, Validity};
use underseal_vm::main_job::Stage;
use underseal_vm::site::{Settings, Site, identity_folder, spiffe_id};
use underseal_vm::{Lab, promtool};

use crate::lifecycle::{WORLD, WRITES, ensure_same, lines_with};
use crate::session::Session;

const PATIENCE: Duration = Duration::from_secs(60);
const FILE: &str = "/tmp/underseal.prom";
/// The one thing that may be wrong with a test machine: its kernel is that of Debian's mirror.
const KERNEL: &str = "point release";

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let stage = Stage::set(
        |options| lab.boot_all(options),
        &Settings::default(),
        &|_| {},
    )?;
    let site = &stage.a;
    at_work(&stage)?;
    finds(site, &[])?;
    changes_nothing(site)?;
    helper_away(site)?;
    certificates(site)?;
    keys(site)?;
    program_detached(site)?;
    peer_away(&stage)?;
    down(site)?;
    stage.b.down()?;
    Ok(())
}

/// Some connections, of which one is open, and what metrics make of them.
fn at_work(stage: &Stage) -> Result<()> {
    let site = &stage.a;
    for _ in 0..3 {
        fetch(site, &site.workload("cart").v4.to_string())?;
    }
    fetch(site, &stage.b.workload("till").v4.to_string())?;
    let open = Session::open(site, "shop", 7001)?;
    let metrics = Metrics::of(site)?;
    promtool::check_metrics(&metrics.0)?;
    let sealed = site.counter("sealed")?;
    ensure!(sealed >= 4, "only {sealed} connections were sealed");
    metrics.is("underseal_sealed_connections_total", sealed)?;
    for (name, value) in [
        ("underseal_up", 1),
        ("underseal_helper_running", 1),
        ("underseal_configuration_valid", 1),
        ("underseal_configuration_differences", 0),
        ("underseal_mode_info{mode=\"same-node\"}", 1),
        ("underseal_workload_covered{workload=\"shop/shop\"}", 1),
        (
            "underseal_connections{state=\"sealed\",workload=\"shop/shop\"}",
            1,
        ),
        (
            "underseal_connections{state=\"sealed\",workload=\"shop/cart\"}",
            1,
        ),
        ("underseal_map_entries{map=\"CONNS\"}", 2),
        ("underseal_map_max_entries{map=\"CONNS\"}", 131_072),
        ("underseal_identities_broken", 0),
        (
            "underseal_guard_dropped_segments_total{reason=\"not_a_record\"}",
            0,
        ),
    ] {
        metrics.is(name, value)?;
    }
    let now: u64 = site.vm.sh("date +%s")?.text().parse()?;
    let end = metrics.value("underseal_identity_not_after_seconds{workload=\"shop/cart\"}")?;
    ensure!(
        end > now && end < now + 2 * 86400,
        "a certificate of a day ends at {end}, now is {now}"
    );
    let peer = "{device=\"underseal0\",peer=\"node-2\"}";
    let handshake = metrics.value(&format!(
        "underseal_peer_last_handshake_timestamp_seconds{peer}"
    ))?;
    ensure!(
        handshake <= now && now - handshake < 300,
        "the handshake was at {handshake}, now is {now}"
    );
    // The page has a megabyte.
    let received = metrics.value(&format!("underseal_peer_received_bytes_total{peer}"))?;
    let passed = metrics.value("underseal_guard_passed_bytes_total")?;
    let forwarded = metrics.value("underseal_forwarded_packets_total{path=\"to_wireguard\"}")?;
    ensure!(
        received > 1 << 20 && passed > 3 << 20 && forwarded > 0,
        "{received} received, {passed} sealed, {forwarded} packets sent"
    );
    open.says("still here")
}

fn fetch(site: &Site, host: &str) -> Result<()> {
    let script = format!("curl -sS --max-time 100 http://{host}/page | wc -c");
    let bytes = site.inside("shop").sh_for(&script, PATIENCE * 2)?.text();
    let bytes: u64 = bytes.trim().parse()?;
    ensure!(bytes > 1 << 19, "{host} has sent {bytes} bytes");
    Ok(())
}

/// Metrics as they were written.
struct Metrics(String);

impl Metrics {
    fn of(site: &Site) -> Result<Self> {
        let script = format!("umask 077; underseal metrics --output {FILE} && stat -c %a {FILE}");
        let mode = site.vm.sh(&script)?.text();
        ensure!(mode == "644", "the file has mode {mode}");
        Ok(Self(String::from_utf8(site.vm.get(FILE)?)?))
    }

    fn value(&self, name: &str) -> Result<u64> {
        let lines = self.0.lines();
        let mut values = lines.filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = values.next();
        let value = value.with_context(|| format!("there is no {name} in {}", self.0))?;
        Ok(value.parse()?)
    }

    fn is(&self, name: &str, wanted: u64) -> Result<()> {
        let value = self.value(name)?;
        ensure!(value == wanted, "{name} is {value}, not {wanted}");
        Ok(())
    }
}

/// `doctor` finds fault with these and with nothing else, and its exit code says whether one of them is a problem.
fn finds(site: &Site, wanted: &[&str]) -> Result<()> {
    let said = site.vm.try_sh("underseal --json doctor")?;
    let json: Value =
        serde_json::from_str(&said.text()).with_context(|| format!("doctor said {said:?}"))?;
    let checks = json["checks"].as_array().context("checks")?;
    let is_bad = |check: &&Value| check["level"] != "ok" && check["check"] != KERNEL;
    let names = checks.iter().filter(is_bad);
    let names: BTreeSet<&str> = names.filter_map(|check| check["check"].as_str()).collect();
    let wanted: BTreeSet<&str> = wanted.iter().copied().collect();
    ensure!(
        names == wanted,
        "doctor names {names:?}, not {wanted:?}: {json:#}"
    );
    let has_problem = checks.iter().any(|check| check["level"] == "problem");
    ensure!(
        said.code == Some(i32::from(has_problem)),
        "exit code {:?}: {json:#}",
        said.code
    );
    Ok(())
}

/// By which files are changed.
const FILE_WRITES: [&str; 6] = [
    "O_WRONLY", "O_RDWR", "O_CREAT", "mkdir(", "rename(", "unlink(",
];

/// Neither by what the tools of others see nor by what it asks of the kernel.
fn changes_nothing(site: &Site) -> Result<()> {
    let vm = &site.vm;
    let before = vm.sh(WORLD)?.text();
    let traced =
        "strace -f -e trace=bpf,sendto,sendmsg,openat,mkdir,rename,unlink,setsockopt -o /tmp/trace";
    vm.sh(&format!("{traced} underseal doctor"))?;
    vm.sh(&format!("{traced} -A underseal metrics >/dev/null"))?;
    ensure_same("doctor", &before, &vm.sh(WORLD)?.text())?;
    let trace = vm.sh("cat /tmp/trace")?.text();
    ensure!(
        trace.contains("BPF_OBJ_GET"),
        "the trace shows nothing: {trace}"
    );
    let changes = lines_with(&trace, &[&WRITES[..], &FILE_WRITES].concat());
    ensure!(changes.is_empty(), "it changes something: {changes:#?}");
    Ok(())
}

fn helper_away(site: &Site) -> Result<()> {
    let vm = &site.vm;
    vm.sh("kill $(cat /run/underseal/handshake.lock)")?;
    let free = "flock -n /run/underseal/handshake.lock true";
    vm.wait_until(free, PATIENCE, "the helper's end")?;
    finds(site, &["helper"])?;
    Metrics::of(site)?.is("underseal_helper_running", 0)?;
    site.start_helper()?;
    finds(site, &[])
}

fn certificates(site: &Site) -> Result<()> {
    let (vm, folder) = (&site.vm, identity_folder("shop"));
    vm.sh(&format!("cp -a {folder} /tmp/good"))?;
    let mend = format!("cp -a /tmp/good/* {folder}/");
    let expired =
        Authority::new("another authority")?.issue(&spiffe_id("shop"), Validity::Expired)?;
    expired.put(vm, &folder)?;
    finds(site, &["identities"])?;
    vm.sh(&mend)?;
    finds(site, &[])?;
    vm.sh(&format!(
        "rm {folder}/tls.key && mkdir -m 700 {folder}/tls.key"
    ))?;
    finds(site, &["identities"])?;
    vm.sh(&format!("rmdir {folder}/tls.key; {mend}"))?;
    finds(site, &[])
}

fn keys(site: &Site) -> Result<()> {
    let vm = &site.vm;
    let identity = format!("{}/tls.key", identity_folder("cart"));
    vm.sh(&format!("chmod 644 {identity}"))?;
    finds(site, &["keys"])?;
    vm.sh(&format!("chmod 600 {identity}"))?;
    // With this one nothing can be compared.
    vm.sh("chmod 640 /var/lib/underseal/wireguard.key")?;
    finds(site, &["keys", "as configured"])?;
    vm.sh("chmod 600 /var/lib/underseal/wireguard.key")?;
    finds(site, &[])
}

fn program_detached(site: &Site) -> Result<()> {
    // On kernels without tcx the filter is what is attached.
    site.vm.sh(
        "tc filter del dev eth0 egress pref 1 2>/dev/null; rm /sys/fs/bpf/underseal/links/uplink_egress@eth0",
    )?;
    finds(site, &["programs", "as configured"])?;
    let differences = Metrics::of(site)?.value("underseal_configuration_differences")?;
    ensure!(differences > 0, "no difference is shown");
    site.apply()?;
    finds(site, &[])
}

/// A device that is made anew has had no handshake, and there is nobody to have one with.
fn peer_away(stage: &Stage) -> Result<()> {
    let (site, till) = (&stage.a, stage.b.workload("till").v4);
    stage.b.vm.sh("ip link set eth0 down")?;
    site.vm.sh("ip link del underseal0")?;
    site.apply()?;
    finds(site, &[])?;
    let ask = format!("curl -sS --max-time 2 http://{till}/page");
    let said = site.inside("shop").try_sh(&ask)?;
    ensure!(said.code != Some(0), "an answer of nobody: {said:?}");
    finds(site, &["WireGuard peers"])?;
    stage.b.vm.sh("ip link set eth0 up")?;
    let ask = format!("curl -sS -o /dev/null --max-time 5 http://{till}/page");
    site.inside("shop").wait_until(&ask, PATIENCE, "the peer")?;
    finds(site, &[])
}

/// Where nothing is applied metrics are written all the same.
fn down(site: &Site) -> Result<()> {
    site.down()?;
    let metrics = Metrics::of(site)?;
    promtool::check_metrics(&metrics.0)?;
    metrics.is("underseal_up", 0)?;
    let said = site.vm.try_sh("underseal --json doctor")?;
    let json: Value = serde_json::from_str(&said.text())?;
    let mut checks = json["checks"].as_array().context("checks")?.iter();
    let apply = checks
        .find(|check| check["check"] == "apply")
        .context("apply")?;
    ensure!(
        said.code == Some(1) && apply["level"] == "problem",
        "after down doctor says {json:#}"
    );
    Ok(())
}
