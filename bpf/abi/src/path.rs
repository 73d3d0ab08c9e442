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
        None if policy.allow_outside => Path::Outside,
        None => Path::Deny,
        // An address of a workload network that belongs to no workload of this node: nobody
        // could own the certificate, so nobody is connected.
        Some(Endpoint {
            node: THIS_NODE,
            workload: 0,
            ..
        }) => Path::Deny,
        Some(Endpoint {
            node: THIS_NODE, ..
        }) => match policy.mode {
            Mode::SameNode => Path::Seal,
            Mode::Never => Path::Local,
        },
        Some(_) => Path::Tunnel,
    }
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
            (Mode::SameNode, true, Some(at(1, 0)), Path::Deny),
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
    fn an_unknown_mode_seals() {
        assert_eq!(mode_of(77), Mode::SameNode);
    }
}
