//! What `identities` and `recheck` share: a connection over which somebody types.

use std::time::Duration;

use anyhow::{Context as _, Result};
use underseal_vm::Process;
use underseal_vm::site::Site;

const PATIENCE: Duration = Duration::from_secs(60);
const KILL: i32 = 9;

/// A sealed connection to `cart` that lines are sent over.
pub(crate) struct Session<'a> {
    site: &'a Site,
    from: &'a str,
    port: u16,
    client: Process<'a>,
}

impl<'a> Session<'a> {
    /// One from the workload `from`, over which a line has been sent.
    pub(crate) fn open(site: &'a Site, from: &'a str, port: u16) -> Result<Self> {
        site.inside("cart")
            .spawn(&format!("exec nc -l {port} >/tmp/heard{port}"))?;
        let cart = site.workload("cart");
        cart.wait_for_port(&site.vm, port)?;
        site.vm.sh(&format!("touch /tmp/typed{port}"))?;
        let client = site.inside(from).spawn(&format!(
            "tail -n +1 -f /tmp/typed{port} | exec nc {} {port}",
            cart.v4
        ))?;
        let session = Self {
            site,
            from,
            port,
            client,
        };
        session.says("before")?;
        Ok(session)
    }

    /// Sends a line, and waits until the server has it.
    pub(crate) fn says(&self, line: &str) -> Result<()> {
        let port = self.port;
        self.site
            .vm
            .sh(&format!("echo '{line}' >>/tmp/typed{port}"))?;
        self.site.vm.wait_until(
            &format!("grep -q '{line}' /tmp/heard{port}"),
            PATIENCE,
            line,
        )
    }

    /// It has been ended; neither end has a socket of it.
    pub(crate) fn ends(&self) -> Result<()> {
        let port = self.port;
        self.site.inside("cart").wait_until(
            &format!("test -z \"$(ss -Htn state established '( sport = :{port} )')\""),
            PATIENCE,
            "the end of a connection that is refused now",
        )?;
        self.site.inside(self.from).wait_until(
            &format!("test -z \"$(ss -Htn state established '( dport = :{port} )')\""),
            PATIENCE,
            "the end of it at the client",
        )?;
        // tail goes when it writes next.
        self.site.vm.sh(&format!("echo end >>/tmp/typed{port}"))?;
        self.client.signal(KILL).context("the client")
    }
}
