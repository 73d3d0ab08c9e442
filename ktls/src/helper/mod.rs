//! The handshake helper: turns connections that BPF holds into sealed ones.
//!
//! It keeps nothing that matters: what it knows is in the pinned maps and in the sockets. Stopped,
//! new connections wait; started again, it reads the table and goes on. It decides nothing either:
//! who may talk to whom is in the maps, written by `underseal apply`.

mod buffer;
mod controls;
mod discover;
mod drain;
mod elsewhere;
mod exchange;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod giving_up;
mod handover;
mod limit;
mod link;
mod maps;
mod message;
mod names;
mod nodes;
mod peers;
mod pins;
mod queue;
mod refusal;
mod rekey;
mod rekeying;
mod remote;
mod renewal;
mod reset;
mod restart;
mod review;
mod serve;
mod session;
mod sys;
mod table;
#[cfg(test)]
mod testing;
mod upkeep;

pub use controls::{Controls, Stop};
pub use pins::Lock;
pub use serve::main;
