//! From what was read to a checked [`Config`]: each value by its own constructor, then what values
//! demand of each other. Goes on after a mistake, so that all of them are reported at once.

use std::{collections::BTreeMap, str::FromStr};

use figment::{Figment, error::Kind};

use super::{
    Config, ConfigError, Diagnostic, Node, Peer, Policy, Seal, Source, Wireguard,
    bundle::{self, TrustBundle},
    bytes::Bytes,
    choice::Access,
    cipher::CipherChoice,
    network::Network,
    raw::{self, Raw},
    source::Tree,
    value::{Invalid, TrustDomain},
};

/// Smallest MTU that IPv6 can live with (RFC 8200 §5).
const IPV6_MIN_MTU: u32 = 1280;
/// Smallest MTU that is of any use for IPv4 (RFC 791: every host accepts this).
const IPV4_MIN_MTU: u32 = 576;
/// Largest MTU that the kernel gives a WireGuard device (`drivers/net/wireguard/device.c`).
const MAX_MTU: u32 = 65_440;

/// See [`Config::parse`].
pub(super) fn parse(source: &Source) -> Result<Config, ConfigError> {
    let one = |span, message| ConfigError {
        diagnostics: vec![Diagnostic::at(source, span, message)],
    };
    let values = source.values().map_err(|e| one(e.span, e.message))?;
    let places = source.places();
    let raw: Raw = Figment::from(values)
        .extract()
        .map_err(|e| refused(&e, &places))
        .map_err(|(span, message)| one(span, message))?;

    let mut checker = Checker { faults: Vec::new() };
    let config = checker.config(raw);
    match config {
        Some(config) if checker.faults.is_empty() => Ok(config),
        _ => Err(checker.into_error(source, &places)),
    }
}

/// Place and text of what serde refused.
fn refused(error: &figment::Error, places: &Tree) -> (std::ops::Range<usize>, String) {
    let path: Vec<&str> = error.path.iter().map(String::as_str).collect();
    let parent = || path.iter().copied();
    match &error.kind {
        Kind::UnknownField(field, known) => {
            let last = path.last() == Some(&field.as_str());
            let place = if last {
                places.key(parent())
            } else {
                places.key(parent().chain([field.as_str()]))
            };
            let known = known.join(", ");
            (place, format!("unknown key `{field}`; known are: {known}"))
        }
        Kind::MissingField(field) => (places.key(parent()), format!("`{field}` is missing")),
        kind => {
            // serde speaks of Rust's types.
            let text = kind.to_string();
            let text = text.replace("signed int ", "").replace("unsigned int ", "");
            let text = text.replace("u16", "a number up to 65535");
            let text = text.replace("u32", "a number up to 4294967295");
            (places.value(parent()), text)
        }
    }
}

/// Mistakes found so far, each with the path of the value, joined by dots (no key has one).
pub(super) struct Checker {
    faults: Vec<(String, String)>,
}

impl Checker {
    fn into_error(self, source: &Source, places: &Tree) -> ConfigError {
        let mut diagnostics: Vec<_> = self
            .faults
            .into_iter()
            .map(|(path, message)| Diagnostic::at(source, places.value(path.split('.')), message))
            .collect();
        diagnostics.sort_by_key(|d| (d.line, d.column));
        ConfigError { diagnostics }
    }

    pub(super) fn fault(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.faults.push((path.into(), message.into()));
    }

    pub(super) fn value<T: FromStr<Err = Invalid>>(
        &mut self,
        path: impl Into<String>,
        text: &str,
    ) -> Option<T> {
        text.parse()
            .map_err(|Invalid(message)| self.fault(path, message))
            .ok()
    }

    /// The value of `text`, or of `default` if there is none.
    pub(super) fn or<T: FromStr<Err = Invalid>>(
        &mut self,
        path: impl Into<String>,
        text: Option<&str>,
        default: &str,
    ) -> Option<T> {
        self.value(path, text.unwrap_or(default))
    }

    pub(super) fn list<T: FromStr<Err = Invalid>>(
        &mut self,
        path: &str,
        texts: &[String],
    ) -> Vec<T> {
        texts
            .iter()
            .enumerate()
            .filter_map(|(i, text)| self.value(format!("{path}.{i}"), text))
            .collect()
    }

    fn config(&mut self, raw: Raw) -> Option<Config> {
        let node = self.node(&raw.node);
        let wireguard = (raw.wireguard.is_some() || !raw.peer.is_empty())
            .then(|| self.wireguard(&raw.wireguard.unwrap_or_default()));
        let seal = self.seal(&raw.seal);
        let policy = self.policy(&raw.policy);
        let pki = self.pki(&raw.pki);
        let spire = raw.spire.as_ref().map(|spire| self.spire(spire));
        let domain = raw.node.trust_domain.as_str();
        let peers: Vec<_> = raw
            .peer
            .iter()
            .enumerate()
            .map(|(i, peer)| self.peer(i, peer, domain))
            .collect();
        let workloads: Vec<_> = raw
            .workload
            .iter()
            .enumerate()
            .map(|(i, workload)| self.workload(i, workload, &raw.node))
            .collect();
        let bundles = self.bundles(&raw.trust_bundle, domain);
        let network_policies = self.network_policies(&raw.network_policy);
        if !self.faults.is_empty() {
            return None;
        }
        let config = Config {
            bundles,
            node: node?,
            wireguard: match wireguard {
                None => None,
                Some(wireguard) => Some(wireguard?),
            },
            peers: peers.into_iter().collect::<Option<_>>()?,
            seal: seal?,
            policy: policy?,
            pki: pki?,
            spire: match spire {
                None => None,
                Some(spire) => Some(spire?),
            },
            workloads: workloads.into_iter().collect::<Option<_>>()?,
            network_policies,
        };
        self.networks(&config);
        self.peers(&config);
        self.helpers(&config);
        self.devices(&config);
        self.generations(&config);
        self.workloads(&config);
        self.peer_workloads(&config);
        self.rules(&config);
        if self.faults.is_empty()
            && let Some(why) = crate::policy::too_much(&config)
        {
            self.fault("network_policy", why);
        }
        self.agent(&config);
        Some(config)
    }

    fn node(&mut self, raw: &raw::Node) -> Option<Node> {
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

    fn wireguard(&mut self, raw: &raw::Wireguard) -> Option<Wireguard> {
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

    fn peer(&mut self, i: usize, raw: &raw::Peer, domain: &str) -> Option<Peer> {
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

    fn seal(&mut self, raw: &raw::Seal) -> Option<Seal> {
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
    fn bundles(&mut self, raw: &[bundle::Raw], own: &str) -> Vec<TrustBundle> {
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

    fn policy(&mut self, raw: &raw::Policy) -> Option<Policy> {
        let outside: Option<Access> = self.or("policy.outside", raw.outside.as_deref(), "allow");
        let non_tcp: Option<Access> = self.or("policy.non_tcp", raw.non_tcp.as_deref(), "deny");
        Some(Policy {
            outside: outside?,
            non_tcp: non_tcp?,
        })
    }

    /// No address may belong to two networks.
    fn networks(&mut self, config: &Config) {
        if config.node.networks.is_empty() {
            self.fault("node.networks", "a node needs a network for its workloads");
        }
        let own = config.node.networks.iter().enumerate();
        let mut seen: Vec<(String, Network, String)> = Vec::new();
        let all = own
            .map(|(i, net)| (format!("node.networks.{i}"), *net, "this node".to_owned()))
            .chain(config.peers.iter().enumerate().flat_map(|(p, peer)| {
                peer.networks.iter().enumerate().map(move |(i, net)| {
                    let owner = format!("peer `{}`", peer.name);
                    (format!("peer.{p}.networks.{i}"), *net, owner)
                })
            }));
        for (path, net, owner) in all {
            if let Some((_, other, whose)) = seen.iter().find(|(_, other, _)| net.overlaps(other)) {
                self.fault(path.clone(), format!("overlaps {other} of {whose}"));
            }
            seen.push((path, net, owner));
        }
    }

    fn peers(&mut self, config: &Config) {
        if !config.peers.is_empty() && config.node.uplinks.is_empty() {
            self.fault(
                "node",
                "`uplinks` is missing: there are peers, so name the interfaces that lead to them",
            );
        }
        let mut names = Unique::from(("node.name".to_owned(), config.node.name.to_string()));
        let mut keys = Unique::default();
        for (i, peer) in config.peers.iter().enumerate() {
            self.once(&mut names, format!("peer.{i}.name"), peer.name.to_string());
            self.once(
                &mut keys,
                format!("peer.{i}.public_key"),
                peer.public_key.to_string(),
            );
            let inside = config
                .peers
                .iter()
                .flat_map(|p| &p.networks)
                .chain(&config.node.networks)
                .find(|net| net.0.contains(&peer.endpoint.0.ip()));
            if let Some(net) = inside {
                self.fault(
                    format!("peer.{i}.endpoint"),
                    format!("lies in {net}, which is itself reached through WireGuard"),
                );
            }
        }
    }

    /// Where the nodes' helpers reach each other: optional, but for modes that need it.
    fn helpers(&mut self, config: &Config) {
        let own = |v6: bool| {
            let mut addresses = config.wireguard.iter().flat_map(|w| &w.addresses);
            addresses.any(|address| address.0.addr().is_ipv6() == v6)
        };
        let mode = config.seal.mode;
        let needs = mode.raw().seals_between_nodes();
        if needs && config.seal.cipher == CipherChoice::Auto {
            self.fault(
                "seal.cipher",
                format!(
                    "`auto` is this machine's own choice, and with mode `{mode}` all nodes need the same \
                     cipher: name one"
                ),
            );
        }
        let mut first: Option<usize> = None;
        for (i, peer) in config.peers.iter().enumerate() {
            let Some(address) = peer.address else {
                if needs {
                    self.fault(
                        format!("peer.{i}"),
                        format!(
                            "`address` is missing: with mode `{mode}` the helpers of two nodes \
                             talk; name the one that this node has in its own \
                             `wireguard.addresses`"
                        ),
                    );
                }
                continue;
            };
            if !peer.networks.iter().any(|net| net.0.contains(&address.0)) {
                self.fault(
                    format!("peer.{i}.address"),
                    "lies in none of the peer's `networks`: WireGuard would not carry it",
                );
            }
            if !own(address.0.is_ipv6()) {
                first.get_or_insert(i);
            }
        }
        if let Some(i) = first {
            let family = config.peers[i].address.map_or("", |address| {
                if address.0.is_ipv6() { "IPv6" } else { "IPv4" }
            });
            self.fault(
                format!("peer.{i}.address"),
                format!(
                    "this node has no {family} address to reach it from: add one of \
                     `node.networks` to `wireguard.addresses`"
                ),
            );
        }
        self.own_addresses(config);
    }

    /// Other nodes accept a helper by its address, and the tunnel carries this node's networks
    /// alone.
    fn own_addresses(&mut self, config: &Config) {
        if !config.peers.iter().any(|peer| peer.address.is_some()) {
            return;
        }
        let addresses = config.wireguard.iter().flat_map(|w| &w.addresses);
        for (i, address) in addresses.enumerate() {
            let mut networks = config.node.networks.iter();
            if !networks.any(|net| net.0.contains(&address.0.addr())) {
                self.fault(
                    format!("wireguard.addresses.{i}"),
                    "lies in none of `node.networks`: other nodes could not reach the helper there",
                );
            }
        }
    }

    fn devices(&mut self, config: &Config) {
        let mut uplinks = Unique::default();
        for (i, uplink) in config.node.uplinks.iter().enumerate() {
            self.once(
                &mut uplinks,
                format!("node.uplinks.{i}"),
                uplink.to_string(),
            );
        }
        let Some(wireguard) = &config.wireguard else {
            return;
        };
        if uplinks.0.contains_key(wireguard.interface.as_str()) {
            self.fault(
                "wireguard.interface",
                "is also an uplink; the strict check would stop what WireGuard delivers",
            );
        }
        let mut networks = config
            .peers
            .iter()
            .flat_map(|p| &p.networks)
            .chain(&config.node.networks);
        let least = if networks.any(Network::is_ipv6) {
            IPV6_MIN_MTU
        } else {
            IPV4_MIN_MTU
        };
        if let Some(mtu) = wireguard.mtu
            && !(least..=MAX_MTU).contains(&mtu)
        {
            let why = if least == IPV6_MIN_MTU {
                " with IPv6 networks"
            } else {
                ""
            };
            self.fault(
                "wireguard.mtu",
                format!("must be {least} to {MAX_MTU}{why}"),
            );
        }
    }

    /// Reports `value` if it was there before.
    pub(super) fn once(&mut self, seen: &mut Unique, path: String, value: String) {
        if let Some(first) = seen.0.get(&value) {
            self.fault(path, format!("is the same as `{first}`"));
        } else {
            seen.0.insert(value, path);
        }
    }
}

/// Values that must not occur twice, with the path of the first one.
#[derive(Default)]
pub(super) struct Unique(BTreeMap<String, String>);

impl From<(String, String)> for Unique {
    fn from((path, value): (String, String)) -> Self {
        Self(BTreeMap::from([(value, path)]))
    }
}
