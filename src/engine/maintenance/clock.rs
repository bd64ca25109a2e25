//! Follows the database's clock.

use std::time::Duration;

use crate::store::Store;

const EVERY: Duration = Duration::from_secs(5);

pub(super) async fn run(store: &Store) {
    loop {
        tokio::time::sleep(EVERY).await;
        if let Err(error) = store.track_clock().await {
            tracing::debug!(%error, "the database's clock could not be read");
        }
    }
}
