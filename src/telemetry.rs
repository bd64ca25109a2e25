//! What a running replica tells of itself: logs, metrics and traces. At the bottom of the code map: whatever has something to
//! tell uses it.

pub mod log;
pub mod metrics;
pub mod traces;
