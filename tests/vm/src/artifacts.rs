//! Finds what `tests/vm/setup.sh` and cargo have made, and says how to make what is missing.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// The kernel lines of the matrix.
pub const LINES: [&str; 3] = ["6.1", "6.12", "7.3"];

/// A kernel to boot.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The line it belongs to: one of [`LINES`].
    pub line: &'static str,
    /// Its release, as in `uname -r`.
    pub release: String,
    folder: PathBuf,
}

impl Kernel {
    /// The kernel of a line.
    ///
    /// # Errors
    /// When the line is unknown or setup has not fetched it.
    pub fn find(line: &str) -> Result<Self> {
        let Some(line) = LINES.into_iter().find(|known| *known == line) else {
            bail!("unknown kernel {line:?}; known: {}", LINES.join(", "));
        };
        let folder = cache()?.join("kernels").join(line);
        let release = folder.join("release");
        let release =
            fs::read_to_string(&release).with_context(|| missing(&release, "make setup"))?;
        Ok(Self {
            line,
            release: release.trim().to_owned(),
            folder,
        })
    }

    /// The ELF kernel that QEMU starts.
    pub(crate) fn image(&self) -> PathBuf {
        self.folder.join("vmlinux")
    }

    /// Its modules in the order in which they are to be loaded.
    pub(crate) fn modules(&self) -> Result<Vec<PathBuf>> {
        let folder = self.folder.join("modules");
        let mut modules = Vec::new();
        for entry in fs::read_dir(&folder).with_context(|| missing(&folder, "make setup"))? {
            modules.push(entry?.path());
        }
        modules.sort();
        Ok(modules)
    }
}

/// The root image; machines only ever write to a snapshot of it.
pub(crate) fn root_image() -> Result<PathBuf> {
    present(target()?.join("guest/root-image"), "make setup")
}

/// PID 1 of the guest.
pub(crate) fn init() -> Result<PathBuf> {
    present(guest_folder()?.join("vminit"), "make setup")
}

/// The small programs beside PID 1 that scenarios use; they are put into every guest.
pub(crate) fn tools() -> Result<Vec<PathBuf>> {
    let folder = guest_folder()?;
    let mut tools = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| missing(&folder, "make setup"))? {
        let path = entry?.path();
        // Programs have no extension; cargo's own files beside them do.
        if path.is_file() && path.extension().is_none() && !path.ends_with("vminit") {
            tools.push(path);
        }
    }
    Ok(tools)
}

/// A program under test, from the release build.
pub(crate) fn program(name: &str) -> Result<PathBuf> {
    present(
        target()?.join("release").join(name),
        "cargo build --release",
    )
}

/// promtool, which runs on this machine.
pub(crate) fn promtool() -> Result<PathBuf> {
    present(target()?.join("guest/promtool"), "make setup")
}

fn guest_folder() -> Result<PathBuf> {
    Ok(target()?.join("guest/x86_64-unknown-linux-gnu/release"))
}

/// Cargo's target folder: the one above the profile that this very program was built in.
fn target() -> Result<PathBuf> {
    let program = env::current_exe()?;
    let profile = program
        .ancestors()
        .find(|folder| folder.ends_with("debug") || folder.ends_with("release"));
    let target = profile.and_then(Path::parent);
    Ok(target
        .with_context(|| format!("{} is in no cargo target folder", program.display()))?
        .to_owned())
}

/// The same folder that `setup.sh` uses.
fn cache() -> Result<PathBuf> {
    let filled = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    if let Some(folder) = filled("UNDERSEAL_CACHE") {
        return Ok(folder.into());
    }
    let base = filled("XDG_CACHE_HOME").map(PathBuf::from);
    let base = base.or_else(|| filled("HOME").map(|home| Path::new(&home).join(".cache")));
    Ok(base
        .context("none of UNDERSEAL_CACHE, XDG_CACHE_HOME, HOME is set")?
        .join("underseal"))
}

fn present(path: PathBuf, command: &str) -> Result<PathBuf> {
    if path.exists() {
        Ok(path)
    } else {
        bail!(missing(&path, command))
    }
}

fn missing(path: &Path, command: &str) -> String {
    format!("{} is missing; `{command}` makes it", path.display())
}
