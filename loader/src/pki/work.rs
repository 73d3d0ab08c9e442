//! What the commands do: the CA's record joined with the workloads' folders.
//!
//! The order is always: the record first, then the folders. `Work::settle` makes folders what the
//! record says; what was interrupted between the two is finished by whatever command comes next.
//! Folders with certificates of another machine's CA are left alone.

pub mod rotate;

use std::path::Path;

use serde::Serialize;

use super::{
    Error,
    authority::{Authority, Bundle},
    certificate::{self, Names},
    due::{self, Standing},
    folder::{self, Found, Proof, Set},
    now,
    record::{CaNumber, Issued},
};
use crate::config::{Config, Workload, pki::KeyKind};

/// A CA with the workloads of its node.
pub struct Work<'a> {
    config: &'a Config,
    authority: Authority,
    key: KeyKind,
    now: i64,
}

/// What was done, workload by workload.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// New certificates.
    pub issued: Vec<Certificate>,
    /// Serial numbers that were revoked.
    pub revoked: Vec<String>,
    /// Workloads that now trust something else.
    pub trusting: Vec<String>,
    /// Files for other machines.
    pub files: Vec<String>,
    /// What was left as it was, and why.
    pub failed: Vec<Failed>,
    /// What comes next.
    pub notes: Vec<String>,
}

/// Something that could not be done for one workload; its old files are still there.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Failed {
    /// The workload, or the file.
    pub what: String,
    /// Why not.
    pub reason: String,
}

/// A certificate as people want to see it.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Certificate {
    /// Its serial number.
    pub serial: String,
    /// The CA that issued it.
    pub ca: CaNumber,
    /// The workload; `None` for a request with an allowed ID.
    pub workload: Option<String>,
    /// The SPIFFE ID.
    pub spiffe_id: String,
    /// Its end.
    pub not_after: String,
    /// What has become of it.
    pub state: Standing,
    /// Whether there is a later one for the same workload.
    pub replaced: bool,
}

/// Whether `renew` renews.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// It does.
    Real,
    /// It says what it would do.
    Dry,
}

impl<'a> Work<'a> {
    /// Opens the CA of a configuration.
    ///
    /// # Errors
    /// Those of [`Authority::open`].
    pub fn open(config: &'a Config, key: Option<KeyKind>) -> Result<Self, Error> {
        let domain = config.node.trust_domain.as_str();
        Ok(Self {
            authority: Authority::open(config.pki.directory.as_path(), domain)?,
            config,
            key: key.unwrap_or(config.pki.key),
            now: now(),
        })
    }

    /// Everything that was issued.
    #[must_use]
    pub fn list(&self) -> Vec<Certificate> {
        let all = self.authority.index.iter().enumerate();
        all.map(|(i, it)| self.shown(i, it)).collect()
    }

    /// New certificates for these workloads, or for all.
    ///
    /// # Errors
    /// The CA does not serve; what concerns one workload is in the outcome.
    pub fn issue(&mut self, names: &[String]) -> Result<Outcome, Error> {
        let mut outcome = Outcome::default();
        let workloads = chosen(self.config, names)?;
        let bundle = self.settle(&mut outcome)?;
        for workload in workloads {
            self.issue_one(workload, &bundle, &mut outcome);
        }
        Ok(outcome)
    }

    /// New certificates where the old ones end soon.
    ///
    /// # Errors
    /// The CA does not serve; what concerns one workload is in the outcome.
    pub fn renew(&mut self, renewal: Renewal) -> Result<Outcome, Error> {
        let mut outcome = Outcome::default();
        if renewal == Renewal::Dry {
            for workload in self.due(&mut outcome) {
                let name = &workload.name;
                outcome.notes.push(format!("{name} would be renewed"));
            }
            return Ok(outcome);
        }
        self.authority.forget(self.now)?;
        let bundle = self.settle(&mut outcome)?;
        for workload in self.due(&mut outcome) {
            self.issue_one(workload, &bundle, &mut outcome);
        }
        Ok(outcome)
    }

    /// New certificates where the configuration has given other names than the old ones have: what `apply` does, so that
    /// no rule comes into force that relies on a name which nobody can prove yet.
    ///
    /// # Errors
    /// The CA does not serve; what concerns one workload is in the outcome.
    pub fn rename(&mut self) -> Result<Outcome, Error> {
        let mut outcome = Outcome::default();
        let renamed: Vec<&Workload> = concerned(self.config)
            .filter(|workload| {
                let of = self.of(workload).ok().flatten();
                of.is_some_and(|(issued, set)| self.is_renamed(workload, &issued, &set))
            })
            .collect();
        if renamed.is_empty() {
            return Ok(outcome);
        }
        let bundle = self.settle(&mut outcome)?;
        for workload in renamed {
            self.issue_one(workload, &bundle, &mut outcome);
        }
        Ok(outcome)
    }

    /// Not of a revoked one, which is not renewed either.
    fn is_renamed(&self, workload: &Workload, issued: &Issued, set: &Set) -> bool {
        let has = certificate::facts(&set.certificate).map(|facts| facts.names);
        !self.authority.state.is_revoked(&issued.serial)
            && has.is_ok_and(|has| due::is_renamed(&has, &names_of(workload)))
    }

    /// Takes certificates back: those with this serial number, or all of this workload.
    ///
    /// # Errors
    /// There is none, or the CA does not serve.
    pub fn revoke(&mut self, which: &str) -> Result<Outcome, Error> {
        let named = |it: &&Issued| {
            it.serial == which || it.workload.as_deref() == Some(which) || it.spiffe_id == which
        };
        let found: Vec<Issued> = self.authority.index.iter().filter(named).cloned().collect();
        if found.is_empty() {
            return Err(Error::Refused(format!(
                "no certificate has the serial number, workload or SPIFFE ID `{which}`\n  hint: \
                 `underseal pki list` shows them"
            )));
        }
        let mut outcome = Outcome::default();
        self.revoke_these(&found, &mut outcome)?;
        Ok(outcome)
    }

    /// New keys for all workloads that have one of this CA; the old ones are revoked.
    ///
    /// # Errors
    /// The CA does not serve; what concerns one workload is in the outcome.
    pub fn rekey(&mut self) -> Result<Outcome, Error> {
        let mut outcome = Outcome::default();
        let bundle = self.settle(&mut outcome)?;
        let before = self.authority.index.clone();
        for workload in concerned(self.config) {
            if matches!(self.of(workload), Ok(Some(_))) {
                self.issue_one(workload, &bundle, &mut outcome);
            }
        }
        let renewed = |it: &&Issued| {
            let mut new = outcome.issued.iter();
            it.not_after >= self.now && new.any(|new| new.workload == it.workload)
        };
        let old: Vec<Issued> = before.iter().filter(renewed).cloned().collect();
        self.revoke_these(&old, &mut outcome)?;
        Ok(outcome)
    }

    /// What is trusted, for files that go to other machines.
    ///
    /// # Errors
    /// The CA does not serve.
    pub fn bundle(&mut self) -> Result<Bundle, Error> {
        let validity = (7 * 86400).max(2 * self.config.pki.lifetime.seconds());
        self.authority.bundle(validity, self.now)
    }

    /// Signs contents for a key that is elsewhere; the certificate, PEM.
    ///
    /// # Errors
    /// The CA does not serve.
    pub fn sign(
        &mut self,
        names: &Names,
        key: &impl rcgen::PublicKeyData,
        workload: Option<String>,
        requested: Requested,
    ) -> Result<(Issued, String), Error> {
        let end = due::end(
            self.now,
            self.config.pki.lifetime.seconds(),
            self.authority.end()?,
        );
        if end <= self.now {
            return Err(Error::Refused(
                "the CA has ended\n  hint: `underseal pki rotate-ca begin` makes another one"
                    .into(),
            ));
        }
        let params = certificate::workload(names, key, self.now, end)?;
        let pem = certificate::sign(&params, key, &self.authority.issuer()?)?;
        let facts = certificate::facts(&pem).map_err(Error::Refused)?;
        let issued = Issued {
            serial: facts.serial,
            ca: self.authority.state.active,
            workload,
            spiffe_id: facts.names.spiffe_id,
            not_before: facts.not_before,
            not_after: facts.not_after,
            requested: requested == Requested::Yes,
        };
        self.authority.note(issued.clone())?;
        Ok((issued, pem))
    }

    /// A certificate for a report, as it is now.
    #[must_use]
    pub fn report(&self, issued: &Issued) -> Certificate {
        self.shown(self.authority.index.len(), issued)
    }

    fn revoke_these(&mut self, which: &[Issued], outcome: &mut Outcome) -> Result<(), Error> {
        let state = &mut self.authority.state;
        let new = which.iter().filter(|it| !state.is_revoked(&it.serial));
        outcome.revoked = new.map(|it| it.serial.clone()).collect();
        state.revoke(&which.iter().collect::<Vec<_>>(), self.now);
        self.authority.save()?;
        self.settle(outcome).map(drop)
    }

    /// Makes what the folders trust what the record says.
    fn settle(&mut self, outcome: &mut Outcome) -> Result<Bundle, Error> {
        let bundle = self.bundle()?;
        for workload in concerned(self.config) {
            let of = match self.of(workload) {
                Ok(Some(of)) => of,
                Ok(None) => continue,
                Err(error) => {
                    outcome.fail(workload.name.as_str(), &error);
                    continue;
                }
            };
            let mut set = of.1;
            if set.bundle == bundle {
                continue;
            }
            set.bundle = bundle.clone();
            match put(workload, &set, Proof::None) {
                Ok(()) => outcome.trusting.push(workload.name.to_string()),
                Err(error) => outcome.fail(workload.name.as_str(), &error),
            }
        }
        Ok(bundle)
    }

    /// The workloads that `renew` is for.
    fn due(&self, outcome: &mut Outcome) -> Vec<&'a Workload> {
        let before = self.config.pki.renew_before.seconds();
        let mut due = Vec::new();
        for workload in concerned(self.config) {
            match folder::look(folder_of(workload)) {
                Ok(Found::Ours(set)) => match self.known(&set) {
                    Some(it)
                        if due::is_due(&it, &self.authority.state, self.now, before)
                            || self.is_renamed(workload, &it, &set) =>
                    {
                        due.push(workload);
                    }
                    Some(_) => {}
                    None => outcome.notes.push(not_ours(workload, &set)),
                },
                Ok(_) => {}
                // Said by `settle`, unless that was not called.
                Err(error)
                    if outcome
                        .failed
                        .iter()
                        .all(|it| it.what != workload.name.as_str()) =>
                {
                    outcome.fail(workload.name.as_str(), &error);
                }
                Err(_) => {}
            }
        }
        due
    }

    fn issue_one(&mut self, workload: &Workload, bundle: &Bundle, outcome: &mut Outcome) {
        match self.try_issue(workload, bundle) {
            Ok(issued) => outcome.issued.push(self.report(&issued)),
            Err(error) => outcome.fail(workload.name.as_str(), &error),
        }
    }

    fn try_issue(&mut self, workload: &Workload, bundle: &Bundle) -> Result<Issued, Error> {
        // Before anything is signed that nobody could be given.
        folder::ensure_ours(folder_of(workload))?;
        let key = certificate::new_key(self.key)?;
        let name = Some(workload.name.to_string());
        let (issued, pem) = self.sign(&names_of(workload), &key, name, Requested::No)?;
        let set = Set {
            certificate: pem,
            key: certificate::dangerous_pem(&key),
            bundle: bundle.clone(),
        };
        put(workload, &set, Proof::Handshake)?;
        Ok(issued)
    }

    /// The certificate of this CA that a workload has, and its files.
    fn of(&self, workload: &Workload) -> Result<Option<(Issued, Set)>, Error> {
        let Found::Ours(set) = folder::look(folder_of(workload))? else {
            return Ok(None);
        };
        Ok(self.known(&set).map(|issued| (issued, set)))
    }

    fn known(&self, set: &Set) -> Option<Issued> {
        let serial = certificate::facts(&set.certificate).ok()?.serial;
        let mut index = self.authority.index.iter();
        index.find(|it| it.serial == serial).cloned()
    }

    fn shown(&self, place: usize, it: &Issued) -> Certificate {
        let before = self.config.pki.renew_before.seconds();
        let later = self.authority.index.iter().skip(place + 1);
        Certificate {
            serial: it.serial.clone(),
            ca: it.ca,
            workload: it.workload.clone(),
            spiffe_id: it.spiffe_id.clone(),
            not_after: certificate::date_text(it.not_after),
            state: due::standing(it, &self.authority.state, self.now, before),
            replaced: later
                .into_iter()
                .any(|new| new.workload == it.workload && new.spiffe_id == it.spiffe_id),
        }
    }
}

/// Whether a certificate is for a key on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requested {
    /// For one elsewhere.
    Yes,
    /// For one here.
    No,
}

impl Outcome {
    /// Notes a failure.
    pub fn fail(&mut self, what: &str, error: &Error) {
        self.failed.push(Failed {
            what: what.to_owned(),
            reason: error.to_string(),
        });
    }
}

/// What to do about a certificate that only another CA can renew, with its end.
fn not_ours(workload: &Workload, set: &Set) -> String {
    let name = &workload.name;
    let end = certificate::facts(&set.certificate).map_or_else(
        |why| why,
        |facts| format!("it ends at {}", certificate::date_text(facts.not_after)),
    );
    format!(
        "{name} has a certificate of another machine's CA: it is never renewed here, and {end}\n  hint: `underseal pki \
         request {name} --out FOLDER` here, `sign` there, `install` here; by hand, before each end"
    )
}

/// The workloads with these names; all, if there are none.
///
/// # Errors
/// The configuration has none of that name.
pub fn chosen<'a>(config: &'a Config, names: &[String]) -> Result<Vec<&'a Workload>, Error> {
    if names.is_empty() {
        return Ok(concerned(config).collect());
    }
    let find = |name: &String| {
        let mut workloads = config.workloads.iter();
        let workload = workloads.find(|workload| workload.name.as_str() == name);
        match workload {
            Some(workload) if workload.spire => Err(Error::Refused(format!(
                "`{name}` has its identity from the SPIRE agent (`spire = true`)"
            ))),
            Some(workload) => Ok(workload),
            None => Err(Error::Refused(format!(
                "the configuration has no workload `{name}`\n  hint: it is written \
                 `namespace/name`"
            ))),
        }
    };
    names.iter().map(find).collect()
}

/// The workloads that the built-in CA may be for: those of the SPIRE agent are not its business.
pub fn concerned(config: &Config) -> impl Iterator<Item = &Workload> {
    config.workloads.iter().filter(|workload| !workload.spire)
}

/// What a workload's certificate says.
#[must_use]
pub fn names_of(workload: &Workload) -> Names {
    Names {
        spiffe_id: workload.spiffe_id.to_string(),
        dns: workload.dns_names.iter().map(ToString::to_string).collect(),
    }
}

/// Where a workload's certificate is.
#[must_use]
pub fn folder_of(workload: &Workload) -> &Path {
    workload.identity.as_path()
}

/// Puts a set into a workload's folder.
///
/// # Errors
/// Those of [`folder::put`].
pub fn put(workload: &Workload, set: &Set, proof: Proof) -> Result<(), Error> {
    folder::put(folder_of(workload), set, workload.spiffe_id.as_str(), proof)
}
