//! An agent, a CA, and the program under test.

pub(crate) mod agent;
pub(crate) mod ca;
pub(crate) mod program;
#[rustfmt::skip]
#[allow(
    clippy::all,
    clippy::too_many_lines,
    unreachable_pub,
    reason = "generated: see proto/workload.proto"
)]
pub(crate) mod workload;
