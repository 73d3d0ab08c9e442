//! Checks of interfaces, peers and routes.

use super::{Check, Facts, Finding, ok, or_ok, problem, warning};
use crate::metrics::Session;

pub(super) const UPLINKS: Check = Check {
    name: "uplinks",
    why: "the strict check stands on them; on one that is not named nothing keeps plaintext back",
    look: |facts| {
        let findings = facts.uplinks.iter().filter_map(|(name, link)| match link {
            None => Some(problem(
                format!("there is no interface {name}"),
                "correct node.uplinks, or apply when it is there",
            )),
            Some(link) if !link.up => Some(warning(
                format!("{name} is down"),
                format!("ip link set {name} up"),
            )),
            Some(_) => None,
        });
        let names = facts.uplinks.keys().cloned().collect::<Vec<_>>();
        or_ok(findings.collect(), || match names.as_slice() {
            [] => "none is configured".to_owned(),
            names => format!("{} up", names.join(", ")),
        })
    },
};

/// What WireGuard puts around a packet, with IPv6 outside.
const OVERHEAD: u32 = 80;

pub(super) const MTU: Check = Check {
    name: "MTU",
    why: "a tunnel with a larger MTU than fits sends each large packet in two, or loses it",
    look: |facts| {
        let Some(device) = &facts.device else {
            return Vec::new();
        };
        let mut findings = Vec::new();
        if !device.up {
            findings.push(problem(
                format!("{} is down", device.name),
                "`underseal apply` sets it up",
            ));
        }
        for uplink in facts.uplinks.values().flatten() {
            // The device needs not go below what IPv6 demands.
            let fits = uplink.mtu.saturating_sub(OVERHEAD).max(1280);
            if device.mtu > fits {
                findings.push(warning(
                    format!(
                        "{} has {}, but of {}'s {} only {fits} are left",
                        device.name, device.mtu, uplink.name, uplink.mtu
                    ),
                    "leave wireguard.mtu out of the file, or lower it; then `underseal apply`",
                ));
            }
        }
        or_ok(findings, || {
            format!("{} has {}, which fits its uplinks", device.name, device.mtu)
        })
    },
};

/// WireGuard renews a session that is used after two minutes, and lets go of one after three
/// (`drivers/net/wireguard/messages.h`, `REKEY_AFTER_TIME`, `REJECT_AFTER_TIME`).
pub(crate) const OLD: u64 = 180;

pub(super) const PEERS: Check = Check {
    name: "WireGuard peers",
    why: "without a handshake nothing passes between the two nodes",
    look: |facts| {
        let Some(node) = facts
            .observed
            .node
            .as_ref()
            .filter(|node| !node.sessions.is_empty())
        else {
            return Vec::new();
        };
        let sessions = node.sessions.iter();
        let silent = sessions.filter_map(|it| session(it, facts));
        let unroutable = facts.unroutable.iter().map(|it| {
            problem(
                format!("no route leads to {it}"),
                "set up the uplink and its routes, or correct the endpoint in the file",
            )
        });
        let findings = unroutable.chain(silent).collect();
        or_ok(findings, || {
            "each has had a handshake, or nobody wants anything of it".to_owned()
        })
    },
};

/// Without keepalives a session that nobody uses is old and good: only one for which handshakes are sent is told.
fn session(it: &Session, facts: &Facts) -> Option<Finding> {
    const FIX: &str = "is that node up, does a firewall on the way let its UDP port pass, are public key and endpoint right on both sides? `wg show` has them";
    let name = format!("{} ({})", it.peer, it.device);
    let Some(at) = it.handshake else {
        return (it.sent > 0).then(|| {
            problem(
                format!(
                    "{name} has never answered, though {} bytes were sent to it",
                    it.sent
                ),
                FIX,
            )
        });
    };
    let age = facts.observed.at.saturating_sub(at);
    let is_silent = age > OLD && facts.trying.contains(&name);
    is_silent.then(|| {
        problem(
            format!(
                "{name} does not answer: packets wait, and the last handshake was {age} seconds ago"
            ),
            FIX,
        )
    })
}

pub(super) const ROUTES: Check = Check {
    name: "routes",
    why: "the node's own packets to workloads of another node take the way that routes say; workloads' packets do not depend on routes",
    look: |facts| {
        let Some(device) = &facts.device else {
            return Vec::new();
        };
        let others = facts.ways.iter().filter(|(_, way)| **way != device.name);
        let findings = others.map(|(network, way)| {
            warning(
                format!("{network} is reached by {way}, not by {}", device.name),
                "remove that route, which `ip route get` shows; the strict check drops what takes it with an address of a workload",
            )
        });
        or_ok(findings.collect(), || {
            format!("networks of peers are reached by {}", device.name)
        })
    },
};

pub(super) const FORWARDING: Check = Check {
    name: "forwarding",
    why: "workloads reach addresses that are no workload through the host's own stack; each other they reach without it",
    look: |facts| match facts.ip_forward {
        Some(false) if facts.allows_outside => vec![ok(
            "net.ipv4.ip_forward is 0: workloads reach workloads and the host, nobody else",
        )],
        _ => vec![ok("nothing is in the way")],
    },
};
