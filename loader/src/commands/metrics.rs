//! `underseal metrics`: what the node does, as numbers for Prometheus, read at the moment of the call.
//!
//! It works on a node on which nothing is applied, too. What cannot be read is missing and told of; that anything at all is
//! written shows by its time.

use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;

use super::look::Seen;
use super::{Context, Error, Saying};
use crate::config::value::Invalid;
use crate::kernel::error::Error as SystemError;
use crate::kernel::{probe, textfile};
use crate::metrics;
use crate::report::Report;

/// Where to.
#[derive(Args)]
pub struct Arguments {
    /// Put them into this file in one step, for node_exporter's textfile collector; its name ends in .prom
    #[arg(long, value_name = "FILE")]
    output: Option<Textfile>,
}

/// A file that node_exporter's textfile collector reads.
#[derive(Clone)]
struct Textfile(PathBuf);

impl FromStr for Textfile {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let path = Path::new(text);
        if path.extension().is_some_and(|it| it == "prom") {
            return Ok(Self(path.to_owned()));
        }
        Err(Invalid(
            "the textfile collector of node_exporter reads files alone whose name ends in .prom"
                .to_owned(),
        ))
    }
}

/// Runs it.
///
/// # Errors
/// There are no privileges, or the file cannot be written.
pub fn run(context: &Context<'_>, arguments: Arguments) -> Result<Report, Error> {
    if let Some(problem) = probe::privileges() {
        return Err(Error::Problems(vec![problem]));
    }
    let seen = Seen::of(context)?;
    for warning in [&seen.mistakes, &seen.unreadable, &seen.incomparable]
        .into_iter()
        .flatten()
    {
        (context.say)(Saying::Notice(&format!("warning: {warning}\n  ignoring")));
    }
    let metrics = metrics::shown(&seen.observed);
    let Some(Textfile(path)) = arguments.output else {
        return Ok(Report::Metrics { metrics });
    };
    let text = metrics::text(&metrics)
        .map_err(|error| SystemError::new("write", "metrics", io::Error::other(error)))?;
    textfile::replace(&path, &text)?;
    Ok(Report::MetricsWritten {
        file: path.display().to_string(),
    })
}
