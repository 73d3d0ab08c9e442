//! Tests on real kernels: QEMU machines with Debian's kernels and programs, driven from the outside.
//!
//! A [`Scenario`] is given a [`Lab`], boots machines in it ([`Vm`]), perhaps joined by a [`Wire`], builds workloads
//! as a container runtime would ([`topology`]), runs unmodified programs, and judges recordings ([`capture`]).
//! `tests/vm/setup.sh` makes what is needed. Nothing here knows what the programs under test are to do.

mod agent;
mod artifacts;
pub mod capture;
mod console;
pub mod identities;
mod initramfs;
mod machine;
pub mod main_job;
pub mod matrix;
pub mod pcap;
mod place;
pub mod promtool;
mod qemu;
pub mod site;
mod stream;
pub mod topology;
mod vm;
mod wire;

pub use artifacts::{Kernel, LINES};
pub use capture::Recording;
pub use machine::{PRODUCT, VmOptions};
pub use matrix::{Lab, Scenario};
pub use place::{Output, Place, Process};
pub use underseal_vm_guest::{Bytes, Program};
pub use vm::Vm;
pub use wire::{Fate, Filter, Port, Wire};
