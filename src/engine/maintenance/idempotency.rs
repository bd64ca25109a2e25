//! Forgets idempotency keys whose window has ended.

use std::time::Duration;

use crate::store::Store;
use crate::telemetry::log::tried_again;

const EVERY: Duration = Duration::from_secs(30);
const BATCH: u32 = 5_000;

pub(super) async fn run(store: &Store) {
    loop {
        tokio::time::sleep(EVERY).await;
        loop {
            match store.prune_idempotency_keys(BATCH).await {
                Ok(pruned) if pruned < u64::from(BATCH) => break,
                Ok(_) => {}
                Err(error) => {
                    tried_again!(error, "old idempotency keys could not be forgotten");
                    break;
                }
            }
        }
    }
}
