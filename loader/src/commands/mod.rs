//! One file per subcommand, each the list of what is done and nothing else; here is what several
//! of them need.

pub mod apply;
pub mod check;
pub mod doctor;
pub mod down;
mod error;
pub mod import;
pub mod key;
mod look;
pub mod metrics;
pub mod pki;
pub mod plan;
pub mod policy;
pub mod status;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::error::{Aborted, Error, Left};
use crate::config::{Config, Format, Source};
use crate::controls::Controls;
use crate::desired::{absent, desired};
use crate::kernel::carry_out::Intervention;
use crate::kernel::error::Error as SystemError;
use crate::kernel::observe::{self, Observed};
use crate::kernel::probe;
use crate::op::Op;
use crate::pki::authority::Authority;
use crate::pki::installed;
use crate::pki::work::{Outcome, Work};
use crate::report::{Connections, Ends};
use crate::rotation;
use crate::state::State;

/// Where the configuration is, unless the command line says otherwise.
pub const DEFAULT_CONFIG: &str = "/etc/underseal/underseal.toml";

/// What the command line says, apart from the subcommand.
pub struct Context<'a> {
    /// The configuration file; `None`: [`DEFAULT_CONFIG`].
    pub config: Option<PathBuf>,
    /// How long to wait for the lock.
    pub patience: Duration,
    /// Defences left out of the programs: none, but in a test.
    pub controls: Controls,
    /// Is told what is being waited for, and, if asked to, each step before it begins.
    pub say: &'a dyn Fn(Saying<'_>),
}

/// Something to tell while a command is still running.
pub enum Saying<'a> {
    /// Always of interest.
    Notice(&'a str),
    /// Of interest to whoever wants to know everything.
    Step(&'a Op),
}

impl Context<'_> {
    /// The configuration file.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.config.as_deref().unwrap_or(Path::new(DEFAULT_CONFIG))
    }

    /// Tells who has the lock that is waited for.
    fn waiting(&self) -> impl FnOnce(&str) {
        |holder| {
            (self.say)(Saying::Notice(&format!(
                "waiting for {holder}, which is changing this node"
            )))
        }
    }

    /// Reads and checks the configuration.
    ///
    /// # Errors
    /// It cannot be read, or is wrong.
    pub fn load(&self) -> Result<Config, Error> {
        let path = self.path();
        let text = fs::read_to_string(path).map_err(|source| Error::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        let source = Source {
            name: path.display().to_string(),
            text,
            format: Format::of(path),
        };
        Ok(Config::parse(&source)?)
    }

    /// The configuration for a command that does not need one: one that nobody asked for and that
    /// is not there is none.
    ///
    /// # Errors
    /// Those of [`Self::load`].
    pub fn load_if_any(&self) -> Result<Option<Config>, Error> {
        match self.load() {
            Err(Error::Unreadable { source, .. })
                if self.config.is_none() && source.kind() == io::ErrorKind::NotFound =>
            {
                Ok(None)
            }
            other => other.map(Some),
        }
    }
}

/// A configuration held against the node.
struct Comparison {
    desired: State,
    observed: State,
    warnings: Vec<String>,
    /// Peers that would be cut off, and why.
    cut_off: Vec<String>,
}

impl Comparison {
    fn of(config: &Config) -> Result<Self, SystemError> {
        Self::with(config, observe::node(Some(config))?)
    }

    fn with(config: &Config, observed: Observed) -> Result<Self, SystemError> {
        let facts = observe::facts(config, &observed)?;
        let observed = observed.state;
        let warnings = absent(config, &facts).into_iter().map(|(name, missing)| {
            format!("workload {name} stays closed: {missing}; apply again when it is there")
        });
        let desired = desired(config, &facts);
        let keys = rotation::warnings(&desired, &observed);
        Ok(Self {
            warnings: warnings.chain(keys).collect(),
            cut_off: rotation::cut_off(config, &facts, &desired, &observed),
            desired,
            observed,
        })
    }

    /// # Errors
    /// Peers would be cut off.
    fn refuse_to_cut_off(&self) -> Result<(), Error> {
        if self.cut_off.is_empty() {
            return Ok(());
        }
        Err(Error::CutsOff(self.cut_off.clone()))
    }

    fn plan(&self) -> Vec<Op> {
        crate::plan::plan(&self.desired, &self.observed)
    }
}

/// Finds out whether the machine has all that a configuration needs, without changing anything.
fn preflight(config: &Config) -> Result<(), Error> {
    let mut problems = probe::node(config.node.cgroup.as_path());
    if probe::privileges().is_none() {
        if config.wireguard.is_some() {
            problems.extend(probe::wireguard());
        }
        problems.extend(config.node.uplinks.iter().filter_map(probe::uplink));
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Error::Problems(problems))
    }
}

/// New certificates of the built-in CA where the configuration gives workloads other names than theirs have; and what
/// could not be done, which is no reason not to apply: what cannot be proven is refused. Nothing if there is no CA here.
fn renamed(config: &Config) -> (Option<Outcome>, Vec<String>) {
    if !Authority::is_in(config.pki.directory.as_path()) {
        return (None, Vec::new());
    }
    let outcome = Work::open(config, None).and_then(|mut work| work.rename());
    match outcome {
        Ok(mut outcome) => {
            let failed = std::mem::take(&mut outcome.failed).into_iter();
            let failed =
                failed.map(|it| format!("{} keeps its certificate: {}", it.what, it.reason));
            let failed = failed.collect();
            (Some(outcome).filter(|it| !it.issued.is_empty()), failed)
        }
        Err(error) => (
            None,
            vec![format!("the built-in CA was not asked: {error}")],
        ),
    }
}

/// Which certificates lack a DNS name that rules rely on.
fn lacking(config: &Config) -> Vec<String> {
    let lacking = installed::lacking(config);
    lacking.iter().map(ToString::to_string).collect()
}

/// What happened to connections, for a report; nothing where nothing happened.
fn connections(interventions: &[Intervention]) -> Vec<Connections> {
    let ends =
        |conns: &[underseal_abi::Conn]| conns.iter().map(|conn| Ends::of(&conn.tuple)).collect();
    let told = interventions
        .iter()
        .filter(|it| !it.reset.is_empty() || !it.kept.is_empty());
    told.map(|it| Connections {
        netns: it.netns.clone(),
        reset: ends(&it.reset),
        kept: ends(&it.kept),
    })
    .collect()
}
