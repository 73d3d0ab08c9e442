//! `underseal apply`: makes the node what the file says.

use super::{Comparison, Context, Error, Saying, connections, lacking, preflight, renamed};
use crate::config::Config;
use crate::execute;
use crate::kernel::carry_out::Kernel;
use crate::kernel::lock::Lock;
use crate::kernel::switch::{self, Insistence};
use crate::report::{Changes, Report, Step};
use crate::rotation;

/// A step may take along what no plan can know of: with its last IPv4 address a device loses its IPv4
/// routes (net/ipv4/fib_frontend.c, `fib_disable_ip`). A second round puts it back.
const ROUNDS: usize = 2;

/// Runs it.
///
/// # Errors
/// The file is not in order, the machine lacks something, a key would go that peers use, or a step failed. Nothing is
/// more open than before then.
pub fn run(context: &Context<'_>, insistence: Insistence) -> Result<Report, Error> {
    let config = context.load()?;
    preflight(&config)?;
    let _lock = Lock::take(context.patience, context.waiting())?;

    let mut comparison = Comparison::of(&config)?;
    if insistence == Insistence::Sessions {
        comparison.refuse_to_cut_off()?;
    }
    let (certificates, mut warnings) = renamed(&config);
    warnings.extend(lacking(&config));
    warnings.append(&mut comparison.warnings);
    let (mut done, mut interventions) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let ops = comparison.plan();
        if ops.is_empty() {
            break;
        }
        let kernel = Kernel::new(comparison.observed.clone(), context.controls);
        let mut kernel = kernel.insisting(insistence);
        execute::apply(&mut kernel, &ops, |op| (context.say)(Saying::Step(op)))?;
        interventions.extend(connections(kernel.interventions()));
        warnings.extend_from_slice(kernel.warnings());
        done.extend(ops);
        comparison = Comparison::of(&config)?;
    }
    if speak(&config)? {
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

/// Other nodes hear which key this one uses of them, or are asked which of this one's two they use.
///
/// Returns whether that may have changed a map.
fn speak(config: &Config) -> Result<bool, Error> {
    let contacts = rotation::contacts(config);
    if contacts.iter().any(|contact| contact.next.is_some()) {
        switch::ask(&contacts)?;
        return Ok(true);
    }
    switch::announce(&contacts)?;
    Ok(false)
}
