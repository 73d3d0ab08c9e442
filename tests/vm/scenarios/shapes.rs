//! Sockets used in every odd way that programs do: inherited, passed on, in flight, duplicated, interrupted, debugged;
//! by io_uring; with MPTCP and TCP Fast Open asked for; to oneself. What can work is sealed, byte by byte the same as
//! plain; what cannot is reset or refused, and counted. The program `shapes` has the cases.
//!
//! ```text
//!   shop: shapes' clients ── h-shop ── node ── h-cart ── cart: shapes' servers
//! ```

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use underseal_vm::capture::PathCount;
use underseal_vm::main_job::seen;
use underseal_vm::pcap::{IpPacket, Pcap, Transport};
use underseal_vm::site::{Settings, Site};
use underseal_vm::{Lab, Output, VmOptions};

use crate::shapes_records;

/// For all cases together on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(400);
pub(crate) const DEADLINE: Duration = Duration::from_secs(600);

/// What is sealed, in all.
pub(crate) fn sealed(lab: &Lab) -> Result<()> {
    let vm = lab.boot(&VmOptions {
        programs: &[
            "underseal",
            "underseal-handshake",
            "underseal-handshake-controls",
        ],
        deadline: DEADLINE,
        ..VmOptions::default()
    })?;
    let site = Site::pair(&vm)?;
    site.configure(&Settings::default())?;
    site.apply()?;
    let helper = site.start_helper()?;
    shapes_records::go(&site)?;
    let seen = recorded(&site, || works(&site, helper.pid(), "apart inside"))?;
    for ((count, in_syns), records) in seen.into_iter().zip([1000, 20]) {
        ensure!(
            !count.is_readable() && count.tls_records > records && count.missing_bytes == 0,
            "{count:?}"
        );
        ensure!(in_syns == 0, "{in_syns} bytes rode in SYNs");
    }
    quiet(&site)?;
    let [(count, _), _] = recorded(&site, || works(&site, helper.pid(), "refused"))?;
    ensure!(!count.is_readable(), "{count:?}");
    quiet(&site)?;
    helper.signal(15)?;
    helper.wait(PATIENCE)?;
    without_restart(&site)
}

/// Tasks that sleep in the old code are left there: whoever was interrupted there, or spliced, is handed ciphertext.
fn without_restart(site: &Site) -> Result<()> {
    let place = site.vm.node().env("UNDERSEAL_WITHOUT", "restart");
    let helper = site.start_twin(&place)?;
    for case in ["signal_receiving", "uring_splice"] {
        let output = start(site, &format!("sealed {}", helper.pid()), case)?;
        ensure!(
            output.code == Some(1) && output.text().contains(&format!("{case} v4: FAILED")),
            "{case} does not need the restart: {}",
            output.text()
        );
    }
    Ok(())
}

/// The same cases unsealed: the recordings see what they are to look for, and what is refused above works.
pub(crate) fn plain(lab: &Lab) -> Result<()> {
    let vm = lab.boot(&VmOptions {
        deadline: DEADLINE,
        ..VmOptions::default()
    })?;
    let site = Site::pair(&vm)?;
    site.configure(&Settings {
        mode: "never",
        ..Settings::default()
    })?;
    site.apply()?;
    let [(veth, in_syns), (lo, _)] = recorded(&site, || {
        start(&site, "plain 0", "apart inside refused")?.successful()
    })?;
    for count in [veth, lo] {
        ensure!(
            count.plaintext_bytes > 100_000 && count.marker_hits > 1000,
            "{count:?}"
        );
    }
    ensure!(
        in_syns > 0,
        "Fast Open was not used: its check misses its point"
    );
    Ok(())
}

/// What was seen on the client's interface, and inside its namespace; and how many bytes came in SYNs.
fn recorded(site: &Site, run: impl FnOnce() -> Result<Output>) -> Result<[(PathCount, usize); 2]> {
    let shop = site.inside("shop");
    let recordings = [shop.capture("eth0")?, shop.capture("lo")?];
    let said = run()?.text();
    let [veth, lo] = recordings.map(|recording| {
        let pcap = recording.stop()?;
        Ok::<_, anyhow::Error>((seen(&pcap), in_syns(&pcap)))
    });
    Ok([veth.context(said.clone())?, lo.context(said)?])
}

fn in_syns(pcap: &Pcap) -> usize {
    let length = |packet: &[u8]| match IpPacket::parse(pcap.link, packet)?.transport {
        Transport::Tcp {
            syn: true, payload, ..
        } => Some(payload.len()),
        _ => None,
    };
    pcap.packets
        .iter()
        .filter_map(|(_, packet)| length(packet))
        .sum()
}

/// Runs these cases sealed. All succeed, and the counters grow by what the cases say, not by more.
pub(crate) fn works(site: &Site, helper: u32, what: &str) -> Result<Output> {
    let before: Vec<(&str, u64)> = COUNTED
        .iter()
        .map(|name| Ok((*name, site.counter(name)?)))
        .collect::<Result<_>>()?;
    let output = start(site, &format!("sealed {helper}"), what)?.successful();
    let log = site.helper_log()?;
    let output = output.with_context(|| log.clone())?;
    let said = output.text();
    for (name, before) in before {
        let expected = said
            .lines()
            .find_map(|line| line.strip_prefix(&format!("count {name} ")))
            .map_or(Ok(0), str::parse::<u64>)?;
        let grown = site.counter(name)? - before;
        ensure!(
            grown == expected,
            "{name} grew by {grown}, not by {expected}; {said}\n{log}"
        );
    }
    Ok(output)
}

/// Counters that cases move, or must not.
const COUNTED: &[&str] = &[
    "reset_lost",
    "reset_restart",
    "reset_install",
    "reset_interrupted",
    "reset_refused",
    "reset_guard",
    "refused_mptcp",
    "refused_fast_open",
];

/// Runs these cases and waits for their end.
pub(crate) fn start(site: &Site, how: &str, what: &str) -> Result<Output> {
    let [shop, cart] = ["shop", "cart"].map(|name| {
        let workload = site.workload(name);
        format!("{},{}", workload.v4, workload.v6)
    });
    let script = format!("exec shapes run {how} shop cart {shop} {cart} {what}");
    site.vm.spawn(&script)?.wait(PATIENCE)
}

/// The second line of defence had nothing to do, and no record of a task is left.
pub(crate) fn quiet(site: &Site) -> Result<()> {
    for counter in [
        "drop_unsealed",
        "drop_not_a_record",
        "drop_unsealed_ingress",
    ] {
        ensure!(site.counter(counter)? == 0, "{counter}");
    }
    shapes_records::none(site, Duration::from_secs(30))
}
