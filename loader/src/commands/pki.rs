//! `underseal pki`: the built-in CA. Files and nothing else: it needs no kernel, and no program
//! that runs notices it but by new files.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::{Context, Error};
use crate::config::{Config, pki::KeyKind};
use crate::pki;
use crate::pki::authority::Authority;
use crate::pki::request::{self, Allowed};
use crate::pki::work::{Outcome, Renewal, Work, rotate::Holding};
use crate::report::Report;

/// What the CA can do.
#[derive(Subcommand)]
pub enum Command {
    /// Make the CA
    Init(Key),
    /// Give workloads new certificates; all of them, if none is named
    Issue {
        /// Workloads, as `namespace/name`
        workloads: Vec<String>,
        /// Of which kind
        #[command(flatten)]
        key: Key,
    },
    /// Give new certificates to workloads whose certificates end soon
    Renew {
        /// Only say which ones
        #[arg(long)]
        dry_run: bool,
    },
    /// Show what was issued
    List,
    /// Take certificates back
    Revoke {
        /// A serial number, or a workload or SPIFFE ID for all that it has
        which: String,
    },
    /// In an emergency: new keys for all workloads at once; the old ones are revoked
    Rekey(Key),
    /// Change to another CA
    #[command(subcommand)]
    RotateCa(Step),
    /// Make keys, and requests for a CA on another machine
    Request {
        /// Workloads, as `namespace/name`; all of them, if none is named
        workloads: Vec<String>,
        /// Folder for the requests
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
        /// Of which kind
        #[command(flatten)]
        key: Key,
    },
    /// Sign requests; certificates are put beside them
    Sign {
        /// Requests, or folders of them
        #[arg(required = true)]
        requests: Vec<PathBuf>,
        /// A SPIFFE ID that the configuration does not have
        #[arg(long, value_name = "SPIFFE_ID")]
        allow: Vec<String>,
        /// A DNS name that the configuration does not give to that ID
        #[arg(long, value_name = "NAME")]
        allow_dns: Vec<String>,
    },
    /// Write what is to be trusted into a folder, for other machines
    Bundle {
        /// The folder
        folder: PathBuf,
    },
    /// Take certificates and trust from a folder that has come back
    Install {
        /// The folder
        folder: PathBuf,
    },
}

/// How far to go.
#[derive(Subcommand)]
pub enum Step {
    /// Make another CA, and have both trusted
    Begin,
    /// Give everybody certificates of the new one
    Switch,
    /// Trust the old one no more
    Finish {
        /// Do not wait for certificates that were replaced; connections that were opened with them
        /// may be closed
        #[arg(long)]
        replaced: bool,
    },
}

/// Which keys are made.
#[derive(Args)]
pub struct Key {
    /// Kind of new keys: p256 or ed25519 [default: as configured]
    #[arg(long, value_name = "KIND")]
    key: Option<KeyKind>,
}

/// Runs it.
///
/// # Errors
/// The file is not in order, there is no CA, or something could not be done for somebody.
pub fn run(context: &Context<'_>, command: Command) -> Result<Report, Error> {
    let config = context.load()?;
    if let Command::List = command {
        let certificates = Work::open(&config, None)?.list();
        return Ok(Report::PkiList { certificates });
    }
    let outcome = change(&config, command)?;
    if outcome.failed.is_empty() {
        Ok(Report::Pki(outcome))
    } else {
        Err(Error::PkiPartly(Box::new(outcome)))
    }
}

fn change(config: &Config, command: Command) -> Result<Outcome, pki::Error> {
    let open = |key: Option<KeyKind>| Work::open(config, key);
    match command {
        Command::Init(Key { key }) => init(config, key),
        Command::Issue { workloads, key } => open(key.key)?.issue(&workloads),
        Command::Renew { dry_run: true } => open(None)?.renew(Renewal::Dry),
        Command::Renew { dry_run: false } => open(None)?.renew(Renewal::Real),
        Command::List => Ok(Outcome::default()),
        Command::Revoke { which } => open(None)?.revoke(&which),
        Command::Rekey(Key { key }) => open(key)?.rekey(),
        Command::RotateCa(step) => rotate(&mut open(None)?, &step),
        Command::Request {
            workloads,
            out,
            key,
        } => request::request(config, &workloads, &out, key.key.unwrap_or(config.pki.key)),
        Command::Sign {
            requests,
            allow: ids,
            allow_dns: dns,
        } => request::sign(&mut open(None)?, config, &requests, &Allowed { ids, dns }),
        Command::Bundle { folder } => {
            request::write_bundle(&folder, &open(None)?.bundle()?)?;
            Ok(wrote(&folder))
        }
        Command::Install { folder } => request::install(config, &folder),
    }
}

fn init(config: &Config, key: Option<KeyKind>) -> Result<Outcome, pki::Error> {
    let directory = config.pki.directory.as_path();
    let domain = config.node.trust_domain.as_str();
    Authority::init(directory, domain, key.unwrap_or(config.pki.key), pki::now())?;
    Ok(wrote(directory))
}

fn rotate(work: &mut Work<'_>, step: &Step) -> Result<Outcome, pki::Error> {
    match step {
        Step::Begin => work.rotate_begin(),
        Step::Switch => work.rotate_switch(),
        Step::Finish { replaced: true } => work.rotate_finish(Holding::InUse),
        Step::Finish { replaced: false } => work.rotate_finish(Holding::Alive),
    }
}

fn wrote(folder: &Path) -> Outcome {
    Outcome {
        files: vec![folder.display().to_string()],
        ..Outcome::default()
    }
}
