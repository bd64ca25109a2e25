//! Faults of every kind against real processes, and what holds after each: whatever was acknowledged was delivered or
//! ended visibly, no completion was stale, nothing stayed leased, and every duplicate is explained (`oracle`).
//!
//! A case is one function, in two sizes: a short one for every run of the tests, the full one with `make faults`.

mod backends;
mod clock;
mod disk;
mod exhausted;
mod kills;
#[path = "../process/load.rs"]
#[allow(dead_code, reason = "its tally is for the tests that need no record on disk")]
mod load;
mod oracle;
#[path = "../process/program.rs"]
#[allow(dead_code, reason = "the other half of it is for the tests of starting and ending")]
mod program;
mod proxy;
mod record;
mod replies;
mod restarts;
mod scale;
mod stage;
#[path = "../service/support.rs"]
#[allow(dead_code, reason = "the other half of it is for the tests in process")]
mod support;
mod unreachable;
