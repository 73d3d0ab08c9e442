//! The hold and the hand-over, small enough to try every run of them.
//!
//! One connection: two sockets, the tasks that send and receive on them, the helper that seals them, the guard, the
//! packets between them. Each step that something else can come in between is a step of its own, in the order of
//! `bpf/src/{hold,sleepers,guard}.rs` and `ktls/src/helper/{session,handover,restart}.rs`. Whoever changes an order there
//! changes it here. The helper may be killed before any step; another one starts later.
//!
//! What it does not show: on which processor a barrier is needed (that a record must not be seen late is shown, by trying
//! it); what a wrong offset, a lost event of a hook or a bug of the kernel does; and two connections at once, which share
//! nothing but the map of sleeping tasks. A send is one unit: what TCP does to half a unit is the scenarios' affair.

mod action;
mod connection;
mod handover;
mod helper;
mod model;
mod network;
mod reach;
mod setting;
mod task;

pub use action::{Action, Side};
pub use connection::{Connection, Harm};
pub use model::{Protocol, Rule};
pub use reach::{Stuck, stuck};
pub use setting::{Defences, Faults, Mutation, Rekey, Setting, Talk};
