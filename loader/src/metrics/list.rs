//! Every metric, once. docs/metrics.md has the same list, and a test compares the two.
//!
//! Counters of the programs and the helper are sorted by the beginning of their names, so that one that is new there is
//! here, too; tests see that each of them is in exactly one metric.

use super::Kind::{Counter, Gauge};
use super::samples::{
    bytes, connections, dropped, forwarded, guarded, helper, helpers, maps, node, one, packet,
    packets, rules, sessions, some, tally, workloads,
};
use super::{Family, Kind, Observed, Sample};

/// Every metric.
pub const FAMILIES: &[Family] = &[
    family(
        "underseal_build_info",
        Gauge,
        &["version", "abi"],
        "Always 1: version of the program that wrote this, and of the layouts in the kernel that it knows",
        |o| vec![(vec![o.version.clone(), o.abi.to_string()], 1)],
    ),
    family(
        "underseal_collected_timestamp_seconds",
        Gauge,
        &[],
        "When this was written, in seconds since the epoch",
        |o| one(o.at),
    ),
    family(
        "underseal_up",
        Gauge,
        &[],
        "1 if an apply was carried out to its end and is in the kernel, else 0",
        |o| one(o.node.as_ref().is_some_and(|node| node.whole).into()),
    ),
    family(
        "underseal_abi_version",
        Gauge,
        &[],
        "Version of the layouts in the kernel; nothing if nothing is applied",
        |o| some(o.applied_abi.map(Into::into)),
    ),
    family(
        "underseal_mode_info",
        Gauge,
        &["mode"],
        "Always 1: which connections are sealed",
        |o| node(o, |node| vec![(vec![node.mode.clone()], 1)]),
    ),
    family(
        "underseal_configuration_valid",
        Gauge,
        &[],
        "1 if the configuration is in order, 0 if not; nothing if there is none",
        |o| some(o.valid.map(Into::into)),
    ),
    family(
        "underseal_configuration_differences",
        Gauge,
        &[],
        "Steps that an apply would make; nothing if there is nothing to compare",
        |o| some(o.differences),
    ),
    family(
        "underseal_helper_running",
        Gauge,
        &[],
        "1 if the handshake helper runs, else 0",
        |o| one(o.helper.is_some().into()),
    ),
    family(
        "underseal_helper_start_timestamp_seconds",
        Gauge,
        &[],
        "When the handshake helper was started, in seconds since the epoch",
        |o| some(o.helper),
    ),
    family(
        "underseal_workload_covered",
        Gauge,
        &["workload"],
        "1 if the namespace of the workload is there and its connections are held until they are sealed, else 0",
        |o| workloads(o, |it| Some(it.covered.into())),
    ),
    family(
        "underseal_identity_not_after_seconds",
        Gauge,
        &["workload"],
        "When the certificate of the workload ends, in seconds since the epoch; nothing if it cannot be read",
        |o| workloads(o, |it| it.not_after),
    ),
    family(
        "underseal_identities_broken",
        Gauge,
        &[],
        "Identities whose files the helper cannot use",
        |o| helper(o, "identities_broken"),
    ),
    family(
        "underseal_identities_due",
        Gauge,
        &[],
        "Identities whose certificate ends soon and was not renewed",
        |o| helper(o, "identities_due"),
    ),
    family(
        "underseal_identities_kept_total",
        Counter,
        &[],
        "New files of an identity that could not be used: the old certificate serves until its end",
        |o| helper(o, "identity_kept"),
    ),
    family(
        "underseal_connections",
        Gauge,
        &["workload", "state"],
        "Ends of connections that are or shall be sealed; without a workload: of one that is not known",
        connections,
    ),
    family(
        "underseal_sealed_connections_total",
        Counter,
        &[],
        "Connections sealed: pairs of ends inside of the node, single ends between nodes",
        |o| helper(o, "sealed"),
    ),
    family(
        "underseal_established_ends_total",
        Counter,
        &["outcome"],
        "Ends of connections by what became of them: held until they are sealed, released because they need no TLS, ended before they had keys",
        |o| {
            packets(o, |name| match name {
                "ended_unsealed" => Some("ended"),
                "held" | "released" => Some(name),
                _ => None,
            })
        },
    ),
    family(
        "underseal_deferred_fins_total",
        Counter,
        &[],
        "Ends of streams put off until the connection is sealed",
        |o| packet(o, "fin_deferred"),
    ),
    family(
        "underseal_restarted_tasks_total",
        Counter,
        &[],
        "Tasks made to enter send or receive again, so that they use the keys",
        |o| helper(o, "restarted"),
    ),
    family(
        "underseal_reset_connections_total",
        Counter,
        &["reason"],
        "Connections reset by the helper",
        |o| helpers(o, |name| name.strip_prefix("reset_")),
    ),
    family(
        "underseal_refused_handshakes_total",
        Counter,
        &["reason"],
        "Of the connections reset with the reason refused: why certificates were not accepted",
        |o| {
            helpers(o, |name| {
                name.strip_prefix("refused_")
                    .filter(|reason| *reason != "recheck")
            })
        },
    ),
    family(
        "underseal_refused_rechecks_total",
        Counter,
        &[],
        "Of the connections reset with the reason refused: those that were open when their certificates were verified again",
        |o| helper(o, "refused_recheck"),
    ),
    family(
        "underseal_rechecks_total",
        Counter,
        &[],
        "Open connections whose certificates were verified again and are good",
        |o| helper(o, "rechecked"),
    ),
    family(
        "underseal_rekeys_total",
        Counter,
        &[],
        "Keys replaced in open connections, each direction by itself",
        |o| helper(o, "rekeyed"),
    ),
    family(
        "underseal_rekeys_put_off_total",
        Counter,
        &[],
        "Keys that could not be replaced in time and are tried again",
        |o| helper(o, "rekey_put_off"),
    ),
    family(
        "underseal_forwarded_packets_total",
        Counter,
        &["path"],
        "Packets handed on, by the way they took",
        |o| packets(o, forwarded),
    ),
    family(
        "underseal_forwarded_bytes_total",
        Counter,
        &["path"],
        "Bytes of the packets handed on",
        |o| bytes(o, forwarded),
    ),
    family(
        "underseal_dropped_packets_total",
        Counter,
        &["reason"],
        "Packets dropped on their way between workloads, WireGuard and uplinks",
        |o| packets(o, dropped),
    ),
    family(
        "underseal_dropped_bytes_total",
        Counter,
        &["reason"],
        "Bytes of the packets dropped on their way",
        |o| bytes(o, dropped),
    ),
    family(
        "underseal_guard_passed_segments_total",
        Counter,
        &[],
        "Segments of sealed connections that the guard let pass",
        |o| packet(o, "sealed_segments"),
    ),
    family(
        "underseal_guard_passed_bytes_total",
        Counter,
        &[],
        "Bytes of the segments that the guard let pass",
        |o| some(tally(o, "sealed_segments").map(|it| it.bytes)),
    ),
    family(
        "underseal_guard_dropped_segments_total",
        Counter,
        &["reason"],
        "Segments that the guard dropped: what was neither sealed nor free to go in plaintext",
        |o| packets(o, guarded),
    ),
    family(
        "underseal_refused_total",
        Counter,
        &["reason"],
        "Connects, packets and calls refused by the programs",
        |o| {
            packets(o, |name| match name {
                "denied_connect" => Some("outside"),
                name => name.strip_prefix("refused_"),
            })
        },
    ),
    family(
        "underseal_rule_packets_total",
        Counter,
        &["policy", "direction", "rule"],
        "Connections and packets that a rule of a network policy let pass; anew with each change of rules",
        |o| rules(o, |it| it.packets),
    ),
    family(
        "underseal_rule_bytes_total",
        Counter,
        &["policy", "direction", "rule"],
        "Bytes that a rule of a network policy let pass; anew with each change of rules",
        |o| rules(o, |it| it.bytes),
    ),
    family(
        "underseal_peer_last_handshake_timestamp_seconds",
        Gauge,
        &["peer", "device"],
        "When the last WireGuard handshake with the peer was, in seconds since the epoch; 0 if there was none",
        |o| sessions(o, |it| it.handshake.unwrap_or(0)),
    ),
    family(
        "underseal_peer_received_bytes_total",
        Counter,
        &["peer", "device"],
        "Bytes received from the peer by WireGuard",
        |o| sessions(o, |it| it.received),
    ),
    family(
        "underseal_peer_sent_bytes_total",
        Counter,
        &["peer", "device"],
        "Bytes sent to the peer by WireGuard, handshakes that nobody answers among them",
        |o| sessions(o, |it| it.sent),
    ),
    family(
        "underseal_node_unreachable_total",
        Counter,
        &[],
        "Attempts to reach the helper of another node that failed; connections wait",
        |o| helper(o, "node_unreachable"),
    ),
    family(
        "underseal_links_refused_total",
        Counter,
        &[],
        "Connects to the port of the helper by whoever is no configured node",
        |o| helper(o, "link_refused"),
    ),
    family(
        "underseal_map_entries",
        Gauge,
        &["map"],
        "Entries in a map of the kernel that can be full",
        |o| maps(o, |it| it.used),
    ),
    family(
        "underseal_map_max_entries",
        Gauge,
        &["map"],
        "Entries that a map of the kernel has room for",
        |o| maps(o, |it| it.room),
    ),
    family(
        "underseal_map_full_total",
        Counter,
        &[],
        "Ends of connections that could not be recorded because a map was full; they are reset",
        |o| packet(o, "map_full"),
    ),
    family(
        "underseal_events_lost_total",
        Counter,
        &[],
        "Messages to the helper that found no room; it reads the table of connections instead",
        |o| packet(o, "event_lost"),
    ),
];

const fn family(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
    samples: fn(&Observed) -> Vec<Sample>,
) -> Family {
    Family {
        name,
        kind,
        labels,
        help,
        samples,
    }
}
