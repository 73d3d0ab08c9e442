//! Keeps the identities that a SPIRE agent has for this node's workloads in their folders.
//!
//! [`agent`] holds the two streams of the SPIFFE Workload API open, X.509-SVIDs and bundles, and is the only asynchronous
//! part. [`told`] is what the agent has said so far, and makes a workload's files of it, without I/O. [`keep`] puts them
//! into the folders; [`serve`] is the loop around all of it.
//!
//! Nothing here decides what is accepted in a handshake: that is the helper's business, which reads the folders. Whoever
//! stops or kills this program leaves whole folders behind, and they serve until the certificates in them end.

pub mod agent;
pub mod cli;
pub mod keep;
pub mod serve;
pub mod told;
#[rustfmt::skip]
#[allow(
    missing_docs,
    clippy::all,
    reason = "generated: see proto/workload.proto"
)]
pub mod workload;

/// Something to tell while the program runs, without a full stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Saying {
    /// Something was done.
    Notice(String),
    /// Something is wrong and stays so for now.
    Complaint(String),
}

/// Text of the agent's as one line, whatever is in it.
pub(crate) fn line(text: &str) -> String {
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(printable).collect()
}
