//! Puts on record what was counted, and forgets what no window reaches any more.

use std::time::Duration;

use crate::store::Store;
use crate::telemetry::log::tried_again;

const EVERY: Duration = Duration::from_secs(10);
/// Records between two looks for old rows.
const PRUNE_AFTER: u32 = 30;
const BATCH: u32 = 5_000;

pub(super) async fn run(store: &Store) {
    for round in 1_u32.. {
        tokio::time::sleep(EVERY).await;
        record(store).await;
        if round % PRUNE_AFTER == 0 {
            prune(store).await;
        }
    }
}

/// What has come since the last time; kept for the next where the database does not take it.
pub(super) async fn record(store: &Store) {
    if let Err(error) = store.record_stats().await {
        tried_again!(error, "statistics could not be put on record; trying again");
    }
}

async fn prune(store: &Store) {
    loop {
        match store.prune_stats(BATCH).await {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => return tried_again!(error, "old statistics could not be forgotten"),
        }
    }
}
