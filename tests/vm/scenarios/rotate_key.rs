//! WireGuard keys are replaced while every node talks to every other, and not one packet is lost: in the middle some nodes
//! use the new key and some the old one. The controls: a key exchanged without generations loses packets, and the same
//! count shows it; a wrong new key is refused, and nothing is lost either.
//!
//! ```text
//!   node-1: w1 ── eth0 ─┐
//!   node-2: w2 ── eth0 ─┼─ wire (this process)
//!   node-3: w3 ── eth0 ─┘   (on three nodes)
//! ```
//!
//! Load: ping from each workload to each other one and from each node to each other one, many times a second; curl,
//! one connection after the other; and one long transfer by curl.

mod load;
mod member;
mod preshared;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use underseal_vm::identities::Authority;
use underseal_vm::pcap::{IpPacket, Link, Transport};
use underseal_vm::site::{CONFIG, NOBODY, Site};
use underseal_vm::topology::Node;
use underseal_vm::{Fate, Lab, VmOptions, Wire};

use self::load::Ping;
use self::member::{Known, Member, next_file};
pub(crate) use self::preshared::preshared;
use crate::faults;

const PATIENCE: Duration = Duration::from_secs(120);
/// Debian's queue, `fq_codel`, drops what has waited for more than 5 ms ten times over. That is its job, and an emulated
/// machine that waits for a processor makes packets wait: what such a queue drops is not lost by an exchange of keys.
const QUEUE: &str = "tc qdisc replace dev eth0 root pfifo limit 100000";
/// Where a node with its first key has the pair of the next one and another node's first one.
const PORT_OF_NEXT: u16 = 51874;
/// How much later something comes by that: more than the pauses that `underseal apply` makes between two notices.
const LATE: Duration = Duration::from_secs(1);
const PAGE: usize = 1 << 16;
const LONG: usize = 2 << 20;

pub(crate) fn two(lab: &Lab) -> Result<()> {
    let net = Network::set(lab, 2)?;
    let load = net.load()?;
    net.begin(1)?;
    net.ensure_wrong_key_is_refused(2, 1)?;
    net.killed_in_the_switch(2, 1)?;
    net.go_back(2, 1)?;
    net.change(2, 1)?;
    net.ensure_rotation(1, &[2], &[])?;
    net.finish(1)?;
    net.judge(load).context("node-1's key replaced")?;
    net.control(2, 1)
}

pub(crate) fn three(lab: &Lab) -> Result<()> {
    let net = Network::set(lab, 3)?;
    let load = net.load()?;
    net.begin(1)?;
    net.change(2, 1)?;
    net.ensure_rotation(1, &[2], &[3])?;
    net.ensure_new_connections()?;
    net.settled(1)?;
    net.ensure_not_retired(1, 3)?;
    net.change(3, 1)?;
    net.ensure_rotation(1, &[2, 3], &[])?;
    net.finish(1)?;
    net.judge(load).context("node-1's key replaced")?;

    // Now the sums of the generations differ, and every pair gets a preshared key with it.
    let load = net.load()?;
    net.preshare(2)?;
    net.begin(2)?;
    net.change(1, 2)?;
    net.ensure_rotation(2, &[1], &[3])?;
    net.judge(load).context("half of node-2's key replaced")?;
    // What the kernel knew is gone, as after a reboot, while some use the new key and some the old one.
    net.forget(2)?;
    net.ensure_rotation(2, &[1], &[3])?;
    net.ensure_new_connections()?;
    let load = net.load()?;
    net.change(3, 2)?;
    net.finish(2)?;
    net.judge(load).context("node-2's key replaced")
}

/// Nodes that know each other.
struct Network {
    wire: Wire,
    nodes: Vec<Member>,
    frames: usize,
}

impl Network {
    fn set(lab: &Lab, count: u8) -> Result<Self> {
        let wire = Wire::new(count.into())?;
        let authority = Authority::new("test authority")?;
        let options = |number: u8| VmOptions {
            name: format!("node-{number}"),
            nics: vec![wire.port(usize::from(number) - 1)],
            // Each change loads all programs, while everything talks.
            deadline: Duration::from_secs(1500),
            ..faults::options()
        };
        let vms = match count {
            2 => lab.boot_all(&[1, 2].map(options))?.to_vec(),
            _ => lab.boot_all(&[1, 2, 3].map(options))?.to_vec(),
        };
        let mut nodes = Vec::new();
        for (number, vm) in (1..).zip(&vms) {
            Node(number).uplink(vm)?;
            vm.sh(QUEUE)?;
            let name = format!("w{number}");
            let site = Site::prepare(vm, Node(number), &authority, &[(&name, 10)])?;
            nodes.push(Member::new(site)?);
        }
        let keys = nodes.iter().map(|node| node.site.public_key());
        let keys: Vec<String> = keys.collect::<Result<_>>()?;
        for (i, node) in nodes.iter().enumerate() {
            let others = (1..)
                .zip(&keys)
                .filter(|(number, _)| *number != i as u8 + 1);
            node.keys.borrow_mut().peers = others
                .map(|(number, key)| Known::new(number, key))
                .collect();
            node.write()?;
            node.site.apply()?;
            node.site.start_helper()?;
            node.serve()?;
        }
        let frames = wire.frames();
        Ok(Self {
            wire,
            nodes,
            frames,
        })
    }

    fn node(&self, number: u8) -> &Member {
        &self.nodes[usize::from(number) - 1]
    }

    /// A node gets its next key.
    fn begin(&self, number: u8) -> Result<()> {
        let node = self.node(number);
        node.edit(|keys| keys.next = true)?;
        node.site.apply()?;
        node.site.ensure_settled()
    }

    /// A node changes to the next key of another.
    fn change(&self, number: u8, of: u8) -> Result<()> {
        let key = self.node(of).next_key()?;
        self.know(number, of, &key, 1)?;
        let node = self.node(number);
        node.site.apply()?;
        node.site.ensure_settled()
    }

    /// Writes what a node has of another.
    fn know(&self, number: u8, of: u8, key: &str, by: u32) -> Result<()> {
        self.node(number).edit(|keys| {
            let known = keys.peer(of);
            key.clone_into(&mut known.key);
            known.generation += by;
            if let Some(preshared) = known.next_preshared.take() {
                known.preshared = Some(preshared);
            }
        })
    }

    /// The next key becomes the one that a node has; with the old one nobody gets through any more.
    fn finish(&self, number: u8) -> Result<()> {
        let node = self.node(number);
        let old = node.site.vm.sh("wg show all public-key | cut -f2")?.text();
        let old: Vec<String> = old.lines().map(str::to_owned).collect();
        let new = node.next_key()?;
        node.edit(|keys| {
            keys.next = false;
            keys.generation += 1;
            for peer in &mut keys.peers {
                if let Some(preshared) = peer.next_preshared.take() {
                    peer.preshared = Some(preshared);
                }
            }
        })?;
        node.site.apply()?;
        node.site.ensure_settled()?;
        let now = node.site.vm.sh("wg show all public-key | cut -f2")?.text();
        let retired = |key: &&String| **key != new && *key != "(none)";
        ensure!(
            old.iter().any(|key| retired(&key)),
            "there was no old key: {old:?}"
        );
        let left: Vec<_> = old
            .iter()
            .filter(retired)
            .filter(|key| now.contains(*key))
            .collect();
        ensure!(left.is_empty(), "the old key is still there: {now}");
        ensure!(now.contains(&new), "the new key is not there: {now}");
        Ok(())
    }

    /// Each pair of keys that another node changes to gets a preshared key.
    fn preshare(&self, of: u8) -> Result<()> {
        for other in (1..=self.nodes.len() as u8).filter(|number| *number != of) {
            let secret = self.node(of).site.vm.sh("wg genpsk")?.text();
            for (number, peer) in [(of, other), (other, of)] {
                let file = format!("/etc/underseal/{peer}.psk");
                let node = self.node(number);
                node.site.vm.put(&file, secret.as_bytes(), 0o600)?;
                node.keys.borrow_mut().peer(peer).next_preshared = Some(file);
            }
        }
        Ok(())
    }

    fn settled(&self, number: u8) -> Result<()> {
        self.node(number).site.ensure_settled()
    }

    /// As after a reboot.
    fn forget(&self, number: u8) -> Result<()> {
        let site = &self.node(number).site;
        site.down()?;
        site.apply()?;
        site.ensure_settled()
    }

    /// What `status` of the node whose key is replaced says of others.
    fn ensure_rotation(&self, number: u8, changed: &[u8], waiting: &[u8]) -> Result<()> {
        let text = self
            .node(number)
            .site
            .vm
            .sh("underseal --json status")?
            .text();
        let status: serde_json::Value = serde_json::from_str(&text)?;
        let names = |numbers: &[u8]| -> serde_json::Value {
            numbers
                .iter()
                .map(|number| format!("node-{number}"))
                .collect::<Vec<_>>()
                .into()
        };
        let rotation = &status["rotation"];
        ensure!(
            rotation["changed"] == names(changed) && rotation["waiting"] == names(waiting),
            "node-{number}: {rotation}, {}",
            status["peers"]
        );
        Ok(())
    }

    /// A key that a node still uses is not let go.
    fn ensure_not_retired(&self, number: u8, user: u8) -> Result<()> {
        let node = self.node(number);
        node.edit(|keys| (keys.next, keys.generation) = (false, keys.generation + 1))?;
        let said = node.site.vm.try_sh("underseal apply")?;
        node.edit(|keys| (keys.next, keys.generation) = (true, keys.generation - 1))?;
        let text = said.error_text();
        let name = format!("node-{user} still uses");
        ensure!(said.code == Some(1) && text.contains(&name), "{said:?}");
        node.site.ensure_settled()
    }

    /// A key that the other node does not have as its next: apply says so, and nothing has changed.
    fn ensure_wrong_key_is_refused(&self, number: u8, of: u8) -> Result<()> {
        let node = self.node(number);
        let before = node.keys.borrow_mut().peer(of).key.clone();
        self.know(number, of, NOBODY, 1)?;
        let said = node.site.vm.try_sh("underseal apply")?;
        ensure!(
            said.code == Some(1) && said.error_text().contains("no answer within"),
            "{said:?}"
        );
        node.edit(|keys| keys.peer(of).back(before))?;
        node.site.ensure_settled()
    }

    /// An apply that is killed after each step of a change, again and again: the next one goes on from there.
    fn killed_in_the_switch(&self, number: u8, of: u8) -> Result<()> {
        let key = self.node(of).next_key()?;
        self.know(number, of, &key, 1)?;
        let site = &self.node(number).site;
        let steps = site
            .vm
            .sh("underseal plan | grep -n -m1 'is told to come by' | cut -d: -f1")?;
        let switch: u32 = steps.text().parse().context(steps.text())?;
        // When nothing was done yet, before the switch, behind it, and behind what follows.
        for steps in [switch - 1, 1, 2, 3] {
            let said = site
                .vm
                .try_sh(&format!("UNDERSEAL_STEPS={steps} underseal-controls apply"))?;
            ensure!(
                said.signal == Some(9) || said.code == Some(137),
                "after {steps} steps: {said:?}"
            );
        }
        site.apply()?;
        site.ensure_settled()?;
        Ok(())
    }

    /// A node goes back to the key before, which is there as long as there is a next one. What it has sent by the next one
    /// comes later than what it says of it: the other node follows it for a while.
    fn go_back(&self, number: u8, of: u8) -> Result<()> {
        let (from, pair) = (usize::from(number) - 1, PORT_OF_NEXT);
        self.wire.set_filter(move |port, frame| {
            let packet = IpPacket::parse(Link::Ethernet, frame);
            match packet.map(|packet| packet.transport) {
                Some(Transport::Udp { ports, .. }) if port == from && ports.1 == pair => {
                    Fate::Delay(LATE)
                }
                _ => Fate::Pass,
            }
        });
        let old = self.node(of).site.public_key()?;
        let node = self.node(number);
        node.edit(|keys| keys.peer(of).back(old))?;
        node.site.apply()?;
        self.wire.clear_filter();
        node.site.ensure_settled()
    }

    /// New connections from every node to every other.
    fn ensure_new_connections(&self) -> Result<()> {
        for (from, to) in self.ways() {
            let place = self.node(from).site.inside(&format!("w{from}"));
            let page = format!(
                "curl -sS --max-time 20 http://{}/page | wc -c",
                Node(to).workload("", 10).v4
            );
            let bytes = place.sh_for(&page, PATIENCE)?.text();
            ensure!(
                bytes == PAGE.to_string(),
                "node-{from} to node-{to}: {bytes}"
            );
        }
        Ok(())
    }

    /// From every node to every other.
    fn ways(&self) -> Vec<(u8, u8)> {
        let all = 1..=self.nodes.len() as u8;
        let ways = all
            .clone()
            .flat_map(|from| all.clone().map(move |to| (from, to)));
        ways.filter(|(from, to)| from != to).collect()
    }

    /// A key that is exchanged at once loses packets.
    fn control(&self, number: u8, of: u8) -> Result<()> {
        self.begin(of)?;
        let new = self.node(of).next_key()?;
        let words = format!("-O -i 0.02 {}", Node(of).workload("", 10).v4);
        let site = &self.node(number).site;
        let place = site.inside(&format!("w{number}"));
        let ping = Ping::start(site, &place, "control", &words)?;
        ping.flows()?;
        let member = self.node(of);
        member.edit(|keys| keys.next = false)?;
        let text = member.text().replace(&next_file(1), &next_file(2));
        ensure!(text.contains(&next_file(2)), "no key file in {text}");
        member.site.vm.put(CONFIG, text.as_bytes(), 0o644)?;
        let said = member.site.vm.sh("underseal apply --retire-key")?.text();
        ensure!(said.contains("warning"), "no warning: {said}");
        // WireGuard keeps 128 packets for a peer until there is a session (drivers/net/wireguard/queueing.h,
        // MAX_STAGED_PACKETS): whoever is quicker than that loses none of them.
        let many = "test $(grep -c 'no answer' /tmp/ping.control) -gt 200";
        site.vm
            .wait_until(many, PATIENCE, "packets that are not answered")?;
        let node = self.node(number);
        node.edit(|keys| keys.peer(of).key = new)?;
        let said = node.site.apply()?.text();
        ensure!(
            said.contains("packets under way are lost"),
            "no warning: {said}"
        );
        ping.flows()?;
        ensure!(
            !ping.lost()?.is_empty(),
            "a key exchanged at once lost nothing: the count counts nothing"
        );
        Ok(())
    }
}
