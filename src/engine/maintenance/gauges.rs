//! Reads how everything on the database stands, for the metrics. Each replica does: whichever is asked knows.

use std::sync::Arc;
use std::time::Duration;

use crate::store::Store;

/// Between two looks at least this, and two hundred times what the last one took.
const EVERY_MIN: Duration = Duration::from_secs(10);
const SHARE: u32 = 200;

pub(super) async fn run(store: &Arc<Store>) {
    loop {
        let wait = match store.read_gauges().await {
            Ok(took) => EVERY_MIN.max(took * SHARE),
            Err(error) => {
                // The metric says so; whoever works with the database has told.
                tracing::debug!(%error, "the gauges could not be read");
                EVERY_MIN
            }
        };
        tokio::time::sleep(wait).await;
    }
}
