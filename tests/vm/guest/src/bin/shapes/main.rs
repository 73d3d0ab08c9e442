//! A client and a server that use their sockets in every odd way that programs do: each case is named, runs over
//! IPv4 and IPv6, and compares every byte.
//!
//! ```text
//! shapes run EXPECT HELPER SHOP CART SHOP4,SHOP6 CART4,CART6 WHAT...
//!     EXPECT   plain: nothing seals, all cases succeed; sealed: those of kind `refused` end in a reset
//!     HELPER   process id of the handshake helper, which some cases stop for a moment; 0 if there is none
//!     SHOP CART  network namespaces of clients and servers in /run/netns, then their addresses
//!     WHAT     kinds (apart, inside, refused, storm) or names of cases
//! shapes talk FD     the rest of a case whose descriptor was handed down over exec
//! ```
//!
//! A case is two halves, a process each, which tell each other how far they are; this program forks them, and waits.
//! It prints a line for each, then how often each counter of Underseal must have grown by that. A half that hangs has
//! failed.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod cases;
mod data;
mod lab;
mod odd;
mod passing;
mod processes;
mod signals;
mod storm;
mod sys;
mod uring;
mod wait;

use std::collections::BTreeMap;
use std::env;
use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use crate::cases::{CASES, Case, Families, Kind};
use crate::lab::{Expect, Lab};

fn main() -> Result<ExitCode> {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["run", expect, helper, shop, cart, own, peer, ref what @ ..] => {
            let lab = Lab {
                expect: Expect::parse(expect)?,
                helper: helper.parse()?,
                netns: [shop, cart].map(str::to_owned),
                addresses: [addresses(own)?, addresses(peer)?],
            };
            run(&lab, what)
        }
        ["talk", fd] => processes::inherited(fd.parse()?).map(|()| ExitCode::SUCCESS),
        _ => bail!("see the head of this program's source for its arguments"),
    }
}

/// An IPv4 address and an IPv6 address.
fn addresses(words: &str) -> Result<[IpAddr; 2]> {
    let (v4, v6) = words.split_once(',').context("two addresses")?;
    Ok([v4.parse()?, v6.parse()?])
}

fn run(lab: &Lab, what: &[&str]) -> Result<ExitCode> {
    let wanted = |case: &&Case| what.iter().any(|w| *w == case.name || case.kind.is(w));
    let mut failures = 0;
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    let mut port = 7100;
    for case in CASES.iter().filter(wanted) {
        for family in [0, 1] {
            if family == 1 && case.families == Families::V4 {
                continue;
            }
            port += 1;
            let name = format!("{} {}", case.name, ["v4", "v6"][family]);
            let started = std::time::Instant::now();
            match lab.run(case, family, port) {
                Ok(()) => println!("{name}: ok, {} ms", started.elapsed().as_millis()),
                Err(error) => {
                    failures += 1;
                    println!("{name}: FAILED: {error:#}");
                }
            }
            for counter in case.counters {
                *counts.entry(counter).or_default() += 1;
            }
        }
    }
    for (counter, count) in counts {
        println!("count {counter} {count}");
    }
    println!("{failures} failed");
    Ok(ExitCode::from(u8::from(failures > 0)))
}

impl Kind {
    fn is(self, word: &str) -> bool {
        match self {
            Self::Apart => word == "apart",
            Self::Inside => word == "inside",
            Self::Refused => word == "refused",
            Self::Storm => word == "storm",
        }
    }
}
