//! The preshared key of two nodes is exchanged without generations. If both have the new one when WireGuard makes its
//! next session, nothing is lost. If one of them has it alone, the session that there is goes on, and cannot be renewed:
//! after three minutes nothing passes any more, in plaintext nothing at all. When the other one has it, too, all is well.
//! The control: the same wire shows packets with data while there is a session.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use underseal_vm::Lab;
use underseal_vm::main_job::{MARKER, seen};
use underseal_vm::topology::Node;

use super::load::Ping;
use super::{Network, PATIENCE};

/// Times of WireGuard (drivers/net/wireguard/messages.h): when a session is renewed, and when it ends.
const REKEY_AFTER: u64 = 120;
const REJECT_AFTER: u64 = 180;
/// Longer than any of them.
const SESSION: Duration = Duration::from_secs(300);
const FILE: &str = "/etc/underseal/pair.psk";

pub(crate) fn preshared(lab: &Lab) -> Result<()> {
    let net = Network::set(lab, 2)?;
    let secret = || Ok::<_, anyhow::Error>(net.node(1).site.vm.sh("wg genpsk")?.text());
    let (first, second) = (secret()?, secret()?);
    let pings = net.pings()?;
    pings.iter().try_for_each(Ping::flows)?;
    let before = net.handshake(1)?;
    net.share(1, &first)?;
    net.share(2, &first)?;
    let renewed = format!("test $({HANDSHAKE}) -gt {before}");
    for node in &net.nodes {
        node.site
            .vm
            .wait_until(&renewed, SESSION, "a session with the new key")?;
    }
    pings.iter().try_for_each(Ping::flows)?;

    net.share(2, &second)?;
    net.wait_for_age(REKEY_AFTER + 5)?;
    pings
        .iter()
        .try_for_each(Ping::flows)
        .context("the session that there is goes on")?;
    let open = net.wire.frames();
    pings.iter().try_for_each(Ping::flows)?;
    let count = seen(&net.wire.pcap(open));
    ensure!(count.wireguard_data_packets > 0, "the control: {count:?}");
    net.wait_for_age(REJECT_AFTER + 5)?;
    net.ensure_none_lost(pings)?;
    net.ensure_closed()?;

    net.share(1, &second)?;
    for (from, to) in net.ways() {
        let ping = format!("ping -n -c 1 -W 2 {}", Node(to).workload("", 10).v6);
        let place = net.node(from).site.inside(&format!("w{from}"));
        place.wait_until(&ping, PATIENCE, "a session with the key of both")?;
    }
    net.ensure_new_connections()
}

/// When the session was made, in seconds.
const HANDSHAKE: &str = "wg show underseal0 latest-handshakes | cut -f2";

impl Network {
    /// A node gets a preshared key for the other one, in the place of the one before.
    fn share(&self, number: u8, secret: &str) -> Result<()> {
        let node = self.node(number);
        node.site.vm.put(FILE, secret.as_bytes(), 0o600)?;
        node.edit(|keys| keys.peer(3 - number).preshared = Some(FILE.to_owned()))?;
        node.site.apply()?;
        node.site.ensure_settled()?;
        let now = node
            .site
            .vm
            .sh("wg show underseal0 preshared-keys | cut -f2")?;
        ensure!(
            now.text() == secret,
            "node-{number} has another preshared key"
        );
        Ok(())
    }

    fn handshake(&self, number: u8) -> Result<u64> {
        let text = self.node(number).site.vm.sh(HANDSHAKE)?.text();
        text.parse().with_context(|| format!("not a time: {text}"))
    }

    /// Waits until both nodes' session is so old. One that can be renewed never is.
    fn wait_for_age(&self, seconds: u64) -> Result<()> {
        let old = format!("test $(($(date +%s) - $({HANDSHAKE}))) -ge {seconds}");
        for node in &self.nodes {
            let what = format!("a session that is {seconds} s old");
            node.site.vm.wait_until(&old, SESSION, &what)?;
        }
        Ok(())
    }

    /// Nothing of what programs try gets through, and on the wire there is nothing of it; only the nodes' own attempts.
    fn ensure_closed(&self) -> Result<()> {
        let from = self.wire.frames();
        for (here, there) in self.ways() {
            let place = self.node(here).site.inside(&format!("w{here}"));
            let workload = Node(there).workload("", 10);
            let (v4, v6) = (workload.v4, workload.v6);
            for attempt in [
                format!("ping -n -c 10 -i 0.2 -W 2 {v4}"),
                format!("ping -n -c 10 -i 0.2 -W 2 {v6}"),
                format!("curl -sS --max-time 5 http://{v4}/page"),
            ] {
                let said = place.try_sh(&attempt)?;
                ensure!(said.code != Some(0), "node-{here}: {attempt}: {said:?}");
            }
            place.try_sh(&format!("echo {MARKER} | nc -u -w 1 {v4} 9"))?;
        }
        let count = seen(&self.wire.pcap(from));
        ensure!(
            !count.is_readable()
                && count.icmp_packets == 0
                && count.wireguard_data_packets == 0
                && count.wireguard_packets > 0,
            "without a session: {count:?}"
        );
        Ok(())
    }
}
