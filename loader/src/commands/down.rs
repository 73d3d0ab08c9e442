//! `underseal down`: removes all that `apply` has made. The private key file stays.

use super::{Context, Error, Left, Saying, connections};
use crate::execute::{self, NotReached};
use crate::kernel::carry_out::Kernel;
use crate::kernel::lock::Lock;
use crate::kernel::{observe, probe};
use crate::plan::plan;
use crate::report::{Changes, Report, Step};
use crate::state::State;

/// Runs it. What is to be removed is found in the kernel; the file only tells where else to look,
/// so a file that is wrong is no obstacle.
///
/// # Errors
/// Something could not be removed; everything else was.
pub fn run(context: &Context<'_>) -> Result<Report, Error> {
    let (config, mut warnings) = match context.load_if_any() {
        Ok(config) => (config, Vec::new()),
        Err(error) => (None, vec![format!("{error}\n  ignoring")]),
    };
    if let Some(problem) = probe::privileges() {
        return Err(Error::Problems(vec![problem]));
    }
    let _lock = Lock::take(context.patience, context.waiting())?;

    let observed = observe::state(config.as_ref())?;
    let ops = plan(&State::default(), &observed);
    let mut kernel = Kernel::new(observed, context.controls);
    let failed = execute::remove(&mut kernel, &ops, |op| (context.say)(Saying::Step(op)));
    if !failed.is_empty() {
        return Err(Error::Left(Left {
            failed,
            interventions: connections(kernel.interventions()),
        }));
    }

    let left = plan(&State::default(), &observe::state(config.as_ref())?);
    if !left.is_empty() {
        return Err(Error::NotReached(NotReached(left)));
    }
    warnings.extend_from_slice(kernel.warnings());
    Ok(Report::Down(Changes {
        certificates: None,
        steps: Step::all(ops),
        interventions: connections(kernel.interventions()),
        warnings,
    }))
}
