//! Programs that talk while keys are replaced, and whether anything of what they have said is missing.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail, ensure};
use underseal_vm::main_job::seen;
use underseal_vm::site::{Helpers, Site};
use underseal_vm::topology::Node;
use underseal_vm::{Place, Process};

use super::{Network, PAGE, PATIENCE};

/// Programs that talk.
pub(super) struct Load<'a> {
    pings: Vec<Ping<'a>>,
    curls: Vec<(String, Process<'a>)>,
    long: Vec<(String, Process<'a>)>,
}

/// A ping that goes on until somebody wants to know what it has lost.
pub(super) struct Ping<'a> {
    name: String,
    site: &'a Site,
    process: Process<'a>,
}

impl Network {
    pub(super) fn load(&self) -> Result<Load<'_>> {
        let mut load = Load {
            pings: self.pings()?,
            curls: Vec::new(),
            long: Vec::new(),
        };
        for (from, to) in self.ways() {
            let site = &self.node(from).site;
            let (inside, name) = (site.inside(&format!("w{from}")), format!("{from}-{to}"));
            let host = Node(to).workload("", 10).v4;
            site.vm.sh("rm -f /tmp/enough")?;
            let curl = format!(
                "until test -e /tmp/enough; do curl -sS --max-time 60 --limit-rate 64K http://{host}/page | wc -c; done | sort | uniq -c"
            );
            load.curls.push((name.clone(), inside.spawn(&curl)?));
            let long = format!(
                "curl -sS --max-time 900 --limit-rate 20K http://{host}/long | sha256sum; cat /srv/long | sha256sum"
            );
            load.long.push((name, inside.spawn(&long)?));
        }
        load.pings.iter().try_for_each(Ping::flows)?;
        Ok(load)
    }

    /// From every workload to every other one, by both families, and from every node to every other one. They begin when
    /// there is a session: a first handshake that the other node is not there for is repeated after five seconds, and a node
    /// keeps no more than 128 packets for it (drivers/net/wireguard/queueing.h, MAX_STAGED_PACKETS).
    pub(super) fn pings(&self) -> Result<Vec<Ping<'_>>> {
        // Three emulated machines have less to spare.
        let pause = if self.nodes.len() == 2 { 0.02 } else { 0.1 };
        let mut pings = Vec::new();
        for (from, to) in self.ways() {
            let site = &self.node(from).site;
            let inside = site.inside(&format!("w{from}"));
            let workload = Node(to).workload("", 10);
            let host = Node(to).helper(Helpers::V4).0;
            for (kind, place, target) in [
                ("v4", &inside, workload.v4.to_string()),
                ("v6", &inside, workload.v6.to_string()),
                ("node", &site.vm.node(), host.to_string()),
            ] {
                let name = format!("{from}-{to}-{kind}");
                let once = format!("ping -n -c 1 -W 2 {target}");
                place.wait_until(&once, PATIENCE, "a session")?;
                let words = format!("-i {pause} {target}");
                pings.push(Ping::start(site, place, &name, &words)?);
            }
        }
        Ok(pings)
    }

    /// Ends the load: every ping has been answered, every page fetched, and nothing could be read on the wire.
    pub(super) fn judge(&self, load: Load<'_>) -> Result<()> {
        self.judge_pings(load.pings)?;
        for node in &self.nodes {
            node.site.vm.sh("touch /tmp/enough")?;
        }
        for (name, curl) in load.curls {
            let text = curl.wait(PATIENCE)?.successful()?.text();
            ensure!(
                text.lines().count() == 1 && text.ends_with(&format!(" {PAGE}")),
                "curl {name}: {text}"
            );
        }
        for (name, long) in load.long {
            let text = long.wait(3 * PATIENCE)?.successful()?.text();
            let sums: Vec<&str> = text.lines().collect();
            ensure!(sums.len() == 2 && sums[0] == sums[1], "long {name}: {text}");
        }
        let count = seen(&self.wire.pcap(self.frames));
        ensure!(!count.is_readable() && count.icmp_packets == 0, "{count:?}");
        Ok(())
    }

    /// Every ping has been answered until now.
    fn judge_pings(&self, pings: Vec<Ping<'_>>) -> Result<()> {
        pings.iter().try_for_each(Ping::flows)?;
        self.ensure_none_lost(pings)
    }

    /// Ends pings: each one up to the last that was answered has been.
    pub(super) fn ensure_none_lost(&self, pings: Vec<Ping<'_>>) -> Result<()> {
        let mut losses = Vec::new();
        for ping in pings {
            let name = ping.name.clone();
            let lost = ping.lost()?;
            if let (Some(first), Some(last)) = (lost.first(), lost.last()) {
                let count = lost.len();
                losses.push(format!(
                    "ping {name}: {count} not answered, from {first} to {last}"
                ));
            }
        }
        if losses.is_empty() {
            return Ok(());
        }
        bail!("{}\n{}", losses.join("\n"), self.drops())
    }

    /// What has counted drops on the way, for whoever looks for packets that are missing.
    fn drops(&self) -> String {
        let mut text = format!("the wire: {} frames", self.wire.lost());
        for node in &self.nodes {
            let vm = &node.site.vm;
            let said = vm.try_sh(DROPS).map(|said| said.text());
            let said = said.unwrap_or_else(|error| format!("{error:#}"));
            text += &format!("\n{}:\n{said}", vm.name());
        }
        text
    }
}

/// Queues, devices, and the programs.
const DROPS: &str = "tc -s qdisc show dev eth0 | grep -i dropped; cat /proc/net/softnet_stat; \
    ip -s -s link | grep -A 9 -E 'eth0|underseal|h-w'; underseal status | grep -iE 'drop|refused'; wg show";

impl<'a> Ping<'a> {
    /// Starts one, with these words behind its own.
    pub(super) fn start(
        site: &'a Site,
        place: &Place<'a>,
        name: &str,
        words: &str,
    ) -> Result<Self> {
        let process = place.spawn(&format!("exec ping -n {words} >/tmp/ping.{name}"))?;
        Ok(Self {
            name: name.to_owned(),
            site,
            process,
        })
    }

    /// Waits until ten more are answered.
    pub(super) fn flows(&self) -> Result<()> {
        let (name, vm) = (&self.name, &self.site.vm);
        let count = format!("grep -c 'bytes from' /tmp/ping.{name} || true");
        let before: usize = vm.sh(&count)?.text().parse().unwrap_or(0);
        let more = format!("test $({count}) -gt $(({before} + 10))");
        vm.wait_until(&more, PATIENCE, &format!("answers to ping {name}"))
    }

    /// Ends it. Returns the numbers of those that were not answered though later ones were: however late an answer comes,
    /// it is one.
    pub(super) fn lost(self) -> Result<Vec<u64>> {
        let (name, vm) = (&self.name, &self.site.vm);
        self.process.signal(2)?;
        self.process.wait(PATIENCE)?;
        let numbers = format!(
            "grep 'bytes from' /tmp/ping.{name} | grep -o 'icmp_seq=[0-9]*' | cut -d= -f2 | sort -nu"
        );
        let text = vm.sh(&numbers)?.text();
        let answered: BTreeSet<u64> = text.lines().map(str::parse).collect::<Result<_, _>>()?;
        let last = *answered.last().context("no ping was answered")?;
        ensure!(last > 20, "ping {name} has hardly begun");
        let missing = (1..last).filter(|number| !answered.contains(number));
        Ok(missing.collect())
    }
}
