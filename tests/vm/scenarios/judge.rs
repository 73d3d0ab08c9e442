//! The control of all other scenarios: the harness itself fails when a guest is not healthy.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use underseal_vm::{Lab, VmOptions};

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let options = VmOptions {
        programs: &[],
        ..VmOptions::default()
    };
    // A scenario that itself finds nothing wrong, while the kernel does.
    let warned = failure(
        lab,
        &options,
        "echo '<4>WARNING: CPU: 0 of a test' > /dev/kmsg",
    )?;
    ensure!(warned.contains("WARNING: CPU: 0 of a test"), "{warned}");
    let options = VmOptions {
        deadline: Duration::from_secs(20),
        ..options
    };
    let late = failure(lab, &options, "sleep 50")?;
    ensure!(late.contains("killed at its deadline"), "{late}");
    Ok(())
}

/// Runs `script` in a machine of another lab and returns how that lab failed.
fn failure(lab: &Lab, options: &VmOptions, script: &str) -> Result<String> {
    let shown = Lab::new(lab.kernel.clone()).show(|lab| lab.boot(options)?.sh(script).map(drop));
    let error = shown
        .err()
        .context("a lab with a sick machine did not fail")?;
    Ok(format!("{error:#}"))
}
