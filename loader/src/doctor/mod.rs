//! What `underseal doctor` finds: every check once, in [`CHECKS`], each a pure function of the facts. Nothing here reads or
//! changes anything.

mod counters;
pub mod facts;
mod files;
mod kernel;
pub(crate) mod network;
mod node;

use std::fmt;

use serde::Serialize;

pub use self::facts::Facts;

/// Every check, in the order in which they are told: what others depend on comes first.
pub const CHECKS: &[Check] = &[
    kernel::FEATURES,
    kernel::POINT_RELEASE,
    kernel::PTRACE,
    files::CONFIGURATION,
    files::CLOCK,
    files::KEYS,
    files::IDENTITIES,
    node::APPLIED,
    node::DRIFT,
    node::PROGRAMS,
    node::ORDER,
    node::HELPER,
    node::UNITS,
    node::WORKLOADS,
    node::ROOM,
    network::UPLINKS,
    network::MTU,
    network::PEERS,
    network::ROUTES,
    network::FORWARDING,
    counters::GUARD,
    counters::PACKETS,
    counters::CERTIFICATES,
    counters::RESETS,
];

/// Something that can be wrong.
#[derive(Debug)]
pub struct Check {
    /// What is looked at.
    pub name: &'static str,
    /// Why it matters.
    pub why: &'static str,
    look: fn(&Facts) -> Vec<Finding>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, but not as well as it could, or not for long.
    Warning,
    /// Something does not work, or is not protected.
    Problem,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
        })
    }
}

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What it is.
    pub seen: String,
    /// What to do; `None` where nothing is to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

fn ok(seen: impl Into<String>) -> Finding {
    Finding {
        level: Level::Ok,
        seen: seen.into(),
        fix: None,
    }
}

fn warning(seen: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding {
        level: Level::Warning,
        seen: seen.into(),
        fix: Some(fix.into()),
    }
}

fn problem(seen: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding {
        level: Level::Problem,
        ..warning(seen, fix)
    }
}

/// The findings, or that all is well if there are none.
fn or_ok(findings: Vec<Finding>, seen: impl FnOnce() -> String) -> Vec<Finding> {
    if findings.is_empty() {
        vec![ok(seen())]
    } else {
        findings
    }
}

/// A check with what it found.
#[derive(Clone, Debug, Serialize)]
pub struct Checked {
    /// What was looked at.
    pub check: &'static str,
    /// The worst of what was found.
    pub level: Level,
    /// Why it matters.
    pub why: &'static str,
    /// What was found, at least one.
    pub findings: Vec<Finding>,
}

/// What all checks find. One that does not concern this node is left out.
#[must_use]
pub fn examine(facts: &Facts) -> Vec<Checked> {
    let checked = CHECKS.iter().filter_map(|check| {
        let findings = (check.look)(facts);
        Some(Checked {
            check: check.name,
            level: findings.iter().map(|it| it.level).max()?,
            why: check.why,
            findings,
        })
    });
    checked.collect()
}
