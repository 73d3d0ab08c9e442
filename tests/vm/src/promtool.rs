//! What promtool, on this machine, thinks of metrics that a guest has written.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::artifacts;

/// Checks metrics in the text format.
///
/// # Errors
/// promtool has something to complain about.
pub fn check_metrics(text: &str) -> Result<()> {
    let mut promtool = Command::new(artifacts::promtool()?)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("promtool")?;
    let mut input = promtool.stdin.take().context("promtool's input")?;
    input.write_all(text.as_bytes())?;
    drop(input);
    let output = promtool.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() && said.is_empty(),
        "promtool check metrics: {said}\n{text}"
    );
    Ok(())
}
