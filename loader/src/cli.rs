//! The command line: reads the arguments, runs one command, prints its report or its error. The
//! only place that prints or decides on an exit code.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it prints for everybody else"
)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::commands::{
    self, Context, Error, Saying, apply, check, doctor, down, import, key, metrics, pki, plan,
    policy, status,
};
use crate::controls::Controls;
use crate::kernel::switch::Insistence;
use crate::report::Report;
use anstream::{eprintln, print, println};
use anstyle::{AnsiColor, Style};
use clap::{Args, Parser, Subcommand};

const ERROR: Style = AnsiColor::Red.on_default().bold();

/// Encrypts every path between workloads exactly once, in the kernel.
///
/// Exit codes: 0 done or nothing to do, 1 failed, 2 bad usage or configuration.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[arg(short, long, global = true, env = "UNDERSEAL_CONFIG", value_name = "FILE",
        help = format!("Configuration file (TOML, .yaml or .json) [default: {}]", commands::DEFAULT_CONFIG))]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    /// Show each step as it begins, and the whole log of the BPF verifier
    #[arg(short, long, global = true)]
    verbose: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Say whether the configuration is in order
    Check,
    /// Show what apply would do
    Plan,
    /// Make the node what the configuration says
    Apply(Apply),
    /// Show the node as it is
    Status,
    /// Look for everything that can be wrong, and say what to do; changes nothing
    ///
    /// Exit code 1 if there is a problem.
    Doctor,
    /// Print what the node does as numbers for Prometheus
    Metrics(metrics::Arguments),
    /// Remove everything that apply has made
    Down(Wait),
    /// Print this node's WireGuard public key; make the key if there is none
    Key(Key),
    /// Print what Kubernetes' policies and certificates are in this tool's configuration
    Import(import::Arguments),
    /// Who may talk to whom: list the rules, look at the maps, ask what would become of a connection
    #[command(subcommand)]
    Policy(policy::Command),
    /// Show whose each address is, as the programs see it
    Ipcache,
    /// Run the built-in CA: certificates of this node's workloads
    #[command(subcommand)]
    Pki(pki::Command),
}

#[derive(Args)]
struct Key {
    /// The key of [wireguard.next]
    #[arg(long)]
    next: bool,
}

#[derive(Args)]
struct Apply {
    #[command(flatten)]
    wait: Wait,
    /// Let a WireGuard key of this node go though peers still use it: they are cut off
    #[arg(long)]
    retire_key: bool,
}

#[derive(Args)]
struct Wait {
    /// How long to wait for another one that is changing this node
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
}

/// Runs the command that the arguments of this process ask for.
#[must_use]
pub fn main(controls: Controls) -> ExitCode {
    let cli = Cli::parse();
    let say = |saying: Saying<'_>| match saying {
        Saying::Notice(text) => eprintln!("{text}"),
        Saying::Step(op) if cli.verbose => eprintln!("+ {op}"),
        Saying::Step(_) => {}
    };
    let patience = match &cli.command {
        Command::Apply(Apply { wait, .. }) | Command::Down(wait) => Duration::from_secs(wait.wait),
        _ => Duration::ZERO,
    };
    let context = Context {
        config: cli.config,
        patience,
        controls,
        say: &say,
    };
    let result = match cli.command {
        Command::Check => check::run(&context),
        Command::Plan => plan::run(&context),
        Command::Apply(Apply { retire_key, .. }) => {
            let insistence = if retire_key {
                Insistence::Nothing
            } else {
                Insistence::Sessions
            };
            apply::run(&context, insistence)
        }
        Command::Status => status::run(&context),
        Command::Doctor => doctor::run(&context),
        Command::Metrics(arguments) => metrics::run(&context, arguments),
        Command::Down(_) => down::run(&context),
        Command::Key(Key { next: false }) => key::run(&context),
        Command::Key(Key { next: true }) => key::next(&context),
        Command::Import(arguments) => import::run(&context, &arguments),
        Command::Policy(command) => policy::run(&context, command),
        Command::Ipcache => policy::ipcache(&context),
        Command::Pki(command) => pki::run(&context, command),
    };
    match result {
        Ok(report) => show(&report, cli.json),
        Err(error) => complain(&error, cli.json, cli.verbose),
    }
}

fn show(report: &Report, json: bool) -> ExitCode {
    if !json {
        print!("{report}");
        return report.code().into();
    }
    match serde_json::to_string_pretty(report) {
        Ok(text) => {
            println!("{text}");
            report.code().into()
        }
        Err(error) => {
            eprintln!("{ERROR}error{ERROR:#}: cannot write JSON: {error}");
            ExitCode::FAILURE
        }
    }
}

fn complain(error: &Error, json: bool, verbose: bool) -> ExitCode {
    if json {
        println!("{}", serde_json::json!({ "error": error.to_string() }));
    }
    if let Some(log) = error.verifier_log().filter(|_| verbose) {
        eprintln!("{log}");
    }
    eprintln!("{ERROR}error{ERROR:#}: {error}");
    ExitCode::from(error.code())
}
