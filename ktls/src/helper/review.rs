//! Looks after identities while nobody connects: complains of files that cannot be used and of certificates that end
//! soon, and ends sealed connections whose peer would be refused today, because it was revoked, its CA is trusted no
//! longer, or it does not have a DNS name that network policies rely on now. A certificate that has merely ended since
//! ends no connection.
//!
//! With which certificates a connection was made is in the pinned maps, so that a helper that starts knows it too.

use std::{
    collections::{HashMap, HashSet},
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use rustls::pki_types::{CertificateDer, UnixTime};
use tracing::{error, info, warn};
use underseal_abi::{Chain, Conn, HelperCounter, Named, Seal, Workload};

use super::{
    names::{Route, text},
    peers::named,
    session::Session,
};
use crate::{
    Bundle, Refusal, SpiffeId, Svid, Trust,
    identity::{CERTIFICATE, Identity, IdentityError, Stamp},
};

/// How often it is looked even if no event has come: a folder that is itself a symbolic link makes none.
const EVERY: Duration = Duration::from_secs(10);
/// How long writers have from their first file to their last.
const SETTLE: Duration = Duration::from_millis(200);

/// What has been seen and told of.
pub(super) struct Review {
    events: Inotify,
    due: Instant,
    trust: HashMap<PathBuf, Trusted>,
    /// What was complained of last, by folder.
    told: HashMap<PathBuf, String>,
    /// DNS names that certificates must have.
    dns_names: HashMap<Named, Vec<String>>,
    closes: bool,
}

struct Trusted {
    stamp: Stamp,
    bundles: Vec<Bundle>,
    /// The last that could be loaded.
    trust: Option<Arc<Trust>>,
}

impl Review {
    pub(super) fn new() -> Result<Self> {
        let events = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK);
        Ok(Self {
            events: events.context("cannot watch the folders of identities")?,
            due: Instant::now(),
            trust: HashMap::new(),
            told: HashMap::new(),
            dns_names: HashMap::new(),
            closes: false,
        })
    }

    /// The configuration may have changed.
    pub(super) fn ask(&mut self) {
        self.due = Instant::now();
    }

    /// When to look next.
    pub(super) fn next_due(&self, now: Instant) -> Duration {
        self.due.saturating_duration_since(now)
    }

    /// Takes in what the watch has seen.
    pub(super) fn take_events(&mut self, now: Instant) {
        if self.events.read_events().is_ok_and(|e| !e.is_empty()) {
            self.due = self.due.min(now + SETTLE);
        }
    }

    /// Set up again each time: a folder may have been replaced, and one that is watched stays so.
    fn watch(&self, folder: &Path) {
        let what = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE;
        // Without it the change is seen at the next look.
        let _ = self.events.add_watch(folder, what);
    }

    /// Loads what `folder` trusts if that has changed; true if it has.
    fn refresh(&mut self, folder: &Path, domain: &str, bundles: &[Bundle]) -> bool {
        self.watch(folder);
        for file in bundles.iter().filter_map(|bundle| bundle.file.parent()) {
            self.watch(file);
        }
        let stamp = Stamp::take(folder, bundles);
        let old = self.trust.get(folder);
        if old.is_some_and(|old| old.stamp == stamp && old.bundles == bundles) {
            return false;
        }
        let before = old.and_then(|old| old.trust.as_deref());
        let loaded = Trust::load_without(folder, domain, bundles, before);
        let loaded = loaded.ok().map(Arc::new);
        let changed = loaded.is_some();
        let trust = loaded.or_else(|| old.and_then(|old| old.trust.clone()));
        let bundles = bundles.to_vec();
        let trusted = Trusted {
            stamp,
            bundles,
            trust,
        };
        self.trust.insert(folder.to_owned(), trusted);
        changed
    }

    fn trust(&self, folder: &Path) -> Option<&Arc<Trust>> {
        self.trust.get(folder)?.trust.as_ref()
    }

    /// Whether this is news of the folder.
    fn is_news(&mut self, folder: &Path, text: &str) -> bool {
        let last = self.told.insert(folder.to_owned(), text.to_owned());
        last.as_deref() != Some(text)
    }
}

impl AsFd for Review {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

impl Session {
    /// Does what is due.
    pub(super) fn review(&mut self, now: Instant) {
        if now < self.review.due {
            return;
        }
        self.review.due = now + EVERY;
        let (workloads, bundles) = (self.maps.workloads(), self.maps.bundles());
        let closes = self.maps.closes_revoked();
        let dns_names = self.maps.all_dns_names();
        let mut changed = closes && !self.review.closes || dns_names != self.review.dns_names;
        (self.review.closes, self.review.dns_names) = (closes, dns_names);
        let (mut broken, mut due) = (0, 0);
        for (_, workload) in &workloads {
            let folder = Path::new(text(&workload.identity));
            let domain = text(&workload.spiffe_id).parse::<SpiffeId>();
            let domain = domain.as_ref().map_or("", SpiffeId::trust_domain);
            changed |= self.review.refresh(folder, domain, &bundles);
            match self.health(workload, folder) {
                Health::Good => drop(self.review.told.remove(folder)),
                Health::Due => due += 1,
                Health::Broken => broken += 1,
            }
        }
        self.maps.show(HelperCounter::IdentitiesBroken, broken);
        self.maps.show(HelperCounter::IdentitiesDue, due);
        if changed && closes {
            let workloads = workloads.into_iter().collect();
            self.end_revoked(&workloads);
        }
    }

    /// How an identity is; what is wrong is told of once.
    fn health(&mut self, workload: &Workload, folder: &Path) -> Health {
        let loaded = self.peers.load(folder);
        self.complain();
        let name = text(&workload.name);
        let renew_before = Duration::from_secs(workload.renew_before.into());
        match loaded {
            Err(error) => {
                let why = error.to_string();
                if self.review.is_news(folder, &why) {
                    error!("identity of {name}: {why}; its connections are refused");
                }
                Health::Broken
            }
            Ok(_) if self.peers.is_broken(folder) => Health::Broken,
            Ok(identity) if identity.is_due_within(renew_before, SystemTime::now()) => {
                let why = due(&identity);
                if self.review.is_news(folder, &why) {
                    warn!("identity of {name}: {why}");
                }
                Health::Due
            }
            Ok(_) => Health::Good,
        }
    }

    /// Tells of new files that could not be used.
    pub(super) fn complain(&mut self) {
        for (folder, error) in self.peers.take_complaints() {
            let workloads = self.maps.workloads();
            let mut of = workloads.iter().map(|(_, workload)| workload);
            let of = of.find(|workload| Path::new(text(&workload.identity)) == folder);
            let name = of.map_or("?", |workload| text(&workload.name));
            match error {
                IdentityError::Bundle { .. } => error!("identity of {name}: {error}"),
                error => {
                    let folder = folder.display();
                    error!(
                        "identity of {name}: {error}; the old certificate from {folder} serves until its end"
                    );
                    self.maps.count(HelperCounter::IdentityKept, 1);
                }
            }
        }
    }

    /// Ends sealed connections whose peer would be refused today.
    fn end_revoked(&mut self, workloads: &HashMap<u32, Workload>) {
        let mut verdicts: HashMap<(u32, [u8; 32], Named), Result<(), String>> = HashMap::new();
        let mut used = HashSet::new();
        let mut ended = 0_u32;
        for (cookie, seal) in self.maps.seals() {
            let Some(conn) = self.maps.conn(cookie) else {
                self.maps.remove_seal(cookie);
                continue;
            };
            used.insert(seal.chain);
            let verdict = verdicts
                .entry((seal.workload, seal.chain, named(&conn)))
                .or_insert_with(|| self.accepts_still(workloads, &seal, &conn));
            if let Err(why) = verdict
                && self.destroy(&conn, None)
            {
                ended += 1;
                self.maps.count(HelperCounter::ResetRevoked, 1);
                error!("reset {}: {why}", Route(&conn));
            }
        }
        self.maps.clear_chains(&used);
        if ended > 0 {
            info!("{ended} sealed connections ended after a change of trust");
        }
    }

    fn accepts_still(
        &self,
        workloads: &HashMap<u32, Workload>,
        seal: &Seal,
        conn: &Conn,
    ) -> Result<(), String> {
        // A workload that is configured no longer is ended with its namespace, not here.
        let Some(workload) = workloads.get(&seal.workload) else {
            return Ok(());
        };
        let folder = Path::new(text(&workload.identity));
        let Some(trust) = self.review.trust(folder) else {
            // That nothing can be loaded has been told of; what was good stays so until there is something.
            return Ok(());
        };
        let who = text(&workload.name);
        let chain = self.maps.chain(&seal.chain).and_then(|c| certificates(&c));
        let Some(chain) = chain else {
            return Err(format!(
                "with what certificate the peer of {who} was accepted is not known any more"
            ));
        };
        let verdict = judge(trust, &chain, seal.at);
        let verdict =
            verdict.and_then(|()| self.has_names(workloads.get(&conn.peer), &chain, conn));
        verdict.map_err(|refusal| {
            let peer = Svid::parse(&chain[0]);
            let peer = peer.map_or_else(|error| error.to_string(), |svid| svid.id().to_string());
            format!(
                "{who} accepts {peer} no longer: {refusal} ({}/ca.crt, ca.crl)",
                folder.display()
            )
        })
    }
}

impl Session {
    /// Whether the peer has the DNS names that are asked for now: in the certificate that it has shown, or, inside this
    /// node, in the one that has replaced it.
    fn has_names(
        &self,
        peer: Option<&Workload>,
        chain: &[CertificateDer<'static>],
        conn: &Conn,
    ) -> Result<(), Refusal> {
        // What cannot be read was read before, or refuses new connections.
        let names = self.peers.dns_names(&self.maps, &named(conn));
        let names = names.unwrap_or_default();
        let missing = first_missing(&names, &chain[0]);
        let now = || {
            let identity = self.peers.load(Path::new(text(&peer?.identity))).ok()?;
            first_missing(&names, identity.chain().first()?)
                .is_none()
                .then_some(())
        };
        match missing {
            Some(name) if now().is_none() => Err(Refusal::NameMissing(name)),
            _ => Ok(()),
        }
    }
}

/// The first of these DNS names that a certificate does not have.
fn first_missing(names: &[String], leaf: &[u8]) -> Option<String> {
    if names.is_empty() {
        return None;
    }
    let svid = Svid::parse(leaf).ok();
    let has = |name: &&String| svid.as_ref().is_some_and(|svid| svid.has_dns_name(name));
    names.iter().find(|name| !has(name)).cloned()
}

/// How an identity is.
enum Health {
    Good,
    Due,
    Broken,
}

fn due(identity: &Identity) -> String {
    let error = IdentityError::Due {
        path: identity.directory().join(CERTIFICATE),
        until: identity.end(),
    };
    error.to_string()
}

fn judge(trust: &Trust, chain: &[CertificateDer<'static>], at: u64) -> Result<(), Refusal> {
    let then = UnixTime::since_unix_epoch(Duration::from_secs(at));
    trust.still_accepts(&chain[0], &chain[1..], then)
}

/// The certificates of a chain, at least one; `None` if it is no such thing.
pub(super) fn certificates(chain: &Chain) -> Option<Vec<CertificateDer<'static>>> {
    let mut rest = chain.der.get(..usize::try_from(chain.len).ok()?)?;
    let mut certificates = Vec::new();
    while !rest.is_empty() {
        let (one, after) = rest.split_at_checked(der_len(rest)?)?;
        certificates.push(one.to_vec().into());
        rest = after;
    }
    (!certificates.is_empty()).then_some(certificates)
}

/// Length of the DER element that `bytes` begin with, its header included.
fn der_len(bytes: &[u8]) -> Option<usize> {
    match *bytes {
        [0x30, short @ ..=0x7f, ..] => Some(2 + usize::from(short)),
        [0x30, 0x81, a, ..] => Some(3 + usize::from(a)),
        [0x30, 0x82, a, b, ..] => Some(4 + usize::from(u16::from_be_bytes([a, b]))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Ca, Leaf};

    #[test]
    fn names_that_are_asked_for_now_are_looked_for_in_what_was_shown() {
        let mut leaf = Leaf::of("spiffe://example.org/ns/shop/sa/cart");
        leaf.dns_names = vec!["cart", "*.shop.example.org"];
        let shown = Ca::new("root").issue(&leaf).chain();
        let missing = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            first_missing(&names, &shown[0])
        };
        assert_eq!(missing(&[]), None);
        assert_eq!(missing(&["cart", "cart.shop.example.org"]), None);
        assert_eq!(missing(&["cart", "till"]).as_deref(), Some("till"));
        // What is no certificate has none.
        assert!(first_missing(&["cart".to_owned()], b"nonsense").is_some());
    }

    #[test]
    fn a_chain_comes_back_from_its_bytes() {
        let ca = Ca::new("root").subordinate("issuer");
        let written = ca
            .issue(&Leaf::of("spiffe://example.org/ns/shop/sa/cart"))
            .chain();
        let all: Vec<u8> = written.iter().flat_map(|c| c.to_vec()).collect();
        let mut chain = Chain {
            len: u32::try_from(all.len()).unwrap(),
            reserved: 0,
            der: [0; Chain::MAX_LEN],
        };
        chain.der[..all.len()].copy_from_slice(&all);
        assert_eq!(certificates(&chain).unwrap(), written);
        for wrong in [0, chain.len - 1, chain.len + 1, u32::MAX] {
            chain.len = wrong;
            assert!(certificates(&chain).is_none(), "{wrong}");
        }
    }
}
