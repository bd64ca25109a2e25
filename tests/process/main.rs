//! `hooklane` as a process: how it starts and how it ends, and the commands that call it. What survives when it is
//! killed: `tests/faults`.

mod abuse;
mod commands;
mod ending;
mod load;
mod logging;
mod panicking;
mod policies;
#[allow(dead_code, reason = "its name is for the tests of faults")]
mod program;
mod replicas;
mod sealing;
mod starting;
#[path = "../service/support.rs"]
#[allow(dead_code, reason = "the other half of it is for the tests in process")]
mod support;
