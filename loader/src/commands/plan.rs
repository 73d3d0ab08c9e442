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
    let comparison = Comparison::of(&config)?;
    let mut warnings = comparison.warnings.clone();
    warnings.extend(lacking(&config));
    let refusals = comparison.cut_off.iter();
    warnings.extend(refusals.map(|why| format!("{why}; apply would change nothing")));
    Ok(Report::Plan(Changes {
        steps: Step::all(comparison.plan()),
        warnings,
        ..Changes::default()
    }))
}
