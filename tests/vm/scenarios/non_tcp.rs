//! What mTLS cannot carry, between two workloads of a node: UDP, UDP-Lite, SCTP and anything else is dropped, counted and
//! shown, in whole packets, first fragments and later ones alike, and also behind IPv6 extension headers and to
//! link-local addresses of a bridge; ICMP passes. The control allows it, and then the recorder reads every one of them.
//!
//! ```text
//!   shop: packets.py ── h-shop ─┬─ node
//!   cart: recorder ──── h-cart ─┘    (joined by a bridge for what is link-local)
//! ```

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use underseal_vm::pcap::Pcap;
use underseal_vm::site::{Settings, Site};
use underseal_vm::{Lab, VmOptions};

const PATIENCE: Duration = Duration::from_secs(60);

/// What `packets.py` sends. Every packet of a kind holds `kind-` and this name.
const DENIED: &[&str] = &[
    "udp4", "udp6", "lite4", "lite6", "sctp4", "sctp6", "gre4", "large4", "large6", "hop6", "dst6",
    "long6", "later4", "later6", "first6", "hidden6", "atomic6",
];
/// The same, on a link; what speaks TCP there could not be sealed either.
const DENIED_ON_LINK: &[&str] = &["link6", "mcast6", "linktcp6"];

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let vm = lab.boot(&VmOptions::default())?;
    let site = Site::up(&vm, &Settings::default())?;
    vm.put(
        "/tmp/packets.py",
        include_bytes!("programs/packets.py"),
        0o644,
    )?;
    denied(&site)?;
    on_a_link(&site)?;
    let allowed = Settings {
        non_tcp: "allow",
        ..Settings::default()
    };
    site.configure(&allowed)?;
    site.apply()?;
    control(&site)
}

fn denied(site: &Site) -> Result<()> {
    let recording = site.inside("cart").capture("eth0")?;
    for kind in DENIED {
        let before = site.counter("drop_non_tcp")?;
        let sent = send(site, kind)?;
        dropped(site, kind, before + sent)?;
    }
    ping(site)?;
    let said = site.vm.sh("underseal status")?.text();
    ensure!(
        said.contains("drop_non_tcp"),
        "status does not show the drops: {said}"
    );
    let seen = recording.stop()?;
    for kind in DENIED {
        ensure!(!has(&seen, kind), "{kind} came through");
    }
    Ok(())
}

/// Both ends on one bridge: a neighbour's link-local address, and all neighbours at once.
fn on_a_link(site: &Site) -> Result<()> {
    site.vm.sh("ip link add br0 type bridge mcast_snooping 0; ip link set br0 up; for w in shop cart; do ip link set h-$w master br0; done")?;
    // A port that learns does not forward yet.
    site.vm.wait_until(
        "[ $(cat /sys/class/net/h-shop/brport/state /sys/class/net/h-cart/brport/state | sort -u) = 3 ]",
        PATIENCE,
        "the bridge to forward",
    )?;
    let recording = site.inside("cart").capture("eth0")?;
    let target = site
        .inside("cart")
        .sh("ip -6 -o addr show dev eth0 scope link | awk '{ split($4, a, \"/\"); print a[1] }'")?
        .text();
    site.inside("shop")
        .sh(&format!("ping -c 1 -W 20 -I eth0 {target}"))
        .context("neighbours")?;
    for kind in DENIED_ON_LINK {
        let before = site.counter("drop_non_tcp")?;
        let said = site
            .inside("shop")
            .sh(&format!("python3 /tmp/packets.py {kind} {target}%eth0 -"))?
            .text();
        dropped(site, kind, before + said.parse::<u64>()?)?;
    }
    let seen = recording.stop()?;
    for kind in DENIED_ON_LINK {
        ensure!(!has(&seen, kind), "{kind} came through");
    }
    site.vm.sh("ip link del br0").map(drop)
}

fn control(site: &Site) -> Result<()> {
    let recording = site.inside("cart").capture("eth0")?;
    let before = site.counter("drop_non_tcp")?;
    for kind in DENIED {
        send(site, kind)?;
    }
    ping(site)?;
    ensure!(
        site.counter("drop_non_tcp")? == before,
        "dropped although allowed"
    );
    let seen = recording.stop()?;
    for kind in DENIED {
        ensure!(has(&seen, kind), "the control does not find {kind}");
    }
    Ok(())
}

/// Waits until the counter is at `count`; above it is wrong too.
fn dropped(site: &Site, kind: &str, count: u64) -> Result<()> {
    let started = Instant::now();
    loop {
        let now = site.counter("drop_non_tcp")?;
        if now == count {
            return Ok(());
        }
        ensure!(
            now < count && started.elapsed() < PATIENCE,
            "{kind}: {now} packets are counted as dropped instead of {count}"
        );
    }
}

/// Sends all packets of a kind and returns how many there were.
fn send(site: &Site, kind: &str) -> Result<u64> {
    let (shop, cart) = (site.workload("shop"), site.workload("cart"));
    let (from, to) = if kind.ends_with('4') {
        (shop.v4.to_string(), cart.v4.to_string())
    } else {
        (shop.v6.to_string(), cart.v6.to_string())
    };
    let script = format!("python3 /tmp/packets.py {kind} {to} {from}");
    let said = site.inside("shop").sh(&script)?.text();
    said.parse()
        .with_context(|| format!("packets.py {kind} said {said:?}"))
}

fn ping(site: &Site) -> Result<()> {
    let cart = site.workload("cart");
    for address in [cart.v4.to_string(), cart.v6.to_string()] {
        // In fragments too.
        site.inside("shop")
            .sh(&format!("ping -c 1 -W 20 -s 3000 {address}"))?;
    }
    Ok(())
}

fn has(seen: &Pcap, kind: &str) -> bool {
    let marker = format!("kind-{kind}.");
    let holds = |packet: &[u8]| packet.windows(marker.len()).any(|w| w == marker.as_bytes());
    seen.packets.iter().any(|(_, packet)| holds(packet))
}
