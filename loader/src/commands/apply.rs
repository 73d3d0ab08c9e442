//! `underseal apply`: makes the node what the file says.

use super::{Comparison, Context, Error, Saying, connections, preflight};
use crate::execute;
use crate::kernel::carry_out::Kernel;
use crate::kernel::lock::Lock;
use crate::report::{Changes, Report, Step};

/// Runs it.
///
/// # Errors
/// The file is not in order, the machine lacks something, or a step failed. Nothing is more open
/// than before then.
pub fn run(context: &Context<'_>) -> Result<Report, Error> {
    let config = context.load()?;
    preflight(&config)?;
    let _lock = Lock::take(context.patience, context.waiting())?;

    let comparison = Comparison::of(&config)?;
    let ops = comparison.plan();
    let mut kernel = Kernel::new(comparison.observed.clone(), context.controls);
    execute::apply(&mut kernel, &ops, |op| (context.say)(Saying::Step(op)))?;

    if !ops.is_empty() {
        let left = Comparison::of(&config)?.plan();
        if !left.is_empty() {
            return Err(Error::NotReached(left));
        }
    }
    Ok(Report::Apply(Changes {
        steps: Step::all(ops),
        interventions: connections(kernel.interventions()),
        warnings: comparison.warnings,
    }))
}
