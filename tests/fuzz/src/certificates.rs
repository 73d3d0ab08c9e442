//! Identities as files, and certificates as a peer has presented them.

use std::{
    fs,
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use rustls::pki_types::UnixTime;
use tempfile::TempDir;
use underseal_ktls::{Bundle, Identity, Svid, Trust, helper::fuzz::certificates};

/// An identity: up to five files, one after the other with a line of `====` between them: `tls.crt`, `tls.key`,
/// `ca.crt`, `ca.crl` and the bundle of another trust domain. It is refused with the name of a file, or can be used.
///
/// # Panics
/// It is neither, or its files cannot be written.
pub fn identity(bytes: &[u8]) {
    let folder = TempDir::new().expect("a folder for temporary files");
    let mut files = split(bytes);
    for name in ["tls.crt", "tls.key", "ca.crt", "ca.crl", "other.crt"] {
        if let Some(content) = files.next() {
            fs::write(folder.path().join(name), content).expect("a file in a new folder");
        }
    }
    let other = Bundle {
        trust_domain: "partner.test".into(),
        file: folder.path().join("other.crt"),
    };
    let others = if other.file.exists() {
        vec![other]
    } else {
        vec![]
    };
    match Identity::load_with(folder.path(), &others) {
        Ok(identity) => uses(&identity),
        Err(error) => {
            let error = error.to_string();
            let folder = folder.path().display().to_string();
            assert!(error.contains(&folder) && !error.contains('\n'), "{error}");
        }
    }
}

fn split(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(bytes);
    std::iter::from_fn(move || {
        let all = rest?;
        let at = all.windows(LINE.len()).position(|line| line == LINE);
        let (file, after) = at.map_or((all, None), |at| {
            (&all[..at], Some(&all[at + LINE.len()..]))
        });
        rest = after;
        Some(file)
    })
}

fn uses(identity: &Identity) {
    let id = identity.id();
    assert!(!id.path().is_empty() && identity.trust().knows(id.trust_domain()));
    assert!(!identity.chain().is_empty());
    assert!(identity.not_after() >= SystemTime::now() - Duration::from_secs(60));
    let _ = (
        identity.is_due(SystemTime::now()),
        identity.end(),
        identity.is_stale(),
    );
}

/// Certificates of a peer in DER, one after the other: nothing is accepted but what the CA has signed.
///
/// # Panics
/// Something is, or the CA cannot be read.
pub fn chain(bytes: &[u8]) {
    let Some(chain) = certificates(bytes) else {
        return;
    };
    for certificate in &chain {
        if let Ok(svid) = Svid::parse(certificate) {
            assert!(!svid.id().path().is_empty());
        }
    }
    let (leaf, rest) = (&chain[0], &chain[1..]);
    let then = UnixTime::since_unix_epoch(SIGNED + DAY);
    if TRUST.still_accepts(leaf, rest, then).is_ok() {
        assert!(
            GENUINE.iter().any(|genuine| genuine.starts_with(leaf)),
            "forged"
        );
    }
}

/// The CA of the seeds; what it has signed is valid from 2026 to the end of year 9999.
static TRUST: LazyLock<Trust> = LazyLock::new(|| {
    let folder = TempDir::new().expect("a folder for temporary files");
    fs::write(
        folder.path().join("ca.crt"),
        include_bytes!("../seeds/ca.crt"),
    )
    .expect("a file in a new folder");
    Trust::load(folder.path(), "example.org", &[]).expect("the CA of the seeds")
});
/// Chains, leaf first.
const GENUINE: [&[u8]; 2] = [
    include_bytes!("../seeds/chain/direct"),
    include_bytes!("../seeds/chain/intermediate"),
];
/// 2026-01-01.
const SIGNED: Duration = Duration::from_secs(1_767_225_600);
const DAY: Duration = Duration::from_secs(86_400);
/// Between two files.
const LINE: &[u8] = b"====\n";
