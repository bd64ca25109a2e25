//! Makes the coming days' partitions, a week ahead: a failure has days to be noticed.

use std::time::Duration;

use crate::store::Store;

const EVERY: Duration = Duration::from_secs(3600);
const RETRY: Duration = Duration::from_secs(60);

pub(super) async fn run(store: &Store) {
    let mut wait = EVERY;
    loop {
        tokio::time::sleep(wait).await;
        wait = match store.make_partitions().await {
            Ok(()) => EVERY,
            Err(error) => {
                tracing::error!(%error, "partitions could not be made ahead");
                RETRY
            }
        };
    }
}
