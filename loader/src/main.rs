//! Underseal's command line: see `underseal::cli`.

use std::process::ExitCode;

use underseal::cli;
use underseal::controls::Controls;

fn main() -> ExitCode {
    cli::main(Controls::default())
}
