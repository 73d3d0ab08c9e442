//! `underseal apply`: makes the node what the file says.

use super::{
    Aborted, Comparison, Context, Error, Saying, connections, lacking, preflight, renamed,
};
use crate::config::Config;
use crate::execute::{self, Edge, Node};
use crate::kernel::carry_out::{Kernel, StepError, Undo};
use crate::kernel::error::Error as SystemError;
use crate::kernel::lock::Lock;
use crate::kernel::switch::{self, Insistence};
use crate::op::Op;
use crate::report::{Changes, Report, Step};
use crate::rotation;

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
    let kernel = Kernel::new(comparison.observed.clone(), context.controls);
    let mut applying = Applying {
        config: &config,
        kernel: kernel.insisting(insistence),
        first: Some(comparison),
    };
    let outcome = execute::apply(&mut applying, |op| (context.say)(Saying::Step(op)));
    let interventions = connections(applying.kernel.interventions());
    match outcome {
        Ok(steps) => {
            warnings.extend_from_slice(applying.kernel.warnings());
            Ok(Report::Apply(Changes {
                steps: Step::all(steps),
                certificates,
                interventions,
                warnings,
            }))
        }
        Err(failure) => Err(Error::Aborted(Box::new(Aborted {
            failure: *failure,
            certificates,
            interventions,
        }))),
    }
}

/// The kernel on its way to what a configuration says.
struct Applying<'a> {
    config: &'a Config,
    kernel: Kernel,
    /// How it was before the first step; nobody has to look again for that.
    first: Option<Comparison>,
}

impl Edge for Applying<'_> {
    type Undo = Undo;
    type Error = StepError;

    fn apply(&mut self, op: &Op) -> Result<Undo, StepError> {
        self.kernel.apply(op)
    }

    fn undo(&mut self, undo: Undo) -> Result<(), StepError> {
        self.kernel.undo(undo)
    }
}

impl Node for Applying<'_> {
    fn left(&mut self) -> Result<Vec<Op>, StepError> {
        let comparison = match self.first.take() {
            Some(comparison) => comparison,
            None => Comparison::of(self.config)?,
        };
        let ops = comparison.plan();
        self.kernel.found(comparison.observed);
        Ok(ops)
    }

    fn speak(&mut self) -> Result<bool, StepError> {
        Ok(speak(self.config)?)
    }
}

/// Other nodes hear which key this one uses of them, or are asked which of this one's two they use.
///
/// Returns whether that may have changed a map.
fn speak(config: &Config) -> Result<bool, SystemError> {
    let contacts = rotation::contacts(config);
    if contacts.iter().any(|contact| contact.next.is_some()) {
        switch::ask(&contacts)?;
        return Ok(true);
    }
    switch::announce(&contacts)?;
    Ok(false)
}
