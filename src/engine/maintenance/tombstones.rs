//! Cancels what is outstanding for deleted endpoints, in batches, until nothing is left.

use std::time::Duration;

use crate::store::{Result, Store};
use crate::telemetry::log::tried_again;

const EVERY: Duration = Duration::from_secs(2);

pub(super) async fn run(store: &Store) {
    loop {
        tokio::time::sleep(EVERY).await;
        if let Err(error) = cancel_all(store).await {
            tried_again!(error, "deliveries of deleted endpoints could not be canceled");
        }
    }
}

async fn cancel_all(store: &Store) -> Result<()> {
    for endpoint in store.tombstones().await? {
        while store.cancel_deleted(endpoint).await? > 0 {}
        store.rest_tombstone(endpoint).await?;
    }
    Ok(())
}
