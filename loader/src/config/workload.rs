//! Sections of workloads: of this node, and those of other nodes that policies are to know.

use super::{
    Config, PeerWorkload, Workload,
    check::{Checker, Unique},
    label, raw,
    value::Label,
};

impl Checker {
    pub(super) fn workload(
        &mut self,
        i: usize,
        raw: &raw::Workload,
        node: &raw::Node,
    ) -> Option<Workload> {
        let at = format!("workload.{i}");
        let domain = &node.trust_domain;
        let name: Option<Label> = self.value(format!("{at}.name"), &raw.name);
        let namespace: Option<Label> = self.or(
            format!("{at}.namespace"),
            raw.namespace.as_deref(),
            "default",
        );
        // A missing one is the name, whose fault is then reported once.
        let account: Option<Label> = match &raw.service_account {
            Some(account) => self.value(format!("{at}.service_account"), account),
            None => name.clone(),
        };
        let netns = self.value(format!("{at}.netns"), &raw.netns);
        let interface = self.or(format!("{at}.interface"), raw.interface.as_deref(), "eth0");
        let addresses = self.list(&format!("{at}.addresses"), &raw.addresses);
        if raw.addresses.is_empty() {
            self.fault(format!("{at}.addresses"), "a workload needs an address");
        }
        let (name, namespace, account) = (name?, namespace?, account?);
        let dns_names = self.dns_names(&at, &name, &namespace, &raw.dns_names);
        let own = [
            (label::NAME, name.as_str()),
            (label::NAMESPACE, namespace.as_str()),
            (label::SERVICE_ACCOUNT, account.as_str()),
            (label::NODE, &node.name),
        ];
        let labels = self.labels(&format!("{at}.labels"), &raw.labels, own);
        let identity = self.or(
            format!("{at}.identity"),
            raw.identity.as_deref(),
            &format!("/var/lib/underseal/identities/{namespace}/{name}"),
        );
        Some(Workload {
            // Both are built from parts that were checked; a trust domain at fault is reported
            // where it stands.
            name: format!("{namespace}/{name}").parse().ok()?,
            spiffe_id: format!("spiffe://{domain}/ns/{namespace}/sa/{account}")
                .parse()
                .ok()?,
            netns: netns?,
            interface: interface?,
            addresses,
            identity: identity?,
            dns_names,
            labels,
        })
    }

    /// A workload of the node called `peer`.
    pub(super) fn peer_workload(
        &mut self,
        at: &str,
        raw: &raw::PeerWorkload,
        (peer, domain): (&str, &str),
    ) -> Option<PeerWorkload> {
        let name: Option<Label> = self.value(format!("{at}.name"), &raw.name);
        let namespace: Option<Label> = self.or(
            format!("{at}.namespace"),
            raw.namespace.as_deref(),
            "default",
        );
        let account: Option<Label> = match &raw.service_account {
            Some(account) => self.value(format!("{at}.service_account"), account),
            None => name.clone(),
        };
        let addresses = self.list(&format!("{at}.addresses"), &raw.addresses);
        if raw.addresses.is_empty() {
            self.fault(format!("{at}.addresses"), "a workload needs an address");
        }
        let (name, namespace, account) = (name?, namespace?, account?);
        let own = [
            (label::NAME, name.as_str()),
            (label::NAMESPACE, namespace.as_str()),
            (label::SERVICE_ACCOUNT, account.as_str()),
            (label::NODE, peer),
        ];
        Some(PeerWorkload {
            name: format!("{namespace}/{name}").parse().ok()?,
            spiffe_id: format!("spiffe://{domain}/ns/{namespace}/sa/{account}")
                .parse()
                .ok()?,
            addresses,
            dns_names: self.dns_names(at, &name, &namespace, &raw.dns_names),
            labels: self.labels(&format!("{at}.labels"), &raw.labels, own),
        })
    }

    pub(super) fn workloads(&mut self, config: &Config) {
        let mut names = Unique::default();
        let mut namespaces = Unique::default();
        let mut addresses = Unique::default();
        if let Some(wireguard) = &config.wireguard {
            for (i, address) in wireguard.addresses.iter().enumerate() {
                let path = format!("wireguard.addresses.{i}");
                self.once(&mut addresses, path, address.0.addr().to_string());
            }
        }
        for (i, workload) in config.workloads.iter().enumerate() {
            let at = format!("workload.{i}");
            self.once(&mut names, format!("{at}.name"), workload.name.to_string());
            self.once(
                &mut namespaces,
                format!("{at}.netns"),
                workload.netns.to_string(),
            );
            for (a, address) in workload.addresses.iter().enumerate() {
                let path = format!("{at}.addresses.{a}");
                if !config
                    .node
                    .networks
                    .iter()
                    .any(|net| net.0.contains(&address.0))
                {
                    self.fault(path.clone(), "lies in none of `node.networks`");
                }
                self.once(&mut addresses, path, address.to_string());
            }
        }
    }

    /// A node vouches for its own addresses alone, and an address has one workload.
    pub(super) fn peer_workloads(&mut self, config: &Config) {
        let mut addresses = Unique::default();
        for (p, peer) in config.peers.iter().enumerate() {
            for (w, workload) in peer.workloads.iter().enumerate() {
                for (a, address) in workload.addresses.iter().enumerate() {
                    let path = format!("peer.{p}.workload.{w}.addresses.{a}");
                    if !peer.networks.iter().any(|net| net.0.contains(&address.0)) {
                        self.fault(path.clone(), "lies in none of the peer's `networks`");
                    }
                    self.once(&mut addresses, path, address.to_string());
                }
            }
        }
    }
}
