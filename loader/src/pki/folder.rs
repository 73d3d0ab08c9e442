//! A workload's identity folder: `tls.crt`, `tls.key`, `ca.crt` and `ca.crl`, replaced together.
//!
//! As the kubelet does: the files are links into `..data`, which is a link to the folder that holds
//! them, and one rename changes that link. Ours is a folder whose `..data` leads to
//! `..underseal-*`; one with other contents belongs to somebody else and is never written to.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, symlink},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use underseal_ktls::{Identity, IdentityError, Party, SpiffeId, secrets::Cipher};
use zeroize::Zeroizing;

use super::{
    Error,
    authority::Bundle,
    durable::{self, PUBLIC, SECRET},
};

/// A complete identity. No `Debug`: it holds a key.
#[derive(Clone, PartialEq, Eq)]
pub struct Set {
    /// Leaf first, PEM.
    pub certificate: String,
    /// Its key, PEM.
    pub key: Zeroizing<String>,
    /// What it trusts.
    pub bundle: Bundle,
}

/// What is in a folder.
pub enum Found {
    /// Nothing: it may be written to.
    Nothing,
    /// An identity that we have written.
    Ours(Set),
    /// Something else; its name.
    Foreign(String),
}

/// How a set is looked at before it is put in the place of another one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// It must be accepted by its own bundle, as a peer would accept it.
    Handshake,
    /// None: the certificate is the one that is there, and may be revoked or over.
    None,
}

/// Looks at a folder.
///
/// # Errors
/// It cannot be read, or has lost files.
pub fn look(folder: &Path) -> Result<Found, Error> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        other => other.map_err(Error::file("list", folder))?,
    };
    for entry in entries {
        let entry = entry.map_err(Error::file("list", folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let target = fs::read_link(entry.path()).ok();
        let target = target.as_deref().and_then(Path::to_str);
        let serves = match (name.as_str(), target) {
            (DATA, _) => is_ours(folder),
            (name, target) if FILES.contains(&name) => target == Some(&through(name)),
            _ => true,
        };
        if !serves && is_ours(folder) {
            let reason = format!("`{name}` in it was replaced\n  hint: remove it, then issue");
            return Err(Error::unusable(folder, reason));
        }
        if !serves {
            return Ok(Found::Foreign(name));
        }
    }
    if !is_ours(folder) {
        return Ok(Found::Nothing);
    }
    read(&folder.join(DATA)).map(Found::Ours)
}

fn is_ours(folder: &Path) -> bool {
    let target = fs::read_link(folder.join(DATA)).ok();
    let target = target.as_deref().and_then(Path::to_str);
    target.is_some_and(|target| target.starts_with(PREFIX))
}

/// Puts a set into a folder in one step: at every moment the folder has the old one or this one.
///
/// # Errors
/// The folder is not ours, the set does not prove good, or a file cannot be written. Then the old
/// set is there.
pub fn put(folder: &Path, set: &Set, id: &str, proof: Proof) -> Result<(), Error> {
    ensure_ours(folder)?;
    durable::folder(folder)?;
    // Two at once, and one could remove what the other's link has just come to lead to.
    let file = File::open(folder).map_err(Error::file("open", folder))?;
    let _lock = Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| Error::file("lock", folder)(errno.into()))?;
    for step in steps(folder, proof) {
        step.carry_out(folder, set, id)?;
    }
    Ok(())
}

/// Refuses a folder that belongs to somebody else.
///
/// # Errors
/// It does, or cannot be read.
pub fn ensure_ours(folder: &Path) -> Result<(), Error> {
    if let Found::Foreign(name) = look(folder)? {
        return Err(Error::unusable(
            folder,
            format!(
                "it is not written to, because `{name}` in it is not Underseal's\n  hint: let its \
                 owner renew it, or give the workload another folder (`identity`)"
            ),
        ));
    }
    Ok(())
}

/// What is done, in order. Whoever is stopped between two steps, or in the middle of one, leaves
/// the old set or the new one whole.
fn steps(folder: &Path, proof: Proof) -> Vec<Step> {
    let data = folder.join(format!("{PREFIX}{}", name_now()));
    let mut steps = vec![Step::Folder(data.clone())];
    steps.extend(FILES.map(|name| Step::File(data.join(name))));
    steps.push(Step::Sync(data.clone()));
    if proof == Proof::Handshake {
        steps.push(Step::Prove(data.clone()));
    }
    // Before the first swap they lead nowhere: no file is there until all are.
    steps.extend(FILES.map(Step::Link));
    steps.push(Step::Swap(data.clone()));
    steps.push(Step::Sync(folder.to_owned()));
    steps.push(Step::Clean(data));
    steps
}

enum Step {
    Folder(PathBuf),
    File(PathBuf),
    Sync(PathBuf),
    Prove(PathBuf),
    Link(&'static str),
    Swap(PathBuf),
    Clean(PathBuf),
}

impl Step {
    fn carry_out(&self, folder: &Path, set: &Set, id: &str) -> Result<(), Error> {
        match self {
            Self::Folder(path) => durable::folder(path),
            Self::File(path) => write(path, set).map_err(Error::file("write", path)),
            Self::Sync(path) => durable::sync(path).map_err(Error::file("write", path)),
            Self::Prove(path) => prove(path, id).inspect_err(|_| {
                // Nothing leads to it; if it stays, the next one removes it.
                let _ = fs::remove_dir_all(path);
            }),
            Self::Link(name) => link(&folder.join(name), &through(name)),
            Self::Swap(data) => {
                let target = data.file_name().unwrap_or_default();
                let next = folder.join(NEXT);
                if fs::symlink_metadata(&next).is_ok() {
                    fs::remove_file(&next).map_err(Error::file("remove", &next))?;
                }
                symlink(target, &next).map_err(Error::file("make", &next))?;
                let data = folder.join(DATA);
                fs::rename(&next, &data).map_err(Error::file("replace", &data))
            }
            Self::Clean(data) => clean(folder, data),
        }
    }
}

fn write(path: &Path, set: &Set) -> io::Result<()> {
    let (bytes, mode) = match path.file_name().and_then(|name| name.to_str()) {
        Some("tls.crt") => (set.certificate.as_str(), PUBLIC),
        Some("tls.key") => (set.key.as_str(), SECRET),
        Some("ca.crt") => (set.bundle.certificates.as_str(), PUBLIC),
        // An empty list would be a mistake; the link to none leads nowhere, which is no list.
        _ if set.bundle.lists.is_empty() => return Ok(()),
        _ => (set.bundle.lists.as_str(), PUBLIC),
    };
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes.as_bytes())?;
    file.sync_all()
}

fn link(path: &Path, target: &str) -> Result<(), Error> {
    match symlink(target, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(Error::file("make", path)),
    }
}

/// Removes what nothing leads to any more.
fn clean(folder: &Path, keep: &Path) -> Result<(), Error> {
    let entries = fs::read_dir(folder).map_err(Error::file("list", folder))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str());
        if path != keep && name.is_some_and(|name| name.starts_with(PREFIX)) {
            fs::remove_dir_all(&path).map_err(Error::file("remove", &path))?;
        }
    }
    Ok(())
}

/// A handshake of the new identity with itself: all that a peer will look at.
fn prove(data: &Path, id: &str) -> Result<(), Error> {
    let bad = |reason: String| Error::unusable(data, reason);
    let expected: SpiffeId = id.parse().map_err(|why| bad(format!("{id}: {why}")))?;
    let identity = Identity::load(data).map_err(|error: IdentityError| bad(error.to_string()))?;
    let party = Party {
        identity: &identity,
        expects: (&expected).into(),
    };
    underseal_ktls::memory::handshake(party, party, Cipher::Aes128Gcm)
        .map(drop)
        .map_err(|error| bad(format!("its own bundle does not accept it: {error}")))
}

fn read(data: &Path) -> Result<Set, Error> {
    let text = |name: &str| {
        let path = data.join(name);
        durable::text(&path)?.ok_or_else(|| Error::unusable(&path, "it is missing"))
    };
    Ok(Set {
        certificate: text("tls.crt")?,
        key: Zeroizing::new(text("tls.key")?),
        bundle: Bundle {
            certificates: text("ca.crt")?,
            lists: durable::text(&data.join("ca.crl"))?.unwrap_or_default(),
        },
    })
}

fn through(name: &str) -> String {
    format!("{DATA}/{name}")
}

/// Never the same twice, and in the order of time for people who look.
fn name_now() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let since = since.unwrap_or_default();
    format!(
        "{}-{:09}-{}",
        since.as_secs(),
        since.subsec_nanos(),
        std::process::id()
    )
}

const FILES: [&str; 4] = ["tls.crt", "tls.key", "ca.crt", "ca.crl"];
const DATA: &str = "..data";
const NEXT: &str = "..data_tmp";
/// What names of our own folders within an identity's begin with; after it come digits and `-`.
pub const PREFIX: &str = "..underseal-";

#[cfg(test)]
mod tests;
