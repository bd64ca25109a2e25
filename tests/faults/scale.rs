//! How large each case is: short in every run of the tests, full with `HOOKLANE_FAULTS=full`.

use std::time::Duration;

/// How often each fault happens, and among how many events.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    /// How often a replica is killed.
    pub(crate) kills: usize,
    /// Events acknowledged while replicas are killed.
    pub(crate) kill_events: usize,
    /// Fast restarts of PostgreSQL, and as many immediate ones.
    pub(crate) restarts: usize,
    /// How often PostgreSQL's first process is killed.
    pub(crate) crashes: usize,
    /// Backends terminated, one a second.
    pub(crate) terminations: usize,
    /// How long the database cannot be reached.
    pub(crate) unreachable: Duration,
    /// Commits whose reply is lost.
    pub(crate) lost_replies: usize,
    /// How often the connections, and then the disk, are exhausted.
    pub(crate) exhaustions: usize,
    /// Events acknowledged between two faults of the other cases.
    pub(crate) events: usize,
}

impl Scale {
    /// The size of this run.
    pub(crate) fn of_this_run() -> Self {
        match std::env::var("HOOKLANE_FAULTS").as_deref() {
            Err(_) | Ok("short") => Self::short(),
            Ok("full") => Self::full(),
            Ok(other) => panic!("HOOKLANE_FAULTS is {other:?}; allowed are short and full"),
        }
    }

    const fn short() -> Self {
        Self {
            kills: 3,
            kill_events: 1_500,
            restarts: 1,
            crashes: 1,
            terminations: 5,
            unreachable: Duration::from_secs(8),
            lost_replies: 5,
            exhaustions: 1,
            events: 200,
        }
    }

    const fn full() -> Self {
        Self {
            kills: 20,
            kill_events: 50_000,
            restarts: 10,
            crashes: 10,
            terminations: 60,
            unreachable: Duration::from_secs(60),
            lost_replies: 100,
            exhaustions: 3,
            events: 2_000,
        }
    }
}
