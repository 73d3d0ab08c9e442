//! The helper is killed and started again and again while real programs connect for every request. Connections wait
//! meanwhile; one that the helper was killed over is reset, before anything was sent, and counted. So programs see
//! as many errors as were counted, and no more, and nothing that they were told was done is missing or there twice.
//!
//! ```text
//!   shop: pgbench -C, wrk with Connection: close ── h-shop ── node: underseal-handshake ── h-cart ── cart: PostgreSQL, nginx
//! ```

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use underseal_vm::main_job::seen;
use underseal_vm::site::{Settings, Site};
use underseal_vm::{Lab, Process, VmOptions};

use crate::real_programs::{TROUBLE, bash, shop};
use crate::real_servers;

const PATIENCE: Duration = Duration::from_secs(120);
/// How often the helper is killed for each program.
const KILLS: u32 = 3;
/// So many connections are sealed between two kills.
const BETWEEN: u64 = 6;
const KILL: i32 = 9;
const CLIENTS: u64 = 4;
const TRANSACTIONS: u64 = 15;

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let vm = lab.boot(&VmOptions::default())?;
    let site = Site::with(&vm, &[("shop", 10), ("cart", 11), ("gate", 12)])?;
    site.configure(&Settings::default())?;
    site.apply()?;
    let helper = site.start_helper()?;
    real_servers::start(&site, real_servers::RESTARTS)?;
    let recording = site.inside("shop").capture("eth0")?;
    let helper = pgbench(&site, helper)?;
    wrk(&site, helper)?;
    let count = seen(&recording.stop()?);
    ensure!(
        !count.is_readable() && count.missing_bytes == 0 && count.tls_records > 200,
        "{count:?}"
    );
    for counter in TROUBLE.iter().filter(|name| **name != "reset_interrupted") {
        let count = site.counter(counter)?;
        ensure!(count == 0, "{counter} is {count}: {}", site.helper_log()?);
    }
    Ok(())
}

/// Whatever pgbench counts as done is in the history once, and all balances agree with it.
fn pgbench<'vm>(site: &'vm Site, helper: Process<'vm>) -> Result<Process<'vm>> {
    let before = site.counter("reset_interrupted")?;
    let client = shop(site).start(bash(&format!(
        "exec pgbench -h $CART4 -U shop -n -C -c {CLIENTS} -j 2 -t {TRANSACTIONS} shop 2>&1"
    )))?;
    let helper = kill_again_and_again(site, helper, &client)?;
    let said = client.wait(PATIENCE)?.text();
    let resets = site.counter("reset_interrupted")? - before;
    let aborted = said.matches(" aborted ").count() as u64;
    let done = said
        .lines()
        .find_map(|line| line.strip_prefix("number of transactions actually processed: "))
        .and_then(|rest| rest.split('/').next()?.trim().parse::<u64>().ok())
        .with_context(|| said.clone())?;
    ensure!(
        aborted <= resets && (resets > 0 || done == CLIENTS * TRANSACTIONS),
        "{resets} resets, but pgbench said {said}\nthe helper: {}\nPostgreSQL: {}",
        site.helper_log()?,
        site.vm.sh("tail -n 20 /tmp/server.5432")?.text()
    );
    let balances = shop(site)
        .run(bash(BALANCES), PATIENCE)
        .context("balances")?
        .text();
    ensure!(
        balances == format!("{done}|t|t|t"),
        "{done} transactions are done, the database says {balances}"
    );
    Ok(helper)
}

const BALANCES: &str = "exec psql -h $CART6 -U shop -d shop -qAt -c 'select count(*),
    coalesce(sum(delta), 0) = (select sum(abalance) from pgbench_accounts),
    coalesce(sum(delta), 0) = (select sum(tbalance) from pgbench_tellers),
    coalesce(sum(delta), 0) = (select sum(bbalance) from pgbench_branches) from pgbench_history'";

/// Every answer is right; there are as many errors in connect and write as resets, at most.
fn wrk<'vm>(site: &'vm Site, helper: Process<'vm>) -> Result<Process<'vm>> {
    let before = site.counter("reset_interrupted")?;
    let client = shop(site).start(bash(WRK))?;
    let helper = kill_again_and_again(site, helper, &client)?;
    // wrk goes on until it is told that it is enough.
    client.signal(2)?;
    let said = client.wait(PATIENCE)?.text();
    let line = said.lines().find(|line| line.starts_with("answers "));
    let numbers: Vec<u64> = line
        .with_context(|| said.clone())?
        .split(' ')
        .filter_map(|word| word.parse().ok())
        .collect();
    let [answers, wrong, connect, read, write, timeout, status] = numbers[..] else {
        bail!("wrk said {said}")
    };
    let resets = site.counter("reset_interrupted")? - before;
    ensure!(
        answers + read >= u64::from(KILLS) * BETWEEN
            && answers > 0
            && wrong + timeout + status == 0,
        "wrk said {said}"
    );
    // Read errors are no sign of a reset: see docs/compatibility.md, FIONREAD.
    ensure!(
        connect + write <= resets,
        "{resets} resets, but wrk said {said}"
    );
    Ok(helper)
}

const WRK: &str =
    "echo 1 >/proc/sys/vm/overcommit_memory; export CLOSE=1 PAGE=/16385 EXPECTED=/srv/files/16385
exec wrk --timeout 100s -t 1 -c 4 -d 100s -s /srv/real/check.lua http://$CART4:8080";

/// Between two kills connections are sealed; after each, one waits. Ends with a helper that runs.
fn kill_again_and_again<'vm>(
    site: &'vm Site,
    mut helper: Process<'vm>,
    client: &Process<'_>,
) -> Result<Process<'vm>> {
    for number in 0..KILLS {
        wait_for_sealed(site, site.counter("sealed")? + BETWEEN)?;
        helper.signal(KILL)?;
        helper.wait(PATIENCE)?;
        site.vm
            .wait_until(
                "underseal --json status | grep -q '\"state\": *\"held\"'",
                PATIENCE,
                "a connection to wait for a helper",
            )
            .with_context(|| format!("kill {number}, client {}", client.pid()))?;
        helper = site.start_helper()?;
    }
    wait_for_sealed(site, site.counter("sealed")? + BETWEEN)?;
    Ok(helper)
}

fn wait_for_sealed(site: &Site, count: u64) -> Result<()> {
    let started = Instant::now();
    while site.counter("sealed")? < count {
        ensure!(
            started.elapsed() < PATIENCE,
            "fewer than {count} connections were sealed: {}",
            site.helper_log()?
        );
    }
    Ok(())
}
