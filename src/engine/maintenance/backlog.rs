//! Counts what is outstanding, so that the bounds hold over what other replicas did too.

use std::time::Duration;

use crate::store::Store;

/// Between two counts at least this, and fifty times what the last one took: a fiftieth of one connection.
const EVERY_MIN: Duration = Duration::from_secs(10);
const SHARE: u32 = 50;

pub(super) async fn run(store: &Store) {
    let mut wait = EVERY_MIN;
    loop {
        tokio::time::sleep(wait).await;
        match store.count_backlog().await {
            Ok(took) => wait = EVERY_MIN.max(took * SHARE),
            Err(error) => tracing::warn!(%error, "the outstanding deliveries could not be counted"),
        }
    }
}
