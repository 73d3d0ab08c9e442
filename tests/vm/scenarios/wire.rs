//! Two machines on a wire that the test holds in its hands: it sees what passes, and can cut it.
//!
//! ```text
//!   node-a eth0 ── wire (this process) ── eth0 node-b
//! ```

use std::time::Duration;

use anyhow::{Result, ensure};
use underseal_vm::pcap::{IpPacket, Link, Transport};
use underseal_vm::topology::Node;
use underseal_vm::{Fate, Lab, VmOptions, Wire};

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let wire = Wire::new(2)?;
    let options = |name: &str, port| VmOptions {
        name: name.into(),
        nics: vec![wire.port(port)],
        programs: &[],
        ..VmOptions::default()
    };
    let [a, b] = lab.boot_all(&[options("node-a", 0), options("node-b", 1)])?;
    Node(1).uplink(&a)?;
    Node(2).uplink(&b)?;
    let before = wire.frames();
    a.sh(&format!("ping -c 3 -i 0.1 -W 5 {}", Node(2).v4()))?;
    a.sh(&format!("ping -c 3 -i 0.1 -W 5 {}", Node(2).v6()))?;
    let seen = wire.pcap(before);
    let icmp = |(_, frame): &&(Duration, Vec<u8>)| {
        IpPacket::parse(Link::Ethernet, frame)
            .is_some_and(|packet| packet.transport == Transport::Icmp)
    };
    ensure!(
        seen.packets.iter().filter(icmp).count() >= 12,
        "{} frames, few of them ICMP",
        seen.packets.len()
    );

    wire.set_filter(|_, _| Fate::Drop);
    let cut = b.try_sh(&format!("ping -c 1 -W 1 {}", Node(1).v4()))?;
    ensure!(cut.code == Some(1), "a ping came through a cut wire");
    wire.set_filter(|_, _| Fate::Delay(Duration::from_millis(300)));
    let late = b.sh(&format!("ping -c 1 -W 5 {}", Node(1).v4()))?.text();
    ensure!(
        late.contains("time=") && !late.contains("time=0") && !late.contains("time=1."),
        "{late}"
    );
    wire.clear_filter();
    b.sh(&format!("ping -c 1 -W 5 {}", Node(1).v4())).map(drop)
}
