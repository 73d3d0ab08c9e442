//! `underseal-spire`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    underseal_spire::cli::main()
}
