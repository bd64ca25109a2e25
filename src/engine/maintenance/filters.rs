//! Puts on record how often filters have failed.

use std::time::Duration;

use crate::store::Store;
use crate::telemetry::log::tried_again;

const EVERY: Duration = Duration::from_secs(1);

pub(super) async fn run(store: &Store) {
    loop {
        tokio::time::sleep(EVERY).await;
        record(store).await;
    }
}

/// What has come since the last time; kept for the next where the database does not take it.
pub(super) async fn record(store: &Store) {
    if let Err(error) = store.record_filter_errors().await {
        tried_again!(error, "failures of filters could not be put on record; trying again");
    }
}
