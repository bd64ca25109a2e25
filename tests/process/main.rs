//! `hooklane` as a process: how it starts, how it ends, and what survives when it, or its database, is killed.

mod ending;
mod faults;
mod load;
#[allow(dead_code, reason = "its name is for the tests of faults")]
mod program;
mod starting;
#[path = "../service/support.rs"]
#[allow(dead_code, reason = "the other half of it is for the tests in process")]
mod support;
