//! Each section by itself: values by their own constructors, and what a section demands of its own values.

use super::Checker;
use crate::config::{
    Node, Peer, Policy, Seal, Wireguard,
    bundle::{self, TrustBundle},
    bytes::Bytes,
    choice::Access,
    cipher::CipherChoice,
    raw,
    value::TrustDomain,
};

impl Checker {
    pub(super) fn node(&mut self, raw: &raw::Node) -> Option<Node> {
        let name = self.value("node.name", &raw.name);
        let networks = self.list("node.networks", &raw.networks);
        let uplinks = self.list("node.uplinks", &raw.uplinks);
        let trust_domain = self.value("node.trust_domain", &raw.trust_domain);
        let cgroup = self.or("node.cgroup", raw.cgroup.as_deref(), "/sys/fs/cgroup");
        Some(Node {
            name: name?,
            networks,
            uplinks,
            trust_domain: trust_domain?,
            cgroup: cgroup?,
        })
    }

    pub(super) fn wireguard(&mut self, raw: &raw::Wireguard) -> Option<Wireguard> {
        let interface = self.or(
            "wireguard.interface",
            raw.interface.as_deref(),
            "underseal0",
        );
        let private_key_file = self.or(
            "wireguard.private_key_file",
            raw.private_key_file.as_deref(),
            "/var/lib/underseal/wireguard.key",
        );
        let port = raw.port.unwrap_or(51871);
        if port == 0 {
            self.fault(
                "wireguard.port",
                "a port must not be 0: peers could not know it",
            );
        }
        let addresses = self.list("wireguard.addresses", &raw.addresses);
        let next = self.next(raw.next.as_ref());
        Some(Wireguard {
            interface: interface?,
            port,
            private_key_file: private_key_file?,
            addresses,
            mtu: raw.mtu,
            generation: raw.generation,
            next: next?,
        })
    }

    pub(super) fn peer(&mut self, i: usize, raw: &raw::Peer, domain: &str) -> Option<Peer> {
        let at = format!("peer.{i}");
        let name = self.value(format!("{at}.name"), &raw.name);
        let public_key = self.value(format!("{at}.public_key"), &raw.public_key);
        let endpoint = self.value(format!("{at}.endpoint"), &raw.endpoint);
        let networks = self.list(&format!("{at}.networks"), &raw.networks);
        if raw.networks.is_empty() {
            self.fault(
                format!("{at}.networks"),
                "a peer without networks is of no use",
            );
        }
        let address = match &raw.address {
            None => Some(None),
            Some(address) => self.value(format!("{at}.address"), address).map(Some),
        };
        let mut file = |key: &str, path: &Option<String>| match path {
            None => Some(None),
            Some(path) => self.value(format!("{at}.{key}"), path).map(Some),
        };
        let preshared_key_file = file("preshared_key_file", &raw.preshared_key_file);
        let next_preshared_key_file = file("next_preshared_key_file", &raw.next_preshared_key_file);
        let workloads = raw.workload.iter().enumerate();
        let workloads: Vec<_> = workloads
            .map(|(w, workload)| {
                self.peer_workload(&format!("{at}.workload.{w}"), workload, (&raw.name, domain))
            })
            .collect();
        Some(Peer {
            name: name?,
            public_key: public_key?,
            endpoint: endpoint?,
            networks,
            address: address?,
            persistent_keepalive: raw.persistent_keepalive.unwrap_or(0),
            preshared_key_file: preshared_key_file?,
            generation: raw.generation,
            next_preshared_key_file: next_preshared_key_file?,
            workloads: workloads.into_iter().collect::<Option<_>>()?,
        })
    }

    pub(super) fn seal(&mut self, raw: &raw::Seal) -> Option<Seal> {
        let mode = self.or("seal.mode", raw.mode.as_deref(), "same-node");
        let cipher = self.or("seal.cipher", raw.cipher.as_deref(), "aes-128-gcm");
        let existing = self.or("seal.existing", raw.existing.as_deref(), "reset");
        let recheck = self.or("seal.recheck", raw.recheck.as_deref(), "24h");
        let rekey_after = self.rekey_after(raw.rekey_after.as_deref(), cipher);
        let port = raw.port.unwrap_or(51872);
        if port == 0 {
            self.fault(
                "seal.port",
                "a port must not be 0: other nodes could not know it",
            );
        }
        Some(Seal {
            mode: mode?,
            cipher: cipher?,
            existing: existing?,
            close_revoked: raw.close_revoked.unwrap_or(true),
            rekey_after: rekey_after?,
            recheck: recheck?,
            port,
        })
    }

    /// At most half of what a key of the cipher may encrypt: the other half is left for replacing it.
    fn rekey_after(
        &mut self,
        text: Option<&str>,
        cipher: Option<CipherChoice>,
    ) -> Option<Option<Bytes>> {
        let Some(text) = text else {
            return Some(None);
        };
        let bytes: Bytes = self.value("seal.rekey_after", text)?;
        let most = cipher
            .and_then(CipherChoice::most_bytes)
            .map(|most| most / 2);
        if let Some(most) = most.filter(|most| bytes.number() > *most) {
            let most = Bytes::from(most);
            self.fault(
                "seal.rekey_after",
                format!("a key of this cipher must be replaced after {most} at the latest"),
            );
        }
        Some(Some(bytes))
    }

    /// Each domain has one bundle; this node's own is in the folders of its workloads.
    pub(super) fn bundles(&mut self, raw: &[bundle::Raw], own: &str) -> Vec<TrustBundle> {
        let mut bundles: Vec<TrustBundle> = Vec::new();
        for (i, raw) in raw.iter().enumerate() {
            let at = format!("trust_bundle.{i}");
            let domain: Option<TrustDomain> =
                self.value(format!("{at}.trust_domain"), &raw.trust_domain);
            let file = self.bundle_file(&at, raw);
            let (Some(trust_domain), Some(file)) = (domain, file) else {
                continue;
            };
            if raw.trust_domain == own {
                let why = "this is the node's own trust domain, whose bundle is the `ca.crt` of each workload";
                self.fault(format!("{at}.trust_domain"), why);
            } else if bundles.iter().any(|b| b.trust_domain == trust_domain) {
                let why = format!(
                    "there is another bundle for `{trust_domain}`; one file may hold many certificates"
                );
                self.fault(format!("{at}.trust_domain"), why);
            }
            bundles.push(TrustBundle {
                trust_domain,
                file,
                spire: raw.spire,
            });
        }
        bundles
    }

    pub(super) fn policy(&mut self, raw: &raw::Policy) -> Option<Policy> {
        let outside: Option<Access> = self.or("policy.outside", raw.outside.as_deref(), "allow");
        let non_tcp: Option<Access> = self.or("policy.non_tcp", raw.non_tcp.as_deref(), "deny");
        Some(Policy {
            outside: outside?,
            non_tcp: non_tcp?,
        })
    }
}
