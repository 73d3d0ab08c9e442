//! Root inside a workload, with CAP_NET_ADMIN and CAP_NET_RAW, harms only itself: it forges segments of its neighbours,
//! by raw sockets and by frames; puts plaintext into its own sealed connection; sets its sysctl and its option; speaks
//! TCP without a socket; moves its interface, and with it its address, into a namespace that nobody has taken over;
//! gives itself its neighbours' addresses. No neighbour's connection is disturbed, and no server says a word in
//! plaintext, or hears one.
//!
//! ```text
//!   shop: attacker.py ── h-shop ── node ── h-cart ── cart: greeter.py, storm serve
//!   bell: storm run   ── h-bell ──
//! ```

use anyhow::{Context as _, Result, ensure};
use underseal_vm::Lab;
use underseal_vm::capture::PathCount;
use underseal_vm::main_job::{MARKER, seen};
use underseal_vm::site::Site;
use underseal_vm::topology::Node;

use crate::faults::{self, Count, KILL, PATIENCE};

const EVIL: &str = "EVIL-PLAINTEXT-OF-THE-ATTACKER";
const HEARD: &str = "/tmp/heard";

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let names = [("shop", 10), ("cart", 11), ("bell", 12)];
    let site = faults::site(lab, &names)?;
    let programs = [
        (
            "/tmp/attacker.py",
            include_bytes!("programs/attacker.py").as_slice(),
        ),
        ("/tmp/greeter.py", include_bytes!("programs/greeter.py")),
    ];
    for (path, text) in programs {
        site.vm.put(path, text, 0o644)?;
    }
    site.apply()?;
    site.start_helper()?;
    greeter(&site)?;
    let recordings = [
        site.inside("cart").capture("eth0")?,
        site.inside("bell").capture("eth0")?,
    ];
    spoofed(&site)?;
    into_its_own_stream(&site)?;
    own_sysctl(&site)?;
    without_a_socket(&site)?;
    another_namespace(&site)?;
    impostor(&site)?;
    neighbours_are_served(&site, 7100)?;
    for recording in recordings {
        let count = seen(&recording.stop()?);
        // Its own plaintext is its own affair; the marker is the server's.
        ensure!(count.marker_hits == 0 && count.tls_records > 0, "{count:?}");
    }
    let heard = site.vm.sh(&format!("cat {HEARD}"))?.text();
    ensure!(
        !heard.contains(EVIL) && heard.contains("first"),
        "the server heard {heard}"
    );
    control(&site)
}

fn greeter(site: &Site) -> Result<()> {
    site.inside("cart").spawn(&format!(
        "exec python3 /tmp/greeter.py 7000 {MARKER} {HEARD}"
    ))?;
    site.workload("cart").wait_for_port(&site.vm, 7000)
}

/// Runs it to its end; what it has seen.
fn attack(site: &Site, what: &str) -> Result<String> {
    let script = format!("exec python3 /tmp/attacker.py {what}");
    let said = site.inside("shop").sh_for(&script, PATIENCE);
    Ok(said.with_context(|| what.to_owned())?.text())
}

fn neighbours_are_served(site: &Site, port: u16) -> Result<()> {
    let server = faults::serve(site, "cart", port, "epoll", "/dev/null")?;
    let client = faults::run(site, ("bell", "cart"), port, "2 20000 threads 60")?;
    let count = faults::ended(&client)?;
    ensure!(count.lived == 2, "the neighbours: {count:?}");
    let count = faults::end(&server)?;
    ensure!(
        count.is_clean() && count.lived == 2,
        "their server: {count:?}"
    );
    Ok(())
}

/// A neighbour's connection is under way, held, when segments come in its name: they arrive nowhere.
fn spoofed(site: &Site) -> Result<()> {
    site.vm.sh("rm -f /tmp/gate")?;
    let server = faults::serve(site, "cart", 7200, "epoll", "/tmp/gate")?;
    let client = faults::run(site, ("bell", "cart"), 7200, "1 20000 threads 60")?;
    site.inside("bell").wait_until(
        "ss -Htn state established | grep -q :7200",
        PATIENCE,
        "the neighbour",
    )?;
    let port = site
        .inside("bell")
        .sh("ss -Htn state established | sed 's/.*10.1.0.12:\\([0-9]*\\) .*/\\1/'")?
        .text();
    let before = site.counter("drop_spoofed")?;
    // The gateway's address has to be known to the neighbour table first.
    site.inside("shop").sh("ping -c 1 -W 5 10.1.0.1")?;
    let recording = site.inside("cart").capture("eth0")?;
    attack(site, &format!("spoof 10.1.0.12 {port} 10.1.0.11 7200"))?;
    let dropped = site.counter("drop_spoofed")? - before;
    let count = seen(&recording.stop()?);
    ensure!(
        dropped == 16 && count.plaintext_segments == 0,
        "{dropped} of 16 forged segments dropped; {count:?}"
    );
    site.vm.sh("touch /tmp/gate")?;
    let all = Count {
        lived: 1,
        ..Count::default()
    };
    let counts = (faults::ended(&client)?, faults::end(&server)?);
    ensure!(counts == (all, all), "the neighbour: {counts:?}");
    Ok(())
}

/// The server's kernel finds that it is no record, and says so to the server.
fn into_its_own_stream(site: &Site) -> Result<()> {
    let before = heard_lines(site)?;
    let said = attack(site, "own 10.1.0.11 7000")?;
    ensure!(said != MARKER, "{said}");
    let condition = format!("test $(wc -l <{HEARD}) -ge {}", before + 2);
    site.vm
        .wait_until(&condition, PATIENCE, "the server to see an error")?;
    let last = site.vm.sh(&format!("tail -n 1 {HEARD}"))?.text();
    ensure!(
        last.starts_with("errno"),
        "the server read {last:?} and no error"
    );
    Ok(())
}

fn heard_lines(site: &Site) -> Result<u64> {
    let script = format!("touch {HEARD}; wc -l <{HEARD}");
    Ok(site.vm.sh(&script)?.text().parse()?)
}

fn own_sysctl(site: &Site) -> Result<()> {
    let sysctl = |bytes: &str| {
        site.inside("shop")
            .sh(&format!("sysctl -qw net.ipv4.tcp_notsent_lowat={bytes}"))
    };
    sysctl("4294967295")?;
    let recording = site.inside("shop").capture("eth0")?;
    let before = site.counter("drop_unsealed")?;
    // A helper that is quick would have it sealed before it sends.
    site.vm
        .sh("kill -STOP $(cat /run/underseal/handshake.lock)")?;
    let attacker = site
        .inside("shop")
        .spawn("exec python3 /tmp/attacker.py plain 10.1.0.11 7000")?;
    site.inside("shop").wait_until(
        "ss -Htn state established 'dport = :7000' | awk '$2 > 0 {sent = 1} END {exit !sent}'",
        PATIENCE,
        "the attacker to send",
    )?;
    site.vm
        .sh("kill -CONT $(cat /run/underseal/handshake.lock)")?;
    let said = attacker.wait(PATIENCE)?.successful()?.text();
    let count = seen(&recording.stop()?);
    ensure!(
        !count.is_readable() && !said.contains(MARKER),
        "with its own sysctl: {said} {count:?}"
    );
    ensure!(
        site.counter("drop_unsealed")? > before,
        "the guard had nothing to do: the test misses its point"
    );
    sysctl("0")?;
    // And its option alone changes nothing: the connection is sealed.
    let said = attack(site, "plain 10.1.0.11 7000")?;
    ensure!(said.contains(MARKER), "with its own option: {said}");
    // It has sent that by its own, sealed connection.
    site.vm.sh(&format!("sed -i '/{EVIL}/d' {HEARD}"))?;
    greeter_again(site)
}

/// The log was rewritten, so it is opened again.
fn greeter_again(site: &Site) -> Result<()> {
    site.vm.sh("pkill -f '[g]reeter.py'")?;
    site.inside("cart").wait_until(
        "! ss -Hltn 'sport = :7000' | grep -q .",
        PATIENCE,
        "the server's end",
    )?;
    greeter(site)
}

fn without_a_socket(site: &Site) -> Result<()> {
    site.inside("shop").sh("ip route add blackhole 10.1.0.11")?;
    let before = site.counter("drop_unsealed_ingress")?;
    let said = attack(site, "handshake 10.1.0.10 10.1.0.11 7000")?;
    ensure!(said == "reset", "the server answered by {said}");
    ensure!(
        site.counter("drop_unsealed_ingress")? > before,
        "nothing arrived: the test misses its point"
    );
    site.inside("shop")
        .sh("ip route del blackhole 10.1.0.11")
        .map(drop)
}

/// No program knows the namespace, so nothing in it is held.
fn another_namespace(site: &Site) -> Result<()> {
    let address = "addr add 10.1.0.10/32 dev eth0";
    let route = "route add default via 10.1.0.1 dev eth0 onlink";
    let into = |from: &str, to: &str| {
        format!(
            "ip -n {from} link set eth0 netns {to}; ip -n {to} {address}; ip -n {to} link set eth0 up; ip -n {to} {route}"
        )
    };
    site.vm
        .sh(&format!("ip netns add inner; {}", into("shop", "inner")))?;
    let before = site.counter("drop_unknown")?;
    let said = site
        .inside("inner")
        .sh_for(
            "exec python3 /tmp/attacker.py plain 10.1.0.11 7000",
            PATIENCE,
        )?
        .text();
    ensure!(
        !said.contains(MARKER) && site.counter("drop_unknown")? > before,
        "from another namespace: {said}"
    );
    site.vm
        .sh(&format!("{}; ip netns del inner", into("inner", "shop")))?;
    let said = attack(site, "plain 10.1.0.11 7000")?;
    ensure!(said.contains(MARKER), "back again: {said}");
    site.vm.sh(&format!("sed -i '/{EVIL}/d' {HEARD}"))?;
    greeter_again(site)
}

/// An end with the addresses and ports of the neighbour's connection is not taken for the neighbour's.
fn impostor(site: &Site) -> Result<()> {
    site.vm.sh("rm -f /tmp/gate")?;
    let server = faults::serve(site, "cart", 7300, "epoll", "/tmp/gate")?;
    let client = faults::run(site, ("bell", "cart"), 7300, "1 20000 threads 60")?;
    site.inside("bell").wait_until(
        "ss -Htn state established | grep -q :7300",
        PATIENCE,
        "the neighbour",
    )?;
    let port = site
        .inside("bell")
        .sh("ss -Htn state established | sed 's/.*10.1.0.12:\\([0-9]*\\) .*/\\1/'")?
        .text();
    let addresses = |verb: &str| {
        site.inside("shop").sh(&format!(
            "ip addr {verb} 10.1.0.11/32 dev lo; ip addr {verb} 10.1.0.12/32 dev lo"
        ))
    };
    addresses("add")?;
    let before = site.counter("reset_refused")?;
    let said = attack(site, &format!("impostor 10.1.0.12 {port} 10.1.0.11 7300"))?;
    ensure!(
        !said.contains(EVIL) && site.counter("reset_refused")? > before,
        "the impostor: {said}"
    );
    addresses("del")?;
    site.vm.sh("touch /tmp/gate")?;
    let all = Count {
        lived: 1,
        ..Count::default()
    };
    let counts = (faults::ended(&client)?, faults::end(&server)?);
    ensure!(counts == (all, all), "the neighbour: {counts:?}");
    Ok(())
}

/// Without Underseal the forged segments arrive, and the server answers in plaintext.
fn control(site: &Site) -> Result<()> {
    site.down()?;
    Node(1).forward(&site.vm)?;
    let recording = site.inside("cart").capture("eth0")?;
    attack(site, "spoof 10.1.0.12 1234 10.1.0.11 7000")?;
    attack(site, "plain 10.1.0.11 7000")?;
    let count: PathCount = seen(&recording.stop()?);
    ensure!(
        count.marker_hits > 0 && count.plaintext_segments >= 4,
        "the control finds nothing: {count:?}"
    );
    site.vm
        .sh(&format!("pkill -{KILL} -f '[g]reeter.py'"))
        .map(drop)
}
