//! Builds the BPF programs and leaves them as `underseal.bpf.o` for the crate to embed.
//!
//! They are another workspace for another target, and may need another compiler: one that has
//! `core` for `bpfel-unknown-none`. That is either Debian's (packages rustc-web and
//! libstd-rust-web-dev-bpf), or any with the rust-src component, which then compiles `core` too.
//! `UNDERSEAL_BPF_RUSTC` names one. `UNDERSEAL_BPF_OBJECT` names an object that is built already.

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "bpfel-unknown-none";

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(variable("OUT_DIR")?);
    let sources = PathBuf::from(variable("CARGO_MANIFEST_DIR")?)
        .join("../bpf")
        .canonicalize()?;
    for watched in [
        "src",
        "abi/src",
        "Cargo.toml",
        "Cargo.lock",
        ".cargo/config.toml",
    ] {
        println!("cargo:rerun-if-changed={}", sources.join(watched).display());
    }
    for watched in ["UNDERSEAL_BPF_RUSTC", "UNDERSEAL_BPF_OBJECT"] {
        println!("cargo:rerun-if-env-changed={watched}");
    }
    let object = match env::var_os("UNDERSEAL_BPF_OBJECT") {
        Some(object) => PathBuf::from(object),
        None => build(&sources, &out)?,
    };
    strip(&object, &out.join("underseal.bpf.o"))
}

fn build(sources: &Path, out: &Path) -> Result<PathBuf, Box<dyn Error>> {
    // A folder of its own: the outer cargo holds the lock on its own one.
    let target = out.join("bpf");
    let compiler = Compiler::find()?;
    let mut cargo = Command::new(variable("CARGO")?);
    // .cargo/config.toml is found from the working folder.
    cargo
        .current_dir(sources)
        .args(["build", "--release", "--locked", "--target-dir"])
        .arg(&target);
    cargo.arg("--config").arg(remap(sources));
    if compiler.builds_core {
        cargo.args(["-Z", "build-std=core"]);
    }
    // What the outer cargo has set is meant for the machine's own target.
    for name in [
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
    ] {
        cargo.env_remove(name);
    }
    cargo
        .env("RUSTC", &compiler.rustc)
        .env("RUSTC_BOOTSTRAP", "1");
    if !cargo.status()?.success() {
        return Err("the BPF programs do not build; cargo's messages are above".into());
    }
    Ok(target.join(TARGET).join("release/underseal"))
}

/// Line numbers in the object name files; they must not name this machine's folders.
fn remap(sources: &Path) -> String {
    let cargo = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    let flags: Vec<String> = [Some(sources.to_owned()), cargo.or(home)]
        .into_iter()
        .flatten()
        .zip(["/bpf", "/cargo"])
        .map(|(from, to)| {
            format!(
                "{:?}",
                format!("--remap-path-prefix={}={to}", from.display())
            )
        })
        .collect();
    format!("target.{TARGET}.rustflags=[{}]", flags.join(", "))
}

struct Compiler {
    rustc: OsString,
    builds_core: bool,
}

impl Compiler {
    fn find() -> Result<Self, Box<dyn Error>> {
        let asked = env::var_os("UNDERSEAL_BPF_RUSTC");
        let candidates: Vec<OsString> = match asked {
            Some(rustc) => vec![rustc],
            None => vec!["/usr/bin/rustc".into(), variable("RUSTC")?],
        };
        for builds_core in [false, true] {
            for rustc in &candidates {
                if has_core(rustc, builds_core) {
                    return Ok(Self {
                        rustc: rustc.clone(),
                        builds_core,
                    });
                }
            }
        }
        let hint =
            "apt-get install rustc-web libstd-rust-web-dev-bpf, or rustup component add rust-src";
        Err(format!("no compiler for {TARGET} among {candidates:?}\n  hint: {hint}").into())
    }
}

/// Whether a compiler has `core` for the target, ready-made or as source.
fn has_core(rustc: &OsString, as_source: bool) -> bool {
    let mut command = Command::new(rustc);
    if as_source {
        command.args(["--print", "sysroot"]);
    } else {
        command.args(["--print", "target-libdir", "--target", TARGET]);
    }
    let Ok(answer) = command.output() else {
        return false;
    };
    let folder = PathBuf::from(String::from_utf8_lossy(&answer.stdout).trim());
    let folder = if as_source {
        folder.join("lib/rustlib/src/rust/library/core")
    } else {
        folder
    };
    answer.status.success() && fs::read_dir(folder).is_ok_and(|mut files| files.next().is_some())
}

/// Takes the DWARF out (its types and lines stay as BTF): nine tenths of the size.
fn strip(from: &Path, to: &Path) -> Result<(), Box<dyn Error>> {
    for tool in ["llvm-strip", "llvm-strip-22"] {
        if Command::new(tool)
            .arg("-g")
            .arg("-o")
            .arg(to)
            .arg(from)
            .status()
            .is_ok_and(|status| status.success())
        {
            return Ok(());
        }
    }
    println!("cargo:warning=no llvm-strip: the BPF object keeps its debug information");
    fs::copy(from, to)?;
    Ok(())
}

fn variable(name: &str) -> Result<OsString, Box<dyn Error>> {
    env::var_os(name).ok_or_else(|| format!("{name} is not set").into())
}
