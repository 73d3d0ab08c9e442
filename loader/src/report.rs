//! What a command has to tell, as text for people and as JSON for programs. Pure; the text carries
//! colours, which `main` takes out again where nobody can see them.

mod doctor;
mod pki;
pub mod policy;
mod wireguard;

use std::fmt::{self, Write};
use std::net::{Ipv6Addr, SocketAddr};

use anstyle::{AnsiColor, Style};
use serde::Serialize;
use underseal_abi::{State as ConnState, Tuple};

use crate::config::Config;
use crate::config::value::{AbsolutePath, PublicKey, WorkloadName};
use crate::import::Imported;
use crate::metrics::{self, Shown};
use crate::op::Op;
use crate::pki::work::{Certificate, Outcome};
use crate::policy::explain::Answer;
use crate::state::State;

pub use self::doctor::Diagnosis;
use self::policy::{Address, Dump, Listed};
pub use self::wireguard::{Rotation, Session};

const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default();
const NOTE: Style = AnsiColor::Yellow.on_default();
const HEAD: Style = Style::new().bold();

/// The outcome of a command that did what it was asked for.
#[derive(Debug, Serialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Report {
    /// `check`: the file is in order.
    Check(Summary),
    /// `plan`: what would be done.
    Plan(Changes),
    /// `apply`: what was done.
    Apply(Changes),
    /// `down`: what was done.
    Down(Changes),
    /// `status`.
    Status(Box<Status>),
    /// `doctor`.
    Doctor(Diagnosis),
    /// `metrics`.
    Metrics {
        /// Those that have a value.
        metrics: Vec<Shown>,
    },
    /// `metrics` into a file.
    MetricsWritten {
        /// The file.
        file: String,
    },
    /// `key`.
    Key {
        /// The public half.
        public_key: PublicKey,
    },
    /// `import`.
    Import(Imported),
    /// `pki` and what changes something.
    Pki(Outcome),
    /// `pki list`.
    PkiList {
        /// Oldest first.
        certificates: Vec<Certificate>,
    },
    /// `policy list`.
    PolicyList(Listed),
    /// `policy dump`.
    PolicyDump(Box<Dump>),
    /// `policy test`.
    PolicyTest(Box<Answer>),
    /// `ipcache`.
    Ipcache {
        /// By address.
        addresses: Vec<Address>,
    },
}

impl Report {
    /// The exit code that tells it: 1 if what was looked for was found to be wrong.
    #[must_use]
    pub const fn code(&self) -> u8 {
        match self {
            Self::Doctor(diagnosis) => !diagnosis.healthy as u8,
            _ => 0,
        }
    }
}

/// What a configuration is about.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Its file.
    pub file: String,
    /// The node's name.
    pub node: String,
    /// How many peers it names.
    pub peers: usize,
    /// How many workloads.
    pub workloads: usize,
    /// What is in order, but will not do what it may be meant to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl Summary {
    /// Of a configuration.
    #[must_use]
    pub fn of(file: &str, config: &Config, warnings: Vec<String>) -> Self {
        Self {
            file: file.to_owned(),
            node: config.node.name.to_string(),
            peers: config.peers.len(),
            workloads: config.workloads.len(),
            warnings,
        }
    }
}

/// Steps that were, or would be, carried out.
#[derive(Debug, Default, Serialize)]
pub struct Changes {
    /// The steps in order.
    pub steps: Vec<Step>,
    /// What the built-in CA has issued; `None`: nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificates: Option<Outcome>,
    /// What happened to connections that were open.
    pub interventions: Vec<Connections>,
    /// What is in order, but not as it may be meant to be.
    pub warnings: Vec<String>,
}

/// A step.
#[derive(Debug, Serialize)]
pub struct Step {
    /// The line a human could have typed.
    pub line: String,
    /// The step itself.
    pub op: Op,
}

impl Step {
    /// All steps of a plan.
    #[must_use]
    pub fn all(ops: Vec<Op>) -> Vec<Self> {
        let step = |op: Op| Self {
            line: op.to_string(),
            op,
        };
        ops.into_iter().map(step).collect()
    }
}

/// Connections of a namespace that did not simply go on.
#[derive(Debug, Serialize)]
pub struct Connections {
    /// The namespace.
    pub netns: AbsolutePath,
    /// Those that were reset.
    pub reset: Vec<Ends>,
    /// Those that go on in plaintext.
    pub kept: Vec<Ends>,
}

/// The two ends of a connection.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ends {
    /// The end that was asked.
    pub local: SocketAddr,
    /// The other one.
    pub remote: SocketAddr,
}

impl Ends {
    /// Of a connection as BPF keeps it.
    #[must_use]
    pub fn of(tuple: &Tuple) -> Self {
        let address = |ip: [u8; 16], port| SocketAddr::new(Ipv6Addr::from(ip).to_canonical(), port);
        Self {
            local: address(tuple.local, tuple.local_port),
            remote: address(tuple.remote, tuple.remote_port),
        }
    }
}

impl fmt::Display for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} - {}", self.local, self.remote)
    }
}

/// The node as it is.
#[derive(Debug, Serialize)]
pub struct Status {
    /// What Underseal has made.
    pub state: State,
    /// Process id of the handshake helper, if it runs.
    pub helper: Option<u32>,
    /// Sessions with other nodes.
    pub peers: Vec<Session>,
    /// Who has changed to this node's next key; `None` if there is none, or no configuration.
    pub rotation: Option<Rotation>,
    /// Ends of connections that are or shall be sealed.
    pub connections: Vec<Connection>,
    /// The datapath's counters.
    pub counters: Vec<Count>,
    /// The helper's counters.
    pub helper_counters: Vec<Count>,
    /// What `apply` would do; `None` if there is no configuration to compare with.
    pub differences: Option<Vec<Step>>,
    /// What is in order, but not as it may be meant to be.
    pub warnings: Vec<String>,
}

/// One end of a connection.
#[derive(Debug, Serialize)]
pub struct Connection {
    /// Its addresses.
    pub ends: Ends,
    /// "client" or "server".
    pub role: &'static str,
    /// "held", "keyed" or "sealed".
    pub state: &'static str,
    /// The workload it belongs to, if it is known.
    pub workload: Option<WorkloadName>,
    /// The workload at the other end.
    pub peer: Option<WorkloadName>,
    /// The process; 0 if it is not known yet.
    pub pid: u32,
    /// What it has sent in records; `None` if it is not sealed.
    pub sent: Option<Sent>,
}

/// How far an end of a connection is, out of the states that BPF knows.
#[must_use]
pub const fn standing(raw: u32) -> &'static str {
    match ConnState::from_raw(raw) {
        Some(ConnState::Sealed | ConnState::Pausing | ConnState::Replacing) => "sealed",
        Some(ConnState::Keyed) => "keyed",
        Some(ConnState::Ending) => "ending",
        Some(ConnState::Released) => "released",
        Some(ConnState::New | ConnState::Held | ConnState::Primed | ConnState::Closed) | None => {
            "held"
        }
    }
}

/// What an end has sent, as the guard counts.
#[derive(Debug, Serialize)]
pub struct Sent {
    /// Bytes of records, without headers.
    pub bytes: u64,
    /// Records.
    pub records: u64,
    /// How many bytes more until its key is replaced; `None`: any number.
    pub left: Option<u64>,
}

/// A counter.
#[derive(Debug, Serialize)]
pub struct Count {
    /// Its name.
    pub name: &'static str,
    /// How often.
    pub count: u64,
    /// Bytes; 0 where they make no sense.
    pub bytes: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Check(summary) => summary.fmt(f),
            Self::Plan(changes) => changes.show(f, "to make"),
            Self::Apply(changes) | Self::Down(changes) => changes.show(f, "made"),
            Self::Status(status) => status.fmt(f),
            Self::Doctor(diagnosis) => diagnosis.fmt(f),
            Self::Metrics { metrics } => f.write_str(&metrics::text(metrics)?),
            // Said every half a minute by a timer, it would be noise.
            Self::MetricsWritten { .. } => Ok(()),
            Self::Key { public_key } => writeln!(f, "{public_key}"),
            Self::Import(imported) => f.write_str(&imported.toml),
            Self::Pki(outcome) => outcome.fmt(f),
            Self::PkiList { certificates } => pki::list(f, certificates),
            Self::PolicyList(listed) => listed.fmt(f),
            Self::PolicyDump(dump) => dump.fmt(f),
            Self::PolicyTest(answer) => answer.fmt(f),
            Self::Ipcache { addresses } => addresses.iter().try_for_each(|it| writeln!(f, "{it}")),
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        warnings(f, &self.warnings)?;
        writeln!(
            f,
            "{GOOD}{}: in order{GOOD:#}: node {}, {}, {}",
            self.file,
            self.node,
            counted(self.peers, "peer"),
            counted(self.workloads, "workload"),
        )
    }
}

impl Changes {
    fn show(&self, f: &mut fmt::Formatter<'_>, what: &str) -> fmt::Result {
        if let Some(outcome) = &self.certificates {
            write!(f, "{outcome}")?;
        }
        for step in &self.steps {
            writeln!(f, "{}", step.line)?;
        }
        for connections in &self.interventions {
            connections.show(f)?;
        }
        warnings(f, &self.warnings)?;
        if self.steps.is_empty() {
            return writeln!(f, "{GOOD}no changes{GOOD:#}");
        }
        writeln!(
            f,
            "{GOOD}{} {what}{GOOD:#}",
            counted(self.steps.len(), "change")
        )
    }
}

impl Connections {
    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (connections, what) in [
            (&self.reset, "reset, to come back under the new rules"),
            (&self.kept, "kept, goes on in plaintext until it ends"),
        ] {
            for ends in connections {
                writeln!(
                    f,
                    "{NOTE}connection {ends} of {}: {what}{NOTE:#}",
                    self.netns
                )?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.datapath(f)?;
        wireguard::show(f, self)?;
        self.workloads(f)?;
        writeln!(
            f,
            "{HEAD}connections{HEAD:#}  {}",
            self.connection_summary()
        )?;
        for connection in &self.connections {
            writeln!(f, "  {connection}")?;
        }
        match self.helper {
            Some(pid) => writeln!(f, "{HEAD}helper{HEAD:#}  running, process {pid}")?,
            None => writeln!(
                f,
                "{HEAD}helper{HEAD:#}  {BAD}not running{BAD:#}: new connections between workloads of \
                 this node wait for it"
            )?,
        }
        counts(f, "counters", &self.counters)?;
        counts(f, "helper counters", &self.helper_counters)?;
        warnings(f, &self.warnings)?;
        match self.differences.as_deref() {
            None => Ok(()),
            Some([]) => writeln!(f, "{GOOD}as configured{GOOD:#}"),
            Some(steps) => writeln!(
                f,
                "{NOTE}not as configured{NOTE:#}: `underseal plan` shows {}",
                counted(steps.len(), "change")
            ),
        }
    }
}

impl Status {
    fn datapath(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{HEAD}datapath{HEAD:#}  ")?;
        let Some(datapath) = &self.state.datapath else {
            return writeln!(f, "{NOTE}nothing applied{NOTE:#}");
        };
        let object = match datapath.object {
            Some(object) => format!("object {object}"),
            None => format!("{BAD}an apply is under way or was interrupted{BAD:#}"),
        };
        let attached = counted(datapath.attachments.len(), "program");
        writeln!(
            f,
            "mode {}, {attached} attached, {object}",
            datapath.settings.mode
        )
    }

    fn workloads(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(datapath) = &self.state.datapath else {
            return Ok(());
        };
        writeln!(f, "{HEAD}workloads{HEAD:#}")?;
        for (id, workload) in &datapath.workloads {
            let covered = if self.state.is_covered(*id) {
                "covered"
            } else {
                "absent"
            };
            writeln!(
                f,
                "  {id} {} {covered}, {}, {}",
                workload.name, workload.spiffe_id, workload.netns
            )?;
        }
        Ok(())
    }

    fn connection_summary(&self) -> String {
        let count = |state| self.connections.iter().filter(|c| c.state == state).count();
        format!(
            "{} sealed, {} held (ends, not pairs)",
            count("sealed"),
            count("held") + count("keyed")
        )
    }
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name =
            |name: &Option<WorkloadName>| name.as_ref().map_or("?".to_owned(), ToString::to_string);
        write!(
            f,
            "{} {} of {} with {}, {}",
            self.ends,
            self.role,
            name(&self.workload),
            name(&self.peer),
            self.state
        )?;
        if self.pid != 0 {
            write!(f, ", process {}", self.pid)?;
        }
        if let Some(sent) = &self.sent {
            write!(
                f,
                ", sent {} bytes in {}",
                sent.bytes,
                counted(
                    usize::try_from(sent.records).unwrap_or(usize::MAX),
                    "record"
                )
            )?;
            if let Some(left) = sent.left {
                write!(f, ", another key after {left} bytes more")?;
            }
        }
        Ok(())
    }
}

/// Counters that are not zero.
fn counts(f: &mut fmt::Formatter<'_>, head: &str, counts: &[Count]) -> fmt::Result {
    let mut lines = String::new();
    for Count { name, count, bytes } in counts.iter().filter(|c| c.count != 0) {
        match bytes {
            0 => writeln!(lines, "  {name} {count}")?,
            _ => writeln!(lines, "  {name} {count} ({bytes} bytes)")?,
        }
    }
    if lines.is_empty() {
        return Ok(());
    }
    write!(f, "{HEAD}{head}{HEAD:#}\n{lines}")
}

fn warnings(f: &mut fmt::Formatter<'_>, warnings: &[String]) -> fmt::Result {
    warnings
        .iter()
        .try_for_each(|warning| writeln!(f, "{NOTE}warning{NOTE:#}: {warning}"))
}

/// A number of things.
pub(crate) fn counted(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}
