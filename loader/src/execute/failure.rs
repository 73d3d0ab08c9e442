//! An apply that failed: why, and what has become of its steps.

use std::fmt;

use crate::op::Op;

/// An apply that failed.
#[derive(Debug)]
pub struct Failure<E> {
    /// Why.
    pub cause: Cause<E>,
    /// What became of its steps.
    pub aftermath: Aftermath<E>,
}

/// Why an apply failed.
#[derive(Debug)]
pub enum Cause<E> {
    /// A step failed.
    Step(Op, E),
    /// The node could not be looked at between two rounds, or other nodes not be told.
    Node(E),
    /// All steps were carried out, and yet the kernel shows something else.
    NotReached(NotReached),
    /// These of the last steps failed.
    Remains(Vec<(Op, E)>),
}

/// What is still to do although all steps were carried out.
#[derive(Debug)]
pub struct NotReached(pub Vec<Op>);

/// What became of the steps of an apply that failed.
#[derive(Debug)]
pub enum Aftermath<E> {
    /// There were none: the failure came before the end of the first.
    Untouched,
    /// All of them, of all rounds, were taken back.
    TakenBack {
        /// What they have made that is no part of the node's state.
        left_over: Vec<&'static str>,
    },
    /// Some could not be taken back.
    Partly {
        /// These, the last one first, for these reasons.
        failed: Vec<(Op, E)>,
        /// These were not tried, because they close.
        stay: Vec<Op>,
    },
    /// They are in force. The failure came after all steps that can be taken back.
    InForce,
}

impl<E: fmt::Display> fmt::Display for Failure<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(f)?;
        let which = match &self.cause {
            Cause::Step(..) => "steps before it",
            Cause::Node(_) | Cause::NotReached(_) | Cause::Remains(_) => "steps",
        };
        match &self.aftermath {
            Aftermath::Untouched => f.write_str("\n  nothing was changed"),
            Aftermath::TakenBack { left_over } => {
                write!(f, "\n  all {which} were taken back")?;
                let mut lines = left_over.iter();
                lines.try_for_each(|line| write!(f, "\n  {line}"))
            }
            Aftermath::Partly { failed, stay } => {
                f.write_str("\n  these steps could not be taken back:")?;
                with_reasons(f, failed)?;
                if !stay.is_empty() {
                    f.write_str(
                        "\n  these stay, so that the node is not more open than it was before:",
                    )?;
                    lines(f, stay)?;
                }
                write!(
                    f,
                    "\n  all other {which} were taken back; apply again when the cause is gone"
                )
            }
            Aftermath::InForce => f.write_str(
                "\n  all other steps stay: the node is what the configuration says but for this; apply again when the \
                 cause is gone, or do it by hand",
            ),
        }
    }
}

impl<E: fmt::Display> fmt::Display for Cause<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step(op, error) => write!(f, "{error}\n  step: {op}"),
            Self::Node(error) => error.fmt(f),
            Self::NotReached(left) => left.fmt(f),
            Self::Remains(failed) => {
                f.write_str("cannot remove what is of no use any more:")?;
                with_reasons(f, failed)
            }
        }
    }
}

impl fmt::Display for NotReached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the kernel does not show what was set; still to do:")?;
        lines(f, &self.0)
    }
}

fn lines(f: &mut fmt::Formatter<'_>, ops: &[Op]) -> fmt::Result {
    ops.iter().try_for_each(|op| write!(f, "\n    {op}"))
}

fn with_reasons<E: fmt::Display>(f: &mut fmt::Formatter<'_>, failed: &[(Op, E)]) -> fmt::Result {
    let mut failed = failed.iter();
    failed.try_for_each(|(op, error)| write!(f, "\n    {op}\n      {error}"))
}

impl<E: fmt::Display + fmt::Debug> std::error::Error for Failure<E> {}
