//! Loaded identities, kept until there are others that can be used.

use crate::{
    identity::{Bundle, Identity, IdentityError, Stamp},
    trust::Trust,
};
use std::{
    collections::HashMap,
    mem,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// A cache of identities by directory.
///
/// Every [`IdentityStore::identity`] looks at the files first (a `stat` call for each), so that a
/// renewed certificate serves the next handshake without any signal or watch.
///
/// New files that cannot be used are complained of, once, and the old certificate serves until its
/// end: a failed renewal does no harm while there is time to mend it.
#[derive(Debug, Default)]
pub struct IdentityStore {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    bundles: Vec<Bundle>,
    loaded: HashMap<PathBuf, Entry>,
    complaints: Vec<(PathBuf, IdentityError)>,
}

#[derive(Debug)]
struct Entry {
    identity: Arc<Identity>,
    /// The state of the files that could not be used, while that is so.
    broken: Option<Stamp>,
}

impl IdentityStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Peers of other trust domains are verified against these bundles from now on.
    pub fn set_bundles(&self, bundles: Vec<Bundle>) {
        let mut inner = self.inner();
        if inner.bundles != bundles {
            // What was loaded with other bundles trusts others.
            inner.loaded.clear();
            inner.bundles = bundles;
        }
    }

    /// The identity in `directory` as its files are now, or as they were when they could be used
    /// last, if that has not ended.
    ///
    /// # Errors
    ///
    /// Those of [`Identity::load`], if there is no old one to go on with.
    pub fn identity(&self, directory: &Path) -> Result<Arc<Identity>, IdentityError> {
        let mut inner = self.inner();
        let old = inner.loaded.remove(directory);
        let old = old.filter(|entry| entry.identity.check_validity().is_ok());
        if let Some(entry) = old {
            let stamp = entry
                .broken
                .is_some()
                .then(|| Stamp::take(directory, &inner.bundles));
            let settled = match &entry.broken {
                None => !entry.identity.is_stale(),
                broken => *broken == stamp,
            };
            if settled {
                return Ok(inner.keep(directory, entry));
            }
            return Ok(inner.renew(directory, entry));
        }
        let entry = inner.load(directory, None)?;
        Ok(inner.keep(directory, entry))
    }

    /// Whether something in `directory` or in the bundles cannot be used, so that something older serves, or some trust
    /// domain is not trusted.
    #[must_use]
    pub fn is_broken(&self, directory: &Path) -> bool {
        let inner = self.inner();
        let entry = inner.loaded.get(directory);
        entry.is_some_and(|entry| entry.broken.is_some())
    }

    /// Directories whose new files could not be used, and why; each is told of once. After an [`IdentityError::Bundle`]
    /// the rest of the files serves, after any other the old identity.
    #[must_use]
    pub fn take_complaints(&self) -> Vec<(PathBuf, IdentityError)> {
        mem::take(&mut self.inner().complaints)
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        // A panic elsewhere cannot have left the map half-changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn keep(&mut self, directory: &Path, entry: Entry) -> Arc<Identity> {
        let identity = Arc::clone(&entry.identity);
        self.loaded.insert(directory.to_owned(), entry);
        identity
    }

    /// The files have changed since `old` was loaded, or since they could not be used.
    fn renew(&mut self, directory: &Path, old: Entry) -> Arc<Identity> {
        // Taken first: what changes after this makes another try.
        let stamp = Stamp::take(directory, &self.bundles);
        let entry = match self.load(directory, Some(old.identity.trust())) {
            Ok(entry) => entry,
            Err(error) => {
                self.complaints.push((directory.to_owned(), error));
                Entry {
                    broken: Some(stamp),
                    ..old
                }
            }
        };
        self.keep(directory, entry)
    }

    /// Bundles of other trust domains that cannot be used are complained of; they stand in nobody else's way.
    fn load(&mut self, directory: &Path, old: Option<&Arc<Trust>>) -> Result<Entry, IdentityError> {
        let stamp = Stamp::take(directory, &self.bundles);
        let old = old.map(Arc::as_ref);
        let (identity, faults) = Identity::load_without(directory, &self.bundles, old)?;
        let broken = (!faults.is_empty()).then_some(stamp);
        let faults = faults.into_iter();
        self.complaints
            .extend(faults.map(|error| (directory.to_owned(), error)));
        Ok(Entry {
            identity: Arc::new(identity),
            broken,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Ca, Leaf};

    const CART: &str = "spiffe://example.org/ns/shop/sa/cart";
    const TILL: &str = "spiffe://example.org/ns/shop/sa/till";

    #[test]
    fn unchanged_files_are_read_once() {
        let directory = tempfile::tempdir().unwrap();
        Ca::new("ca").issue(&Leaf::of(CART)).write(directory.path());
        let store = IdentityStore::new();
        let first = store.identity(directory.path()).unwrap();
        let second = store.identity(directory.path()).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
    }

    #[test]
    fn replaced_files_serve_the_next_call() {
        let directory = tempfile::tempdir().unwrap();
        let ca = Ca::new("ca");
        let store = IdentityStore::new();
        for id in [CART, TILL, CART] {
            ca.issue(&Leaf::of(id)).write(directory.path());
            assert_eq!(store.identity(directory.path()).unwrap().id().as_str(), id);
        }
    }

    #[test]
    fn broken_files_leave_the_old_identity_and_are_told_of_once() {
        let directory = tempfile::tempdir().unwrap();
        let ca = Ca::new("ca");
        let store = IdentityStore::new();
        ca.issue(&Leaf::of(CART)).write(directory.path());
        store.identity(directory.path()).unwrap();
        std::fs::remove_file(directory.path().join("tls.key")).unwrap();
        for _ in 0..2 {
            let kept = store.identity(directory.path()).unwrap();
            assert!(kept.is_stale() && store.is_broken(directory.path()));
        }
        let [(at, error)] = &store.take_complaints()[..] else {
            panic!("not told of once");
        };
        assert_eq!(at, directory.path());
        assert!(error.to_string().contains("tls.key"), "{error}");
        ca.issue(&Leaf::of(TILL)).write(directory.path());
        let renewed = store.identity(directory.path()).unwrap();
        assert_eq!(renewed.id().as_str(), TILL);
        assert!(!store.is_broken(directory.path()) && store.take_complaints().is_empty());
    }

    #[test]
    fn broken_files_do_not_serve_once_the_old_identity_has_ended() {
        let directory = tempfile::tempdir().unwrap();
        let mut leaf = Leaf::of(CART);
        leaf.valid = -3600..1;
        Ca::new("ca").issue(&leaf).write(directory.path());
        let store = IdentityStore::new();
        let identity = store.identity(directory.path()).unwrap();
        std::fs::write(directory.path().join("ca.crt"), "").unwrap();
        store.identity(directory.path()).unwrap();
        // The end is a second of the clock, not an event.
        while identity.check_validity().is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let error = store.identity(directory.path()).unwrap_err();
        assert!(matches!(error, IdentityError::Expired { .. }), "{error}");
    }

    #[test]
    fn nothing_serves_that_was_never_good() {
        let directory = tempfile::tempdir().unwrap();
        let store = IdentityStore::new();
        let error = store.identity(directory.path()).unwrap_err().to_string();
        assert!(error.contains("tls.crt"), "{error}");
    }

    #[test]
    fn other_bundles_are_another_identity() {
        let (directory, partner) = (tempfile::tempdir().unwrap(), Ca::new("partner"));
        Ca::new("ca").issue(&Leaf::of(CART)).write(directory.path());
        let store = IdentityStore::new();
        let before = store.identity(directory.path()).unwrap();
        assert!(!before.trust().knows("partner.test"));
        let file = directory.path().join("partner.pem");
        std::fs::write(&file, partner.root()).unwrap();
        let trust_domain = "partner.test".to_owned();
        store.set_bundles(vec![Bundle { trust_domain, file }]);
        let after = store.identity(directory.path()).unwrap();
        assert!(after.trust().knows("partner.test"));
    }

    #[test]
    fn a_bundle_that_cannot_be_used_concerns_its_trust_domain_alone() {
        let (directory, partner) = (tempfile::tempdir().unwrap(), Ca::new("partner"));
        let ca = Ca::new("ca");
        ca.issue(&Leaf::of(CART)).write(directory.path());
        let file = directory.path().join("partner.pem");
        let store = IdentityStore::new();
        let trust_domain = "partner.test".to_owned();
        store.set_bundles(vec![Bundle {
            trust_domain,
            file: file.clone(),
        }]);
        let told = |words: &str| {
            let [(_, error)] = &store.take_complaints()[..] else {
                panic!("not told of once: {words}");
            };
            let text = error.to_string();
            assert!(
                text.contains("partner.pem") && text.contains(words),
                "{text}"
            );
        };
        let now = || store.identity(directory.path()).unwrap();
        let knows = |identity: &Identity| identity.trust().knows("partner.test");
        // Newly configured, and not there.
        for _ in 0..2 {
            assert!(!knows(&now()) && store.is_broken(directory.path()));
        }
        told("nobody of it is accepted");
        std::fs::write(&file, partner.root()).unwrap();
        assert!(knows(&now()) && !store.is_broken(directory.path()));
        // Broken later: the old one serves, while everything else is renewed.
        std::fs::write(&file, "nonsense").unwrap();
        ca.issue(&Leaf::of(TILL)).write(directory.path());
        assert!(knows(&now()) && now().id().as_str() == TILL);
        told("the old one serves on");
    }

    #[test]
    fn an_expired_identity_is_not_handed_out() {
        let directory = tempfile::tempdir().unwrap();
        let mut leaf = Leaf::of(CART);
        leaf.valid = -3600..1;
        Ca::new("ca").issue(&leaf).write(directory.path());
        let store = IdentityStore::new();
        store.identity(directory.path()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(2100));
        let error = store.identity(directory.path()).unwrap_err();
        assert!(matches!(error, IdentityError::Expired { .. }), "{error}");
    }
}
