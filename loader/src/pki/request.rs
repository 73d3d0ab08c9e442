//! A CA on another machine: requests go there, certificates come back, all of them as files.
//!
//! The key never travels: it waits in `DIRECTORY/requests` until its certificate is installed. What
//! a request asks for is held against the configuration; everything else in it is ignored.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, PublicKey, SanType,
    string::Ia5String,
};
use zeroize::Zeroizing;

use super::{
    Error,
    authority::{self, Bundle, Lock},
    certificate::{self, Names},
    durable::{self, PUBLIC, SECRET},
    folder::{self, Found, Proof, Set},
    record,
    work::{Outcome, Requested, Work, chosen, concerned, folder_of, names_of, put},
};
use crate::config::{Config, Workload, pki::KeyKind};

/// Makes a key for each workload, which stays, and a request in `folder`, which travels.
///
/// # Errors
/// A file cannot be written, or the configuration has no such workload.
pub fn request(
    config: &Config,
    names: &[String],
    folder: &Path,
    kind: KeyKind,
) -> Result<Outcome, Error> {
    let _lock = Lock::take(config.pki.directory.as_path())?;
    durable::folder(folder)?;
    let mut outcome = Outcome::default();
    for workload in chosen(config, names)? {
        folder::ensure_ours(folder_of(workload))?;
        let key = certificate::new_key(kind)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = alternative(&names_of(workload))?;
        let request = params.serialize_request(&key);
        let request = request
            .and_then(|request| request.pem())
            .map_err(Error::make("a request"))?;
        let path = pending(config, workload);
        durable::folder(path.parent().unwrap_or(&path))?;
        durable::replace(&path, certificate::dangerous_pem(&key).as_bytes(), SECRET)?;
        let file = folder.join(format!("{}.csr", stem(workload)));
        durable::replace(&file, request.as_bytes(), PUBLIC)?;
        outcome.files.push(file.display().to_string());
    }
    Ok(outcome)
}

/// Names that requests may have though the configuration does not know them.
#[derive(Debug, Default)]
pub struct Allowed {
    /// SPIFFE IDs.
    pub ids: Vec<String>,
    /// DNS names.
    pub dns: Vec<String>,
}

/// Signs the requests at these paths, files or folders; each certificate is put beside its request,
/// and so is what it trusts.
///
/// # Errors
/// The CA does not serve, or there is no request. What is wrong with one is in the outcome.
pub fn sign(
    work: &mut Work<'_>,
    config: &Config,
    paths: &[PathBuf],
    allowed: &Allowed,
) -> Result<Outcome, Error> {
    let mut requests = Vec::new();
    for path in paths {
        if path.is_dir() {
            requests.extend(files(path, "csr")?);
        } else {
            requests.push(path.clone());
        }
    }
    if requests.is_empty() {
        return Err(Error::Refused("there is no request, NAME.csr".into()));
    }
    let bundle = work.bundle()?;
    let mut outcome = Outcome::default();
    for path in requests {
        match sign_one(work, config, &path, allowed) {
            Ok(issued) => {
                outcome.issued.push(work.report(&issued));
                outcome
                    .files
                    .push(path.with_extension("crt").display().to_string());
            }
            Err(error) => {
                outcome.fail(&path.display().to_string(), &error);
                continue;
            }
        }
        write_bundle(path.parent().unwrap_or(Path::new(".")), &bundle)?;
    }
    Ok(outcome)
}

/// Puts what is to be trusted into a folder that travels.
///
/// # Errors
/// It cannot be written.
pub fn write_bundle(folder: &Path, bundle: &Bundle) -> Result<(), Error> {
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    durable::folder(folder)?;
    durable::replace(&folder.join(BUNDLE), bundle.certificates.as_bytes(), PUBLIC)?;
    durable::replace(&folder.join(LISTS), bundle.lists.as_bytes(), PUBLIC)
}

/// Brings home what has come back: certificates for keys that wait, and the bundle for all folders
/// whose certificates are of that machine.
///
/// # Errors
/// There is no bundle. What concerns one workload is in the outcome; its old files stay.
pub fn install(config: &Config, from: &Path) -> Result<Outcome, Error> {
    let directory = config.pki.directory.as_path();
    let _lock = Lock::take(directory)?;
    let read = |name: &str| {
        let path = from.join(name);
        durable::text(&path)?.ok_or_else(|| Error::unusable(&path, "it is missing"))
    };
    let bundle = Bundle {
        certificates: read(BUNDLE)?,
        lists: read(LISTS)?,
    };
    let own = authority::index(directory)?;
    let mut outcome = Outcome::default();
    for workload in concerned(config) {
        let file = from.join(format!("{}.crt", stem(workload)));
        let done = match durable::text(&file)? {
            Some(pem) => install_one(config, workload, pem, &bundle).map(|()| true),
            None => trust(workload, &bundle, &own),
        };
        match done {
            Ok(true) => outcome.trusting.push(workload.name.to_string()),
            Ok(false) => {}
            Err(error) => outcome.fail(workload.name.as_str(), &error),
        }
    }
    Ok(outcome)
}

/// The names that a request (PEM) asks for, and its public key.
///
/// # Errors
/// It is no request, its signature is wrong, or it asks for anything but one SPIFFE ID and DNS names.
pub fn read(text: &str) -> Result<(Names, PublicKey), String> {
    let request = CertificateSigningRequestParams::from_pem(text)
        .map_err(|error| format!("it is no good request: {error}"))?;
    Ok((asked_for(&request.params)?, request.public_key))
}

fn sign_one(
    work: &mut Work<'_>,
    config: &Config,
    path: &Path,
    allowed: &Allowed,
) -> Result<record::Issued, Error> {
    let text = fs::read_to_string(path).map_err(Error::file("read", path))?;
    let (asked, key) = read(&text).map_err(|why| Error::unusable(path, why))?;
    let workload = permitted(&asked, config, allowed).map_err(|why| Error::unusable(path, why))?;
    let (issued, pem) = work.sign(&asked, &key, workload, Requested::Yes)?;
    durable::replace(&path.with_extension("crt"), pem.as_bytes(), PUBLIC)?;
    Ok(issued)
}

/// The names in a request; why it is refused, if it asks for anything else.
fn asked_for(params: &CertificateParams) -> Result<Names, String> {
    let mut ids = Vec::new();
    let mut dns = Vec::new();
    for name in &params.subject_alt_names {
        match name {
            SanType::URI(id) => ids.push(id.as_str().to_owned()),
            SanType::DnsName(name) => dns.push(name.as_str().to_owned()),
            _ => return Err("it asks for a name that is neither a URI nor a DNS name".into()),
        }
    }
    let [id] = ids.as_slice() else {
        return Err(format!("it asks for {} SPIFFE IDs, not for one", ids.len()));
    };
    id.parse::<underseal_ktls::SpiffeId>()
        .map_err(|why| format!("it asks for `{id}`, which is no SPIFFE ID: {why}"))?;
    Ok(Names {
        spiffe_id: id.clone(),
        dns,
    })
}

/// The workload that may have these names, if the configuration has it; why not, if nobody may.
fn permitted(asked: &Names, config: &Config, allowed: &Allowed) -> Result<Option<String>, String> {
    let id = asked.spiffe_id.as_str();
    // Several workloads may share an ID; their names are then those of all.
    let ours: Vec<&Workload> = config
        .workloads
        .iter()
        .filter(|workload| workload.spiffe_id.as_str() == id)
        .collect();
    let domain = format!("spiffe://{}/", config.node.trust_domain);
    if !id.starts_with(&domain) {
        return Err(format!(
            "it asks for `{id}`, which is not in the CA's trust domain"
        ));
    }
    if ours.is_empty() && !allowed.ids.iter().any(|allowed| allowed == id) {
        return Err(format!(
            "it asks for `{id}`, which the configuration does not have\n  hint: --allow {id}"
        ));
    }
    for name in &asked.dns {
        let known = ours.iter().flat_map(|workload| &workload.dns_names);
        if !known.map(ToString::to_string).any(|known| known == *name)
            && !allowed.dns.contains(name)
        {
            return Err(format!(
                "it asks for the DNS name `{name}`, which `{id}` does not have\n  hint: \
                 --allow-dns {name}"
            ));
        }
    }
    Ok(ours.first().map(|workload| workload.name.to_string()))
}

fn install_one(
    config: &Config,
    workload: &Workload,
    pem: String,
    bundle: &Bundle,
) -> Result<(), Error> {
    let path = pending(config, workload);
    let key = durable::text(&path)?.map(Zeroizing::new);
    let key =
        key.ok_or_else(|| Error::unusable(&path, "there is no key that waits for a certificate"))?;
    let facts = certificate::facts(&pem).map_err(|why| Error::unusable(&path, why))?;
    let has = facts.names.dns;
    let wanted = workload.dns_names.iter().map(ToString::to_string);
    if let Some(lacking) = wanted.into_iter().find(|name| !has.contains(name)) {
        return Err(Error::Refused(format!(
            "the certificate lacks the DNS name `{lacking}`"
        )));
    }
    let set = Set {
        certificate: pem,
        key,
        bundle: bundle.clone(),
    };
    put(workload, &set, Proof::Handshake)?;
    fs::remove_file(&path).map_err(Error::file("remove", &path))
}

/// Whether the bundle was new to a workload. Certificates of this machine's own CA are not concerned.
fn trust(workload: &Workload, bundle: &Bundle, own: &[record::Issued]) -> Result<bool, Error> {
    let Found::Ours(mut set) = folder::look(folder_of(workload))? else {
        return Ok(false);
    };
    let serial = certificate::facts(&set.certificate)
        .map_err(Error::Refused)?
        .serial;
    if set.bundle == *bundle || own.iter().any(|issued| issued.serial == serial) {
        return Ok(false);
    }
    set.bundle = bundle.clone();
    put(workload, &set, Proof::Handshake)?;
    Ok(true)
}

fn alternative(names: &Names) -> Result<Vec<SanType>, Error> {
    let ascii = |text: &str| Ia5String::try_from(text).map_err(Error::make("a name"));
    let mut all = vec![SanType::URI(ascii(&names.spiffe_id)?)];
    for name in &names.dns {
        all.push(SanType::DnsName(ascii(name)?));
    }
    Ok(all)
}

fn pending(config: &Config, workload: &Workload) -> PathBuf {
    let directory = config.pki.directory.as_path().join("requests");
    directory.join(format!("{}.key", stem(workload)))
}

/// `namespace.name`: neither part has a dot.
fn stem(workload: &Workload) -> String {
    workload.name.as_str().replace('/', ".")
}

fn files(folder: &Path, ending: &str) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(folder).map_err(Error::file("list", folder))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|found| found == ending));
    paths.sort();
    Ok(paths)
}

const BUNDLE: &str = "ca.crt";
const LISTS: &str = "ca.crl";
