//! What serde reads from the file, whatever its format. Private: outside of this folder there is
//! only the checked [`super::Config`].

use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    pub(super) node: Node,
    pub(super) wireguard: Option<Wireguard>,
    #[serde(default)]
    pub(super) peer: Vec<Peer>,
    #[serde(default)]
    pub(super) seal: Seal,
    #[serde(default)]
    pub(super) policy: Policy,
    #[serde(default)]
    pub(super) pki: super::pki::Raw,
    pub(super) spire: Option<super::spire::Raw>,
    #[serde(default)]
    pub(super) workload: Vec<Workload>,
    #[serde(default)]
    pub(super) trust_bundle: Vec<super::bundle::Raw>,
    #[serde(default)]
    pub(super) network_policy: Vec<super::network_policy::Raw>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) networks: Vec<String>,
    #[serde(default)]
    pub(super) uplinks: Vec<String>,
    pub(super) trust_domain: String,
    pub(super) cgroup: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wireguard {
    pub(super) interface: Option<String>,
    pub(super) port: Option<u16>,
    pub(super) private_key_file: Option<String>,
    #[serde(default)]
    pub(super) addresses: Vec<String>,
    pub(super) mtu: Option<u32>,
    #[serde(default)]
    pub(super) generation: u32,
    pub(super) next: Option<Next>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Next {
    pub(super) private_key_file: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Peer {
    pub(super) name: String,
    pub(super) public_key: String,
    pub(super) endpoint: String,
    pub(super) networks: Vec<String>,
    pub(super) address: Option<String>,
    pub(super) persistent_keepalive: Option<u16>,
    pub(super) preshared_key_file: Option<String>,
    #[serde(default)]
    pub(super) generation: u32,
    pub(super) next_preshared_key_file: Option<String>,
    #[serde(default)]
    pub(super) workload: Vec<PeerWorkload>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PeerWorkload {
    pub(super) name: String,
    pub(super) namespace: Option<String>,
    pub(super) service_account: Option<String>,
    pub(super) addresses: Vec<String>,
    #[serde(default)]
    pub(super) dns_names: Vec<String>,
    #[serde(default)]
    pub(super) labels: super::label::Labels,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Seal {
    pub(super) mode: Option<String>,
    pub(super) cipher: Option<String>,
    pub(super) existing: Option<String>,
    pub(super) close_revoked: Option<bool>,
    pub(super) rekey_after: Option<String>,
    pub(super) recheck: Option<String>,
    pub(super) port: Option<u16>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Policy {
    pub(super) outside: Option<String>,
    pub(super) non_tcp: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Workload {
    pub(super) name: String,
    pub(super) namespace: Option<String>,
    pub(super) service_account: Option<String>,
    pub(super) netns: String,
    pub(super) interface: Option<String>,
    pub(super) addresses: Vec<String>,
    pub(super) identity: Option<String>,
    #[serde(default)]
    pub(super) spire: bool,
    #[serde(default)]
    pub(super) labels: super::label::Labels,
    #[serde(default)]
    pub(super) dns_names: Vec<String>,
}
