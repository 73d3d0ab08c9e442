//! What the scenarios of faults share: the guest program `storm` on both sides, and what it has counted.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use underseal_vm::main_job::seen;
use underseal_vm::site::{Settings, Site};
use underseal_vm::{Lab, Output, Process, Recording, VmOptions};

pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
pub(crate) const KILL: i32 = 9;
pub(crate) const TERM: i32 = 15;
/// The programs and their test-only twins.
pub(crate) const PROGRAMS: &[&str] = &[
    "underseal",
    "underseal-handshake",
    "underseal-controls",
    "underseal-handshake-controls",
];

/// A node with these workloads, configured and not applied.
pub(crate) fn site(lab: &Lab, names: &[(&str, u8)]) -> Result<Site> {
    let vm = lab.boot(&options())?;
    let site = Site::with(&vm, names)?;
    site.configure(&Settings::default())?;
    Ok(site)
}

/// A machine with the programs and their test-only twins.
pub(crate) fn options() -> VmOptions {
    VmOptions {
        programs: PROGRAMS,
        ..VmOptions::default()
    }
}

/// How connections ended, as one side of `storm` saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) lived: u64,
    pub(crate) reset: u64,
    pub(crate) refused: u64,
    pub(crate) wrong: u64,
    pub(crate) open: u64,
}

impl Count {
    /// From the line that `storm` prints.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let words = text.split_whitespace().filter_map(|w| w.split_once('='));
        let words: HashMap<&str, u64> = words
            .filter_map(|(name, n)| Some((name, n.parse().ok()?)))
            .collect();
        let of = |name: &str| {
            let n = words.get(name).copied();
            n.with_context(|| format!("storm said {text:?}"))
        };
        Ok(Self {
            lived: of("lived")?,
            reset: of("reset")?,
            refused: of("refused")?,
            wrong: of("wrong")?,
            open: of("open")?,
        })
    }

    /// No byte lost, doubled or changed, and nothing hangs.
    pub(crate) const fn is_clean(&self) -> bool {
        self.wrong == 0 && self.open == 0
    }
}

/// A server that accepts once the file `gate` exists; `/dev/null` always does.
pub(crate) fn serve<'site>(
    site: &'site Site,
    name: &str,
    port: u16,
    way: &str,
    gate: &str,
) -> Result<Process<'site>> {
    let server = site
        .inside(name)
        .spawn(&format!("exec storm serve [::]:{port} {way} {gate}"))?;
    site.workload(name).wait_for_port(&site.vm, port)?;
    Ok(server)
}

/// `n` connections at once from one workload to another.
pub(crate) fn run<'site>(
    site: &'site Site,
    (from, to): (&str, &str),
    port: u16,
    load: &str,
) -> Result<Process<'site>> {
    let address = site.workload(to).v4;
    site.inside(from)
        .spawn(&format!("exec storm run {address}:{port} {load}"))
}

/// What a client has counted, at its end.
pub(crate) fn ended(client: &Process<'_>) -> Result<Count> {
    said(client.wait(PATIENCE)?)
}

/// Ends a server; what it has counted.
pub(crate) fn end(server: &Process<'_>) -> Result<Count> {
    server.signal(TERM)?;
    said(server.wait(PATIENCE)?)
}

fn said(output: Output) -> Result<Count> {
    let output = output.successful()?;
    Count::parse(&output.text()).with_context(|| output.error_text())
}

/// Waits until nothing is held, and nothing but what is open is in the table of connections.
pub(crate) fn wait_until_empty(site: &Site) -> Result<()> {
    wait_until_empty_for(site, PATIENCE)
}

/// The same, at most for `limit`.
pub(crate) fn wait_until_empty_for(site: &Site, limit: Duration) -> Result<()> {
    let emptied = site.vm.wait_until(
        "test $(bpftool -j map dump pinned /sys/fs/bpf/underseal/maps/CONNS | tr '{' '\\n' | grep -c '\"key\"') = 0",
        limit,
        "an empty table of connections",
    );
    emptied.with_context(|| format!("{:?}", site.vm.sh(LEFT).map(|said| said.text())))
}

const LEFT: &str = "bpftool -j map dump pinned /sys/fs/bpf/underseal/maps/CONNS | tr '{' '\\n' | grep -c '\"key\"'; \
    underseal status | tail -n 4; tail -n 4 /tmp/helper.log";

/// A recording shows records and nothing else.
pub(crate) fn ensure_sealed(recording: Recording<'_>, what: &str) -> Result<()> {
    let count = seen(&recording.stop()?);
    ensure!(
        !count.is_readable() && count.tls_records > 0,
        "{what}: {count:?}"
    );
    Ok(())
}

/// Ends the helper that runs, whoever has started it.
pub(crate) fn stop_helper(site: &Site) -> Result<()> {
    site.vm.sh("kill $(cat /run/underseal/handshake.lock)")?;
    site.vm.wait_until(
        "flock -n /run/underseal/handshake.lock true",
        PATIENCE,
        "the helper's end",
    )
}
