//! `underseal doctor`: everything that can be wrong, with what to do about it. It changes nothing.

use super::look::Seen;
use super::{Context, Error};
use crate::doctor::Facts;
use crate::kernel::{examine, probe};
use crate::op::Op;
use crate::op::datapath::DatapathOp;
use crate::report::{Diagnosis, Report, Step};
use crate::state::{Attachment, State};

/// Runs it.
///
/// # Errors
/// There are no privileges to look at the node.
pub fn run(context: &Context<'_>) -> Result<Report, Error> {
    if let Some(problem) = probe::privileges() {
        return Err(Error::Problems(vec![problem]));
    }
    let seen = Seen::of(context)?;
    let machine = examine::machine(seen.config.as_ref(), seen.state.as_ref());
    let detached = seen.steps.as_deref().zip(seen.state.as_ref());
    let detached = detached.map(|(steps, state)| detached_of(steps, state));
    let facts = Facts {
        observed: seen.observed,
        unreadable: seen.unreadable,
        file: context.path().display().to_string(),
        mistakes: seen.mistakes,
        differences: seen
            .steps
            .map(|steps| steps.into_iter().map(|it| it.line).collect()),
        incomparable: seen.incomparable,
        warnings: seen.warnings,
        detached: detached.unwrap_or_default(),
        ..machine
    };
    Ok(Report::Doctor(Diagnosis::of(&facts)))
}

/// Programs that an apply would attach, and not merely replace.
fn detached_of(steps: &[Step], state: &State) -> Vec<String> {
    let is_attached = |it: &Attachment| {
        let mut datapaths = state.datapath.iter();
        datapaths.any(|datapath| datapath.attachments.contains(it))
    };
    let attached = steps.iter().filter_map(|step| match &step.op {
        Op::Datapath(DatapathOp::Attach(attachment)) => Some(attachment),
        _ => None,
    });
    attached
        .filter(|it| !is_attached(it))
        .map(Attachment::pin)
        .collect()
}
