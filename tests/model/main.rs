//! The claim protocol as a model: searched for every interleaving of a bounded world, found wrong wherever a rule of it
//! is left out, and held against the real statements step by step.

mod check;
mod paths;
mod properties;
mod protocol;
mod replay;
mod rows;
#[path = "../service/support.rs"]
#[allow(dead_code, reason = "the other half of it is for the tests of the service")]
mod support;
