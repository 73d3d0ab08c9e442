//! Every way to send and receive on a TCP socket, as named cases, byte by byte.
//!
//! ```text
//! ways server ADDR4 ADDR6                             serves all cases, until it is killed
//! ways client ADDR4 ADDR6 [--held PID] [--only CASE] [--family v4|v6|mapped]
//!                                                     plays all cases (or some), one line each
//! ```
//!
//! A line says which case it was, over which addresses, whether its calls were made before or after the hand-over,
//! and what client and server have observed. The two lines of one case, sealed and unsealed, can so be compared. With
//! `--held` the connections are to be sealed by the helper with this process id: it is stopped while calls are made
//! "before", and each of them must then be asleep in the kernel, or the case fails.
//!
//! Client and server agree on what comes next over a unix socket, never over the connection that is tried.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod cases;
mod control;
mod data;
mod end;
mod endings;
mod helper;
mod options;
mod peers;
mod ready;
mod refused;
mod sys;
mod task;
mod transfer;

use std::env;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    sys::count_sigpipe()?;
    match words[..] {
        ["server", v4, v6] => peers::serve(v4.parse()?, v6.parse()?),
        ["client", v4, v6, ref options @ ..] => {
            let mut choice = peers::Choice::default();
            for option in options.chunks(2) {
                match *option {
                    ["--held", pid] => choice.helper = Some(pid.parse()?),
                    ["--only", case] => choice.case = Some(case.to_owned()),
                    ["--family", family] => choice.family = Some(family.to_owned()),
                    _ => bail!("unknown option {option:?}"),
                }
            }
            peers::play(v4.parse()?, v6.parse()?, &choice)
        }
        _ => bail!("see the head of this program's source for its arguments"),
    }
}
