//! The loader: makes the kernel match one declarative file, and exits.
//!
//! `config` → `desired` → `plan` → `execute` → `report`; `kernel` alone talks to the kernel.

pub mod cli;
pub mod commands;
pub mod config;
pub mod controls;
pub mod desired;
pub mod doctor;
pub mod execute;
pub mod generation;
pub mod import;
pub mod kernel;
pub mod metrics;
pub mod op;
pub mod pki;
pub mod plan;
pub mod policy;
pub mod report;
pub mod rotation;
pub mod state;
mod sys;

/// The BPF programs, as the build script has left them.
pub static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/underseal.bpf.o"));
