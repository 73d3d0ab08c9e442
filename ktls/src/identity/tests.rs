//! What of a folder makes an identity, and what does not.

use std::fs;

use super::{
    files::{BUNDLE, KEY, LISTS},
    *,
};
use crate::testing::{Ca, Leaf};
use std::os::unix::fs::symlink;

const CART: &str = "spiffe://example.org/ns/shop/sa/cart";

fn issued(change: impl FnOnce(&mut Leaf)) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let mut leaf = Leaf::of(CART);
    change(&mut leaf);
    Ca::new("ca").issue(&leaf).write(directory.path());
    directory
}

fn error_of(directory: &Path) -> String {
    Identity::load(directory).unwrap_err().to_string()
}

#[test]
fn a_good_directory_loads() {
    let directory = issued(|_| {});
    let identity = Identity::load(directory.path()).unwrap();
    assert_eq!(identity.id().as_str(), CART);
    assert!(identity.not_after() > SystemTime::now());
    assert!(!identity.is_stale());
    let shown = format!("{identity:?}");
    assert!(shown.contains(CART) && shown.len() < 200, "{shown}");
}

#[test]
fn a_missing_file_is_named() {
    for name in [CERTIFICATE, KEY, BUNDLE] {
        let directory = issued(|_| {});
        fs::remove_file(directory.path().join(name)).unwrap();
        let error = error_of(directory.path());
        assert!(error.contains(&format!("/{name}`")), "{error}");
        assert!(error.contains("No such file"), "{error}");
    }
}

#[test]
fn wrong_contents_are_told_apart() {
    let directory = issued(|_| {});
    let write = |name, text: &str| fs::write(directory.path().join(name), text).unwrap();
    let read = |name| fs::read_to_string(directory.path().join(name)).unwrap();
    let (certificate, key, bundle) = (read(CERTIFICATE), read(KEY), read(BUNDLE));

    for (name, text, expected) in [
        (CERTIFICATE, "", "tls.crt` holds no certificate"),
        (CERTIFICATE, &*key, "tls.crt` holds no certificate"),
        (BUNDLE, "", "ca.crt` holds no certificate"),
        (KEY, "", "tls.key` holds no usable private key"),
        (KEY, &*certificate, "tls.key` holds no usable private key"),
        (
            CERTIFICATE,
            "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
            "tls.crt` holds a bad certificate",
        ),
        (CERTIFICATE, &*bundle, "is that of a CA"),
    ] {
        let good = read(name);
        write(name, text);
        let error = error_of(directory.path());
        assert!(error.contains(expected), "{error}");
        write(name, &good);
    }
    Identity::load(directory.path()).unwrap();
}

#[test]
fn a_foreign_key_is_refused() {
    let (one, other) = (issued(|_| {}), issued(|_| {}));
    fs::copy(other.path().join(KEY), one.path().join(KEY)).unwrap();
    let error = error_of(one.path());
    assert!(error.contains("tls.key` does not belong"), "{error}");
}

#[test]
fn revocation_lists_are_read_if_they_are_there_and_must_be_some() {
    let ca = Ca::new("ca");
    let mut leaf = Leaf::of(CART);
    leaf.serial = Some(7);
    let directory = tempfile::tempdir().unwrap();
    let lists = ca.revoke(&[7], -60..60) + &ca.revoke(&[], -60..60);
    ca.issue(&leaf).revoking(&lists).write(directory.path());
    let identity = Identity::load(directory.path()).unwrap();
    let now = rustls::pki_types::UnixTime::now();
    let verdict = identity
        .trust()
        .still_accepts(&identity.chain()[0], &[], now);
    assert_eq!(verdict, Err(crate::Refusal::Revoked));
    let path = directory.path().join(LISTS);
    fs::write(&path, "").unwrap();
    assert!(identity.is_stale());
    let error = error_of(directory.path());
    assert!(
        error.contains("ca.crl` holds a bad revocation list"),
        "{error}"
    );
    fs::remove_file(&path).unwrap();
    Identity::load(directory.path()).unwrap();
}

#[test]
fn a_certificate_is_due_an_hour_before_its_end_or_a_quarter_of_its_life() {
    let due = |valid| {
        let directory = issued(|leaf| leaf.valid = valid);
        let identity = Identity::load(directory.path()).unwrap();
        identity.is_due(SystemTime::now())
    };
    assert!(!due(-60..86_400) && !due(-82_000..4000) && due(-83_000..3400));
    assert!(!due(-60..600) && due(-600..60));
}

#[test]
fn a_certificate_is_due_when_its_renewal_is() {
    let due = |valid, before| {
        let directory = issued(|leaf| leaf.valid = valid);
        let identity = Identity::load(directory.path()).unwrap();
        identity.is_due_within(Duration::from_secs(before), SystemTime::now())
    };
    assert!(due(-60..86_000, 86_050) && !due(-60..86_000, 3600));
    assert!(!due(-82_000..4000, 3600) && !due(-83_000..3400, 600));
    // Not known, or of somebody else.
    assert!(due(-83_000..3400, 0) && !due(-60..600, 3600) && due(-600..60, 3600));
}

#[test]
fn spiffe_ids_that_do_not_serve() {
    for (uris, expected) in [
        (vec![], "no URI name"),
        (vec![CART, CART], "2 URI names"),
        (vec!["https://example.org/"], "is no SPIFFE ID"),
        (vec!["spiffe://example.org/a/"], "empty segment"),
        (vec!["spiffe://example.org"], "names a trust domain"),
    ] {
        let directory = issued(|leaf| leaf.uris = uris);
        let error = error_of(directory.path());
        assert!(error.contains("tls.crt`: "), "{error}");
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn validity_is_checked() {
    let old = issued(|leaf| leaf.valid = -7200..-3600);
    let error = error_of(old.path());
    assert!(error.contains("tls.crt` expired at "), "{error}");
    let early = issued(|leaf| leaf.valid = 3600..7200);
    let error = error_of(early.path());
    assert!(error.contains("valid only from "), "{error}");
}

#[test]
fn a_symlink_swap_makes_it_stale() {
    let (old, new) = (issued(|_| {}), issued(|_| {}));
    let mount = tempfile::tempdir().unwrap();
    let data = mount.path().join("..data");
    symlink(old.path(), &data).unwrap();
    for name in [CERTIFICATE, KEY, BUNDLE] {
        symlink(Path::new("..data").join(name), mount.path().join(name)).unwrap();
    }
    let identity = Identity::load(mount.path()).unwrap();
    assert!(!identity.is_stale());

    let next = mount.path().join("..next");
    symlink(new.path(), &next).unwrap();
    fs::rename(&next, &data).unwrap();
    assert!(identity.is_stale());
    assert!(!Identity::load(mount.path()).unwrap().is_stale());
}
