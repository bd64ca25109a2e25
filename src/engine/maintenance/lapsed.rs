//! Records attempts that were lost with their worker at endpoints for which nothing is claimed: paused, disabled, or
//! behind an open circuit.

use std::time::Duration;

use crate::store::Store;
use crate::telemetry::log::tried_again;

const EVERY: Duration = Duration::from_secs(5);

pub(super) async fn run(store: &Store) {
    loop {
        tokio::time::sleep(EVERY).await;
        if let Err(error) = store.lose_lapsed().await {
            tried_again!(error, "lost attempts could not be recorded");
        }
    }
}
