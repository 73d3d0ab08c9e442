//! Carries out what is left to do on whatever applies single steps: the kernel, or a model of it in tests.
//!
//! An apply is taken back as a whole, whichever of its rounds fails. What cannot be taken back is done last, when
//! all else is in force.

mod failure;

pub use self::failure::{Aftermath, Cause, Failure, NotReached};

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

/// An edge that knows what it is to become.
pub trait Node: Edge {
    /// Looks at itself: what is left to do. Steps that follow are taken back to what was found here.
    ///
    /// # Errors
    /// It cannot be looked at.
    fn left(&mut self) -> Result<Vec<Op>, Self::Error>;

    /// Tells other nodes what concerns them. Returns whether that may have changed something here.
    ///
    /// # Errors
    /// They cannot be told.
    fn speak(&mut self) -> Result<bool, Self::Error>;
}

/// A step may take along what no plan can know of: with its last IPv4 address a device loses its IPv4
/// routes (net/ipv4/fib_frontend.c, `fib_disable_ip`). A second round puts it back.
const ROUNDS: usize = 2;

/// Carries out what is left to do, until nothing is; tells `progress` of each step before it begins. Returns the steps.
///
/// # Errors
/// Something failed. All steps of all rounds have been taken back, the last one first; or the failure says what stays.
pub fn apply<N: Node>(
    node: &mut N,
    mut progress: impl FnMut(&Op),
) -> Result<Vec<Op>, Box<Failure<N::Error>>> {
    let mut run = Run {
        done: Vec::new(),
        last: Vec::new(),
    };
    match run.reach(node, &mut progress) {
        Ok(()) => run.finish(node, &mut progress).map_err(|cause| {
            Box::new(Failure {
                cause: *cause,
                aftermath: Aftermath::InForce,
            })
        }),
        Err(cause) => Err(Box::new(Failure {
            cause: *cause,
            aftermath: run.take_back(node),
        })),
    }
}

/// All rounds of an apply.
struct Run<U> {
    /// What has been done, and how it is taken back.
    done: Vec<(Op, U)>,
    /// What cannot be taken back, and is not done yet.
    last: Vec<Op>,
}

impl<U> Run<U> {
    /// All but the last steps, in rounds.
    fn reach<N: Node<Undo = U>>(
        &mut self,
        node: &mut N,
        progress: &mut impl FnMut(&Op),
    ) -> Result<(), Box<Cause<N::Error>>> {
        let mut left = self.look(node)?;
        for _ in 0..ROUNDS {
            if left.is_empty() {
                break;
            }
            for op in left {
                progress(&op);
                match node.apply(&op) {
                    Ok(undo) => self.done.push((op, undo)),
                    Err(error) => return Err(Box::new(Cause::Step(op, error))),
                }
            }
            left = self.look(node)?;
        }
        if left.is_empty() && node.speak().map_err(Cause::Node)? {
            left = self.look(node)?;
        }
        if left.is_empty() {
            return Ok(());
        }
        Err(Cause::NotReached(NotReached(left)).into())
    }

    /// What is left to do but for the last steps, which are noted. They are not forgotten if nobody sees any more that
    /// they are to be done: a device that was renamed is not looked at once nothing leads to it.
    fn look<N: Node<Undo = U>>(&mut self, node: &mut N) -> Result<Vec<Op>, Box<Cause<N::Error>>> {
        let left = node.left().map_err(Cause::Node)?;
        let (last, left): (Vec<_>, Vec<_>) = left.into_iter().partition(Op::is_last);
        let new = last.into_iter().filter(|op| !self.last.contains(op));
        let new: Vec<_> = new.collect();
        self.last.extend(new);
        Ok(left)
    }

    /// The last steps, as many of them as can be done.
    fn finish<N: Node<Undo = U>>(
        self,
        node: &mut N,
        progress: &mut impl FnMut(&Op),
    ) -> Result<Vec<Op>, Box<Cause<N::Error>>> {
        let mut steps: Vec<Op> = self.done.into_iter().map(|(op, _)| op).collect();
        if self.last.is_empty() {
            return Ok(steps);
        }
        let failed = remove(node, &self.last, progress);
        if !failed.is_empty() {
            return Err(Cause::Remains(failed).into());
        }
        let left = node.left().map_err(Cause::Node)?;
        if !left.is_empty() {
            return Err(Cause::NotReached(NotReached(left)).into());
        }
        steps.extend(self.last);
        Ok(steps)
    }

    /// Takes all steps back, the last one first. If one cannot be, those before it that close stay, because they would be
    /// missing; everything else goes back all the same.
    fn take_back<E: Edge<Undo = U>>(self, edge: &mut E) -> Aftermath<E::Error> {
        if self.done.is_empty() {
            return Aftermath::Untouched;
        }
        let (mut failed, mut stay) = (Vec::new(), Vec::new());
        let left_over = self.done.iter().filter_map(|(op, _)| op.leaves()).collect();
        for (op, undo) in self.done.into_iter().rev() {
            if !failed.is_empty() && op.closes() {
                stay.push(op);
            } else if let Err(error) = edge.undo(undo) {
                failed.push((op, error));
            }
        }
        if failed.is_empty() {
            return Aftermath::TakenBack { left_over };
        }
        Aftermath::Partly { failed, stay }
    }
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
