//! The BPF side of the kernel: load the object, attach its programs, read and write its maps, run
//! its iterators.
//!
//! Everything that outlives the loader is a pin below [`underseal_abi::names::PIN_ROOT`]; there is
//! no other record. Each function can be interrupted at any point and called again: what it leaves
//! half-made is replaced or swept away by the next [`object::Loaded::load`]. The caller holds the
//! lock that keeps a second loader away.

pub mod attach;
pub mod fill;
pub mod iterate;
pub mod maps;
pub mod named;
pub mod object;
pub mod offsets;
mod pin;
pub mod policies;
mod sys;
mod tc;
