//! `underseal` with defences left out: `UNDERSEAL_WITHOUT=hold,guard`. For the scenarios `controls` and `preempt` alone.

use std::process::ExitCode;

use underseal::cli;
use underseal::controls::Controls;

fn main() -> ExitCode {
    let without = std::env::var("UNDERSEAL_WITHOUT").unwrap_or_default();
    let is_out = |name: &str| without.split(',').any(|defence| defence == name);
    cli::main(Controls {
        no_hold: is_out("hold"),
        no_guard: is_out("guard"),
        no_record: is_out("record"),
    })
}
