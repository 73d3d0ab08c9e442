//! Which connection and which packet gets what. Pure: addresses come in as what the ipcache said.

use crate::{Endpoint, THIS_NODE};

/// When connections are sealed by mTLS.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Never; only WireGuard encrypts.
    Never = 0,
    /// Between workloads of one node; WireGuard does the rest.
    SameNode = 1,
    /// Between all workloads; between nodes inside of WireGuard.
    Always = 2,
    /// Between workloads of different nodes, inside of WireGuard; plaintext inside a node.
    CrossNode = 3,
}

impl Mode {
    /// Whether connections between workloads of one node are sealed.
    #[inline(always)]
    #[must_use]
    pub const fn seals_same_node(self) -> bool {
        matches!(self, Self::SameNode | Self::Always)
    }

    /// Whether connections between workloads of different nodes are sealed.
    #[inline(always)]
    #[must_use]
    pub const fn seals_between_nodes(self) -> bool {
        matches!(self, Self::Always | Self::CrossNode)
    }
}

/// The mode that `raw`, a value of [`crate::Config::mode`], stands for. What is unknown seals
/// everything: a connection that nobody seals stays held, and that is the closed side.
#[inline(always)]
#[must_use]
pub const fn mode_of(raw: u32) -> Mode {
    match raw {
        0 => Mode::Never,
        1 => Mode::SameNode,
        3 => Mode::CrossNode,
        _ => Mode::Always,
    }
}

/// The part of the policy that a verdict needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// When connections are sealed.
    pub mode: Mode,
    /// Whether a workload may talk to an address that is no workload.
    pub allow_outside: bool,
}

/// The way that traffic of a workload takes.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// The connection is to be sealed. Of a packet: both ends live on this node.
    Seal,
    /// Both ends live on this node; mTLS is not wanted.
    Local,
    /// The peer lives on another node: WireGuard carries it.
    Tunnel,
    /// The peer is no workload and the policy allows that.
    Outside,
    /// The policy denies it.
    Deny,
}

/// Decides the path of packets from a workload of this node to whatever `peer` is.
#[inline(always)]
pub const fn path_of(policy: Policy, peer: &Endpoint) -> Path {
    match peer {
        // An address of this node's network that is no workload's is the host's own (a gateway).
        Endpoint { node: 0, .. }
        | Endpoint {
            node: THIS_NODE,
            workload: 0,
            ..
        } => {
            if policy.allow_outside {
                Path::Outside
            } else {
                Path::Deny
            }
        }
        Endpoint {
            node: THIS_NODE, ..
        } if policy.mode.seals_same_node() => Path::Seal,
        Endpoint {
            node: THIS_NODE, ..
        } => Path::Local,
        _ => Path::Tunnel,
    }
}

/// Decides what becomes of a TCP connection between a workload of this node and whatever `peer`
/// is. Differs from [`path_of`] for other nodes alone: packets always go into WireGuard, and a
/// connection may have to be sealed inside of it.
#[inline(always)]
pub const fn connection_of(policy: Policy, peer: &Endpoint) -> Path {
    match path_of(policy, peer) {
        Path::Tunnel if policy.mode.seals_between_nodes() => Path::Seal,
        path => path,
    }
}

/// Whether an address (`ip_key` form) is 127.0.0.0/8 or ::1.
#[inline(always)]
#[must_use]
pub fn is_loopback(ip: &[u8; 16]) -> bool {
    let v6 = u128::from_be_bytes(*ip);
    v6 == 1 || v6 >> 24 == 0x00ff_ff7f
}

/// Whether an address (`ip_key` form) never leaves its link: IPv6 link-local, link-local and
/// interface-local multicast, and the unspecified address; of IPv4 224.0.0.0/24.
#[inline(always)]
#[must_use]
pub fn is_link_scope(ip: &[u8; 16]) -> bool {
    let v6 = u128::from_be_bytes(*ip);
    v6 == 0
        || v6 >> 118 == 0xfe80 >> 6
        || matches!(v6 >> 112, 0xff01 | 0xff02)
        || v6 >> 8 == 0x00ff_ffe0_0000
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    const fn at(node: u32, workload: u32) -> Endpoint {
        Endpoint {
            node,
            workload,
            ifindex: 0,
            next: 0,
        }
    }

    const MODES: [Mode; 4] = [Mode::Never, Mode::SameNode, Mode::Always, Mode::CrossNode];

    /// Mode, `allow_outside`, peer, path of packets, path of connections.
    #[test]
    fn golden() {
        let (here, there, nobody) = (at(1, 7), at(2, 0), Endpoint::default());
        let cases = [
            (Mode::SameNode, true, here, Path::Seal, Path::Seal),
            (Mode::Never, true, here, Path::Local, Path::Local),
            (Mode::Always, true, here, Path::Seal, Path::Seal),
            (Mode::CrossNode, true, here, Path::Local, Path::Local),
            (Mode::SameNode, false, there, Path::Tunnel, Path::Tunnel),
            (Mode::Never, false, there, Path::Tunnel, Path::Tunnel),
            (Mode::Always, false, there, Path::Tunnel, Path::Seal),
            (Mode::CrossNode, false, there, Path::Tunnel, Path::Seal),
            (Mode::Never, false, at(2, 9), Path::Tunnel, Path::Tunnel),
            (Mode::Always, true, at(1, 0), Path::Outside, Path::Outside),
            (Mode::SameNode, false, at(1, 0), Path::Deny, Path::Deny),
            (Mode::CrossNode, true, nobody, Path::Outside, Path::Outside),
            (Mode::SameNode, false, nobody, Path::Deny, Path::Deny),
        ];
        for (mode, allow_outside, peer, packet, connection) in cases {
            let policy = Policy {
                mode,
                allow_outside,
            };
            let got = (path_of(policy, &peer), connection_of(policy, &peer));
            assert_eq!(got, (packet, connection), "{mode:?} {peer:?}");
        }
    }

    proptest::proptest! {
        /// Packets to another node go into WireGuard and nowhere else, whatever the mode; a mode
        /// changes nothing for addresses that are no workload; and a connection is sealed if, and
        /// only if, its mode says so for where the peer lives.
        #[test]
        fn a_mode_decides_sealing_and_nothing_else(mode in 0usize..4, allow_outside: bool, known: bool, node in 1u32..4, workload in 0u32..3) {
            let policy = Policy { mode: MODES[mode], allow_outside };
            let peer = if known { at(node, workload) } else { Endpoint::default() };
            let (packet, connection) = (path_of(policy, &peer), connection_of(policy, &peer));
            let is_outside = !known || (node == THIS_NODE && workload == 0);
            let seals = if node == THIS_NODE { policy.mode.seals_same_node() } else { policy.mode.seals_between_nodes() };
            assert_eq!(packet == Path::Tunnel, !is_outside && node != THIS_NODE);
            assert_eq!(connection == Path::Seal, !is_outside && seals);
            assert_eq!(matches!(packet, Path::Outside | Path::Deny), is_outside);
            if connection != Path::Seal || node == THIS_NODE {
                assert_eq!(connection, packet);
            }
        }
    }

    #[test]
    fn scopes() {
        let key = |s: &str| match s.parse().unwrap() {
            core::net::IpAddr::V4(v4) => crate::ip_key(v4.octets()),
            core::net::IpAddr::V6(v6) => v6.octets(),
        };
        for yes in ["127.0.0.1", "127.255.0.3", "::1"] {
            assert!(is_loopback(&key(yes)), "{yes}");
        }
        for yes in [
            "fe80::1",
            "febf::",
            "ff02::1:ff00:1",
            "ff01::1",
            "::",
            "224.0.0.1",
        ] {
            assert!(is_link_scope(&key(yes)), "{yes}");
        }
        for no in [
            "10.0.0.1",
            "fd00::1",
            "ff05::2",
            "224.0.1.1",
            "128.0.0.1",
            "fec0::1",
        ] {
            assert!(!is_loopback(&key(no)) && !is_link_scope(&key(no)), "{no}");
        }
    }

    #[test]
    fn an_unknown_mode_seals() {
        assert_eq!(mode_of(77), Mode::Always);
        for mode in MODES {
            assert_eq!(mode_of(mode as u32), mode);
        }
    }
}
