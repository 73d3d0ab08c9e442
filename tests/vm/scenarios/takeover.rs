//! Connections that are open when their namespace is taken over: one between workloads is reset (or kept, if the
//! configuration says so), and apply names it; one with somebody else goes on. MPTCP ends (`takeover_mptcp.rs`).
//!
//! ```text
//!   shop: nc ── h-shop ── node (plain forwarding; nc on the gateway address) ── h-cart ── cart: nc
//! ```

use std::time::Duration;

use anyhow::{Result, ensure};
use underseal_vm::site::{Settings, Site};
use underseal_vm::topology::Node;
use underseal_vm::{Lab, Process, VmOptions};

use crate::takeover_mptcp;

const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let vm = lab.boot(&VmOptions::default())?;
    let site = Site::pair(&vm)?;
    Node(1).forward(&vm)?;
    for (existing, survives) in [("keep", true), ("reset", false)] {
        site.configure(&Settings {
            existing,
            ..Settings::default()
        })?;
        let cart = site.workload("cart").v4.to_string();
        let inside = talk(&site, "inside", "cart", &cart)?;
        let outside = talk(&site, "outside", "", "10.1.0.1")?;
        let said = site.apply()?.text();
        ensure!(
            said.contains(&format!("{cart}:7000")),
            "apply does not name the open connection: {said}"
        );
        vm.sh("touch /tmp/applied")?;
        vm.wait_until(
            "grep -q after /tmp/outside",
            PATIENCE,
            "a line over the connection with the host",
        )?;
        if survives {
            vm.wait_until(
                "grep -q after /tmp/inside",
                PATIENCE,
                "a line over the kept connection",
            )?;
        } else {
            ensure!(
                inside.wait(PATIENCE)?.code != Some(0),
                "the client of the reset connection saw no error"
            );
            ensure!(
                vm.sh("cat /tmp/inside")?.text() == "before",
                "data over a connection that was reset"
            );
        }
        for process in [inside, outside] {
            process.signal(9)?;
        }
        vm.sh("pkill -x nc; pkill -x python3; rm /tmp/applied; true")?;
        site.down()?;
    }
    takeover_mptcp::run(&site)
}

/// A connection from `shop` over which one line has gone, and another follows after the apply.
fn talk<'site>(site: &'site Site, file: &str, server: &str, host: &str) -> Result<Process<'site>> {
    let place = if server.is_empty() {
        site.vm.node()
    } else {
        site.inside(server)
    };
    place.spawn(&format!("exec nc -l {host} 7000 >/tmp/{file}"))?;
    place.wait_until("ss -Hltn 'sport = :7000' | grep -q .", PATIENCE, "nc")?;
    let client = format!(
        "import os, socket, time
s = socket.create_connection(('{host}', 7000))
s.sendall(b'before\\n')
while not os.path.exists('/tmp/applied'): time.sleep(0.02)
s.sendall(b'after\\n')
s.recv(1)
"
    );
    site.vm
        .put(&format!("/tmp/{file}.py"), client.as_bytes(), 0o644)?;
    let client = site
        .inside("shop")
        .spawn(&format!("exec python3 /tmp/{file}.py"))?;
    site.vm.wait_until(
        &format!("grep -q before /tmp/{file}"),
        PATIENCE,
        "the first line",
    )?;
    Ok(client)
}
