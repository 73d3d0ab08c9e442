//! The mode is changed while connections are open and others are being made: what the new mode allows lives, byte by
//! byte; plaintext that it does not allow is reset, or kept where the configuration says so; what is held is sealed.
//!
//! ```text
//!   node-a: shop (clients), cart (servers) ── eth0 ── wire (this process) ── eth0 ── node-b: till (servers)
//! ```

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use underseal_vm::main_job::Stage;
use underseal_vm::site::{Helpers, Settings, Site};
use underseal_vm::{Lab, Process};

use crate::modes;

const PATIENCE: Duration = Duration::from_secs(90);
const ECHO: u16 = 7100;
const LATE: u16 = 7101;

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let settings = Settings {
        mode: "never",
        helpers: Some(Helpers::V4),
        ..Settings::default()
    };
    let stage = Stage::up(lab, &settings)?;
    serve(&stage)?;
    switches(&stage)
}

/// Servers that echo, in `cart` and `till`: one that accepts, and one that does not until it is told to.
fn serve(stage: &Stage) -> Result<()> {
    let (a, b) = (&stage.a, &stage.b);
    for (site, name) in [(a, "cart"), (b, "till")] {
        site.vm.put(
            "/tmp/echo.py",
            include_bytes!("programs/echo_server.py"),
            0o644,
        )?;
        for (port, gate) in [(ECHO, ""), (LATE, "/tmp/gate")] {
            site.inside(name)
                .spawn(&format!("exec python3 /tmp/echo.py {port} {gate}"))?;
            site.workload(name).wait_for_port(&site.vm, port)?;
        }
    }
    a.vm.put(
        "/tmp/steady.py",
        include_bytes!("programs/steady_client.py"),
        0o644,
    )?;
    Ok(())
}

fn switches(stage: &Stage) -> Result<()> {
    let (a, b) = (&stage.a, &stage.b);
    let mut lines = Lines {
        stage,
        open: Vec::new(),
    };
    let load = a.inside("shop").spawn(&load(stage))?;
    lines.begin("never")?;
    switch(stage, "same-node", "reset")?;
    lines.judge(&["never-till"])?;
    lines.begin("same")?;
    switch(stage, "always", "reset")?;
    lines.judge(&["same-cart"])?;
    lines.begin("always")?;
    let held = [
        lines.hold("held-cart", a, "cart")?,
        lines.hold("held-till", b, "till")?,
    ];
    switch(stage, "cross-node", "reset")?;
    lines.judge(&["same-cart", "always-cart", "always-till"])?;
    lines.begin("cross")?;
    switch(stage, "never", "reset")?;
    let all = [
        "same-cart",
        "always-cart",
        "always-till",
        "cross-cart",
        "cross-till",
    ];
    lines.judge(&all)?;
    for site in [a, b] {
        site.vm.sh("touch /tmp/gate")?;
    }
    lines.open.extend(held);
    let all = [&all[..], &["held-cart", "held-till"]].concat();
    lines
        .judge(&all)
        .context("held while the mode was changed")?;
    lines.begin("plain")?;
    switch(stage, "always", "keep")?;
    lines.judge(&[&all[..], &["plain-cart", "plain-till"]].concat())?;
    a.vm.sh("touch /tmp/enough")?;
    for (name, process) in lines.open {
        process.wait(PATIENCE)?.successful().context(name)?;
    }
    // Short connections: some were reset while the two nodes had different modes, but none was left hanging.
    let said = load.wait(PATIENCE)?.successful()?.text();
    ensure!(!said.contains("hung") && said.contains("fetched"), "{said}");
    Ok(())
}

/// Applies another mode, on node-a and then on node-b.
fn switch(stage: &Stage, mode: &'static str, existing: &'static str) -> Result<()> {
    let settings = Settings {
        mode,
        existing,
        ..Settings::default()
    };
    modes::apply(stage, &settings)
}

/// Short connections to both workloads, one after the other, that say what became of them.
fn load(stage: &Stage) -> String {
    let (cart, till) = (stage.a.workload("cart").v6, stage.b.workload("till").v6);
    format!(
        "while ! test -e /tmp/enough; do for host in {cart} {till}; do
           curl -g -sS --max-time 20 -o /dev/null \"http://[$host]/page\" 2>/dev/null
           case $? in 0) echo fetched;; 28) echo hung $host;; *) echo reset;; esac
         done; done"
    )
}

/// Connections that talk all the time.
struct Lines<'a> {
    stage: &'a Stage,
    open: Vec<(String, Process<'a>)>,
}

impl<'a> Lines<'a> {
    /// Opens one to either workload, and waits until it has talked.
    fn begin(&mut self, when: &str) -> Result<()> {
        for (site, to) in [(&self.stage.a, "cart"), (&self.stage.b, "till")] {
            let name = format!("{when}-{to}");
            let process = self.start(&name, site, to, ECHO)?;
            self.open.push((name.clone(), process));
            self.ensure_lives(&name)?;
        }
        Ok(())
    }

    /// Opens one whose server does not accept yet, and waits until it is held.
    fn hold(&self, name: &str, site: &Site, to: &str) -> Result<(String, Process<'a>)> {
        let process = self.start(name, site, to, LATE)?;
        let held = format!(
            "underseal status | grep -E ':{LATE}.* client of .*held' | grep -q '{}'",
            site.workload(to).v4
        );
        self.stage
            .a
            .vm
            .wait_until(&held, PATIENCE, "a held connection")?;
        Ok((name.to_owned(), process))
    }

    fn start(&self, name: &str, site: &Site, to: &str, port: u16) -> Result<Process<'a>> {
        let host = site.workload(to).v4;
        let client = format!("exec python3 /tmp/steady.py {host} {port} {name}");
        self.stage.a.inside("shop").spawn(&client)
    }

    /// The named ones talk on; all others have been reset.
    fn judge(&mut self, living: &[&str]) -> Result<()> {
        let (live, dead): (Vec<_>, Vec<_>) = std::mem::take(&mut self.open)
            .into_iter()
            .partition(|(name, _)| living.contains(&name.as_str()));
        ensure!(
            live.len() == living.len(),
            "not all of {living:?} were opened"
        );
        for (name, process) in dead {
            let said = process
                .wait(PATIENCE)
                .with_context(|| format!("{name} lives"))?;
            ensure!(said.code == Some(1), "{name}: {said:?}");
        }
        self.open = live;
        for (name, _) in &self.open {
            self.ensure_lives(name)?;
        }
        Ok(())
    }

    /// More lines have come back than before.
    fn ensure_lives(&self, name: &str) -> Result<()> {
        let vm = &self.stage.a.vm;
        let count = format!("cat /tmp/{name}.lines 2>/dev/null || echo 0");
        let before = vm.sh(&count)?.text();
        let more = format!("test $({count}) -gt {before}");
        vm.wait_until(&more, PATIENCE, &format!("{name} to talk on"))
    }
}
