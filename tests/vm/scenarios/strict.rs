//! Strict: whatever happens to WireGuard, nothing of a workload crosses the wire in plaintext.
//!
//! Traffic runs from node-a to node-b while the device is deleted and the next apply makes it again. The control: the
//! same with the strict programs detached and a plain route: then the wire shows the marker.

use std::time::Duration;

use anyhow::{Result, ensure};
use underseal_vm::Lab;
use underseal_vm::capture::PathCount;
use underseal_vm::main_job::{MARKER, Stage, seen};
use underseal_vm::site::Settings;
use underseal_vm::topology::Node;

const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let stage = Stage::up(lab, &Settings::default())?;
    let (a, b) = (&stage.a, &stage.b);
    let till = b.workload("till").clone();
    // Plaintext would find its way: the node forwards, and the other node's networks are routed to it directly.
    Node(1).forward(&a.vm)?;
    Node(2).forward(&b.vm)?;
    let before = stage.wire.frames();
    let load = format!(
        "while ! test -e /tmp/enough; do curl -sS --max-time 2 http://{}/page -o /dev/null; curl -g -sS --max-time 2 'http://[{}]/page' -o /dev/null; done 2>/dev/null",
        till.v4, till.v6
    );
    let load = a.inside("shop").spawn(&load)?;
    a.vm.wait_until(
        "underseal --json status | grep -q to_wireguard",
        PATIENCE,
        "status",
    )?;
    for _ in 0..3 {
        a.vm.sh("ip link del underseal0")?;
        a.vm.sh(&format!(
            "ip route add 10.2.0.0/24 via {}; ip -6 route add fd00:2::/64 via {}",
            Node(2).v4(),
            Node(2).v6()
        ))?;
        // The workload keeps sending into the void; UDP and ICMP too.
        a.inside("shop").try_sh(&format!(
            "echo {MARKER} | nc -u -w 1 {0} 9; ping -c 1 -W 1 {0}",
            till.v4
        ))?;
        a.vm.sh(&format!("echo {MARKER} | nc -u -w 1 {} 9; true", till.v4))?;
        a.vm.sh("ip route del 10.2.0.0/24; ip -6 route del fd00:2::/64")?;
        a.apply()?;
        let page = format!("curl -sS --max-time 60 http://{}/page | wc -c", till.v4);
        let bytes = a.inside("shop").sh_for(&page, PATIENCE)?.text();
        ensure!(
            bytes.parse::<usize>().is_ok_and(|n| n > 1_000_000),
            "the tunnel is not back: {bytes}"
        );
    }
    a.vm.sh("touch /tmp/enough")?;
    load.wait(PATIENCE)?;
    let count = on_the_wire(&stage, before);
    ensure!(
        !count.is_readable() && count.icmp_packets == 0 && count.wireguard_data_packets > 0,
        "{count:?}"
    );
    ensure!(
        a.counter("drop_strict_egress")? > 0,
        "the strict check had nothing to do: the test misses its point"
    );
    control(&stage)
}

fn control(stage: &Stage) -> Result<()> {
    let (a, till) = (&stage.a, stage.b.workload("till"));
    a.vm.sh("ip link del underseal0; rm /sys/fs/bpf/underseal/links/uplink_egress@eth0; tc qdisc del dev eth0 clsact 2>/dev/null; true")?;
    a.vm.sh(&format!("ip route add 10.2.0.0/24 via {}", Node(2).v4()))?;
    let before = stage.wire.frames();
    a.vm.sh(&format!("echo {MARKER} | nc -u -w 1 {} 9; true", till.v4))?;
    let count = on_the_wire(stage, before);
    ensure!(
        count.marker_hits > 0,
        "the control finds no plaintext: {count:?}"
    );
    Ok(())
}

fn on_the_wire(stage: &Stage, from: usize) -> PathCount {
    seen(&stage.wire.pcap(from))
}
