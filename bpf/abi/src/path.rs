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
}

/// The mode that `raw`, a value of [`crate::Config::mode`], stands for. What is unknown seals: a
/// connection that nobody seals stays held, and that is the closed side.
#[inline(always)]
#[must_use]
pub const fn mode_of(raw: u32) -> Mode {
    match raw {
        0 => Mode::Never,
        _ => Mode::SameNode,
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
    /// Both ends live on this node and the connection is to be sealed.
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

/// Decides the path of traffic from a workload of this node to whatever `peer` is.
#[inline(always)]
pub const fn path_of(policy: Policy, peer: Option<&Endpoint>) -> Path {
    match peer {
        // An address of this node's network that is no workload's is the host's own (a gateway).
        None
        | Some(Endpoint {
            node: THIS_NODE,
            workload: 0,
            ..
        }) => {
            if policy.allow_outside {
                Path::Outside
            } else {
                Path::Deny
            }
        }
        Some(Endpoint {
            node: THIS_NODE, ..
        }) => match policy.mode {
            Mode::SameNode => Path::Seal,
            Mode::Never => Path::Local,
        },
        Some(_) => Path::Tunnel,
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
    use super::*;

    const fn at(node: u32, workload: u32) -> Endpoint {
        Endpoint {
            node,
            workload,
            ifindex: 0,
            reserved: 0,
        }
    }

    #[test]
    fn golden() {
        let cases = [
            (Mode::SameNode, true, Some(at(1, 7)), Path::Seal),
            (Mode::Never, true, Some(at(1, 7)), Path::Local),
            (Mode::SameNode, true, Some(at(1, 0)), Path::Outside),
            (Mode::SameNode, false, Some(at(1, 0)), Path::Deny),
            (Mode::SameNode, false, Some(at(2, 0)), Path::Tunnel),
            (Mode::Never, false, Some(at(2, 9)), Path::Tunnel),
            (Mode::SameNode, true, None, Path::Outside),
            (Mode::SameNode, false, None, Path::Deny),
        ];
        for (mode, allow_outside, peer, want) in cases {
            assert_eq!(
                path_of(
                    Policy {
                        mode,
                        allow_outside
                    },
                    peer.as_ref()
                ),
                want,
                "{mode:?} {peer:?}"
            );
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
        assert_eq!(mode_of(77), Mode::SameNode);
    }
}
