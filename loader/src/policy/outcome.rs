//! What becomes of a connection or a packet, by the rules and by everything else in the configuration.

use std::fmt;

use serde::Serialize;
use underseal_abi::{Ruling, Way};

use super::who::Who;
use crate::config::Config;
use crate::config::choice::Access;
use crate::config::network_policy::{Place, Protocol};

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It is allowed and sealed by mTLS; nothing leaves the node.
    Sealed,
    /// It is allowed, sealed by mTLS, and inside of WireGuard.
    SealedInTunnel,
    /// It is allowed; WireGuard encrypts it.
    Tunnel,
    /// It is allowed, and nothing encrypts it.
    Plaintext,
    /// No rule allows it.
    Denied,
    /// A rule allows it with mTLS alone, which it would not have.
    DeniedUnsealed,
    /// `policy.outside` denies what is no workload, whatever rules allow.
    DeniedOutside,
    /// `policy.non_tcp` denies what mTLS cannot carry inside a node, whatever rules allow.
    DeniedNonTcp,
}

impl Outcome {
    /// Whether mTLS seals it.
    #[must_use]
    pub const fn is_sealed(self) -> bool {
        matches!(self, Self::Sealed | Self::SealedInTunnel)
    }

    /// Whether it does not pass.
    #[must_use]
    pub const fn is_denied(self) -> bool {
        matches!(
            self,
            Self::Denied | Self::DeniedUnsealed | Self::DeniedOutside | Self::DeniedNonTcp
        )
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sealed => "allowed, sealed by mTLS",
            Self::SealedInTunnel => "allowed, sealed by mTLS, inside of WireGuard",
            Self::Tunnel => "allowed, inside of WireGuard",
            Self::Plaintext => "allowed, in plaintext",
            Self::Denied => "denied",
            Self::DeniedUnsealed => "denied, because it would not be sealed",
            Self::DeniedOutside => {
                "denied by `policy.outside`, because one end is no workload; rules do not change that"
            }
            Self::DeniedNonTcp => {
                "denied by `policy.non_tcp`, because mTLS cannot carry it; rules do not change that"
            }
        })
    }
}

/// What rules and everything else in the configuration come to. Rules first: what they deny needs no other reason.
pub(super) fn outcome(
    config: &Config,
    (client, server): (&Who<'_>, &Who<'_>),
    protocol: Protocol,
    (ruling, way): (Ruling, Way),
) -> Outcome {
    let places = [client.place(), server.place()];
    let inside = places == [Some(Place::Same); 2];
    let outside = places.contains(&None);
    let lacks_seal = inside
        && config.seal.mode.raw().seals_same_node()
        && matches!(protocol, Protocol::Udp | Protocol::Sctp);
    match (ruling, way) {
        (Ruling::RefusedPolicy, _) => Outcome::Denied,
        (Ruling::RefusedMtls, _) => Outcome::DeniedUnsealed,
        _ if outside && config.policy.outside == Access::Deny => Outcome::DeniedOutside,
        _ if lacks_seal && config.policy.non_tcp == Access::Deny => Outcome::DeniedNonTcp,
        (Ruling::Pass, Way::SealedInside) => Outcome::Sealed,
        (Ruling::Pass, Way::SealedBetween) => Outcome::SealedInTunnel,
        (Ruling::PassPlain, _) | (Ruling::Pass, Way::Plain) if inside || outside => {
            Outcome::Plaintext
        }
        (Ruling::PassPlain, _) | (Ruling::Pass, Way::Plain) => Outcome::Tunnel,
    }
}
