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

use std::cell::RefCell;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use underseal_vm::identities::Authority;
use underseal_vm::main_job::{MARKER, seen};
use underseal_vm::site::{CONFIG, Helpers, Settings, Site};
use underseal_vm::topology::Node;
use underseal_vm::{Lab, Process, VmOptions, Wire};

use crate::faults;

const PATIENCE: Duration = Duration::from_secs(120);
/// A key that nobody has.
const WRONG: &str = "C8LHcQxrDOFUSUP9ZMJFtvAWDLLWxIQNGQYFvcEBCU8=";
const PAGE: usize = 1 << 16;
const LONG: usize = 2 << 20;

pub(crate) fn two(lab: &Lab) -> Result<()> {
    let net = Network::set(lab, 2)?;
    let load = net.load()?;
    net.begin(1)?;
    net.ensure_wrong_key_is_refused(2, 1)?;
    net.killed_in_the_switch(2, 1)?;
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

/// A node.
struct Member {
    site: Site,
    base: String,
    keys: RefCell<Keys>,
}

/// What a node's file says of keys.
struct Keys {
    generation: u32,
    /// Whether there is a next key.
    next: bool,
    /// What it has of each other node.
    peers: Vec<Known>,
}

/// A peer as a file has it.
struct Known {
    number: u8,
    key: String,
    generation: u32,
    preshared: Option<String>,
    next_preshared: Option<String>,
}

/// Programs that talk.
struct Load<'a> {
    pings: Vec<(String, &'a Site, Process<'a>)>,
    curls: Vec<(String, Process<'a>)>,
    long: Vec<(String, Process<'a>)>,
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
            let name = format!("w{number}");
            let site = Site::prepare(vm, Node(number), &authority, &[(&name, 10)])?;
            site.configure(&Settings {
                wireguard: true,
                helpers: Some(Helpers::V4),
                ..Settings::default()
            })?;
            let base = site.vm.sh(&format!("cat {CONFIG}"))?.text();
            nodes.push(Member {
                site,
                base,
                keys: RefCell::new(Keys {
                    generation: 0,
                    next: false,
                    peers: Vec::new(),
                }),
            });
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
        self.know(number, of, WRONG, 1)?;
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
        // Back again, so that the whole way is shown as well; the old key is there as long as there is a next one.
        let old = self.node(of).site.public_key()?;
        let node = self.node(number);
        node.edit(|keys| keys.peer(of).back(old))?;
        node.site.apply()?;
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

    fn load(&self) -> Result<Load<'_>> {
        let mut load = Load {
            pings: Vec::new(),
            curls: Vec::new(),
            long: Vec::new(),
        };
        // Three emulated machines have less to spare.
        let pause = if self.nodes.len() == 2 { 0.02 } else { 0.1 };
        for (from, to) in self.ways() {
            let site = &self.node(from).site;
            let (inside, name) = (site.inside(&format!("w{from}")), format!("{from}-{to}"));
            let (v4, v6) = (Node(to).workload("", 10).v4, Node(to).workload("", 10).v6);
            let host = Node(to).helper(Helpers::V4).0;
            for (name, place, target) in [
                (format!("{name}-v4"), inside.clone(), v4.to_string()),
                (format!("{name}-v6"), inside.clone(), v6.to_string()),
                (format!("{name}-node"), site.vm.node(), host.to_string()),
            ] {
                let ping = format!("exec ping -n -i {pause} {target} >/tmp/ping.{name}");
                load.pings.push((name, site, place.spawn(&ping)?));
            }
            site.vm.sh("rm -f /tmp/enough")?;
            let curl = format!(
                "until test -e /tmp/enough; do curl -sS --max-time 60 --limit-rate 64K http://{v4}/page | wc -c; done | sort | uniq -c"
            );
            load.curls.push((name.clone(), inside.spawn(&curl)?));
            let long = format!(
                "curl -sS --max-time 900 --limit-rate 20K http://{v4}/long | sha256sum; cat /srv/long | sha256sum"
            );
            load.long.push((name, inside.spawn(&long)?));
        }
        load.flows()?;
        Ok(load)
    }

    /// Ends the load: every ping has been answered, every page fetched, and nothing could be read on the wire.
    fn judge(&self, load: Load<'_>) -> Result<()> {
        load.flows()?;
        for (name, site, ping) in load.pings {
            let lost = lost(site, &name, &ping)?;
            let (first, last) = (lost.first(), lost.last());
            ensure!(
                lost.is_empty(),
                "ping {name}: {} not answered, from {first:?} to {last:?}",
                lost.len()
            );
        }
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

    /// A key that is exchanged at once loses packets.
    fn control(&self, number: u8, of: u8) -> Result<()> {
        self.begin(of)?;
        let new = self.node(of).next_key()?;
        let ping = format!(
            "exec ping -n -O -i 0.02 {} >/tmp/ping.control",
            Node(of).workload("", 10).v4
        );
        let site = &self.node(number).site;
        let ping = site.inside(&format!("w{number}")).spawn(&ping)?;
        flows(site, "control")?;
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
        flows(&node.site, "control")?;
        let lost = lost(&node.site, "control", &ping)?;
        ensure!(
            !lost.is_empty(),
            "a key exchanged at once lost nothing: the count counts nothing"
        );
        Ok(())
    }
}

impl Load<'_> {
    /// Waits until more pings are answered everywhere.
    fn flows(&self) -> Result<()> {
        self.pings
            .iter()
            .try_for_each(|(name, site, _)| flows(site, name))
    }
}

/// Waits until ten more pings are answered.
fn flows(site: &Site, name: &str) -> Result<()> {
    let count = format!("grep -c 'bytes from' /tmp/ping.{name} || true");
    let before: usize = site.vm.sh(&count)?.text().parse().unwrap_or(0);
    let more = format!("test $({count}) -gt $(({before} + 10))");
    site.vm
        .wait_until(&more, PATIENCE, &format!("answers to ping {name}"))
}

/// Ends a ping. Returns the numbers of packets that were not answered though later ones were.
fn lost(site: &Site, name: &str, ping: &Process<'_>) -> Result<Vec<u64>> {
    ping.signal(2)?;
    ping.wait(PATIENCE)?;
    let numbers = format!(
        "grep 'bytes from' /tmp/ping.{name} | grep -o 'icmp_seq=[0-9]*' | cut -d= -f2 | sort -nu"
    );
    let text = site.vm.sh(&numbers)?.text();
    let answered: Vec<u64> = text.lines().map(str::parse).collect::<Result<_, _>>()?;
    let last = *answered.last().context("no ping was answered")?;
    ensure!(last > 20, "ping {name} has hardly begun");
    let answered: std::collections::BTreeSet<u64> = answered.into_iter().collect();
    Ok((1..last)
        .filter(|number| !answered.contains(number))
        .collect())
}

fn next_file(generation: u32) -> String {
    format!("/var/lib/underseal/wireguard-{generation}.key")
}

impl Known {
    fn new(number: u8, key: &str) -> Self {
        Self {
            number,
            key: key.to_owned(),
            generation: 0,
            preshared: None,
            next_preshared: None,
        }
    }

    /// The generation before this one.
    fn back(&mut self, key: String) {
        (self.key, self.generation) = (key, self.generation - 1);
    }
}

impl Keys {
    fn peer(&mut self, number: u8) -> &mut Known {
        let mut peers = self.peers.iter_mut();
        peers
            .find(|peer| peer.number == number)
            .expect("a peer of this node")
    }
}

impl Member {
    /// Changes what its file says, and writes it.
    fn edit(&self, change: impl FnOnce(&mut Keys)) -> Result<()> {
        change(&mut self.keys.borrow_mut());
        self.write()
    }

    fn next_key(&self) -> Result<String> {
        Ok(self.site.vm.sh("underseal key --next")?.text())
    }

    fn write(&self) -> Result<()> {
        self.site.vm.put(CONFIG, self.text().as_bytes(), 0o644)
    }

    fn text(&self) -> String {
        let keys = self.keys.borrow();
        let mut own = format!("[wireguard]\ngeneration = {}\n", keys.generation);
        if keys.generation > 0 {
            own += &format!("private_key_file = \"{}\"\n", next_file(keys.generation));
        }
        let mut text = self.base.replace("[wireguard]\n", &own);
        if keys.next {
            let file = next_file(keys.generation + 1);
            // Writing to a String does not fail.
            let _ = write!(text, "\n[wireguard.next]\nprivate_key_file = \"{file}\"\n");
        }
        for peer in &keys.peers {
            let Known {
                number,
                key,
                generation,
                ..
            } = peer;
            let _ = write!(
                text,
                "\n[[peer]]\nname = \"node-{number}\"\npublic_key = \"{key}\"\ngeneration = {generation}\n\
                 endpoint = \"{}:51871\"\nnetworks = [\"10.{number}.0.0/24\", \"fd00:{number}::/64\"]\n",
                Node(*number).v4()
            );
            if let Some(file) = &peer.preshared {
                let _ = writeln!(text, "preshared_key_file = \"{file}\"");
            }
            if let Some(file) = peer.next_preshared.as_ref().filter(|_| keys.next) {
                let _ = writeln!(text, "next_preshared_key_file = \"{file}\"");
            }
        }
        text
    }

    fn serve(&self) -> Result<()> {
        let number = self.site.node.0;
        let vm = &self.site.vm;
        vm.put(
            "/srv/page",
            MARKER.repeat(PAGE / MARKER.len() + 1)[..PAGE].as_bytes(),
            0o644,
        )?;
        vm.sh(&format!("yes {MARKER} | head -c {LONG} >/srv/long"))?;
        self.site.serve_http(&format!("w{number}"), 80).map(drop)
    }
}
