//! apply twice, plan, status, down: the second apply writes nothing, and down leaves nothing behind.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use underseal_vm::site::{CONFIG, Settings, Site};
use underseal_vm::topology::Node;
use underseal_vm::{Lab, Vm, VmOptions, Wire};

/// Everything that an apply touches, as the tools of others see it. BPF ids grow and are left out.
pub(crate) const WORLD: &str = "(ip -o link | sed 's/^[0-9]*: //; s/link-netnsid.*//'; ip -o addr | cut -d' ' -f2-; ip route show table all; ip -6 route show table all) | grep -v fe80
for n in shop cart; do ip netns exec $n sysctl net.ipv4.tcp_notsent_lowat; ip -n $n -o link show eth0; done
bpftool -j prog list | tr '{' '\\n' | grep -o '\"name\":\"[^\"]*\"' | sort; bpftool -j map list | tr '{' '\\n' | grep -o '\"name\":\"[^\"]*\"' | sort
find /sys/fs/bpf; tc filter show dev h-shop ingress; tc qdisc show dev h-shop; tc qdisc show dev eth0";

const FREED: Duration = Duration::from_secs(60);

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let wire = Wire::new(1)?;
    let vm = lab.boot(&VmOptions {
        nics: vec![wire.port(0)],
        ..VmOptions::default()
    })?;
    Node(1).uplink(&vm)?;
    let site = Site::pair(&vm)?;
    let settings = Settings::with_peer();
    site.configure(&settings)?;
    let before = vm.sh(WORLD)?.text();

    vm.sh("underseal check")?;
    let plan = vm.sh("underseal plan")?.text();
    ensure!(
        plan.contains("ip link add dev underseal0 type wireguard"),
        "plan does not show the device: {plan}"
    );
    ensure_same("plan", &before, &vm.sh(WORLD)?.text())?;
    site.apply()?;
    let applied = vm.sh(WORLD)?.text();
    ensure!(applied != before, "apply has changed nothing");

    let key = vm.sh("stat -c '%a %Y %i' /var/lib/underseal/wireguard.key; sha256sum /var/lib/underseal/wireguard.key")?.text();
    ensure!(
        key.starts_with("600 "),
        "permissions of the private key: {key}"
    );
    let writes = vm.sh("strace -f -e trace=bpf,sendto,sendmsg,openat -o /tmp/trace underseal apply && cat /tmp/trace")?.text();
    ensure!(writes.contains("no changes"), "the second apply: {writes}");
    let done = lines_with(&writes, &WRITES);
    ensure!(done.is_empty(), "the second apply does {done:#?}");
    ensure!(
        vm.sh("underseal plan")?.text().contains("no changes"),
        "plan after apply is not empty"
    );
    ensure_same("the second apply", &applied, &vm.sh(WORLD)?.text())?;
    vm.sh("underseal --json status | python3 -m json.tool")?;

    // Somebody takes things away: the next apply puts them back.
    vm.sh("ip link del underseal0; rm /sys/fs/bpf/underseal/links/egress; ip netns exec shop sysctl -w net.ipv4.tcp_notsent_lowat=16384")?;
    site.apply()?;
    site.ensure_settled()?;
    ensure!(
        vm.sh("ip netns exec shop sysctl -n net.ipv4.tcp_notsent_lowat")?
            .text()
            == "0",
        "the hold is not back"
    );

    // With its last IPv4 address a device loses its routes, and is given them again.
    let address = "addresses = [\"10.1.0.1/32\"]";
    vm.sh(&format!("sed -i '/^.wireguard.$/a {address}' {CONFIG}"))?;
    site.apply()?;
    vm.sh(&format!(
        "sed -i '\\,^addresses = ..10.1.0.1/32,d' {CONFIG}"
    ))?;
    site.apply()?;
    site.ensure_settled()?;
    vm.sh("ip route show 10.2.0.0/24 | grep -q underseal0")?;

    site.down()?;
    ensure_back("apply and down", &before, &vm)?;
    vm.sh("underseal down").map(drop)?;
    let kept = vm.sh("stat -c '%a %Y %i' /var/lib/underseal/wireguard.key; sha256sum /var/lib/underseal/wireguard.key")?.text();
    ensure!(kept == key, "the private key has changed");
    Ok(())
}

/// The same of what programs that are gone have held: the kernel frees their maps a while later (kernel/bpf/core.c,
/// `bpf_prog_free_deferred`), so it is looked at until nothing is left of them.
pub(crate) fn ensure_back(what: &str, before: &str, vm: &Vm) -> Result<()> {
    let end = Instant::now() + FREED;
    loop {
        let after = vm.sh(WORLD)?.text();
        if after == before || Instant::now() >= end {
            return ensure_same(what, before, &after);
        }
    }
}

/// Calls, and parts of them, by which the kernel is changed.
pub(crate) const WRITES: [&str; 8] = [
    "BPF_MAP_UPDATE_ELEM",
    "BPF_MAP_DELETE_ELEM",
    "BPF_LINK_CREATE",
    "BPF_PROG_LOAD",
    "BPF_OBJ_PIN",
    "RTM_NEW",
    "RTM_DEL",
    "RTM_SET",
];

/// The lines of strace's that show one of these. The kernel's answers to a dump are named as what makes such an object.
pub(crate) fn lines_with<'a>(trace: &'a str, calls: &[&str]) -> Vec<&'a str> {
    let shows = |line: &&str| {
        let any = calls.iter().any(|call| line.contains(call));
        any && !line.contains("NLM_F_MULTI")
    };
    trace.lines().filter(shows).collect()
}

pub(crate) fn ensure_same(what: &str, before: &str, after: &str) -> Result<()> {
    let missing = |from: &str, other: &str| {
        from.lines()
            .filter(|line| !other.lines().any(|l| l == *line))
            .collect::<Vec<_>>()
            .join("\n")
    };
    let (gone, new) = (missing(before, after), missing(after, before));
    ensure!(
        before == after,
        "{what} has changed something\ngone:\n{gone}\nnew:\n{new}"
    );
    Ok(())
}
