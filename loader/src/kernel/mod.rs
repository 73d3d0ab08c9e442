//! The edge to the kernel: one file per kernel object, blocking and small. Nothing here decides
//! anything, and nothing else in the loader makes a system call that changes the system.
//!
//! Functions without a namespace in their arguments work in that of the calling thread;
//! [`netns::Netns::run`] is how they work in another one.

pub mod address;
pub mod bpf;
pub mod carry_out;
pub mod error;
pub mod examine;
pub mod key;
pub mod link;
pub mod lock;
pub mod netlink;
pub mod netns;
pub mod notice;
pub mod observe;
pub mod probe;
pub mod route;
pub mod switch;
pub mod sysctl;
#[cfg(test)]
mod testing;
pub mod textfile;
pub mod wireguard;
