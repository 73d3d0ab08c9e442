//! One step: the smallest change of the kernel that `apply` and `down` make, shown as a line that a
//! human could have typed. A step names its object the way its owner does, so that it can be
//! carried out by itself.

pub mod datapath;
pub mod device;
pub mod namespace;

use std::fmt;

use serde::Serialize;

use crate::state::State;

pub use self::{
    datapath::{DatapathOp, NetnsEntry},
    device::{DeviceChange, DeviceOp, Moved, Switch},
    namespace::{NamespaceChange, NamespaceOp},
};

/// A step.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    /// Of BPF programs and maps.
    Datapath(DatapathOp),
    /// Of an interface of the host, or of a route through it.
    Device(DeviceOp),
    /// Inside a workload's network namespace.
    Namespace(NamespaceOp),
}

impl Op {
    /// The steps that take this one back, given the state before the plan it belongs to. What a
    /// state does not hold (programs that were replaced, the value of a preshared key) is the
    /// business of whoever carries the step out.
    #[must_use]
    pub fn inverse(&self, before: &State) -> Vec<Self> {
        match self {
            Self::Datapath(op) => op.inverse(before).into_iter().map(Self::Datapath).collect(),
            Self::Device(op) => op.inverse(before).into_iter().map(Self::Device).collect(),
            Self::Namespace(op) => op.inverse(before).into_iter().collect(),
        }
    }

    /// Whether nothing takes this step back. A plan has such steps at its end: what they remove is of no use by then.
    #[must_use]
    pub const fn is_last(&self) -> bool {
        match self {
            Self::Datapath(op) => matches!(op, DatapathOp::Unload),
            Self::Device(op) => matches!(
                op.change,
                DeviceChange::Delete | DeviceChange::ClearPrivateKey
            ),
            Self::Namespace(_) => false,
        }
    }

    /// Whether the node is not more open with this step than without it. What it takes to keep something closed counts,
    /// too: a hold needs programs, and those need their maps.
    #[must_use]
    pub const fn closes(&self) -> bool {
        match self {
            Self::Datapath(op) => op.closes(),
            Self::Device(op) => op.closes(),
            Self::Namespace(op) => op.closes(),
        }
    }

    /// What is left of the step when it has been taken back, if anything.
    #[must_use]
    pub const fn leaves(&self) -> Option<&'static str> {
        match self {
            Self::Device(DeviceOp {
                change: DeviceChange::GenerateKey(_),
                ..
            }) => Some("the new private key stays in its file, for the next apply"),
            _ => None,
        }
    }
}

impl From<DatapathOp> for Op {
    fn from(op: DatapathOp) -> Self {
        Self::Datapath(op)
    }
}

impl From<DeviceOp> for Op {
    fn from(op: DeviceOp) -> Self {
        Self::Device(op)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Datapath(op) => op.fmt(f),
            Self::Device(op) => op.fmt(f),
            Self::Namespace(op) => op.fmt(f),
        }
    }
}
