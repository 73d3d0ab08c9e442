//! Modes `always` and `cross-node`: a connection between nodes is sealed at both of its ends, inside of WireGuard, by
//! the two nodes' helpers; and what becomes of it when one of them is away, refuses, or does not seal.
//!
//! ```text
//!   node-a: shop, cart ── eth0 ── wire (this process) ── eth0 ── node-b: till
//!   node-a: helper ════════ link inside of WireGuard ════════ node-b: helper
//! ```

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use underseal_vm::identities::{Authority, Validity};
use underseal_vm::main_job::{MARKER, Peer, Row, Stage, seen};
use underseal_vm::site::{Helpers, Settings, Site, identity_folder, spiffe_id};
use underseal_vm::{Lab, Output};

const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let settings = Settings {
        mode: "always",
        helpers: Some(Helpers::V4),
        ..Settings::default()
    };
    let stage = Stage::up(lab, &settings)?;
    every_program(&stage).context("always")?;
    late_accept(&stage)?;
    helper_away(&stage)?;
    wrong_certificate(&stage)?;
    one_node_only(&stage)?;
    cross_node(&stage)?;
    strangers(&stage)?;
    for site in [&stage.a, &stage.b] {
        site.ensure_settled()?;
        site.down()?;
    }
    Ok(())
}

/// Writes and applies a configuration with another mode on both nodes, first on node-a.
pub(crate) fn apply(stage: &Stage, settings: &Settings) -> Result<()> {
    for (site, other) in [(&stage.a, &stage.b), (&stage.b, &stage.a)] {
        apply_on(site, other, settings)?;
    }
    Ok(())
}

fn apply_on(site: &Site, other: &Site, settings: &Settings) -> Result<()> {
    site.configure(&Settings {
        peers: vec![(other.node, other.public_key()?)],
        helpers: settings.helpers.or(Some(Helpers::V4)),
        ..settings.clone()
    })?;
    site.apply().map(drop)
}

/// Every program over every path: within the node and between nodes there are only TLS records on the veth of either
/// workload, and on the wire only WireGuard.
fn every_program(stage: &Stage) -> Result<()> {
    let there = stage.b.inside("till").capture("eth0")?;
    for row in stage.run(&|_| {})? {
        is_sealed(&row)?;
        let layers = match row.peer {
            Peer::SameNode => 1,
            Peer::OtherNode => 2,
        };
        ensure!(row.layers() == layers, "{row:?}");
    }
    let there = seen(&there.stop()?);
    ensure!(!there.is_readable() && there.tls_records > 0, "{there:?}");
    for (site, most) in [(&stage.a, 20), (&stage.b, 10)] {
        ensure!(site.counter("sealed")? >= most, "sealed by whom?");
        for counter in [
            "drop_unsealed",
            "drop_unsealed_ingress",
            "drop_not_a_record",
        ] {
            ensure!(site.counter(counter)? == 0, "the guard had work: {counter}");
        }
    }
    Ok(())
}

fn is_sealed(row: &Row) -> Result<()> {
    ensure!(
        !row.veth.is_readable() && !row.uplink.is_readable(),
        "{row:?}"
    );
    ensure!(
        row.veth.tls_records > 0 && row.veth.missing_bytes == 0,
        "{row:?}"
    );
    Ok(())
}

/// A client that sleeps in send and, in another thread, in recv, before the server on the other node accepts.
fn late_accept(stage: &Stage) -> Result<()> {
    let (a, b) = (&stage.a, &stage.b);
    crate::programs::put(a)?;
    crate::programs::put(b)?;
    let till = b.workload("till");
    let before = a.counter("restarted")?;
    for host in [till.v4.to_string(), till.v6.to_string()] {
        b.vm.sh("rm -f /tmp/accept")?;
        let server = b
            .inside("till")
            .spawn("exec python3 /tmp/late_server.py 7001")?;
        till.wait_for_port(&b.vm, 7001)?;
        let client = a
            .inside("shop")
            .spawn(&format!("exec python3 /tmp/eager_client.py {host} 7001"))?;
        let asleep = format!(
            "cat /proc/{0}/task/*/syscall | grep -c -E '^(44|45) ' | grep -qx 2",
            client.pid()
        );
        a.vm.wait_until(&asleep, PATIENCE, "both threads of the client to sleep")?;
        b.vm.sh("touch /tmp/accept")?;
        let said = client.wait(PATIENCE)?.successful()?.text();
        ensure!(said.contains("greeting"), "{said}");
        server.wait(PATIENCE)?;
    }
    ensure!(
        a.counter("restarted")? >= before + 3,
        "no sleeper was restarted: the test misses its point"
    );
    Ok(())
}

/// While the other node's helper is away a new connection waits; when it is back it goes on. Open ones do not notice.
fn helper_away(stage: &Stage) -> Result<()> {
    let (a, b) = (&stage.a, &stage.b);
    for (site, kill) in [(b, "-KILL"), (a, "-KILL"), (b, "-TERM")] {
        end_helper(site, kill)?;
        let fetch = a.inside("shop").spawn(&fetch(stage))?;
        a.vm.wait_until(HELD, PATIENCE, "a held connection")?;
        site.start_helper()?;
        let page = fetch.wait(PATIENCE)?.successful()?;
        ensure!(page.text().contains(MARKER), "not the page");
    }
    ensure!(a.counter("node_unreachable")? > 0, "it was never away");
    Ok(())
}

const HELD: &str = "underseal --json status | grep -q '\"state\": *\"held\"'";

fn end_helper(site: &Site, signal: &str) -> Result<()> {
    site.vm.sh(&format!("pkill {signal} -x underseal-hands"))?;
    let free = "flock -n /run/underseal/handshake.lock true";
    site.vm.wait_until(free, PATIENCE, "the helper's end")
}

/// A certificate of another authority on node-b: both ends are reset, both nodes know why, nothing was sent.
fn wrong_certificate(stage: &Stage) -> Result<()> {
    let (a, b) = (&stage.a, &stage.b);
    let folder = identity_folder("till");
    b.vm.sh(&format!("cp -a {folder} /tmp/good"))?;
    for (reason, identity) in [
        (
            "not issued by a CA",
            Authority::new("other authority")?.issue(&spiffe_id("till"), Validity::Now)?,
        ),
        (
            "expired",
            Authority::new("test authority")?.issue(&spiffe_id("till"), Validity::Expired)?,
        ),
    ] {
        identity.put(&b.vm, &identity_folder("till"))?;
        // A helper that has seen better files would go on with them.
        end_helper(b, "-KILL")?;
        b.start_helper()?;
        let before = (a.counter("reset_refused")?, b.counter("reset_refused")?);
        let said = a.inside("shop").try_sh(&fetch(stage))?;
        ensure!(is_reset(&said) && said.stdout.is_empty(), "{said:?}");
        for (site, before) in [(a, before.0), (b, before.1)] {
            site.vm.wait_until(
                &format!("tail -n 3 /tmp/helper.log | grep -q '{reason}'"),
                PATIENCE,
                reason,
            )?;
            ensure!(
                site.counter("reset_refused")? == before + 1,
                "{reason} is not counted on node {}",
                site.node.0
            );
        }
    }
    b.vm.sh(&format!("cp -a /tmp/good/* {0}/", identity_folder("till")))?;
    ensure_fetches(stage)
}

/// A node that does not seal between nodes says so: the other one's end is reset with that reason, whoever connected.
fn one_node_only(stage: &Stage) -> Result<()> {
    let (a, b) = (&stage.a, &stage.b);
    apply_on(b, a, &Settings::default())?;
    let said = a.inside("shop").try_sh(&fetch(stage))?;
    ensure!(is_reset(&said) && said.stdout.is_empty(), "{said:?}");
    ensure!(a.counter("reset_not_sealing")? == 1, "not counted");
    ensure!(
        a.helper_log()?
            .contains("does not seal connections between nodes"),
        "no reason in the log"
    );
    // The server on node-a would speak first, so nobody sends: only its helper can find out.
    a.inside("shop")
        .spawn(&format!("echo {MARKER} | exec nc -N -l 7002"))?;
    a.workload("shop").wait_for_port(&a.vm, 7002)?;
    let said = b
        .inside("till")
        .try_sh(&format!("nc -d {} 7002", a.workload("shop").v4))?;
    ensure!(said.stdout.is_empty(), "a greeting in plaintext: {said:?}");
    ensure!(
        a.counter("reset_not_sealing")? == 2,
        "not counted: {}",
        a.helper_log()?
    );
    Ok(())
}

/// Between nodes sealed, within a node not. The helpers reach each other over IPv6 now.
fn cross_node(stage: &Stage) -> Result<()> {
    let settings = Settings {
        mode: "cross-node",
        helpers: Some(Helpers::V6),
        ..Settings::default()
    };
    apply(stage, &settings)?;
    for row in stage.run(&|_| {})? {
        match row.peer {
            Peer::SameNode => ensure!(
                row.veth.marker_hits > 0 && row.veth.tls_records == 0,
                "sealed within the node: {row:?}"
            ),
            Peer::OtherNode => {
                is_sealed(&row)?;
                ensure!(row.layers() == 2, "{row:?}");
            }
        }
    }
    control(stage)
}

/// With mode `same-node` the same recording shows what connections between nodes carry.
fn control(stage: &Stage) -> Result<()> {
    apply(stage, &Settings::default())?;
    let before = stage.wire.frames();
    let recording = stage.a.inside("shop").capture("eth0")?;
    ensure_fetches(stage)?;
    let veth = seen(&recording.stop()?);
    let wire = seen(&stage.wire.pcap(before));
    ensure!(
        veth.marker_hits > 0 && veth.tls_records == 0,
        "the control finds nothing: {veth:?}"
    );
    ensure!(!wire.is_readable(), "{wire:?}");
    Ok(())
}

/// Nobody but a configured node's helper is served at the helper's port: not a workload of either node.
fn strangers(stage: &Stage) -> Result<()> {
    let (a, b) = (&stage.a, &stage.b);
    let before = b.counter("link_refused")?;
    let (helper, _) = b.node.helper(Helpers::V4);
    // Silent for as long as it is served; turned away it ends at once.
    for (site, name) in [(a, "shop"), (b, "till")] {
        site.inside(name).sh_for(
            &format!("nc -d {helper} 51872 >/tmp/heard; test ! -s /tmp/heard"),
            PATIENCE,
        )?;
    }
    ensure!(
        b.counter("link_refused")? == before + 2,
        "strangers are not counted"
    );
    Ok(())
}

pub(crate) fn fetch(stage: &Stage) -> String {
    let till = stage.b.workload("till").v4;
    format!("exec curl -sS --max-time 80 http://{till}/page")
}

fn ensure_fetches(stage: &Stage) -> Result<()> {
    let page = stage.a.inside("shop").sh_for(&fetch(stage), PATIENCE)?;
    ensure!(page.text().contains(MARKER), "not the page");
    Ok(())
}

/// Whether curl saw a reset: while it looked whether the connection is there (7), or later.
fn is_reset(said: &Output) -> bool {
    matches!(said.code, Some(7 | 52 | 55 | 56))
}
