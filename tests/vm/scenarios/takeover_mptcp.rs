//! MPTCP sockets that are older than the take-over. Nobody can seal those: what they ask for is refused, what they are
//! about to get is reset, and what they have ends. A listener serves TCP clients, and they are sealed.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use underseal_vm::main_job::seen;
use underseal_vm::site::{Settings, Site};
use underseal_vm::{Place, Process};

/// MPTCP gives a socket without a subflow a minute.
const PATIENCE: Duration = Duration::from_secs(180);
const MPTCP: u16 = 262;
const TCP: u16 = 6;
/// The node, as workloads see it.
const GATEWAY: &str = "10.1.0.1";

pub(crate) fn run(site: &Site) -> Result<()> {
    site.configure(&Settings {
        existing: "keep",
        ..Settings::default()
    })?;
    let program = include_bytes!("programs/old_mptcp.py");
    site.vm.put("/tmp/old_mptcp.py", program, 0o644)?;
    let [shop, cart] = ["shop", "cart"].map(|name| site.workload(name));
    let own = cart.v4.to_string();
    let servers = [
        serve(&site.inside("cart"), MPTCP, &own, 7000)?,
        serve(&site.inside("cart"), TCP, &own, 7001)?,
        serve(&site.vm.node(), MPTCP, GATEWAY, 7000)?,
    ];
    let client = site.inside("shop").spawn(&format!(
        "exec python3 /tmp/old_mptcp.py connect {own} {GATEWAY} >/tmp/said"
    ))?;
    let wait = |condition, what| site.vm.wait_until(condition, PATIENCE, what);
    wait("grep -q 'outside before' /tmp/said", "two answers")?;
    let unreachable = |how| format!("ip route {how} blackhole {}/32", shop.v4);
    site.inside("cart").sh(&unreachable("add"))?;
    site.vm.sh("touch /tmp/unreachable")?;
    wait(
        "test -e /tmp/begun",
        "two connections that are being established",
    )?;
    let sockets = site.inside("shop").sh("ss -Htain")?.text();
    ensure!(
        sockets.matches("tcp-ulp-mptcp").count() == 4,
        "these are no MPTCP connections, and the test misses its point: {sockets}"
    );
    let said = site.apply()?.text();
    for peer in [&own, GATEWAY] {
        ensure!(
            said.contains(&format!("{peer}:7000 of")),
            "apply does not name the open connection: {said}"
        );
    }
    let helper = site.start_helper()?;
    let recording = site.inside("shop").capture("eth0")?;
    site.inside("cart").sh(&unreachable("del"))?;
    site.vm.sh("touch /tmp/applied")?;
    client.wait(PATIENCE)?.successful()?;
    let log = site.helper_log()?;
    judge(&site.vm.sh("cat /tmp/said")?.text()).context(log)?;
    let count = seen(&recording.stop()?);
    ensure!(count.tls_records > 0, "no TCP client is sealed: {count:?}");
    let [refused, reset] = ["refused_mptcp", "reset_mptcp"].map(|name| site.counter(name));
    let (refused, reset) = (refused?, reset?);
    // A server's end may be seen before it hears of the reset.
    ensure!(
        refused >= 5 && (2..=3).contains(&reset),
        "refused_mptcp {refused}, reset_mptcp {reset}"
    );
    for process in servers.iter().chain([&helper]) {
        process.signal(15)?;
        process.wait(PATIENCE)?;
    }
    site.down().map(drop)
}

/// What has become of each socket.
fn judge(said: &str) -> Result<()> {
    for (name, may_be) in [
        ("inside before", &["answered"][..]),
        ("outside before", &["answered"]),
        ("idle", &["EPROTONOSUPPORT"]),
        ("begun to mptcp", ENDED),
        ("begun to tcp", ENDED),
        ("tcp", &["answered"]),
        ("inside after", ENDED),
        ("outside after", ENDED),
    ] {
        let became = said
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name}: ")));
        ensure!(
            became.is_some_and(|became| may_be.contains(&became)),
            "{name}: {became:?}, not one of {may_be:?}"
        );
    }
    Ok(())
}

/// Not "timed out": that would be a call that waits for ever.
const ENDED: &[&str] = &["ECONNRESET", "ECONNABORTED", "ENOTCONN", "EPIPE", "ended"];

fn serve<'vm>(place: &Place<'vm>, protocol: u16, address: &str, port: u16) -> Result<Process<'vm>> {
    let server = place.spawn(&format!(
        "exec python3 /tmp/old_mptcp.py listen {protocol} {address} {port}"
    ))?;
    let listens = format!("ss -Hltn 'sport = :{port}' | grep -q .");
    place.wait_until(&listens, PATIENCE, "a listener")?;
    Ok(server)
}
