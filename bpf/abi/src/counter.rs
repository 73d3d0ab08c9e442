//! Counters: what each counts, and the name it is shown by.

use core::mem::size_of;

/// Packets and bytes of one [`Counter`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Packets, connections or calls: see the counter.
    pub packets: u64,
    /// Bytes of those packets from the IP header on; 0 where bytes make no sense.
    pub bytes: u64,
}

macro_rules! counters {
    ($counter:ident, $all:ident, $($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        #[doc = concat!("Index into the map `", stringify!($all), "`.")]
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $counter { $($(#[$doc])* $variant,)* }

        /// Every counter with the name it is shown by, in index order.
        pub const $all: &[($counter, &str)] = &[$(($counter::$variant, $name),)*];
    };
}

counters! {
    Counter, COUNTERS,
    /// Connections held at establishment (ends, not pairs).
    Held = "held",
    /// Connections that need no TLS (ends, not pairs).
    Released = "released",
    /// Connects refused because the policy denies the destination.
    DeniedConnect = "denied_connect",
    /// Packets handed from a workload to another one on this node.
    SameNode = "same_node",
    /// Packets handed from a workload to WireGuard.
    ToWireguard = "to_wireguard",
    /// Packets handed from WireGuard to a workload.
    FromWireguard = "from_wireguard",
    /// Packets between a workload and an address that is none.
    Outside = "outside",
    /// Segments of sealed sockets that the guard let pass.
    SealedSegments = "sealed_segments",
    /// Drops: payload of a socket without keys.
    DropUnsealed = "drop_unsealed",
    /// Drops: payload of a sealed socket that is not TLS records.
    DropNotARecord = "drop_not_a_record",
    /// Drops: payload for a socket without keys.
    DropUnsealedIngress = "drop_unsealed_ingress",
    /// Drops: payload of a socket that no program has seen, between workloads that must be sealed.
    DropUnknown = "drop_unknown",
    /// FINs of held sockets put off until they are sealed.
    FinDeferred = "fin_deferred",
    /// Drops: a workload used a source address that is not its own (a packet, or a connection within
    /// its own namespace).
    DropSpoofed = "drop_spoofed",
    /// Drops: what mTLS cannot carry, between workloads of this node; data to and from addresses of
    /// the link, TCP included, where neighbours must use mTLS; what is neither IP nor ARP.
    DropNonTcp = "drop_non_tcp",
    /// Drops: packets between a workload and an address that is none, where policy denies it.
    DropOutside = "drop_outside",
    /// Drops: a workload's packet for a node or workload that cannot be reached now.
    DropUnreachable = "drop_unreachable",
    /// Drops by the strict check: a workload's packet was about to leave outside WireGuard.
    DropStrictEgress = "drop_strict_egress",
    /// Drops by the strict check: a packet for or from a workload came in outside WireGuard.
    DropStrictIngress = "drop_strict_ingress",
    /// Drops: a packet reached a workload's interface past the programs that decide.
    DropBypass = "drop_bypass",
    /// Ends that could not be recorded because a map was full; the helper resets them.
    MapFull = "map_full",
    /// Messages to the helper that found the ring buffer full; it reads `CONNS` instead.
    EventLost = "event_lost",
    /// Ends of connections that were closed before they had keys and had sent nothing.
    EndedUnsealed = "ended_unsealed",
    /// Drops: the end of a sealed stream whose last bytes were never sent.
    DropCut = "drop_cut",
    /// Calls to send refused: the peer was closed or shut down before there were keys.
    RefusedEnding = "refused_ending",
    /// Calls to send refused after the program's own shutdown, which kTLS would report as done.
    RefusedShutdown = "refused_shutdown",
    /// Sockets that were to be MPTCP; programs fall back to TCP. Also connects and subflows of MPTCP sockets that are older
    /// than the take-over.
    RefusedMptcp = "refused_mptcp",
    /// Requests for TCP Fast Open; the connection is made without.
    RefusedFastOpen = "refused_fast_open",
    /// Connections and packets that network policies do not allow.
    RefusedPolicy = "refused_policy",
    /// Connections and packets that a network policy allows only sealed, and that would not be.
    RefusedMtls = "refused_mtls",
    /// Drops: a sealed socket has sent as much as its key may encrypt.
    DropKeyLimit = "drop_key_limit",
}

counters! {
    HelperCounter, HELPER_COUNTERS,
    /// Connections sealed (pairs; if the other end is on another node, this end).
    Sealed = "sealed",
    /// Tasks made to restart a send or recv.
    Restarted = "restarted",
    /// Resets: an identity could not be loaded, or the other side did not accept it.
    ResetRefused = "reset_refused",
    /// Resets: no process has the socket.
    ResetLost = "reset_lost",
    /// Resets: the kernel did not take the keys.
    ResetInstall = "reset_install",
    /// Resets: a task inside send or recv could not be restarted, or was never recorded.
    ResetRestart = "reset_restart",
    /// Resets: an earlier helper ended in the middle of the hand-over.
    ResetInterrupted = "reset_interrupted",
    /// Resets: the guard dropped a segment.
    ResetGuard = "reset_guard",
    /// Resets: the maps had no room for the connection.
    ResetFull = "reset_full",
    /// Resets: the other node does not seal connections between nodes.
    ResetNotSealing = "reset_not_sealing",
    /// Resets: the other node gave the connection up, does not know it, or its helper went away
    /// when keys were in already.
    ResetNode = "reset_node",
    /// Attempts to reach another node's helper that failed; connections wait.
    NodeUnreachable = "node_unreachable",
    /// Connects to the helper's port by whoever is no configured node.
    LinkRefused = "link_refused",
    /// Of `reset_refused`: a certificate had expired.
    RefusedExpired = "refused_expired",
    /// Of `reset_refused`: a certificate was not valid yet.
    RefusedNotYetValid = "refused_not_yet_valid",
    /// Of `reset_refused`: a certificate by a CA that is not in the bundle.
    RefusedUnknownCa = "refused_unknown_ca",
    /// Of `reset_refused`: a workload of a trust domain that was not expected.
    RefusedTrustDomain = "refused_trust_domain",
    /// Of `reset_refused`: another workload than was expected.
    RefusedId = "refused_id",
    /// Of `reset_refused`: a certificate was revoked, or the revocation list had expired.
    RefusedRevoked = "refused_revoked",
    /// Of `reset_refused`: a key that is not the certificate's, or is unusable.
    RefusedKey = "refused_key",
    /// Of `reset_refused`: a file could not be read, or holds something else.
    RefusedFile = "refused_file",
    /// Sealed connections ended: a certificate was revoked, its CA is trusted no longer, or it does not have a DNS name
    /// that network policies rely on now.
    ResetRevoked = "reset_revoked",
    /// New files of an identity that could not be used; the old certificate serves until its end.
    IdentityKept = "identity_kept",
    /// Resets: network policies were changed while the connection was being made.
    ResetPolicy = "reset_policy",
    /// Now: identities whose files cannot be used.
    IdentitiesBroken = "identities_broken",
    /// Now: identities whose certificate ends soon, and nobody has renewed it.
    IdentitiesDue = "identities_due",
    /// Resets: a socket has sent as much as its key may encrypt, and the key could not be replaced.
    ResetKeyLimit = "reset_key_limit",
    /// Keys replaced in open connections (directions, not connections).
    Rekeyed = "rekeyed",
    /// Keys that could not be replaced in time, because what was sent under them was not read; tried again.
    RekeyPutOff = "rekey_put_off",
    /// Open connections whose certificates were verified again, and are good.
    Rechecked = "rechecked",
    /// Of `reset_refused`: connections that were open when their certificates were verified again.
    RefusedRecheck = "refused_recheck",
    /// Of `reset_refused`: a certificate without a DNS name that network policies rely on.
    RefusedDnsName = "refused_dns_name",
    /// Resets: MPTCP, by a socket older than the take-over.
    ResetMptcp = "reset_mptcp",
}

const _: () = {
    assert!(size_of::<Tally>() == 16);
};

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    /// `status` and whoever asks it know counters by their names alone.
    #[test]
    fn no_two_counters_have_one_name() {
        let ours = COUNTERS.iter().map(|(_, name)| *name);
        let helpers = HELPER_COUNTERS.iter().map(|(_, name)| *name);
        let mut names: std::vec::Vec<&str> = ours.chain(helpers).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
