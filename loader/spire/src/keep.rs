//! Puts what the agent has said into the workloads' folders and the bundles' files, and complains of what is wrong: once
//! for as long as it stays so.
//!
//! A set of files is proved before it takes the place of another one; whatever is refused leaves the old files.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::SystemTime,
};

use underseal::{
    config::{Config, Workload, bundle::TrustBundle},
    pki::{
        self,
        durable::{self, PUBLIC},
        folder::{self, Found, Proof, Set},
    },
};
use underseal_ktls::Identity;

use crate::{Saying, agent::Event, line, told::Told};

/// Keeps folders and files what the agent says.
pub struct Keeper<'a> {
    config: Config,
    told: Told,
    /// What is wrong now, by what it is about.
    standing: BTreeMap<String, String>,
    /// What of the agent's nobody wants, as far as it was noted.
    ignored: BTreeSet<String>,
    say: &'a dyn Fn(Saying),
}

/// What a folder got.
enum New {
    Nothing,
    Certificate,
    Trust,
}

impl<'a> Keeper<'a> {
    /// Nothing is said or done yet.
    #[must_use]
    pub fn new(config: Config, say: &'a dyn Fn(Saying)) -> Self {
        Self {
            config,
            told: Told::default(),
            standing: BTreeMap::new(),
            ignored: BTreeSet::new(),
            say,
        }
    }

    /// The configuration.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Goes on with another configuration.
    pub fn set_config(&mut self, config: Config) {
        let same_agent = config.spire == self.config.spire;
        self.config = config;
        self.standing.clear();
        if !same_agent {
            self.told = Told::default();
        }
        if self.told.is_complete() {
            self.settle();
        }
    }

    /// Takes in what comes from the agent.
    pub fn hear(&mut self, event: Event) {
        match event {
            Event::Svids(message) => self.told.svids(message),
            Event::Bundles(message) => self.told.bundles(message),
            Event::Lost(why) => return self.complain(AGENT, why),
        }
        if let Some(why) = self.standing.remove(AGENT) {
            self.notice(format!("over: {why}"));
        }
        // Bundles may come first; what is still missing then is no news.
        if self.told.is_complete() {
            self.settle();
        }
    }

    /// Whether everything is as it should be, and the agent has said so.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.told.is_complete() && self.standing.is_empty()
    }

    /// What is wrong now.
    pub fn standing(&self) -> impl Iterator<Item = &str> {
        self.standing.values().map(String::as_str)
    }

    /// Makes files what the agent has said last. What failed is tried again; what is right is not touched.
    pub fn settle(&mut self) {
        if self.told.is_complete() {
            self.settle_workloads();
            self.settle_bundles();
            self.note_what_nobody_wants();
        }
        self.look_at_ends();
    }

    fn settle_workloads(&mut self) {
        for workload in self.workloads() {
            let name = &workload.name;
            let set = self.told.set(workload.spiffe_id.as_str());
            let done = set.and_then(|set| deliver(&workload, &set).map_err(|why| refused(&why)));
            match done {
                Ok(New::Nothing) => {}
                Ok(New::Trust) => self.notice(format!("{name}: new trust")),
                Ok(New::Certificate) => {
                    let end = Identity::load(workload.identity.as_path())
                        .map_or_else(|error| error.to_string(), |identity| identity.end());
                    self.notice(format!("{name}: new certificate, until {end}"));
                }
                Err(why) => {
                    self.complain(name.as_str(), format!("{name}: {why}; the old files stay"));
                    continue;
                }
            }
            self.standing.remove(name.as_str());
        }
    }

    fn settle_bundles(&mut self) {
        let bundles = self.config.bundles.iter();
        let bundles: Vec<_> = bundles.filter(|it| it.spire).cloned().collect();
        for bundle in &bundles {
            let domain = bundle.trust_domain.as_str();
            match self.told.bundle(domain).and_then(|pem| write(bundle, &pem)) {
                Ok(New::Nothing) => {}
                Ok(_) => self.notice(format!("{domain}: new trust bundle")),
                Err(why) => {
                    self.complain(domain, format!("{why}; the old file stays"));
                    continue;
                }
            }
            self.standing.remove(domain);
        }
    }

    /// Complains of certificates that should have been renewed, while there is time to mend it.
    fn look_at_ends(&mut self) {
        for workload in self.workloads() {
            let name = workload.name;
            let about = format!("end of {name}");
            let wrong = match Identity::load(workload.identity.as_path()) {
                Ok(identity) if identity.is_due(SystemTime::now()) => Some(format!(
                    "the certificate ends at {}, and the agent has not given a new one",
                    identity.end()
                )),
                // Why there is nothing that serves was said already.
                Err(_) if self.standing.contains_key(name.as_str()) => None,
                Err(error) => Some(error.to_string()),
                Ok(_) => None,
            };
            match wrong {
                Some(why) => self.complain(&about, format!("{name}: {why}")),
                None => drop(self.standing.remove(&about)),
            }
        }
    }

    fn workloads(&self) -> Vec<Workload> {
        let workloads = self.config.workloads.iter();
        workloads.filter(|it| it.spire).cloned().collect()
    }

    /// Complains of the configuration file; `None`: it is in order again.
    pub fn complain_of_configuration(&mut self, why: Option<String>) {
        match why {
            Some(why) => self.complain(CONFIGURATION, why),
            None => drop(self.standing.remove(CONFIGURATION)),
        }
    }

    fn note_what_nobody_wants(&mut self) {
        let workloads = self.config.workloads.iter().filter(|it| it.spire);
        let wanted: BTreeSet<&str> = workloads.map(|it| it.spiffe_id.as_str()).collect();
        let ids = self.told.others(&wanted);
        let ids = ids.into_iter().map(|id| {
            format!("{id}: the agent has a certificate, but no workload with `spire = true` has this SPIFFE ID; ignoring")
        });
        let bundles = self.config.bundles.iter();
        let mut known: BTreeSet<&str> = bundles.map(|it| it.trust_domain.as_str()).collect();
        known.insert(self.config.node.trust_domain.as_str());
        let domains = self.told.domains();
        let domains = domains.difference(&known).map(|domain| {
            format!("{domain}: the agent has a bundle, but no `[[trust_bundle]]` names the domain; ignoring")
        });
        let now: BTreeSet<String> = ids.chain(domains).collect();
        for text in now.difference(&self.ignored) {
            self.notice(text.clone());
        }
        self.ignored = now;
    }

    fn notice(&self, text: String) {
        (self.say)(Saying::Notice(text));
    }

    fn complain(&mut self, about: &str, why: String) {
        let why = line(&why);
        if self.standing.get(about) != Some(&why) {
            (self.say)(Saying::Complaint(why.clone()));
            self.standing.insert(about.to_owned(), why);
        }
    }
}

fn deliver(workload: &Workload, set: &Set) -> Result<New, pki::Error> {
    let folder = workload.identity.as_path();
    let new = match folder::look(folder)? {
        Found::Ours(old) if old == *set => return Ok(New::Nothing),
        Found::Ours(old) if old.certificate == set.certificate && old.key == set.key => New::Trust,
        _ => New::Certificate,
    };
    folder::put(folder, set, workload.spiffe_id.as_str(), Proof::Handshake)?;
    Ok(new)
}

fn write(bundle: &TrustBundle, pem: &str) -> Result<New, String> {
    let write = |path: &Path| -> Result<New, pki::Error> {
        if durable::text(path)?.as_deref() == Some(pem) {
            return Ok(New::Nothing);
        }
        durable::folder(path.parent().unwrap_or(path))?;
        durable::replace(path, pem.as_bytes(), PUBLIC)?;
        Ok(New::Trust)
    };
    write(bundle.file.as_path()).map_err(|error| error.to_string())
}

/// Why a set did not get into its folder. The place where it was tried has another name each time, which would make the
/// same reason look new.
fn refused(error: &pki::Error) -> String {
    let text = error.to_string();
    let mut parts = text.split(folder::PREFIX);
    let mut clean = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        clean += "new";
        clean += part.trim_start_matches(|c: char| c.is_ascii_digit() || c == '-');
    }
    format!("what the agent gives cannot be used: {clean}")
}

const AGENT: &str = "agent";
const CONFIGURATION: &str = "configuration";
