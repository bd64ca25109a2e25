//! Works on replays, step by step. Each is worked on by one replica at a time, whichever has it.

use std::time::Duration;

use crate::store::{Store, Worked};
use crate::telemetry::log::tried_again;

/// How often to look for a replay that another replica started.
const EVERY: Duration = Duration::from_millis(500);
/// The wait after a step that failed.
const RETRY: Duration = Duration::from_secs(1);

pub(super) async fn run(store: &Store) {
    loop {
        let wait = match store.work_on_replays().await {
            Ok(Worked::Again(wait)) => wait,
            Ok(Worked::Idle) => EVERY,
            Err(error) => {
                tried_again!(error, "a replay could not be worked on; trying again");
                RETRY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = store.replay_started() => {}
        }
    }
}
