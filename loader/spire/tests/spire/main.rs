//! `underseal-spire`, as it is installed, against an agent that speaks the official protocol over a unix socket.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod once;
mod refusals;
mod streams;
mod support;
