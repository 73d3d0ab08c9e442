//! Loaded identities, kept until their files change.

use crate::identity::{Identity, IdentityError};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// A cache of identities by directory.
///
/// Every [`IdentityStore::identity`] looks at the files first (three `stat` calls), so that a
/// renewed certificate serves the next handshake without any signal or watch.
#[derive(Debug, Default)]
pub struct IdentityStore {
    loaded: Mutex<HashMap<PathBuf, Arc<Identity>>>,
}

impl IdentityStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The identity in `directory` as its files are now.
    ///
    /// New files that cannot be used are an error, even if the old certificate would still be
    /// valid: to go on with it in silence would hide the mistake until the day it expires.
    ///
    /// # Errors
    ///
    /// Those of [`Identity::load`].
    pub fn identity(&self, directory: &Path) -> Result<Arc<Identity>, IdentityError> {
        // A panic elsewhere cannot have left the map half-changed.
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(identity) = loaded.get(directory)
            && !identity.is_stale()
            && identity.check_validity().is_ok()
        {
            return Ok(Arc::clone(identity));
        }
        // Whatever comes of the load, what is in the map serves no longer; a directory that is
        // gone must not keep its key in memory.
        loaded.remove(directory);
        let identity = Arc::new(Identity::load(directory)?);
        loaded.insert(directory.to_owned(), Arc::clone(&identity));
        Ok(identity)
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
    fn broken_files_are_an_error_until_they_are_mended() {
        let directory = tempfile::tempdir().unwrap();
        let ca = Ca::new("ca");
        let store = IdentityStore::new();
        ca.issue(&Leaf::of(CART)).write(directory.path());
        store.identity(directory.path()).unwrap();
        std::fs::remove_file(directory.path().join("tls.key")).unwrap();
        let error = store.identity(directory.path()).unwrap_err().to_string();
        assert!(error.contains("tls.key"), "{error}");
        assert!(store.loaded.lock().unwrap().is_empty());
        ca.issue(&Leaf::of(CART)).write(directory.path());
        store.identity(directory.path()).unwrap();
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
