//! Every way to send and receive, by a program of ours (`tests/vm/guest/src/bin/ways`): each case sealed and in plain
//! TCP, with byte-exact comparison. What a program observes is the same, but for what `ways/differences.txt` lists and
//! docs/compatibility.md explains; and nothing of it can be read on the way.
//!
//! ```text
//!   shop: ways client ── h-shop ── node ── h-cart ── cart: ways server
//! ```
//!
//! Controls: in plain TCP (without Underseal, and in mode `never`) the same comparison of bytes passes and the same recording is readable; with the
//! restart of sleeping tasks taken away, what sleeps at the hand-over fails, and nothing else does; with send buffers left as
//! they are, sendfile and splice get stuck on 6.1.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use underseal_vm::capture::PathCount;
use underseal_vm::main_job::seen;
use underseal_vm::site::{Settings, Site};
use underseal_vm::topology::Node;
use underseal_vm::{Lab, Process, VmOptions};

const PATIENCE: Duration = Duration::from_secs(150);
const PROGRAMS: &[&str] = &[
    "underseal",
    "underseal-handshake",
    "underseal-handshake-controls",
];

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let vm = lab.boot(&VmOptions {
        programs: PROGRAMS,
        ..VmOptions::default()
    })?;
    let site = Site::pair(&vm)?;
    Node(1).forward(&vm)?;
    let plain = unsealed(&site)?;
    site.configure(&Settings::default())?;
    site.apply()?;
    let sealed = sealed(&site)?;
    compare(lab.kernel.line, &plain.said, &sealed.said)?;
    without_restart(&site)?;
    if lab.kernel.line == "6.1" {
        with_small_buffers(&site)?;
    }
    site.configure(&Settings {
        mode: "never",
        ..Settings::default()
    })?;
    site.apply()?;
    unsealed(&site).map(drop)
}

/// Plain TCP: without Underseal, or in mode `never`.
fn unsealed(site: &Site) -> Result<Played> {
    let plain = play(site, "")?;
    ensure!(
        plain.succeeded,
        "plain TCP failed: {:?}",
        plain.failures().collect::<Vec<_>>()
    );
    let seen = &plain.seen;
    ensure!(seen.is_readable() && seen.marker_hits > 0, "{seen:?}");
    Ok(plain)
}

fn sealed(site: &Site) -> Result<Played> {
    let helper = site.start_helper()?;
    let sealed = play(site, &format!("--held {}", helper.pid()))?;
    ensure!(
        sealed.succeeded,
        "sealed: {:?}; helper: {}",
        sealed.failures().collect::<Vec<_>>(),
        site.helper_log()?
    );
    let seen = &sealed.seen;
    ensure!(
        !seen.is_readable() && seen.tls_records > 1000 && seen.missing_bytes == 0,
        "{seen:?}"
    );
    ensure!(
        site.counter("restarted")? >= 100,
        "too few sleepers were restarted: the test misses its point"
    );
    for counter in [
        "drop_cut",
        "refused_ending",
        "refused_shutdown",
        "ended_unsealed",
    ] {
        ensure!(site.counter(counter)? > 0, "{counter} was not counted");
    }
    helper.signal(15)?;
    helper.wait(PATIENCE)?.successful()?;
    Ok(sealed)
}

/// With sleeping tasks left asleep the cases fail whose calls come before the hand-over.
fn without_restart(site: &Site) -> Result<()> {
    let helper = without(site, "restart")?;
    for (case, fails) in [
        ("send_recv", true),
        ("sendfile_splice", true),
        ("poll", false),
    ] {
        let played = play_one(site, helper.pid(), case)?;
        ensure!(
            played.succeeded != fails,
            "without restart, {case}: {:?}",
            played.said
        );
    }
    end(helper)
}

/// With send buffers left as they are, kTLS waits for room that nobody makes; whether it comes to that is a matter of
/// what is acknowledged when, so it is tried again and again. With them it never does, in [`sealed`].
fn with_small_buffers(site: &Site) -> Result<()> {
    let helper = without(site, "send_buffer")?;
    for _ in 0..TRIES {
        for case in ["sendfile_splice", "splice_peek"] {
            if !play_one(site, helper.pid(), case)?.succeeded {
                return end(helper);
            }
        }
    }
    bail!("small send buffers do no harm: the test misses its point");
}

const TRIES: u32 = 10;

fn without<'site>(site: &'site Site, step: &str) -> Result<Process<'site>> {
    site.start_twin(&site.vm.node().env("UNDERSEAL_WITHOUT", step))
}

fn end(helper: Process<'_>) -> Result<()> {
    helper.signal(15)?;
    helper.wait(PATIENCE).map(drop)
}

fn play_one(site: &Site, helper: u32, case: &str) -> Result<Played> {
    let played = play(site, &format!("--held {helper} --only {case} --family v4"))?;
    ensure!(!played.seen.is_readable(), "{case}: {:?}", played.seen);
    Ok(played)
}

/// What came of all cases.
struct Played {
    said: BTreeMap<String, String>,
    succeeded: bool,
    seen: PathCount,
}

impl Played {
    fn failures(&self) -> impl Iterator<Item = (&String, &String)> {
        self.said.iter().filter(|(_, said)| said.contains("FAILED"))
    }
}

/// Lets `shop` play cases with `cart`.
fn play(site: &Site, options: &str) -> Result<Played> {
    let (v4, v6) = (site.workload("cart").v4, site.workload("cart").v6);
    site.vm.sh("rm -f /tmp/ways.sock")?;
    let server = site
        .inside("cart")
        .spawn(&format!("exec ways server {v4} {v6}"))?;
    site.vm
        .wait_until("test -S /tmp/ways.sock", PATIENCE, "ways server")?;
    let recording = site.inside("shop").capture("eth0")?;
    let client = site
        .inside("shop")
        .spawn(&format!("exec ways client {v4} {v6} {options}"))?;
    let output = client.wait(PATIENCE)?;
    server.signal(9)?;
    let text = output.text();
    let lines = text.lines().filter_map(|line| line.split_once(": "));
    Ok(Played {
        said: lines
            .map(|(case, said)| (case.to_owned(), said.to_owned()))
            .collect(),
        succeeded: output.code == Some(0) && text.ends_with("done"),
        seen: seen(&recording.stop()?),
    })
}

/// Fails on a difference that is not listed, and on a listed one that is not there.
fn compare(
    kernel: &str,
    plain: &BTreeMap<String, String>,
    sealed: &BTreeMap<String, String>,
) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let listed = fs::read_to_string(folder.join("scenarios/ways/differences.txt"))?;
    let listed = differences(&listed, kernel)?;
    let documented = fs::read_to_string(folder.join("../../docs/compatibility.md"))?;
    let mut wrong = Vec::new();
    for (case, plain) in plain {
        let sealed = sealed.get(case).map_or("nothing", String::as_str);
        let fits = |d: &&Difference<'_>| d.case == case && d.plain == plain && d.sealed == sealed;
        let known = listed.iter().any(|d| d.case == case);
        let name = case.split(' ').next().unwrap_or_default();
        if known && listed.iter().find(fits).is_none() || !known && plain != sealed {
            wrong.push(format!("{case}: {plain} => {sealed}"));
        }
        if !documented.contains(&format!("`{name}`")) {
            wrong.push(format!("{name} is not in docs/compatibility.md"));
        }
    }
    for difference in &listed {
        if !plain.contains_key(difference.case) {
            wrong.push(format!("{} was not played", difference.case));
        }
    }
    ensure!(wrong.is_empty(), "not as listed:\n{}", wrong.join("\n"));
    Ok(())
}

/// A line `CASE FAMILY TIMING: PLAIN => SEALED`. Several lines for one case: each may be seen.
struct Difference<'a> {
    case: &'a str,
    plain: &'a str,
    sealed: &'a str,
}

/// Those of a kernel; a line that begins with `[KERNEL] ` is for that one alone.
fn differences<'a>(text: &'a str, kernel: &str) -> Result<Vec<Difference<'a>>> {
    let lines = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut all = Vec::new();
    for line in lines {
        let line = match line.strip_prefix('[').and_then(|l| l.split_once("] ")) {
            Some((only, _)) if only != kernel => continue,
            Some((_, line)) => line,
            None => line,
        };
        let (case, rest) = line.split_once(": ").context("no case in a line")?;
        let (plain, sealed) = rest.split_once(" => ").context("no => in a line")?;
        all.push(Difference {
            case,
            plain,
            sealed,
        });
    }
    Ok(all)
}
