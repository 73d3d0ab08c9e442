//! PID 1 of the guest, and the agent that it starts.
//!
//! As PID 1, from the initramfs: mounts, loads the modules that came along, goes to the root image and puts the
//! payload there. Then it either stays PID 1 and runs the agent, or becomes systemd with the agent as a service.
//! Started as `vm-agent` it is the agent. It never decides whether a test passed.
//!
//! Everything printed goes to the console, which the harness shows when something fails.
#![allow(clippy::print_stderr)]

mod agent;
mod boot;
mod capture;
mod process;
mod sys;

use anyhow::Context as _;
use nix::sys::reboot::{RebootMode, reboot};

fn main() {
    let result = if std::process::id() == 1 {
        boot::run()
    } else {
        agent::run().context("agent")
    };
    let Err(error) = result;
    eprintln!("vminit: {error:#}");
    if std::process::id() == 1 {
        // QEMU ends, and the harness reports the console's last lines.
        let _ = reboot(RebootMode::RB_POWER_OFF);
    }
    std::process::exit(1);
}
