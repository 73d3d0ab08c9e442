//! The CA's directory: its keys and certificates, its record, its revocation lists, and the lock
//! that keeps two commands apart.
//!
//! ```text
//! DIRECTORY/lock  state.json  index.jsonl  ca-1/{ca.key,ca.crt,ca.crl}  requests/
//! ```
//!
//! A folder `ca-N` is complete before `state.json` names it; one that nothing names is left over.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use rcgen::{
    CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevocationReason,
    RevokedCertParams, SerialNumber,
};
use x509_parser::{parse_x509_crl, pem::Pem};
use zeroize::Zeroizing;

use super::{
    Error, certificate,
    durable::{self, PUBLIC, SECRET},
    record::{self, CaNumber, Issued, State},
};
use crate::config::pki::KeyKind;

/// The CA of this machine; nobody else changes its files while this value is there.
pub struct Authority {
    directory: PathBuf,
    /// The record; [`Self::save`] keeps a change.
    pub state: State,
    /// What was issued, oldest first.
    pub index: Vec<Issued>,
    _lock: Lock,
}

/// One command at a time; free again when this is dropped, or its process ends in whatever way.
pub struct Lock {
    _file: Flock<File>,
}

/// What workloads trust: certificates and revocation lists, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// `ca.crt`
    pub certificates: String,
    /// `ca.crl`; empty: there is none.
    pub lists: String,
}

impl Lock {
    /// Takes the lock of a directory, made if need be; waits for a command that has it.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn take(directory: &Path) -> Result<Self, Error> {
        durable::folder(directory)?;
        let path = directory.join("lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::file("open", &path))?;
        let lock = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| Error::file("lock", &path)(errno.into()))?;
        Ok(Self { _file: lock })
    }
}

impl Authority {
    /// Makes a CA.
    ///
    /// # Errors
    /// There is one already, or a file cannot be written.
    pub fn init(directory: &Path, domain: &str, kind: KeyKind, now: i64) -> Result<Self, Error> {
        let lock = Lock::take(directory)?;
        if durable::text(&directory.join(STATE))?.is_some() {
            return Err(Error::Refused(format!(
                "{}: there is a CA already\n  hint: `underseal pki rotate-ca begin` makes another \
                 one without breaking connections",
                directory.display()
            )));
        }
        let this = Self {
            directory: directory.to_owned(),
            state: State::new(domain.to_owned()),
            index: Vec::new(),
            _lock: lock,
        };
        this.make(1, kind, now)?;
        this.save()?;
        Ok(this)
    }

    /// Whether there is a CA in a directory.
    #[must_use]
    pub fn is_in(directory: &Path) -> bool {
        directory.join(STATE).exists()
    }

    /// Opens the CA in a directory.
    ///
    /// # Errors
    /// There is none, it is another trust domain's, or its files do not serve.
    pub fn open(directory: &Path, domain: &str) -> Result<Self, Error> {
        let none = || {
            Error::Refused(format!(
                "{}: there is no CA\n  hint: `underseal pki init` makes one; if it is on another \
                 machine: `underseal pki request`",
                directory.display()
            ))
        };
        if !Self::is_in(directory) {
            return Err(none());
        }
        let lock = Lock::take(directory)?;
        let path = directory.join(STATE);
        let text = durable::text(&path)?.ok_or_else(none)?;
        let state: State =
            serde_json::from_str(&text).map_err(|error| Error::unusable(&path, error))?;
        if state.trust_domain != domain {
            let reason = format!(
                "this CA is that of `{}`, the configuration says `{domain}`",
                state.trust_domain
            );
            return Err(Error::unusable(&path, reason));
        }
        Ok(Self {
            directory: directory.to_owned(),
            state,
            index: index(directory)?,
            _lock: lock,
        })
    }

    /// Keeps the record as it is now.
    ///
    /// # Errors
    /// It cannot be written; then the old one is there.
    pub fn save(&self) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(&self.state)
            .expect("plain values are written without an error");
        durable::replace(&self.directory.join(STATE), text.as_bytes(), SECRET)
    }

    /// Makes key and certificate of a CA that nothing names yet. One left over is replaced.
    ///
    /// # Errors
    /// They cannot be made or written.
    pub fn make(&self, number: CaNumber, kind: KeyKind, now: i64) -> Result<(), Error> {
        let folder = self.folder(number);
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(Error::file("remove", &folder))?;
        }
        durable::folder(&folder)?;
        let key = certificate::new_key(kind)?;
        let pem = certificate::dangerous_pem(&key);
        let own = certificate::authority(&key, &self.state.trust_domain, now)?;
        durable::replace(&folder.join(KEY), pem.as_bytes(), SECRET)?;
        durable::replace(&folder.join(CERTIFICATE), own.as_bytes(), PUBLIC)?;
        durable::sync(&self.directory).map_err(Error::file("write", &self.directory))
    }

    /// Removes the folders of CAs that are trusted no more.
    ///
    /// # Errors
    /// One cannot be removed.
    pub fn remove_others(&self) -> Result<(), Error> {
        let trusted: BTreeSet<PathBuf> = self
            .state
            .trusted()
            .into_iter()
            .map(|it| self.folder(it))
            .collect();
        let fail = Error::file("list", &self.directory);
        let entries = fs::read_dir(&self.directory).map_err(fail)?;
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().and_then(|name| name.to_str());
            let ours = name.is_some_and(|name| name.starts_with("ca-"));
            if ours && !trusted.contains(&path) {
                fs::remove_dir_all(&path).map_err(Error::file("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Certificate of the CA that issues, PEM.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn certificate(&self) -> Result<String, Error> {
        self.certificate_of(self.state.active)
    }

    /// When the CA that issues ends.
    ///
    /// # Errors
    /// Its certificate cannot be read.
    pub fn end(&self) -> Result<i64, Error> {
        let path = self.folder(self.state.active).join(CERTIFICATE);
        let facts = certificate::facts(&self.certificate()?);
        Ok(facts.map_err(|why| Error::unusable(&path, why))?.not_after)
    }

    /// The CA that issues, for signing.
    ///
    /// # Errors
    /// Its files do not serve, or others may read its key.
    pub fn issuer(&self) -> Result<Issuer<'static, KeyPair>, Error> {
        self.issuer_of(self.state.active)
    }

    /// Notes a certificate; on the disk when this returns.
    ///
    /// # Errors
    /// It cannot be written: then it must not be given to anybody.
    pub fn note(&mut self, issued: Issued) -> Result<(), Error> {
        let path = self.directory.join(INDEX);
        let append = || -> std::io::Result<()> {
            let mut file = OpenOptions::new().append(true).create(true).open(&path)?;
            // The end of a line that was cut off goes first.
            let text = fs::read(&path)?;
            let whole = text
                .iter()
                .rposition(|b| *b == b'\n')
                .map_or(0, |at| at + 1);
            file.set_len(whole as u64)?;
            file.write_all(record::index_line(&issued).as_bytes())?;
            file.sync_all()?;
            durable::sync(&self.directory)
        };
        append().map_err(Error::file("write", &path))?;
        self.index.push(issued);
        Ok(())
    }

    /// Leaves out of the record what has long ended.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn forget(&mut self, now: i64) -> Result<(), Error> {
        if self.index.iter().any(|it| record::is_forgotten(it, now)) {
            self.index.retain(|it| !record::is_forgotten(it, now));
            let text: String = self.index.iter().map(record::index_line).collect();
            durable::replace(&self.directory.join(INDEX), text.as_bytes(), PUBLIC)?;
            self.state.forget(now);
            self.save()?;
        }
        Ok(())
    }

    /// What workloads have to trust now. Lists that lack something or end soon are made anew.
    ///
    /// # Errors
    /// A file does not serve, or cannot be written.
    pub fn bundle(&mut self, validity: i64, now: i64) -> Result<Bundle, Error> {
        let mut bundle = Bundle {
            certificates: String::new(),
            lists: String::new(),
        };
        for ca in self.state.trusted() {
            bundle.certificates += &self.certificate_of(ca)?;
            bundle.lists += &self.list_of(ca, validity, now)?;
        }
        Ok(bundle)
    }

    fn list_of(&mut self, ca: CaNumber, validity: i64, now: i64) -> Result<String, Error> {
        let path = self.folder(ca).join(LIST);
        let wanted = self.state.revoked_of(ca, now);
        if let Some(text) = durable::text(&path)?
            && let Some((serials, until)) = read_list(&text)
            && wanted.iter().all(|serial| serials.contains(*serial))
            && until - now > validity / 2
        {
            return Ok(text);
        }
        // The number is used up before the list is signed: no two lists share one.
        self.state.crl_number += 1;
        self.save()?;
        let text = self.signed_list(ca, validity, now)?;
        durable::replace(&path, text.as_bytes(), PUBLIC)?;
        Ok(text)
    }

    fn signed_list(&self, ca: CaNumber, validity: i64, now: i64) -> Result<String, Error> {
        let wanted = self.state.revoked_of(ca, now);
        let revoked = self.state.revoked.iter();
        let entries = revoked.filter(|it| it.ca == ca && wanted.contains(it.serial.as_str()));
        let entry = |it: &record::Revoked| {
            Ok(RevokedCertParams {
                serial_number: certificate::serial(&it.serial).ok_or_else(|| {
                    Error::unusable(&self.directory.join(STATE), "it has a bad serial number")
                })?,
                revocation_time: certificate::date(it.at)?,
                reason_code: Some(RevocationReason::Unspecified),
                invalidity_date: None,
            })
        };
        let params = CertificateRevocationListParams {
            this_update: certificate::date(now - 60)?,
            next_update: certificate::date(now + validity)?,
            crl_number: SerialNumber::from(self.state.crl_number),
            issuing_distribution_point: None,
            revoked_certs: entries.map(entry).collect::<Result<_, Error>>()?,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.issuer_of(ca)?);
        list.and_then(|list| list.pem())
            .map_err(Error::make("a revocation list"))
    }

    fn issuer_of(&self, ca: CaNumber) -> Result<Issuer<'static, KeyPair>, Error> {
        let path = self.folder(ca).join(KEY);
        let mode = fs::metadata(&path)
            .map_err(Error::file("read", &path))?
            .mode();
        if mode & 0o077 != 0 {
            let reason = format!(
                "others may use it (mode {:04o})\n  hint: chmod 600 {}",
                mode & 0o7777,
                path.display()
            );
            return Err(Error::unusable(&path, reason));
        }
        let pem = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
        let pem = Zeroizing::new(pem);
        // The parser's own error stays out of ours: it may quote the file.
        let key = KeyPair::from_pem(&pem)
            .map_err(|_| Error::unusable(&path, "it holds no private key in PEM"))?;
        let own = self.certificate_of(ca)?;
        Issuer::from_ca_cert_pem(&own, key).map_err(Error::make("an issuer"))
    }

    fn certificate_of(&self, ca: CaNumber) -> Result<String, Error> {
        let path = self.folder(ca).join(CERTIFICATE);
        fs::read_to_string(&path).map_err(Error::file("read", &path))
    }

    fn folder(&self, ca: CaNumber) -> PathBuf {
        self.directory.join(format!("ca-{ca}"))
    }
}

/// Serial numbers on a list, and when the next one is due.
fn read_list(text: &str) -> Option<(BTreeSet<String>, i64)> {
    let pem = Pem::iter_from_buffer(text.as_bytes()).next()?.ok()?;
    let (_, list) = parse_x509_crl(&pem.contents).ok()?;
    let serials = list
        .iter_revoked_certificates()
        .map(|it| certificate::hex(it.raw_serial()));
    Some((serials.collect(), list.next_update()?.timestamp()))
}

/// What was issued from a directory; nothing, if there is no CA in it.
///
/// # Errors
/// The record cannot be read.
pub fn index(directory: &Path) -> Result<Vec<Issued>, Error> {
    let path = directory.join(INDEX);
    let text = durable::text(&path)?.unwrap_or_default();
    let (index, _) = record::parse_index(&text).map_err(|error| Error::unusable(&path, error))?;
    Ok(index)
}

const STATE: &str = "state.json";
const INDEX: &str = "index.jsonl";
const KEY: &str = "ca.key";
const CERTIFICATE: &str = "ca.crt";
const LIST: &str = "ca.crl";
