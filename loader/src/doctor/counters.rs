//! Checks of what was counted since the first apply: of the counters that mean trouble each has what it means and what to
//! do. What is part of every day, such as what a policy denies, is not here.

use super::{Check, Facts, Finding, Level, or_ok};
use crate::report::counted;

pub(super) const GUARD: Check = Check {
    name: "guard",
    why: "it drops what was about to be sent in plaintext: nothing leaked, but something tried",
    look: |facts| {
        find(facts, &GUARDED, |facts, name| {
            let node = facts.observed.node.as_ref()?;
            node.counters.get(name).map(|it| it.packets)
        })
    },
};

pub(super) const PACKETS: Check = Check {
    name: "packets dropped",
    why: "somebody's traffic did not arrive",
    look: |facts| {
        find(facts, &DROPPED, |facts, name| {
            let node = facts.observed.node.as_ref()?;
            node.counters.get(name).map(|it| it.packets)
        })
    },
};

pub(super) const CERTIFICATES: Check = Check {
    name: "certificates refused",
    why: "these connections were reset",
    look: |facts| find(facts, &REFUSED, helper),
};

pub(super) const RESETS: Check = Check {
    name: "connections reset",
    why: "programs saw a broken connection for a reason that nobody has decided on",
    look: |facts| find(facts, &RESET, helper),
};

/// A counter, what it means if it is not zero, and what to do.
type Row = (&'static str, &'static str, &'static str);

const LOG: &str = "`journalctl -u underseal-handshake` names each connection";

const GUARDED: [Row; 5] = [
    (
        "drop_unsealed",
        "payload of a socket that has no keys yet",
        "see which workload sets its own tcp_notsent_lowat or writes past its sockets; else report it",
    ),
    (
        "drop_not_a_record",
        "payload of a sealed socket that is no TLS record",
        "report it with the helper's log",
    ),
    (
        "drop_unsealed_ingress",
        "payload for a socket that has no keys yet",
        "see which workload sends by raw sockets; else report it",
    ),
    (
        "drop_unknown",
        "payload between workloads by a socket that no program has seen",
        "connections from before the first apply, or raw sockets: restart that workload",
    ),
    (
        "drop_key_limit",
        "segments beyond what a key may encrypt",
        "take the cipher chacha20-poly1305, or a kernel that replaces keys: docs/keys.md",
    ),
];

const DROPPED: [Row; 5] = [
    (
        "drop_spoofed",
        "packets from addresses that are not their workload's own",
        "give that workload its address in the file, or ask why it uses another one",
    ),
    (
        "drop_unreachable",
        "packets for a node or workload that was not reachable",
        "see \"workloads\" and \"WireGuard peers\" above",
    ),
    (
        "drop_strict_egress",
        "packets of workloads that were about to leave outside of WireGuard",
        "for the rest of the world NAT on the uplink is needed; towards workloads of other nodes no other tunnel or route may lead",
    ),
    (
        "drop_strict_ingress",
        "packets for or from workloads that came in outside of WireGuard",
        "see whether the other node has applied, and whether somebody on the way makes up such packets",
    ),
    (
        "drop_bypass",
        "packets that reached a workload past the programs",
        "see which route or bridge of the host leads there, and remove it",
    ),
];

const REFUSED: [Row; 9] = [
    (
        "refused_expired",
        "an expired certificate",
        "renew it; `underseal doctor` names what has expired now",
    ),
    (
        "refused_not_yet_valid",
        "a certificate that is not valid yet",
        "compare the clocks of both nodes and of whoever issues",
    ),
    (
        "refused_unknown_ca",
        "a certificate of a CA that is not in ca.crt",
        "give all workloads the same CA, or both while it is changed",
    ),
    (
        "refused_trust_domain",
        "a certificate of a trust domain that is not known",
        "correct node.trust_domain, or add a [[trust_bundle]]",
    ),
    (
        "refused_id",
        "a certificate of another workload",
        "see who put whose certificate into that folder",
    ),
    (
        "refused_revoked",
        "a revoked certificate, or a list that has ended",
        "issue it anew, or renew ca.crl",
    ),
    (
        "refused_key",
        "a key that is not the certificate's",
        "write both files in one step, as `underseal pki` does",
    ),
    (
        "refused_file",
        "files that cannot be read",
        "see \"identities\" above",
    ),
    (
        "refused_dns_name",
        "a certificate without a DNS name that rules rely on",
        "have it issued with that name",
    ),
];

const RESET: [Row; 8] = [
    ("reset_lost", "no process had the socket", LOG),
    ("reset_install", "the kernel did not take the keys", LOG),
    (
        "reset_restart",
        "a task asleep in send or receive could not be restarted",
        "see \"ptrace\" above; debuggers do this, too",
    ),
    (
        "reset_interrupted",
        "a helper ended in the middle of a hand-over",
        LOG,
    ),
    (
        "reset_guard",
        "the guard dropped a segment",
        "see \"guard\" above",
    ),
    ("reset_full", "the maps had no room", "see \"maps\" above"),
    (
        "reset_not_sealing",
        "the other node does not seal connections between nodes",
        "give all nodes a mode that does",
    ),
    ("map_full", "a map had no room", "see \"maps\" above"),
];

/// Such counters do not go down: what was mended since is still told, as a warning and no more.
fn find(facts: &Facts, rows: &[Row], count: fn(&Facts, &str) -> Option<u64>) -> Vec<Finding> {
    if facts.observed.node.is_none() {
        return Vec::new();
    }
    let found = rows.iter().filter_map(|(name, meaning, fix)| {
        let times = count(facts, name).filter(|count| *count != 0)?;
        let times = counted(usize::try_from(times).unwrap_or(usize::MAX), "time");
        Some(Finding {
            level: Level::Warning,
            seen: format!("{name}, {times} since the first apply: {meaning}"),
            fix: Some((*fix).to_owned()),
        })
    });
    or_ok(found.collect(), || "none since the first apply".to_owned())
}

fn helper(facts: &Facts, name: &str) -> Option<u64> {
    let node = facts.observed.node.as_ref()?;
    let own = node.counters.get(name).map(|it| it.packets);
    node.helper_counters.get(name).copied().or(own)
}

#[cfg(test)]
mod tests {
    use underseal_abi::{COUNTERS, HELPER_COUNTERS};

    use super::*;

    #[test]
    fn every_counter_that_is_explained_exists() {
        let own = COUNTERS.iter().map(|(_, name)| *name);
        let all: Vec<&str> = own
            .chain(HELPER_COUNTERS.iter().map(|(_, name)| *name))
            .collect();
        let rows = GUARDED.iter().chain(&DROPPED).chain(&REFUSED).chain(&RESET);
        for (name, _, _) in rows {
            assert!(all.contains(name), "{name}");
        }
    }
}
