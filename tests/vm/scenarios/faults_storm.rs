//! Too much of everything: ten thousand connections at once over a helper that was stopped (the ring buffer is full)
//! and then is killed again and again; a helper out of descriptors, and out of memory; a thousand connections whose
//! server never accepts; full maps. Nothing leaks; what can be sealed is, byte for byte; what cannot is reset and
//! counted; the connections of others go on; and in the end nothing is left.
//!
//! ```text
//!   shop: storm run ── h-shop ── node: underseal-handshake ── h-cart ── cart: storm serve
//!   bell: storm run ── h-bell ──                           ── h-hall ── hall: storm serve       (the others)
//! ```

use anyhow::{Context as _, Result, ensure};
use underseal_vm::site::Site;
use underseal_vm::{Lab, Process};

use crate::faults::{self, Count, KILL, PATIENCE, TERM};

const NEVER: &str = "/tmp/never";
/// Ends of connections in the storm.
const STORM: u64 = 10_000;
/// Messages that the ring buffer has room for: 1 MiB, 96 bytes and a header of 8 each.
const RING: u64 = (1 << 20) / 104;

const NAMES: &[(&str, u8)] = &[("shop", 10), ("cart", 11), ("bell", 12), ("hall", 13)];

/// Ten thousand at once.
pub(crate) fn run(lab: &Lab) -> Result<()> {
    let site = faults::site(lab, NAMES)?;
    site.apply()?;
    // The host's and the namespaces' limits are not what is tested here.
    site.vm.sh("sysctl -qw net.ipv4.tcp_max_orphans=65536")?;
    beside_others(&site, &[ten_thousand])
}

/// Too little of everything.
pub(crate) fn scarce(lab: &Lab) -> Result<()> {
    let site = faults::site(lab, NAMES)?;
    site.apply()?;
    site.vm.sh(
        "mkdir -p /sys/fs/cgroup/helper; echo +memory > /sys/fs/cgroup/cgroup.subtree_control",
    )?;
    beside_others(&site, &[few_descriptors, little_memory, never_accepted])?;
    site.down()?;
    full_maps(&site)
}

/// Nothing of it can be read, and no connection of the others is harmed.
fn beside_others(site: &Site, parts: &[fn(&Site) -> Result<()>]) -> Result<()> {
    let recordings = [
        site.inside("shop").capture("eth0")?,
        site.inside("bell").capture("eth0")?,
    ];
    let other_server = faults::serve(site, "hall", 7100, "threads", "/dev/null")?;
    parts.iter().try_for_each(|part| part(site))?;
    let count = faults::end(&other_server)?;
    ensure!(
        count.is_clean() && count.reset == 0,
        "the others: {count:?}"
    );
    for recording in recordings {
        faults::ensure_sealed(recording, "storms")?;
    }
    Ok(())
}

/// One connection of the two workloads that have nothing to do with the storm.
fn others_are_served(site: &Site, n: u64) -> Result<()> {
    let load = format!("{n} 20000 threads 60");
    let count = faults::ended(&faults::run(site, ("bell", "hall"), 7100, &load)?)?;
    let all = Count {
        lived: n,
        ..Count::default()
    };
    ensure!(count == all, "the others: {count:?}");
    Ok(())
}

fn ten_thousand(site: &Site) -> Result<()> {
    let helper = site.start_helper()?;
    site.vm.sh(&format!("kill -STOP {}", helper.pid()))?;
    let server = faults::serve(site, "cart", 7000, "epoll", "/dev/null")?;
    let client = faults::run(site, ("shop", "cart"), 7000, "10000 2000 epoll 600")?;
    let established = format!("test $(ss -Htn state established | wc -l) = {STORM}");
    site.inside("cart")
        .wait_until(&established, 2 * PATIENCE, "ten thousand connections")?;
    let lost = site.counter("event_lost")?;
    ensure!(
        lost > 0 && site.counter("held")? == 2 * STORM && RING < 2 * STORM,
        "{lost} messages found the ring buffer full"
    );
    site.vm.sh(&format!("kill -CONT {}", helper.pid()))?;
    others_in_between(site)?;
    restarted_in_a_loop(site, helper)?;
    client.signal(KILL)?;
    client.wait(PATIENCE)?;
    server.signal(TERM)?;
    let count = Count::parse(&server.wait(PATIENCE)?.text())?;
    ensure!(count.wrong == 0 && count.lived > 0, "{count:?}");
    // Those that the helper has in hand wait for a minute, in case that somebody else still accepts them.
    faults::wait_until_empty_for(site, 4 * PATIENCE)?;
    others_are_served(site, 1)?;
    let resident = resident_kib(site)?;
    ensure!(resident < 40_000, "the helper has {resident} KiB");
    faults::stop_helper(site)
}

/// They do not wait for the storm: measured in connections of the storm that are sealed meanwhile.
fn others_in_between(site: &Site) -> Result<()> {
    wait_for_sealed(site, 20)?;
    let before = site.sealed()?;
    others_are_served(site, 1)?;
    let between = site.sealed()? - before;
    ensure!(between < STORM / 20, "{between} of the storm came first");
    Ok(())
}

/// Killed ten times, each time when some more are sealed.
fn restarted_in_a_loop(site: &Site, first: Process<'_>) -> Result<()> {
    let mut helper = first;
    for _ in 0..5 {
        wait_for_sealed(site, site.sealed()? + 20)?;
        helper.signal(KILL)?;
        helper.wait(PATIENCE)?;
        helper = site.start_helper()?;
    }
    Ok(())
}

fn wait_for_sealed(site: &Site, n: u64) -> Result<()> {
    site.wait_for_sealed(n, PATIENCE)
        .with_context(|| {
            let logs = site.vm.sh(
                "tail -n 5 /tmp/helper.log; cat /proc/$(cat /run/underseal/handshake.lock)/{status,wchan,stat}; \
                 ps ax -o pid,stat,time,wchan:30,args | tail -n 12; free; true",
            );
            logs.map_or_else(|e| e.to_string(), |logs| logs.text())
        })
}

/// With 64 files three hundred connections are served all the same, in turns.
fn few_descriptors(site: &Site) -> Result<()> {
    site.vm.sh("rm -f /tmp/helper.log /tmp/gate")?;
    let helper = site
        .vm
        .spawn("ulimit -n 64; exec underseal-handshake 2>/tmp/helper.log")?;
    site.vm
        .wait_until("grep -q ready /tmp/helper.log", PATIENCE, "the helper")?;
    let blocked = faults::serve(site, "cart", 7001, "epoll", NEVER)?;
    let waiting = faults::run(site, ("shop", "cart"), 7001, "100 1000 epoll 600")?;
    let server = faults::serve(site, "cart", 7000, "epoll", "/tmp/gate")?;
    let client = faults::run(site, ("shop", "cart"), 7000, "200 20000 epoll 80")?;
    site.inside("shop").wait_until(
        "test $(ss -Htn state established | wc -l) = 300",
        PATIENCE,
        "three hundred connections",
    )?;
    site.vm.sh("touch /tmp/gate")?;
    let count = faults::ended(&client)?;
    let files = site
        .vm
        .sh(&format!("ls /proc/{}/fd | wc -l", helper.pid()))?;
    ensure!(
        count.lived == 200 && count.is_clean(),
        "with few descriptors ({}): {count:?}",
        files.text()
    );
    faults::end(&server)?;
    // The server goes without having accepted: that is a reset, and no more.
    blocked.signal(KILL)?;
    let count = faults::ended(&waiting)?;
    ensure!(count.reset == 100 && count.is_clean(), "{count:?}");
    faults::wait_until_empty(site)?;
    faults::stop_helper(site)
}

/// The helper is killed for want of memory, again and again, until there is some.
fn little_memory(site: &Site) -> Result<()> {
    let vm = &site.vm;
    // The kernel's report of such a kill has a call trace, by which the machine is taken for broken: alerts only.
    vm.sh(
        "dmesg -n 3; rm -f /tmp/enough /tmp/helper.log; echo 400K > /sys/fs/cgroup/helper/memory.max",
    )?;
    let server = faults::serve(site, "cart", 7000, "threads", "/dev/null")?;
    let client = faults::run(site, ("shop", "cart"), 7000, "50 20000 threads 400")?;
    let place = vm.node();
    let helpers = place.spawn(
        "until test -e /tmp/enough; do sh -c 'echo $$ > /sys/fs/cgroup/helper/cgroup.procs; exec underseal-handshake 2>>/tmp/helper.log'; done",
    )?;
    vm.wait_until(
        "test $(sed -n 's/^oom_kill //p' /sys/fs/cgroup/helper/memory.events) -ge 2",
        // The kernel looks for memory for long before it gives up.
        3 * PATIENCE,
        "two helpers killed for want of memory",
    )?;
    vm.sh("echo max > /sys/fs/cgroup/helper/memory.max; dmesg -n 7")?;
    let count = faults::ended(&client)?;
    ensure!(
        count.lived == 50 && count.is_clean(),
        "when there was memory again: {count:?} {}",
        site.helper_log()?
    );
    faults::end(&server)?;
    vm.sh("touch /tmp/enough")?;
    faults::stop_helper(site)?;
    helpers.wait(PATIENCE).map(drop)
}

/// A thousand connections wait for ever. What the helper does for the others costs what it costs without them, and
/// its memory is bounded.
fn never_accepted(site: &Site) -> Result<()> {
    let helper = site.start_helper()?;
    others_are_served(site, 2)?;
    let alone = ticks_for(site, helper.pid())?;
    let server = faults::serve(site, "cart", 7000, "epoll", NEVER)?;
    let clients = [
        faults::run(site, ("shop", "cart"), 7000, "960 2000 epoll 600")?,
        faults::run(site, ("shop", "cart"), 7000, "40 2000 threads 600")?,
    ];
    site.inside("shop").wait_until(
        "test $(ss -Htn state established | wc -l) = 1000",
        PATIENCE,
        "a thousand connections",
    )?;
    others_are_served(site, 2)?;
    let beside = ticks_for(site, helper.pid())?;
    ensure!(
        beside < 2 * alone + 20,
        "20 connections cost {alone} ticks alone and {beside} beside a thousand that wait"
    );
    let resident = resident_kib(site)?;
    ensure!(resident < 40_000, "the helper has {resident} KiB");
    server.signal(KILL)?;
    for client in clients {
        let count = faults::ended(&client)?;
        ensure!(count.is_clean() && count.lived == 0, "{count:?}");
    }
    faults::wait_until_empty(site)?;
    // The records of those that slept are gone with them.
    site.vm.wait_until(
        "test $(bpftool -j map dump pinned /sys/fs/bpf/underseal/maps/SLEEPERS | tr '{' '\\n' | grep -c '\"key\"') = 0",
        PATIENCE,
        "no record of a sleeper",
    )
    .with_context(|| format!("{:?}", site.vm.sh(LEFT_OF_SLEEPERS).map(|said| said.text())))?;
    faults::stop_helper(site)
}

const LEFT_OF_SLEEPERS: &str = "bpftool map dump pinned /sys/fs/bpf/underseal/maps/SLEEPERS | head -n 5; \
    ss -Htan | head -n 5; tail -n 5 /tmp/helper.log";

/// Ticks of the helper for twenty connections of the others.
fn ticks_for(site: &Site, helper: u32) -> Result<u64> {
    let ticks = || -> Result<u64> {
        let script = format!("awk '{{print $14 + $15}}' /proc/{helper}/stat");
        Ok(site.vm.sh(&script)?.text().parse()?)
    };
    let before = ticks()?;
    others_are_served(site, 20)?;
    Ok(ticks()? - before)
}

fn resident_kib(site: &Site) -> Result<u64> {
    let script = "awk '/^VmHWM/ {print $2}' /proc/$(cat /run/underseal/handshake.lock)/status";
    Ok(site.vm.sh(script)?.text().parse()?)
}

/// Small maps: what has no place is reset and counted, with a helper that runs and with one that comes later; what has
/// one is sealed; and when there is room again everything is.
fn full_maps(site: &Site) -> Result<()> {
    let with = |room: &str| site.vm.node().env("UNDERSEAL_ROOM", room);
    let said = with("NETNS:1").try_sh("underseal-controls apply")?;
    ensure!(
        said.code == Some(1) && said.error_text().contains("taken back"),
        "apply with room for one namespace: {said:?}"
    );
    with("CONNS:8").sh("underseal-controls apply")?;
    for helper_is_there in [true, false] {
        full_table(site, helper_is_there).with_context(|| {
            let when = if helper_is_there { "with" } else { "before" };
            format!("the table is full, {when} a helper")
        })?;
    }
    faults::stop_helper(site)?;
    site.down()?;

    with("SLEEPERS:2").sh("underseal-controls apply")?;
    site.vm.sh("rm -f /tmp/gate")?;
    let server = faults::serve(site, "cart", 7000, "threads", "/tmp/gate")?;
    let client = faults::run(site, ("shop", "cart"), 7000, "4 20000 threads 60")?;
    wait_for_waiting(site, 4)?;
    site.start_helper()?;
    site.vm.sh("touch /tmp/gate")?;
    let count = faults::ended(&client)?;
    ensure!(
        count.is_clean() && count.reset >= 2 && site.counter("reset_restart")? >= 2,
        "more sleepers than room: {count:?}"
    );
    others(site, &server, "cart")?;
    faults::stop_helper(site)?;
    site.down().map(drop)
}

/// The server is asked again, and answers.
fn others(site: &Site, server: &Process<'_>, name: &str) -> Result<()> {
    let count = faults::ended(&faults::run(
        site,
        ("shop", name),
        7000,
        "1 20000 epoll 60",
    )?)?;
    ensure!(count.lived == 1, "when there is room again: {count:?}");
    let count = faults::end(server)?;
    ensure!(count.is_clean(), "the server: {count:?}");
    Ok(())
}

fn full_table(site: &Site, helper_is_there: bool) -> Result<()> {
    let before = site.counter("reset_full")?;
    site.vm.sh("rm -f /tmp/gate")?;
    if helper_is_there {
        site.start_helper()?;
    } else {
        faults::stop_helper(site)?;
    }
    let server = faults::serve(site, "cart", 7000, "epoll", "/tmp/gate")?;
    let client = faults::run(site, ("shop", "cart"), 7000, "20 20000 epoll 60")?;
    if helper_is_there {
        wait_for_reset(site, before + 1)?;
    } else {
        wait_for_waiting(site, 20)?;
        site.start_helper()?;
        wait_for_reset(site, before + 1)?;
    }
    site.vm.sh("touch /tmp/gate")?;
    let count = faults::ended(&client)?;
    ensure!(
        count.is_clean() && count.lived >= 1 && count.reset >= 10,
        "room for four: {count:?}"
    );
    ensure!(site.counter("map_full")? > 0, "the table was not full");
    faults::wait_until_empty(site)?;
    others(site, &server, "cart")
}

fn wait_for_waiting(site: &Site, n: u64) -> Result<()> {
    let condition = format!("test $(ss -Htn state established | wc -l) = {n}");
    site.inside("shop")
        .wait_until(&condition, PATIENCE, &format!("{n} connections"))
}

fn wait_for_reset(site: &Site, n: u64) -> Result<()> {
    let condition = format!(
        "test $(underseal --json status | tr -d ' \\n' | grep -o '\"name\":\"reset_full\",\"count\":[0-9]*' | grep -o '[0-9]*$') -ge {n}"
    );
    site.vm
        .wait_until(&condition, PATIENCE, "a reset for want of room")
}
