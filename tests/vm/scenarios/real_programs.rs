//! Real programs, as Debian has them, do the same work unsealed and sealed: no error, no difference. Unsealed, a
//! recording shows what they say; sealed, nothing but TLS records.
//!
//! ```text
//!   shop: psql, pgbench, mariadb, curl, wrk, node, java ... ──┬── cart: PostgreSQL, MariaDB, nginx, node, etcd ...
//!                                                             └── gate: haproxy ── cart
//! ```

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use underseal_vm::capture::PathCount;
use underseal_vm::main_job::{MARKER, seen};
use underseal_vm::site::{Settings, Site};
use underseal_vm::{Lab, Place, Program, VmOptions};

use crate::real_jobs::{self, Job};
use crate::real_servers::{self, Server};

const PATIENCE: Duration = Duration::from_secs(120);

/// Counters of trouble: zero in a run in which nothing goes wrong.
pub(crate) const TROUBLE: &[&str] = &[
    "drop_unsealed",
    "drop_unsealed_ingress",
    "drop_not_a_record",
    "drop_unknown",
    "map_full",
    "reset_refused",
    "reset_lost",
    "reset_install",
    "reset_restart",
    "reset_interrupted",
    "reset_guard",
];

/// What one program did, and what was seen of it.
struct Outcome {
    /// What it has found out, without anything that may differ from run to run.
    said: String,
    /// Connections sealed meanwhile.
    sealed: u64,
    /// Recordings of all its links, added up.
    seen: PathCount,
}

/// PostgreSQL, MariaDB, Redis, memcached.
pub(crate) fn databases(lab: &Lab) -> Result<()> {
    run(lab, real_servers::DATABASES, real_jobs::DATABASES)
}

/// nginx, Node.js, haproxy.
pub(crate) fn web(lab: &Lab) -> Result<()> {
    run(lab, real_servers::WEB, real_jobs::WEB)
}

/// Java, Go, Python, gRPC, tokio.
pub(crate) fn runtimes(lab: &Lab) -> Result<()> {
    run(lab, real_servers::RUNTIMES, real_jobs::RUNTIMES)
}

fn run(lab: &Lab, servers: &[Server], jobs: &[Job]) -> Result<()> {
    let vm = lab.boot(&VmOptions {
        deadline: Duration::from_secs(600),
        ..VmOptions::default()
    })?;
    let site = Site::with(&vm, &[("shop", 10), ("cart", 11), ("gate", 12)])?;
    set(&site, "never")?;
    site.start_helper()?;
    real_servers::start(&site, servers)?;
    let plain = run_all(&site, jobs)?;
    set(&site, "same-node")?;
    let sealed = run_all(&site, jobs)?;
    for (job, (plain, sealed)) in jobs.iter().zip(plain.iter().zip(&sealed)) {
        judge(job, plain, sealed).with_context(|| job.name)?;
        tell(lab, job, sealed);
    }
    let log = site.helper_log()?;
    for counter in TROUBLE {
        let count = site.counter(counter)?;
        let expected = match *counter {
            "reset_guard" => abandoned(&log),
            _ => 0,
        };
        ensure!(
            count == expected,
            "{counter} is {count}, not {expected}; the helper says: {log}"
        );
    }
    Ok(())
}

/// Connections that one end gave up before they had keys, and at which the other was about to send: wrk does that when
/// it ends, to a proxy that opens a connection for each request. In plain TCP such a send is answered by a reset, too.
fn abandoned(log: &str) -> u64 {
    let why = "a call to send to a peer that was closed or shut down before there were keys";
    log.lines().filter(|line| line.contains(why)).count() as u64
}

fn set(site: &Site, mode: &'static str) -> Result<()> {
    site.configure(&Settings {
        mode,
        ..Settings::default()
    })?;
    site.apply().map(drop)
}

fn run_all(site: &Site, jobs: &[Job]) -> Result<Vec<Outcome>> {
    jobs.iter()
        .map(|job| run_one(site, job).with_context(|| said(site, job)))
        .collect()
}

/// What the others have to say about a job that failed.
fn said(site: &Site, job: &Job) -> String {
    let logs = site.vm.sh("tail -n 20 /tmp/helper.log /tmp/server.*");
    let logs = logs.map_or_else(|error| format!("{error:#}"), |output| output.text());
    format!("{}; logs:\n{logs}\n", job.name)
}

fn run_one(site: &Site, job: &Job) -> Result<Outcome> {
    let before = site.counter("sealed")?;
    let recordings = job
        .links
        .iter()
        .map(|workload| site.inside(workload).capture("eth0"))
        .collect::<Result<Vec<_>>>()?;
    let said = shop(site).run(bash(job.script), PATIENCE)?.text();
    let mut seen_by_all = PathCount::default();
    for recording in recordings {
        add(&mut seen_by_all, &seen(&recording.stop()?));
    }
    Ok(Outcome {
        said,
        sealed: site.counter("sealed")? - before,
        seen: seen_by_all,
    })
}

/// A pipe fails with any of its programs: /bin/sh has no word for that.
pub(crate) fn bash(script: &str) -> Program {
    Program {
        argv: ["/bin/bash", "-euo", "pipefail", "-c", script]
            .map(String::from)
            .into(),
        ..Program::default()
    }
}

/// The client's workload, with what the scripts know of the others.
pub(crate) fn shop(site: &Site) -> Place<'_> {
    let (cart, gate) = (site.workload("cart"), site.workload("gate"));
    site.inside("shop")
        .env("CART4", &cart.v4.to_string())
        .env("CART6", &cart.v6.to_string())
        .env("GATE4", &gate.v4.to_string())
        .env("GATE6", &gate.v6.to_string())
        .env("MARKER", MARKER)
        // Debian's psql and pgbench in /usr/bin are wrappers that choose a version.
        .env(
            "PATH",
            "/usr/lib/postgresql/15/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
}

fn add(sum: &mut PathCount, more: &PathCount) {
    sum.streams += more.streams;
    sum.tls_records += more.tls_records;
    sum.tls_bytes += more.tls_bytes;
    sum.plaintext_segments += more.plaintext_segments;
    sum.plaintext_bytes += more.plaintext_bytes;
    sum.missing_bytes += more.missing_bytes;
    sum.other_packets += more.other_packets;
    sum.marker_hits += more.marker_hits;
}

fn judge(job: &Job, plain: &Outcome, sealed: &Outcome) -> Result<()> {
    ensure!(
        plain.seen.marker_hits > 0 && plain.sealed == 0,
        "the control finds nothing: {:?}, {} sealed",
        plain.seen,
        plain.sealed
    );
    ensure!(
        sealed.said == plain.said,
        "sealed it said\n{}\nunsealed\n{}",
        sealed.said,
        plain.said
    );
    ensure!(
        !sealed.seen.is_readable() && sealed.seen.missing_bytes == 0,
        "sealed: {:?}",
        sealed.seen
    );
    ensure!(
        sealed.sealed >= job.connections && sealed.seen.tls_records >= 4 * job.connections,
        "{} sealed, {:?}",
        sealed.sealed,
        sealed.seen
    );
    Ok(())
}

#[allow(clippy::print_stderr, reason = "the table is what people want to read")]
fn tell(lab: &Lab, job: &Job, sealed: &Outcome) {
    eprintln!(
        "{}: {:<12} {:>4} connections sealed, {:>6} TLS records, 0 errors, equal to unsealed",
        lab.kernel.line, job.name, sealed.sealed, sealed.seen.tls_records
    );
}
