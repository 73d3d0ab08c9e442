//! The configuration: what the file says, checked. A [`Config`] that exists can be carried out as
//! far as the file alone can tell; what the machine lacks is the business of `kernel::probe`.
//!
//! Nothing here performs I/O: the caller reads the file.

pub mod bundle;
pub mod bytes;
mod check;
pub mod choice;
pub mod cipher;
mod diagnostic;
pub mod generation;
pub mod label;
pub mod network;
pub mod network_policy;
pub mod pki;
mod raw;
pub mod recheck;
mod source;
pub mod spire;
pub mod value;
mod workload;

use std::fmt;

use bundle::TrustBundle;
use bytes::Bytes;
use choice::{Access, Existing, Mode};
use cipher::CipherChoice;
use generation::Next;
use label::Labels;
use network::{Address, DeviceAddress, Network, PeerEndpoint};
use network_policy::NetworkPolicy;
use pki::{DnsName, Pki};
use recheck::Recheck;
use spire::Spire;
use value::{AbsolutePath, InterfaceName, Label, PublicKey, SpiffeId, TrustDomain, WorkloadName};

pub use self::{
    diagnostic::Diagnostic,
    source::{Format, Source},
};

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This node.
    pub node: Node,
    /// The WireGuard device; `None` if there is neither a section nor a peer.
    pub wireguard: Option<Wireguard>,
    /// The other nodes, in the file's order.
    pub peers: Vec<Peer>,
    /// How connections are sealed.
    pub seal: Seal,
    /// What may pass unsealed.
    pub policy: Policy,
    /// How this node's own CA works.
    pub pki: Pki,
    /// The SPIRE agent of this node; `None` if there is no section.
    pub spire: Option<Spire>,
    /// The workloads of this node, in the file's order.
    pub workloads: Vec<Workload>,
    /// Whom workloads of other trust domains are verified against.
    pub bundles: Vec<TrustBundle>,
    /// Who may talk to whom, in the file's order.
    pub network_policies: Vec<NetworkPolicy>,
}

/// This node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: Label,
    /// Networks that its workloads have addresses of.
    pub networks: Vec<Network>,
    /// Interfaces that lead to other nodes.
    pub uplinks: Vec<InterfaceName>,
    /// Trust domain of the workloads' SPIFFE IDs.
    pub trust_domain: TrustDomain,
    /// The cgroup2 folder whose processes are covered.
    pub cgroup: AbsolutePath,
}

/// The WireGuard device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wireguard {
    /// Its name.
    pub interface: InterfaceName,
    /// UDP port.
    pub port: u16,
    /// Where its private key is kept; generated if missing.
    pub private_key_file: AbsolutePath,
    /// Its addresses; may be empty. The first one of each family is where other nodes reach this
    /// node's helper.
    pub addresses: Vec<DeviceAddress>,
    /// MTU, bytes; `None`: from the uplinks.
    pub mtu: Option<u32>,
    /// How often the private key has been replaced.
    pub generation: u32,
    /// The key of the generation that follows, while peers change to it.
    pub next: Option<Next>,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: Label,
    /// Its public key.
    pub public_key: PublicKey,
    /// Where it is reached.
    pub endpoint: PeerEndpoint,
    /// Networks of its workloads.
    pub networks: Vec<Network>,
    /// Where its helper is reached inside of the tunnel, out of its networks.
    pub address: Option<Address>,
    /// Interval of keepalives, seconds; 0 for none.
    pub persistent_keepalive: u16,
    /// Where the preshared key is kept.
    pub preshared_key_file: Option<AbsolutePath>,
    /// Generation of its public key.
    pub generation: u32,
    /// Where the preshared key is kept that goes with this node's next key.
    pub next_preshared_key_file: Option<AbsolutePath>,
    /// Those of its workloads that policies are to know, in the file's order.
    pub workloads: Vec<PeerWorkload>,
}

/// A workload of another node, which vouches for its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerWorkload {
    /// `namespace/name`.
    pub name: WorkloadName,
    /// Its identity: no other is accepted from its addresses.
    pub spiffe_id: SpiffeId,
    /// Its addresses, at least one.
    pub addresses: Vec<Address>,
    /// Its DNS names.
    pub dns_names: Vec<DnsName>,
    /// Its labels, also those that all workloads have.
    pub labels: Labels,
}

/// How connections are sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Which ones.
    pub mode: Mode,
    /// With which cipher.
    pub cipher: CipherChoice,
    /// What happens to those that are open at the take-over.
    pub existing: Existing,
    /// Whether open connections end when a certificate they were made with is revoked or its CA is trusted no longer, or
    /// when a change of network policies does not allow them any more.
    pub close_revoked: bool,
    /// After how many bytes keys are replaced; `None`: as the cipher demands.
    pub rekey_after: Option<Bytes>,
    /// How often the certificates of open connections are verified again.
    pub recheck: Recheck,
    /// TCP port inside of the tunnel at which the nodes' helpers reach each other.
    pub port: u16,
}

/// What may pass unsealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Traffic with addresses that are no workload.
    pub outside: Access,
    /// What mTLS cannot carry, between workloads of this node.
    pub non_tcp: Access,
}

/// A workload of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// `namespace/name`.
    pub name: WorkloadName,
    /// Its identity.
    pub spiffe_id: SpiffeId,
    /// Path of its network namespace; need not exist yet.
    pub netns: AbsolutePath,
    /// Its interface inside of the namespace.
    pub interface: InterfaceName,
    /// Its addresses, at least one.
    pub addresses: Vec<Address>,
    /// Folder with its certificate, key and CA.
    pub identity: AbsolutePath,
    /// Whether `underseal-spire` fills the folder with what the SPIRE agent gives.
    pub spire: bool,
    /// Its DNS names.
    pub dns_names: Vec<DnsName>,
    /// Its labels, also those that all workloads have.
    pub labels: Labels,
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    /// Everything that is wrong with it, in the order of the text. An error of syntax, an unknown
    /// key, a missing key or a value of the wrong type hides what else is wrong.
    pub fn parse(source: &Source) -> Result<Self, ConfigError> {
        check::parse(source)
    }
}

/// Why a configuration was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The mistakes, at least one.
    pub diagnostics: Vec<Diagnostic>,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, diagnostic) in self.diagnostics.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{diagnostic}")?;
        }
        Ok(())
    }
}
