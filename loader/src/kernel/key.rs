//! WireGuard's secret keys: the private key file, made once, and preshared key files.
//!
//! Secrets have no `Debug`, are wiped when dropped, come from the kernel only by `dangerous_from`, and leave this file
//! only by `dangerous_bytes`, for the kernel. A file holds 44 characters of base64, as `wg genkey` writes.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use nix::unistd::geteuid;
use sha2::{Digest as _, Sha256};
use wireguard_control::Key;
use zeroize::{Zeroize, Zeroizing};

use super::error::Error;
use crate::config::value::{Digest, PublicKey};

/// The private half of a WireGuard device's key pair.
pub struct PrivateKey(Zeroizing<[u8; 32]>);

/// A symmetric key that two peers share.
pub struct PresharedKey(Zeroizing<[u8; 32]>);

impl PrivateKey {
    /// Reads the key file; `None` if there is none.
    ///
    /// # Errors
    /// The file cannot be read, is open to others, or holds no key.
    pub fn read(path: &Path) -> Result<Option<Self>, Error> {
        Ok(read(path, PRIVATE)?.map(Self))
    }

    /// The key in what a key file holds.
    ///
    /// # Errors
    /// The reader's own, or it holds no key, or more than one key and white space.
    pub fn from_reader(file: &mut impl Read) -> io::Result<Self> {
        key_in(file).map(Self)
    }

    /// Makes a new key and stores it, readable by root alone. Makes the folder too, if need be.
    ///
    /// # Errors
    /// `AlreadyExists` if there is a file: a key is never overwritten. Otherwise the file could
    /// not be written; then there is none.
    pub fn generate(path: &Path) -> Result<Self, Error> {
        let mut key = Key::generate_private();
        let bytes = Zeroizing::new(key.0);
        key.0.zeroize();
        store(path, &bytes).map_err(|source| {
            Error::new("write the private key", path.display().to_string(), source)
        })?;
        Ok(Self(bytes))
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        let mut key = Key(*self.0);
        let public = key.get_public();
        key.0.zeroize();
        PublicKey(public.0)
    }

    /// A key that the kernel has.
    pub(super) fn dangerous_from(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The secret itself: only for the kernel.
    pub(super) fn dangerous_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl PresharedKey {
    /// Reads a key file.
    ///
    /// # Errors
    /// The file is not there, cannot be read, is open to others, or holds no key.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let missing = || {
            Error::new(
                PRESHARED,
                path.display().to_string(),
                io::Error::from(io::ErrorKind::NotFound),
            )
        };
        read(path, PRESHARED)?.map(Self).ok_or_else(missing)
    }

    /// A digest that tells whether two keys are the same, and nothing else about them.
    #[must_use]
    pub fn digest(&self) -> Digest {
        digest(&self.0)
    }

    /// A key that the kernel has.
    pub(super) fn dangerous_from(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The secret itself: only for the kernel.
    pub(super) fn dangerous_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// See [`PresharedKey::digest`]; for a key that the kernel returned.
pub(super) fn digest(secret: &[u8; 32]) -> Digest {
    let mut first = [0; 16];
    first.copy_from_slice(&Sha256::digest(secret)[..16]);
    Digest(first)
}

fn read(path: &Path, op: &'static str) -> Result<Option<Zeroizing<[u8; 32]>>, Error> {
    let fail = |source| Error::new(op, path.display().to_string(), source);
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(fail)?,
    };
    // Of the open file, not of the path, which could be another one by then.
    let metadata = file.metadata().map_err(fail)?;
    if !metadata.is_file() {
        return Err(fail(io::Error::other("it is not a file")));
    }
    if metadata.mode() & 0o077 != 0 {
        let reason = format!("others may use it (mode {:04o})", metadata.mode() & 0o7777);
        return Err(
            fail(io::Error::other(reason)).explained(format!("chmod 600 {}", path.display()))
        );
    }
    if metadata.uid() != 0 && metadata.uid() != geteuid().as_raw() {
        let reason = format!("it belongs to user {}", metadata.uid());
        return Err(
            fail(io::Error::other(reason)).explained(format!("chown root {}", path.display()))
        );
    }
    key_in(&mut file).map(Some).map_err(fail)
}

fn key_in(file: &mut impl Read) -> io::Result<Zeroizing<[u8; 32]>> {
    let mut text = Zeroizing::new([0; TEXT_LIMIT]);
    let length = read_up_to(file, &mut text[..])?;
    // What lies beyond the limit has not been seen: it need not be white space.
    let whole = (length < TEXT_LIMIT).then(|| &text[..length]);
    whole
        .and_then(parse)
        .ok_or_else(|| io::Error::other(NOT_A_KEY))
}

/// Reads until the buffer is full or the file ends.
fn read_up_to(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read(&mut buffer[length..])? {
            0 => break,
            more => length += more,
        }
    }
    Ok(length)
}

/// The key in a file's text. All zeros is no key: the kernel takes it for "none".
fn parse(text: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
    let mut decoded = Zeroizing::new([0; 64]);
    let length = BASE64
        .decode_slice(text.trim_ascii_end(), &mut decoded[..])
        .ok()?;
    let mut key = Zeroizing::new([0; 32]);
    key.copy_from_slice(decoded.get(..length).filter(|bytes| bytes.len() == 32)?);
    (*key != [0; 32]).then_some(key)
}

/// Writes the key in one step: the file is there whole and on the disk, or not at all.
fn store(path: &Path, key: &[u8; 32]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    if fs::symlink_metadata(path).is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let mut text = Zeroizing::new([b'\n'; 45]);
    BASE64
        .encode_slice(key, &mut text[..44])
        .map_err(io::Error::other)?;
    // Mode 0600 from birth, and removed again if anything below fails.
    let mut file = tempfile::Builder::new()
        .prefix(".wireguard-key")
        .tempfile_in(folder)?;
    file.write_all(&text[..])?;
    file.as_file().sync_all()?;
    file.persist_noclobber(path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}

const PRIVATE: &str = "read the private key";
const PRESHARED: &str = "read the preshared key";
const NOT_A_KEY: &str = "it holds no WireGuard key, which is 44 characters of base64";
/// More than a key and a newline, so that a longer file is seen to be none.
const TEXT_LIMIT: usize = 64;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    // From the tests of wireguard-control; not used anywhere.
    const PRIVATE_TEXT: &str = "SGb+ojrRNDuMePufwtIYhXzA//k6wF3R21tEBgKlzlM=";
    const PUBLIC_TEXT: &str = "DD5yKRfzExcV5+kDnTroDgCU15latdMjiQ59j1hEuk8=";

    fn file_with(text: &str, mode: u32) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (folder, path)
    }

    fn refusal(result: Result<Option<PrivateKey>, Error>) -> String {
        result.err().expect("must be refused").to_string()
    }

    #[test]
    fn public_half_is_derived() {
        let (_folder, path) = file_with(&format!("{PRIVATE_TEXT}\n"), 0o600);
        let key = PrivateKey::read(&path).unwrap().unwrap();
        assert_eq!(key.public().to_string(), PUBLIC_TEXT);
    }

    #[test]
    fn generated_once_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/wireguard.key");
        assert!(PrivateKey::read(&path).unwrap().is_none());
        let key = PrivateKey::generate(&path).unwrap();
        assert_eq!(
            PrivateKey::read(&path).unwrap().unwrap().public(),
            key.public()
        );
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(
            fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o7777,
            0o700
        );
        assert_eq!(fs::read(&path).unwrap().len(), 45);

        let before = fs::read(&path).unwrap();
        let again = PrivateKey::generate(&path).err().unwrap();
        assert_eq!(again.source.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), before);
        assert_eq!(
            fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "a temporary file was left"
        );
    }

    #[test]
    fn dangling_symlink_is_not_written_through() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), &path).unwrap();
        assert!(PrivateKey::generate(&path).is_err());
        assert!(!folder.path().join("elsewhere").exists());
    }

    #[test]
    fn open_to_others_is_refused_with_a_cure() {
        for mode in [0o640, 0o604, 0o620, 0o601] {
            let (_folder, path) = file_with(PRIVATE_TEXT, mode);
            let message = refusal(PrivateKey::read(&path));
            assert!(
                message.contains(&format!("chmod 600 {}", path.display())),
                "{message}"
            );
            assert!(message.contains(&format!("mode {mode:04o}")), "{message}");
        }
    }

    #[test]
    fn garbage_is_refused_without_showing_it() {
        let zeros = BASE64.encode([0; 32]);
        let twice = format!("{PRIVATE_TEXT}\n{PRIVATE_TEXT}\n");
        // White space up to where reading ends, and another key behind it.
        let far = format!("{PRIVATE_TEXT}{:20}{PUBLIC_TEXT}\n", "\n");
        for text in [
            "",
            "hunter2",
            &PRIVATE_TEXT[..43],
            &zeros,
            &twice,
            &far,
            " SGb+ojrRNDuMePufwtIYhXzA//k6wF3R21tEBgKlzlM=",
        ] {
            let (_folder, path) = file_with(text, 0o600);
            let message = refusal(PrivateKey::read(&path));
            assert!(message.contains("44 characters"), "{message}");
            assert!(
                !message.contains("hunter2") && !message.contains("SGb"),
                "{message}"
            );
        }
    }

    #[test]
    fn folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(refusal(PrivateKey::read(folder.path())).contains("not a file"));
    }

    #[test]
    fn preshared_keys_differ_by_digest() {
        let (_a, first) = file_with(PRIVATE_TEXT, 0o400);
        let (_b, second) = file_with(PUBLIC_TEXT, 0o600);
        let digest = |path: &Path| PresharedKey::read(path).unwrap().digest();
        assert_eq!(digest(&first), digest(&first));
        assert_ne!(digest(&first), digest(&second));
        let missing = PresharedKey::read(Path::new("/nonexistent/key"))
            .err()
            .unwrap();
        assert!(
            missing
                .to_string()
                .starts_with("cannot read the preshared key /nonexistent/key: ")
        );
    }
}
