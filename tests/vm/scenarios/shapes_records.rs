//! Records of tasks in send and recv on sockets that are not connected: they go when the connect fails, or when the
//! socket is closed, and the socket can be connected again.

use std::time::Duration;

use anyhow::{Result, ensure};
use underseal_vm::site::Site;

const PATIENCE: Duration = Duration::from_secs(60);
/// Well below the time after which every record is deleted whose connection nobody knows.
const SOON: Duration = Duration::from_secs(30);

/// The helper runs, and nobody else makes connections.
pub(crate) fn go(site: &Site) -> Result<()> {
    let program = include_bytes!("programs/connects_in_vain.py");
    site.vm.put("/tmp/in_vain.py", program, 0o644)?;
    let [shop, cart] = ["shop", "cart"].map(|name| site.workload(name));
    let server = site.inside("cart").spawn(&format!(
        "exec python3 -c \"import socket; server = socket.create_server(('{}', 7000)); client = server.accept()[0]
client.sendall(client.recv(100)); client.recv(1)\"",
        cart.v4
    ))?;
    cart.wait_for_port(&site.vm, 7000)?;
    let client = site.inside("shop").spawn(&format!(
        "exec python3 /tmp/in_vain.py {} >/tmp/did 2>&1",
        cart.v4
    ))?;
    none(site, SOON)?;
    let step = |file: &str| site.vm.sh(&format!("touch /tmp/vain.{file}"));
    let unanswered = |how| format!("ip route {how} blackhole {}/32", shop.v4);
    site.inside("cart").sh(&unanswered("add"))?;
    step("begin")?;
    did(site, "begun")?;
    ensure!(
        count(site)? > 0,
        "no record of a call, and the test misses its point"
    );
    site.inside("cart").sh(&unanswered("del"))?;
    none(site, SOON)?;

    step("refused")?;
    did(site, "called again")?;
    ensure!(count(site)? == 0, "a record of a call that cannot wait");
    step("listening")?;
    did(site, "connected")?;

    let no_way = |how| format!("ip route {how} unreachable {}/32", cart.v4);
    site.inside("shop").sh(&no_way("add"))?;
    step("nowhere")?;
    did(site, "without a way")?;
    site.inside("shop").sh(&no_way("del"))?;
    ensure!(
        count(site)? > 0,
        "no record of a call before there is a SYN, and the test misses its point"
    );
    step("enough")?;
    did(site, "closed")?;
    none(site, SOON)?;
    step("end")?;
    client.wait(PATIENCE)?.successful()?;
    server.wait(PATIENCE).map(drop)
}

/// Waits until there is no record.
pub(crate) fn none(site: &Site, patience: Duration) -> Result<()> {
    let none = format!("test $({COUNT}) = 0");
    site.vm
        .wait_until(&none, patience, "the last record of a task to go")
}

/// How many keys bpftool shows, which may show each in two ways.
fn count(site: &Site) -> Result<u64> {
    Ok(site.vm.try_sh(COUNT)?.text().trim().parse()?)
}

fn did(site: &Site, what: &str) -> Result<()> {
    site.vm
        .wait_until(&format!("grep -q '^{what}' /tmp/did"), PATIENCE, what)
}

const COUNT: &str = "bpftool -j map dump pinned /sys/fs/bpf/underseal/maps/SLEEPERS | tr '{' '\\n' | grep -c '\"key\"'";
