//! Sections of workloads: of this node, and those of other nodes that policies are to know.

use super::{
    Config, PeerWorkload, Workload,
    check::{Checker, Unique},
    label,
    network::Address,
    raw,
    value::{Label, SpiffeId, WorkloadName},
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
        let who = self.who(&at, &raw.name, (&raw.namespace, &raw.service_account));
        let netns = self.value(format!("{at}.netns"), &raw.netns);
        let interface = self.or(format!("{at}.interface"), raw.interface.as_deref(), "eth0");
        let addresses = self.addresses(&at, &raw.addresses);
        let who = who?;
        let dns_names = self.dns_names(&at, &who.name, &who.namespace, &raw.dns_names);
        let labels = self.labels(&format!("{at}.labels"), &raw.labels, who.labels(&node.name));
        let Who {
            name, namespace, ..
        } = &who;
        let identity = self.or(
            format!("{at}.identity"),
            raw.identity.as_deref(),
            &format!("/var/lib/underseal/identities/{namespace}/{name}"),
        );
        Some(Workload {
            name: who.workload_name()?,
            spiffe_id: who.spiffe_id(domain)?,
            netns: netns?,
            interface: interface?,
            addresses,
            identity: identity?,
            spire: raw.spire,
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
        let who = self.who(at, &raw.name, (&raw.namespace, &raw.service_account));
        let addresses = self.addresses(at, &raw.addresses);
        let who = who?;
        Some(PeerWorkload {
            name: who.workload_name()?,
            spiffe_id: who.spiffe_id(domain)?,
            addresses,
            dns_names: self.dns_names(at, &who.name, &who.namespace, &raw.dns_names),
            labels: self.labels(&format!("{at}.labels"), &raw.labels, who.labels(peer)),
        })
    }

    /// What names a workload, of whichever node.
    fn who(
        &mut self,
        at: &str,
        name: &str,
        (namespace, account): (&Option<String>, &Option<String>),
    ) -> Option<Who> {
        let name: Option<Label> = self.value(format!("{at}.name"), name);
        let namespace: Option<Label> =
            self.or(format!("{at}.namespace"), namespace.as_deref(), "default");
        // A missing one is the name, whose fault is then reported once.
        let account: Option<Label> = match account {
            Some(account) => self.value(format!("{at}.service_account"), account),
            None => name.clone(),
        };
        Some(Who {
            name: name?,
            namespace: namespace?,
            account: account?,
        })
    }

    fn addresses(&mut self, at: &str, raw: &[String]) -> Vec<Address> {
        let addresses = self.list(&format!("{at}.addresses"), raw);
        if raw.is_empty() {
            self.fault(format!("{at}.addresses"), "a workload needs an address");
        }
        addresses
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

/// Names of a workload, each checked by itself.
struct Who {
    name: Label,
    namespace: Label,
    account: Label,
}

impl Who {
    fn workload_name(&self) -> Option<WorkloadName> {
        format!("{}/{}", self.namespace, self.name).parse().ok()
    }

    /// `None` if the trust domain is at fault, which is reported where it stands.
    fn spiffe_id(&self, domain: &str) -> Option<SpiffeId> {
        let Self {
            namespace, account, ..
        } = self;
        let id = format!("spiffe://{domain}/ns/{namespace}/sa/{account}");
        id.parse().ok()
    }

    /// The labels that every workload has.
    fn labels<'a>(&'a self, node: &'a str) -> [(&'static str, &'a str); 4] {
        [
            (label::NAME, self.name.as_str()),
            (label::NAMESPACE, self.namespace.as_str()),
            (label::SERVICE_ACCOUNT, self.account.as_str()),
            (label::NODE, node),
        ]
    }
}
