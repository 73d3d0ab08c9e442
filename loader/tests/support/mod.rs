//! What several test files need.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod edge;
pub(crate) mod golden;
pub(crate) mod model;
pub(crate) mod promtool;
pub(crate) mod situation;
