//! What `identities`, `recheck` and `remote_recheck` share: a connection over which somebody types.

use std::time::Duration;

use anyhow::{Context as _, Result};
use underseal_vm::Process;
use underseal_vm::site::Site;

const PATIENCE: Duration = Duration::from_secs(60);
const KILL: i32 = 9;

/// A sealed connection that lines are sent over.
pub(crate) struct Session<'a> {
    from: (&'a Site, &'a str),
    to: (&'a Site, &'a str),
    port: u16,
    client: Process<'a>,
}

impl<'a> Session<'a> {
    /// One from the workload `from` to `cart`, over which a line has been sent.
    pub(crate) fn open(site: &'a Site, from: &'a str, port: u16) -> Result<Self> {
        Self::between((site, from), (site, "cart"), port)
    }

    /// The same between any two workloads.
    pub(crate) fn between(
        from: (&'a Site, &'a str),
        to: (&'a Site, &'a str),
        port: u16,
    ) -> Result<Self> {
        to.0.inside(to.1)
            .spawn(&format!("exec nc -l {port} >/tmp/heard{port}"))?;
        let server = to.0.workload(to.1);
        server.wait_for_port(&to.0.vm, port)?;
        from.0.vm.sh(&format!("touch /tmp/typed{port}"))?;
        let client = from.0.inside(from.1).spawn(&format!(
            "tail -n +1 -f /tmp/typed{port} | exec nc {} {port}",
            server.v4
        ))?;
        let session = Self {
            from,
            to,
            port,
            client,
        };
        session.says("before")?;
        Ok(session)
    }

    /// Sends a line, and waits until the server has it.
    pub(crate) fn says(&self, line: &str) -> Result<()> {
        let port = self.port;
        let (client, server) = (&self.from.0.vm, &self.to.0.vm);
        client.sh(&format!("echo '{line}' >>/tmp/typed{port}"))?;
        server.wait_until(
            &format!("grep -q '{line}' /tmp/heard{port}"),
            PATIENCE,
            line,
        )
    }

    /// It has been ended; neither end has a socket of it.
    pub(crate) fn ends(&self) -> Result<()> {
        let port = self.port;
        let ((client, from), (server, to)) = (self.from, self.to);
        server.inside(to).wait_until(
            &format!("test -z \"$(ss -Htn state established '( sport = :{port} )')\""),
            PATIENCE,
            "the end of a connection that is refused now",
        )?;
        client.inside(from).wait_until(
            &format!("test -z \"$(ss -Htn state established '( dport = :{port} )')\""),
            PATIENCE,
            "the end of it at the client",
        )?;
        // tail goes when it writes next.
        client.vm.sh(&format!("echo end >>/tmp/typed{port}"))?;
        self.client.signal(KILL).context("the client")
    }
}
