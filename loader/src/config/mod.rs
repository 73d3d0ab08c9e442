//! The configuration: what the file says, checked.

pub mod value;
