//! Full preemption, and processes that provoke it: a hundred connections are handed over while a task sleeps in send
//! and another one in receive on either end, and none of them is missed. Without the recorder all of them are.
//!
//! ```text
//!   shop: 100 clients, 4 busy processes ── h-shop ── node ── h-cart ── cart: server
//! ```

use anyhow::{Result, ensure};
use underseal_vm::Lab;
use underseal_vm::VmOptions;
use underseal_vm::main_job::seen;
use underseal_vm::site::{Settings, Site};

use crate::shapes;

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let vm = lab.boot(&VmOptions {
        cmdline: vec!["preempt=full".into()],
        programs: &["underseal", "underseal-handshake", "underseal-controls"],
        deadline: shapes::DEADLINE,
        ..VmOptions::default()
    })?;
    let mode =
        "mount -t debugfs none /sys/kernel/debug 2>/dev/null; cat /sys/kernel/debug/sched/preempt";
    let mode = vm.sh(mode)?.text();
    ensure!(mode.contains("(full)"), "preemption is {mode}");
    let site = Site::pair(&vm)?;
    site.configure(&Settings::default())?;
    site.apply()?;
    let helper = site.start_helper()?;

    let recording = site.inside("shop").capture("eth0")?;
    shapes::works(&site, helper.pid(), "storm")?;
    let count = seen(&recording.stop()?);
    ensure!(
        !count.is_readable() && count.tls_records >= 200 && count.missing_bytes == 0,
        "{count:?}"
    );
    shapes::quiet(&site)?;
    // Two on each end of 100 connections; one that came only after the keys needs no restart.
    let restarted = site.counter("restarted")?;
    ensure!(restarted >= 200, "only {restarted} tasks were restarted");

    site.vm.sh("underseal down")?;
    without_recorder(&site, helper.pid())
}

/// The same storm: the guard is all that is left, and programs fail.
fn without_recorder(site: &Site, helper: u32) -> Result<()> {
    let place = site.vm.node().env("UNDERSEAL_WITHOUT", "record");
    place.sh("underseal-controls apply")?;
    let recording = site.inside("shop").capture("eth0")?;
    let output = shapes::start(site, &format!("sealed {helper}"), "storm")?;
    ensure!(
        output.code == Some(1),
        "nobody missed the recorder: {}",
        output.text()
    );
    ensure!(
        site.counter("drop_not_a_record")? > 0,
        "nothing was dropped"
    );
    ensure!(
        !seen(&recording.stop()?).is_readable(),
        "the guard let plaintext pass"
    );
    Ok(())
}
