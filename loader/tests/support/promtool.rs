//! promtool, which `make setup` fetches: a test that is skipped because it is missing tests nothing.

use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// Runs it in a folder.
pub(crate) fn run(arguments: &[&str], folder: &Path) -> Output {
    let mut promtool = Command::new(program());
    promtool
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap()
}

/// Runs it on a text.
pub(crate) fn with_input(arguments: &[&str], text: &str) -> Output {
    let mut promtool = Command::new(program())
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = promtool.stdin.take().unwrap();
    input.write_all(text.as_bytes()).unwrap();
    drop(input);
    promtool.wait_with_output().unwrap()
}

/// The one that `make setup` has put beside what it makes for machines, or one in the PATH.
///
/// # Panics
/// There is none.
fn program() -> PathBuf {
    let fetched = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../guest/promtool");
    let path = env::var_os("PATH").unwrap_or_default();
    let installed = env::split_paths(&path).map(|folder| folder.join("promtool"));
    let found = [fetched]
        .into_iter()
        .chain(installed)
        .find(|file| fs::metadata(file).is_ok());
    found.unwrap_or_else(|| panic!("promtool is not installed\n  hint: `make setup` fetches it, or apt-get install -y --no-install-recommends prometheus"))
}
