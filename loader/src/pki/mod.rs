//! The built-in CA: issues X.509-SVIDs to this node's workloads, renews and revokes them, and
//! changes its own key without breaking a connection. A set of files and commands, no daemon.
//!
//! `certificate`, `due` and `record` are pure; `authority` (the CA's directory), `folder` (a
//! workload's identity) and `durable` write files; `work` joins them. Whatever is interrupted is
//! repeated: every command first makes the workloads' folders what the record says.
//!
//! It does not talk to other machines: requests and certificates travel as files (`request`).

pub mod authority;
pub mod certificate;
pub mod due;
pub mod durable;
pub mod folder;
pub mod installed;
pub mod record;
pub mod request;
pub mod work;

use std::{
    io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use thiserror::Error;

/// Why the CA could not do something. Each message is a complete sentence that names the object.
#[derive(Debug, Error)]
pub enum Error {
    /// A file operation failed.
    #[error("cannot {op} {}: {source}", path.display())]
    File {
        /// What was attempted.
        op: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Something is there that does not serve.
    #[error("{}: {reason}", path.display())]
    Unusable {
        /// What.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A certificate or list could not be made.
    #[error("cannot make {what}: {source}")]
    Make {
        /// What was to be made.
        what: &'static str,
        /// Why not.
        source: rcgen::Error,
    },
    /// It may not be done now, or not that way.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    fn file(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { op, path, source }
    }

    fn unusable(path: &Path, reason: impl ToString) -> Self {
        Self::Unusable {
            path: path.to_owned(),
            reason: reason.to_string(),
        }
    }

    fn make(what: &'static str) -> impl FnOnce(rcgen::Error) -> Self {
        move |source| Self::Make { what, source }
    }
}

/// Seconds since the epoch; 0 on a clock before it.
#[must_use]
pub fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
        })
}
