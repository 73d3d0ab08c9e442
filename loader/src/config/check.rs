//! From what was read to a checked [`Config`]: each value by its own constructor, then what values
//! demand of each other. Goes on after a mistake, so that all of them are reported at once.

mod across;
mod sections;

use std::{collections::BTreeMap, str::FromStr};

use figment::{Figment, error::Kind};

use super::{Config, ConfigError, Diagnostic, Source, raw::Raw, source::Tree, value::Invalid};

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
