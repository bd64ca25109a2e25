//! Lets days leave that are over, and removes what was kept beyond them once nothing needs it.

use std::time::Duration;

use crate::store::{Retired, Store};
use crate::telemetry::log::tried_again;

const EVERY: Duration = Duration::from_secs(3_600);
/// The first look after a start, and the next one where somebody's transaction is waited for.
const RETRY: Duration = Duration::from_secs(60);
/// How often what was kept is looked through: what it was kept for goes by the day.
const PRUNE_EVERY: Duration = Duration::from_secs(6 * 3_600);

pub(super) async fn run(store: &Store) {
    let mut wait = RETRY;
    loop {
        tokio::time::sleep(wait).await;
        wait = retire(store).await;
        if wait < EVERY {
            continue;
        }
        match store.take_turn("prune kept events", PRUNE_EVERY).await {
            Ok(true) => prune(store).await,
            Ok(false) => {}
            Err(error) => tried_again!(error, "whose turn it is to look for events that nothing needs is not known"),
        }
    }
}

/// Lets every day leave that is over; answers when to look again.
async fn retire(store: &Store) -> Duration {
    loop {
        match store.retire_day().await {
            Ok(Retired::Partition(partition)) => tracing::info!(partition, "a day is over and was dropped"),
            Ok(Retired::Waiting(partition)) => {
                tracing::info!(partition, "a day is over and is dropped once older transactions have ended");
                return RETRY;
            }
            Ok(Retired::Nothing | Retired::Elsewhere) => return EVERY,
            Err(error) => {
                tried_again!(error, "days that are over could not be dropped; trying again");
                return RETRY;
            }
        }
    }
}

async fn prune(store: &Store) {
    match store.prune_kept().await {
        Ok(0) => {}
        Ok(rows) => tracing::info!(rows, "what was kept beyond its day and is not needed any more was removed"),
        Err(error) => tried_again!(error, "what was kept beyond its day could not be looked through"),
    }
}
