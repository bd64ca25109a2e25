//! Counts what is outstanding, so that the bounds hold over what other replicas did too.

use std::time::Duration;

use crate::store::Store;
use crate::telemetry::log::tried_again;

/// Between two counts at least this, and two hundred times what the last one took: a count of a million rows takes a
/// processor for a tenth of a second, which at a fiftieth of the time showed in the p99 of everybody else.
const EVERY_MIN: Duration = Duration::from_secs(10);
const SHARE: u32 = 200;

pub(super) async fn run(store: &Store) {
    let mut wait = EVERY_MIN;
    loop {
        tokio::time::sleep(wait).await;
        match store.count_backlog().await {
            Ok(took) => wait = EVERY_MIN.max(took * SHARE),
            Err(error) => tried_again!(error, "the outstanding deliveries could not be counted"),
        }
    }
}
