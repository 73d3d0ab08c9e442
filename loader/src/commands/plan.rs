//! `underseal plan`: what would `apply` do? Changes nothing.

use super::{Comparison, Context, Error, lacking, preflight};
use crate::report::{Changes, Report, Step};

/// Runs it.
///
/// # Errors
/// The file is not in order, or the node cannot be looked at.
pub fn run(context: &Context<'_>) -> Result<Report, Error> {
    let config = context.load()?;
    preflight(&config)?;
    let mut comparison = Comparison::of(&config)?;
    comparison.warnings.extend(lacking(&config));
    Ok(Report::Plan(Changes {
        steps: Step::all(comparison.plan()),
        warnings: comparison.warnings,
        ..Changes::default()
    }))
}
