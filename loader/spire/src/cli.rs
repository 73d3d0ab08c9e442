//! The command line. The only place that prints or decides on an exit code.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it prints for everybody else"
)]

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anstream::{eprintln, println};
use anstyle::{AnsiColor, Style};
use clap::Parser;
use underseal::commands::DEFAULT_CONFIG;

use crate::{
    Saying,
    serve::{self, Error},
};

const ERROR: Style = AnsiColor::Red.on_default().bold();
const WARNING: Style = AnsiColor::Yellow.on_default().bold();

/// Keeps the identities that a SPIRE agent gives in the folders of this node's workloads.
///
/// It may be stopped or killed at any time: what is in the folders goes on to serve. Exit codes: 0 done, 1 failed, 2 bad
/// usage or configuration.
#[derive(Parser)]
#[command(name = "underseal-spire", version, max_term_width = 100)]
struct Cli {
    /// Configuration file (TOML, .yaml or .json), the one that `underseal` reads
    #[arg(short, long, env = "UNDERSEAL_CONFIG", value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Ask the agent once, and end when every workload has what it needs
    #[arg(long)]
    once: bool,
    /// With --once: how long the agent may take
    #[arg(long, value_name = "SECONDS", default_value_t = 30, requires = "once")]
    wait: u64,
}

/// Does what the arguments of this process ask for.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let say = |saying| match saying {
        Saying::Notice(text) => println!("{text}"),
        Saying::Complaint(text) => eprintln!("{WARNING}warning{WARNING:#}: {text}"),
    };
    let end: Result<(), Error> = if cli.once {
        serve::once(&cli.config, Duration::from_secs(cli.wait), &say)
    } else {
        serve::run(&cli.config, &say).map(|never| match never {})
    };
    match end {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{ERROR}error{ERROR:#}: {error}");
            ExitCode::from(error.code())
        }
    }
}
