//! The clock jumps: certificates that have expired, or are not valid yet, refuse new connections with the reason; open
//! ones go on; and when the clock is right again all is well. Workloads disappear while a connection of theirs is held,
//! or in the middle of its handshake: nothing leaks, nothing stays, and the others are served.
//!
//! ```text
//!   shop: open.py, storm run ── h-shop ── node ── h-cart ── cart: greeter.py, storm serve
//!   gone: storm run          ── h-gone ──  (deleted)
//! ```

use anyhow::{Result, ensure};
use underseal_vm::Lab;
use underseal_vm::site::Site;

use crate::faults::{self, Count, KILL, PATIENCE};

/// Asks when told to; each answer is the server's word.
const OPEN: &str = "import os, socket, time
s = socket.create_connection(('10.1.0.11', 7400))
said = s.recv(100)
for turn in range(3):
    while not os.path.exists('/tmp/turn%d' % turn): time.sleep(0.02)
    s.sendall(b'again')
    said = s.recv(100)
    open('/tmp/answer%d' % turn, 'wb').write(said)
";

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let names = [("shop", 10), ("cart", 11), ("gone", 12), ("lost", 13)];
    let site = faults::site(lab, &names)?;
    site.apply()?;
    let recordings = [
        site.inside("shop").capture("eth0")?,
        site.inside("cart").capture("eth0")?,
    ];
    let server = faults::serve(&site, "cart", 7000, "epoll", "/dev/null")?;
    clock(&site)?;
    deleted_while_held(&site)?;
    deleted_in_the_handshake(&site)?;
    let count = faults::end(&server)?;
    ensure!(count.is_clean(), "the server: {count:?}");
    for recording in recordings {
        faults::ensure_sealed(recording, "clock and deleted workloads")?;
    }
    Ok(())
}

fn one(site: &Site) -> Result<Count> {
    faults::ended(&faults::run(
        site,
        ("shop", "cart"),
        7000,
        "1 20000 epoll 60",
    )?)
}

fn clock(site: &Site) -> Result<()> {
    let vm = &site.vm;
    site.start_helper()?;
    vm.put("/tmp/open.py", OPEN.as_bytes(), 0o644)?;
    vm.put(
        "/tmp/greeter.py",
        include_bytes!("programs/greeter.py"),
        0o644,
    )?;
    site.inside("cart")
        .spawn("exec python3 /tmp/greeter.py 7400 word /dev/null")?;
    site.workload("cart").wait_for_port(vm, 7400)?;
    let open = site.inside("shop").spawn("exec python3 /tmp/open.py")?;
    // Twice, so that a handshake made ahead with what was valid then lies ready.
    ensure!(one(site)?.lived == 1, "before");
    ensure!(one(site)?.lived == 1, "before, again");
    for (turn, (jump, back, reason)) in [
        ("+2 days", "-2 days", "expired at"),
        ("-3 days", "+3 days", "valid only from"),
    ]
    .into_iter()
    .enumerate()
    {
        let before = site.counter("reset_refused")?;
        vm.sh(&format!("date -s '{jump}'"))?;
        let count = one(site)?;
        let log = site.helper_log()?;
        ensure!(
            count.reset == 1 && log.contains(reason) && site.counter("reset_refused")? > before,
            "{jump}: {count:?} {log}"
        );
        answer(site, turn)?;
        vm.sh(&format!("date -s '{back}'"))?;
        ensure!(one(site)?.lived == 1, "after {jump}, with the right time");
    }
    answer(site, 2)?;
    open.wait(PATIENCE)?.successful().map(drop)
}

/// Over the connection that was open before.
fn answer(site: &Site, turn: usize) -> Result<()> {
    site.vm.sh(&format!("touch /tmp/turn{turn}"))?;
    site.vm.wait_until(
        &format!("grep -qx word /tmp/answer{turn}"),
        PATIENCE,
        "an answer over the open connection",
    )
}

fn delete(site: &Site, name: &str) -> Result<()> {
    // As a runtime does: kill, and remove the name. What still has the namespace keeps its interface.
    site.vm.sh(&format!(
        "ip netns pids {name} | xargs -r kill -{KILL}; ip netns del {name}"
    ))?;
    site.vm.wait_until(
        &format!("! ip link show h-{name} 2>/dev/null"),
        PATIENCE,
        "the end of the namespace",
    )
}

fn deleted_while_held(site: &Site) -> Result<()> {
    let never = faults::serve(site, "cart", 7500, "epoll", "/tmp/never")?;
    faults::run(site, ("gone", "cart"), 7500, "3 20000 threads 600")?;
    site.inside("gone").wait_until(
        "test $(ss -Htn state established | wc -l) = 3",
        PATIENCE,
        "three connections",
    )?;
    // The helper has taken the sockets: it alone would keep them open.
    let taken = "ls -l /proc/$(cat /run/underseal/handshake.lock)/fd | grep -c socket: | awk '{exit !($1 >= 3)}'";
    site.vm
        .wait_until(taken, PATIENCE, "the helper to take them")?;
    delete(site, "gone")?;
    never.signal(KILL)?;
    never.wait(PATIENCE)?;
    faults::wait_until_empty(site)?;
    ensure!(one(site)?.lived == 1, "the others");
    faults::stop_helper(site)
}

/// The helper has both sockets and stops with the handshake done; when it goes on there is nobody any more.
fn deleted_in_the_handshake(site: &Site) -> Result<()> {
    let helper = site.start_twin(&site.vm.node().env("UNDERSEAL_STOP", "handshake:1"))?;
    faults::run(site, ("lost", "cart"), 7000, "1 20000 threads 600")?;
    let stopped = format!("grep -q '^State:.T' /proc/{}/status", helper.pid());
    site.vm
        .wait_until(&stopped, PATIENCE, "the helper to stop")?;
    site.vm.sh(&format!(
        "ip netns pids lost | xargs -r kill -{KILL}; ip netns del lost"
    ))?;
    site.vm.sh(&format!("kill -CONT {}", helper.pid()))?;
    site.vm.wait_until(
        "! ip link show h-lost 2>/dev/null",
        PATIENCE,
        "the end of the namespace",
    )?;
    faults::wait_until_empty(site)?;
    ensure!(one(site)?.lived == 1, "the others");
    Ok(())
}
