//! `underseal import`: Kubernetes' manifests, as this tool's configuration has them. Pure.
//!
//! What cannot be carried over is named, field by field, and never makes the outcome more open than the manifest: a rule
//! of which a part is lost is left out, and what would be more open without it (a deny rule, a policy whose selection
//! cannot be said) refuses the whole import. What it does not do: ask a cluster, or know which labels your workloads have.

mod certificate;
mod cilium;
mod fields;
mod kubernetes;
mod manifest;
mod policy;
mod ports;
mod selector;
mod write;

use std::fmt;

use serde::Serialize;

pub use manifest::read;

/// The outcome for all files.
#[derive(Debug, Default, Serialize)]
pub struct Imported {
    /// The configuration, TOML: sections to add to a file that has the node.
    pub toml: String,
    /// What it lacks.
    pub left: Vec<Left>,
}

impl Imported {
    /// What refuses the import.
    #[must_use]
    pub fn refusals(&self) -> Vec<&Left> {
        let refuses = |left: &&Left| left.effect == Effect::Refused;
        self.left.iter().filter(refuses).collect()
    }
}

/// A field that is not carried over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Left {
    /// The file.
    pub file: String,
    /// Kind, namespace and name of the object.
    pub object: String,
    /// Where it stands in the object, such as `spec.ingress[0].toPorts[0].rules`.
    pub path: String,
    /// Why, and what that means.
    pub why: String,
    /// What that does to the outcome.
    pub effect: Effect,
}

/// What it does to the outcome that a field is not carried over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// Who may talk to whom is the same.
    None,
    /// Less is allowed.
    LessOpen,
    /// More would be allowed, so nothing is printed.
    Refused,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            object,
            path,
            why,
            ..
        } = self;
        write!(f, "{file}: {object}: {path}: {why}")
    }
}

/// Why a file cannot be read as manifests. One that is the right YAML is refused as Kubernetes would: a wrong type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(pub String);

/// What is left of one object, as it is found.
#[derive(Debug, Default)]
struct Notes(Vec<(String, Effect, String)>);

impl Notes {
    /// Nothing is lost but a detail that says nothing about traffic.
    fn detail(&mut self, path: impl Into<String>, why: impl Into<String>) {
        self.0.push((path.into(), Effect::None, why.into()));
    }

    /// Less is allowed.
    fn less(&mut self, path: impl Into<String>, why: impl Into<String>) {
        self.0.push((path.into(), Effect::LessOpen, why.into()));
    }

    /// More would be allowed.
    fn refuse(&mut self, path: impl Into<String>, why: impl Into<String>) {
        self.0.push((path.into(), Effect::Refused, why.into()));
    }
}
