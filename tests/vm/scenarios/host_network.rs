//! Why programs in the host's own network namespace are not sealed: no hold is safe there. Shown, not assumed:
//!
//! - the one hold that holds, `net.ipv4.tcp_notsent_lowat` 0, stops every connection of the host as soon as the programs
//!   that let go of the others are gone;
//! - every limit that a single socket can have lets the first send through, in plaintext.
//!
//! ```text
//!   node: client.py ── lo ── client.py (the host's own network; two workloads beside it, so that all is attached)
//! ```

use anyhow::{Result, ensure};
use underseal_vm::site::{Settings, Site};
use underseal_vm::{Lab, VmOptions};

const SYSCTL: &str = "net.ipv4.tcp_notsent_lowat";
/// Limits of a single socket.
const LIMITS: &[(&str, &str)] = &[
    ("lowat1", "TCP_NOTSENT_LOWAT=1"),
    ("lowat0", "TCP_NOTSENT_LOWAT=0"),
    ("sndbuf", "SO_SNDBUF=1"),
    ("cork", "TCP_CORK=1"),
    ("pacing", "SO_MAX_PACING_RATE=1"),
];

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let vm = lab.boot(&VmOptions::default())?;
    let site = Site::up(&vm, &Settings::default())?;
    vm.put(
        "/tmp/client.py",
        include_bytes!("programs/client.py"),
        0o644,
    )?;
    vanishing_links(&site)?;
    limits(&site)
}

/// The host's namespace is taken over as a workload's would be, and then the links go.
fn vanishing_links(site: &Site) -> Result<()> {
    let vm = &site.vm;
    let said = first_send(site, "plain")?;
    ensure!(said == "sent", "before anything was done: {said}");
    let before = vm.sh(&format!("sysctl -n {SYSCTL}"))?.text();
    vm.sh("python3 /tmp/client.py take_over >/tmp/key && bpftool map update pinned /sys/fs/bpf/underseal/maps/NETNS key $(cat /tmp/key) value hex 01 0 0 0 ff ff ff ff 0 0 0 0 1 0 0 0")?;
    vm.sh(&format!("sysctl -qw {SYSCTL}=0"))?;
    let said = first_send(site, "plain")?;
    ensure!(
        said == "sent",
        "with the programs attached the host keeps its network: {said}"
    );
    vm.sh("rm /sys/fs/bpf/underseal/links/*")?;
    let said = first_send(site, "plain")?;
    ensure!(
        said == "held",
        "without the links a connection of the host was expected to hang: {said}"
    );
    vm.sh(&format!("sysctl -qw {SYSCTL}={before}"))?;
    let said = first_send(site, "plain")?;
    ensure!(said == "sent", "with the sysctl as it was: {said}");
    Ok(())
}

/// The namespace's default is "no limit" now; the socket's own is set as soon as it is established.
fn limits(site: &Site) -> Result<()> {
    for (name, limit) in LIMITS {
        let recording = site.vm.capture("lo")?;
        let said = first_send(site, &format!("{name} {limit}"))?;
        let seen = recording.stop()?;
        let marker = format!("kind-{name}.");
        let holds = |packet: &[u8]| packet.windows(marker.len()).any(|w| w == marker.as_bytes());
        ensure!(
            said == "sent" && seen.packets.iter().any(|(_, packet)| holds(packet)),
            "{limit} holds the first send: {said}"
        );
    }
    Ok(())
}

/// Connects to itself over 127.0.0.1 and sends once without waiting: "sent", or "held".
fn first_send(site: &Site, words: &str) -> Result<String> {
    Ok(site
        .vm
        .sh(&format!("python3 /tmp/client.py send {words}"))?
        .text())
}
