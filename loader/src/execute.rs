//! Carries out a plan on whatever applies single steps: the kernel, or a model of it in tests.

use std::fmt;

use crate::op::Op;

/// What carries out single steps.
pub trait Edge {
    /// What is needed to take a step back.
    type Undo;
    /// Why a step failed.
    type Error: std::error::Error;

    /// Carries out a step, whole or not at all.
    ///
    /// # Errors
    /// The step was not carried out.
    fn apply(&mut self, op: &Op) -> Result<Self::Undo, Self::Error>;

    /// Takes a step back.
    ///
    /// # Errors
    /// It was not taken back, or not wholly.
    fn undo(&mut self, undo: Self::Undo) -> Result<(), Self::Error>;
}

/// A step that failed.
#[derive(Debug)]
pub struct Failure<E> {
    /// The step.
    pub op: Op,
    /// Why.
    pub error: E,
    /// What became of the steps before it.
    pub undone: Undone<E>,
}

/// What became of the steps before the one that failed.
#[derive(Debug)]
pub enum Undone<E> {
    /// All of them were taken back: the kernel is as it was.
    All,
    /// The step here could not be taken back, for this reason; so nothing before it was: what was
    /// done first closes, and it stays closed.
    UpTo(Op, E),
}

impl<E: fmt::Display> fmt::Display for Failure<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  step: {}", self.error, self.op)?;
        match &self.undone {
            Undone::All => write!(f, "\n  all steps before it were taken back"),
            Undone::UpTo(op, error) => write!(
                f,
                "\n  taking back stopped at: {op}\n    {error}\n  what was done before that stays \
                 and keeps the node closed; apply again when the cause is gone"
            ),
        }
    }
}

impl<E: fmt::Display + fmt::Debug> std::error::Error for Failure<E> {}

/// Carries out `ops` in order; tells `progress` of each before it begins.
///
/// # Errors
/// The first step that fails. Those before it have been taken back, the last one first.
pub fn apply<E: Edge>(
    edge: &mut E,
    ops: &[Op],
    mut progress: impl FnMut(&Op),
) -> Result<(), Box<Failure<E::Error>>> {
    let mut done = Vec::new();
    for op in ops {
        progress(op);
        match edge.apply(op) {
            Ok(undo) => done.push((op, undo)),
            Err(error) => {
                return Err(Box::new(Failure {
                    op: op.clone(),
                    error,
                    undone: take_back(edge, done),
                }));
            }
        }
    }
    Ok(())
}

fn take_back<E: Edge>(edge: &mut E, done: Vec<(&Op, E::Undo)>) -> Undone<E::Error> {
    for (op, undo) in done.into_iter().rev() {
        if let Err(error) = edge.undo(undo) {
            return Undone::UpTo(op.clone(), error);
        }
    }
    Undone::All
}

/// Carries out as many of `ops` as can be: a removal goes on after a failure.
///
/// Returns the steps that failed, none if all is well.
#[must_use]
pub fn remove<E: Edge>(
    edge: &mut E,
    ops: &[Op],
    mut progress: impl FnMut(&Op),
) -> Vec<(Op, E::Error)> {
    let mut failed = Vec::new();
    for op in ops {
        progress(op);
        if let Err(error) = edge.apply(op) {
            failed.push((op.clone(), error));
        }
    }
    failed
}
