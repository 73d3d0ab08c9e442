//! Why a command failed.

use std::fmt;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::config::ConfigError;
use crate::execute::{Cause, Failure, NotReached};
use crate::kernel::carry_out::StepError;
use crate::kernel::error::Error as SystemError;
use crate::kernel::probe::Problem;
use crate::op::Op;
use crate::pki::work::Outcome;
use crate::report::Connections;

/// Why a command failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The configuration file cannot be read.
    #[error("cannot read {}: {source}\n  hint: name another one with -c", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The configuration does not say what the command is about.
    #[error("{0}")]
    Usage(String),
    /// The machine lacks something; nothing was changed.
    #[error("{}", list(.0))]
    Problems(Vec<Problem>),
    /// A system operation failed before anything was changed.
    #[error(transparent)]
    System(#[from] SystemError),
    /// `apply` failed after it had begun.
    #[error(transparent)]
    Aborted(Box<Aborted>),
    /// A key would go that peers use; nothing was changed.
    #[error("{}\n  hint: change to the new key on {} first, or apply with --retire-key and cut it off", .0.join("\nerror: "), if .0.len() == 1 { "that node" } else { "those nodes" })]
    CutsOff(Vec<String>),
    /// All steps were carried out, and yet the kernel shows something else.
    #[error("{0}")]
    NotReached(NotReached),
    /// A manifest cannot be read, or is none.
    #[error(transparent)]
    Manifest(#[from] crate::import::Unreadable),
    /// Manifests cannot be carried over as they are asked to be.
    #[error("{0}")]
    Refused(String),
    /// The CA could not do it.
    #[error(transparent)]
    Pki(#[from] crate::pki::Error),
    /// The CA could not do it for everybody.
    #[error("{}{}", .0, left_alone(.0))]
    PkiPartly(Box<Outcome>),
    /// Some steps of a removal failed; all others were carried out.
    #[error("{0}")]
    Left(Left),
}

/// An apply that failed after it had begun, and what nothing takes back.
#[derive(Debug)]
pub struct Aborted {
    /// Why, and what became of its steps.
    pub failure: Failure<StepError>,
    /// What the built-in CA had issued by then.
    pub certificates: Option<Outcome>,
    /// What had become of connections by then, also while steps were taken back.
    pub interventions: Vec<Connections>,
}

impl fmt::Display for Aborted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.failure.fmt(f)?;
        resets(f, &self.interventions)?;
        let issued = self.certificates.iter().flat_map(|it| &it.issued);
        for certificate in issued {
            write!(
                f,
                "\n  the new certificate of {} stays",
                certificate.spiffe_id
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for Aborted {}

/// What a removal has left.
#[derive(Debug)]
pub struct Left {
    /// The steps that failed.
    pub failed: Vec<(Op, StepError)>,
    /// What had become of connections by then.
    pub interventions: Vec<Connections>,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not everything could be removed:")?;
        let mut failed = self.failed.iter();
        failed.try_for_each(|(op, error)| write!(f, "\n  {op}\n    {error}"))?;
        f.write_str("\n  everything else was; run down again when the cause is gone")?;
        resets(f, &self.interventions)
    }
}

fn resets(f: &mut fmt::Formatter<'_>, interventions: &[Connections]) -> fmt::Result {
    for Connections { netns, reset, .. } in interventions {
        for ends in reset {
            write!(f, "\n  connection {ends} of {netns} was reset")?;
        }
    }
    Ok(())
}

impl Error {
    /// The exit code that tells it: 1 failed, 2 bad usage or configuration.
    #[must_use]
    pub const fn code(&self) -> u8 {
        match self {
            Self::Unreadable { .. } | Self::Config(_) | Self::Usage(_) | Self::Manifest(_) => 2,
            _ => 1,
        }
    }

    /// The verifier's log, if the kernel refused a program.
    #[must_use]
    pub fn verifier_log(&self) -> Option<&str> {
        match self {
            Self::Aborted(aborted) => match &aborted.failure.cause {
                Cause::Step(_, StepError::Load(error)) => error.log(),
                _ => None,
            },
            _ => None,
        }
    }
}

fn list(problems: &[Problem]) -> String {
    let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
    problems.join("\nerror: ")
}

fn left_alone(outcome: &Outcome) -> String {
    let failed = outcome.failed.iter();
    let lines = failed.map(|it| format!("{} was left as it was: {}", it.what, it.reason));
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execute::Aftermath;
    use crate::op::DatapathOp;
    use crate::report::Ends;

    fn refused() -> StepError {
        SystemError::new("write map", "NODES", io::ErrorKind::StorageFull).into()
    }

    fn interventions() -> Vec<Connections> {
        let ends = Ends {
            local: ([10, 1, 0, 10], 7000).into(),
            remote: ([10, 1, 0, 11], 4000).into(),
        };
        vec![Connections {
            netns: "/run/netns/cart".parse().unwrap(),
            reset: vec![ends],
            kept: vec![ends],
        }]
    }

    const RESET: &str =
        "\n  connection 10.1.0.10:7000 - 10.1.0.11:4000 of /run/netns/cart was reset";

    #[test]
    fn tells_what_nothing_takes_back() {
        let step: Op = DatapathOp::DeleteNode(2).into();
        let aborted = Aborted {
            failure: Failure {
                cause: Cause::Step(step.clone(), refused()),
                aftermath: Aftermath::TakenBack {
                    left_over: Vec::new(),
                },
            },
            certificates: None,
            interventions: interventions(),
        };
        let cause = refused();
        assert_eq!(
            aborted.to_string(),
            format!("{cause}\n  step: {step}\n  all steps before it were taken back{RESET}")
        );
        let left = Left {
            failed: vec![(step.clone(), refused())],
            interventions: interventions(),
        };
        assert_eq!(
            left.to_string(),
            format!(
                "not everything could be removed:\n  {step}\n    {cause}\n  everything else was; run down again when \
                 the cause is gone{RESET}"
            )
        );
    }
}
