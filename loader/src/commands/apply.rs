//! `underseal apply`: makes the node what the file says.

use super::{Comparison, Context, Error, Saying, connections, lacking, preflight, renamed};
use crate::execute;
use crate::kernel::carry_out::Kernel;
use crate::kernel::lock::Lock;
use crate::report::{Changes, Report, Step};

/// A step may take along what no plan can know of: with its last IPv4 address a device loses its IPv4
/// routes (net/ipv4/fib_frontend.c, `fib_disable_ip`). A second round puts it back.
const ROUNDS: usize = 2;

/// Runs it.
///
/// # Errors
/// The file is not in order, the machine lacks something, or a step failed. Nothing is more open
/// than before then.
pub fn run(context: &Context<'_>) -> Result<Report, Error> {
    let config = context.load()?;
    preflight(&config)?;
    let _lock = Lock::take(context.patience, context.waiting())?;

    let (certificates, mut warnings) = renamed(&config);
    warnings.extend(lacking(&config));
    let mut comparison = Comparison::of(&config)?;
    warnings.append(&mut comparison.warnings);
    let (mut done, mut interventions) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let ops = comparison.plan();
        if ops.is_empty() {
            break;
        }
        let mut kernel = Kernel::new(comparison.observed.clone(), context.controls);
        execute::apply(&mut kernel, &ops, |op| (context.say)(Saying::Step(op)))?;
        interventions.extend(connections(kernel.interventions()));
        done.extend(ops);
        comparison = Comparison::of(&config)?;
    }
    let left = comparison.plan();
    if !left.is_empty() {
        return Err(Error::NotReached(left));
    }
    Ok(Report::Apply(Changes {
        steps: Step::all(done),
        certificates,
        interventions,
        warnings,
    }))
}
