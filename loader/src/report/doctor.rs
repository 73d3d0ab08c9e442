//! What `doctor` has to tell.

use std::fmt;

use serde::Serialize;

use super::{BAD, GOOD, HEAD, NOTE, counted};
use crate::doctor::{Checked, Facts, Level, examine};

/// What all checks have found.
#[derive(Debug, Serialize)]
pub struct Diagnosis {
    /// Whether there is no problem; there may be warnings.
    pub healthy: bool,
    /// The checks that concern this node.
    pub checks: Vec<Checked>,
}

impl Diagnosis {
    /// Of a node.
    #[must_use]
    pub fn of(facts: &Facts) -> Self {
        let checks = examine(facts);
        Self {
            healthy: checks.iter().all(|it| it.level != Level::Problem),
            checks,
        }
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for it in &self.checks {
            checked(f, it)?;
        }
        let count = |level| {
            let findings = self.checks.iter().flat_map(|it| &it.findings);
            findings.filter(|it| it.level == level).count()
        };
        let (problems, warnings) = (count(Level::Problem), count(Level::Warning));
        match (problems, warnings) {
            (0, 0) => writeln!(f, "{GOOD}nothing is wrong{GOOD:#}"),
            (0, warnings) => writeln!(
                f,
                "{GOOD}no problem{GOOD:#}, {}",
                counted(warnings, "warning")
            ),
            (problems, warnings) => writeln!(
                f,
                "{BAD}{}{BAD:#}, {}",
                counted(problems, "problem"),
                counted(warnings, "warning")
            ),
        }
    }
}

/// What is wrong has its reason and its cure; what is well has one line.
fn checked(f: &mut fmt::Formatter<'_>, it: &Checked) -> fmt::Result {
    for finding in &it.findings {
        let style = match finding.level {
            Level::Ok => GOOD,
            Level::Warning => NOTE,
            Level::Problem => BAD,
        };
        let seen = finding.seen.replace('\n', "\n           ");
        writeln!(
            f,
            "{style}{:8}{style:#} {HEAD}{}{HEAD:#}: {seen}",
            finding.level, it.check
        )?;
        if let Some(fix) = &finding.fix {
            writeln!(f, "         why: {}\n         do:  {fix}", it.why)?;
        }
    }
    Ok(())
}
