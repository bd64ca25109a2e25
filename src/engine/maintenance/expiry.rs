//! Expires what waits past its expire_time, wherever it waits.

use std::time::Duration;

use crate::store::Store;
use crate::telemetry::log::tried_again;

/// An index tells at once that nothing is to be expired.
const EVERY: Duration = Duration::from_millis(500);

pub(super) async fn run(store: &Store) {
    loop {
        tokio::time::sleep(EVERY).await;
        loop {
            match store.expire().await {
                Ok((_, true)) => {}
                Ok((_, false)) => break,
                Err(error) => {
                    tried_again!(error, "deliveries past their expire_time could not be expired");
                    break;
                }
            }
        }
    }
}
