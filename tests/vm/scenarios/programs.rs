//! The two small programs that several scenarios share: they sleep in the kernel at the moment of the hand-over.

use std::time::Duration;

use anyhow::Result;
use underseal_vm::Process;
use underseal_vm::site::Site;

const PORT: u16 = 7000;

/// Puts both into the guest.
pub(crate) fn put(site: &Site) -> Result<()> {
    site.vm.put(
        "/tmp/late_server.py",
        include_bytes!("programs/late_server.py"),
        0o644,
    )?;
    site.vm.put(
        "/tmp/eager_client.py",
        include_bytes!("programs/eager_client.py"),
        0o644,
    )
}

/// Lets `shop` connect to `cart` at `host` and send; only when it sleeps there does the server accept.
pub(crate) fn eager<'site>(site: &'site Site, host: &str, flag: &str) -> Result<Process<'site>> {
    site.vm.sh("rm -f /tmp/accept")?;
    site.inside("cart")
        .spawn(&format!("exec python3 /tmp/late_server.py {PORT}"))?;
    site.workload("cart").wait_for_port(&site.vm, PORT)?;
    let client = site.inside("shop").spawn(&format!(
        "exec python3 /tmp/eager_client.py {host} {PORT} {flag}"
    ))?;
    // Both threads are in the kernel: one in recvfrom, one in sendto.
    let asleep = format!(
        "cat /proc/{0}/task/*/syscall | grep -c -E '^(44|45) ' | grep -qx 2",
        client.pid()
    );
    site.vm.wait_until(
        &asleep,
        Duration::from_secs(30),
        "both threads of the client to sleep",
    )?;
    site.vm.sh("touch /tmp/accept")?;
    Ok(client)
}
