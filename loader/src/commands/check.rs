//! `underseal check`: is the file in order? Needs no privileges and looks at nothing else.

use super::{Context, Error, lacking};
use crate::report::{Report, Summary};

/// Runs it.
///
/// # Errors
/// The file is not in order.
pub fn run(context: &Context<'_>) -> Result<Report, Error> {
    let config = context.load()?;
    let file = context.path().display().to_string();
    let warnings = lacking(&config);
    Ok(Report::Check(Summary::of(&file, &config, warnings)))
}
