//! Being told: finds the conditions that alerts are about, opens and closes the alerts, and publishes the operational
//! events that tell of them and of deliveries that failed for good.
//!
//! None of it is in a delivery's way. Every step is safe on any number of replicas at once: an open alert is unique, and
//! an event that is published again is the same event by its key. Turns only save work.

mod backlogs;
mod telling;
mod watch;

use std::time::Duration;

use crate::domain::alert::AlertRules;
use crate::store::{Publisher, Store};
use crate::telemetry::log::tried_again;

const PRUNE_EVERY: Duration = Duration::from_secs(60);
const PRUNE_BATCH: u32 = 5_000;

pub(super) async fn run(store: &Store, publisher: &Publisher, rules: &AlertRules) {
    tokio::join!(
        watch::look_often(store, rules),
        watch::count_often(store, rules),
        watch::look_at_all(store, rules),
        backlogs::run(store, rules),
        telling::of_alerts(store, publisher, rules),
        telling::of_failures(store, publisher),
        prune(store, rules),
    );
}

/// Puts on record what was counted; kept for the next time where the database does not take it.
pub(super) async fn record(store: &Store) {
    if let Err(error) = store.record_counts().await {
        tried_again!(error, "attempts could not be added up; trying again");
    }
}

/// Removes alerts that were closed long ago, and minutes that count no more.
async fn prune(store: &Store, rules: &AlertRules) {
    loop {
        tokio::time::sleep(PRUNE_EVERY).await;
        loop {
            let pruned = async {
                let alerts = store.prune_alerts(rules.retention, PRUNE_BATCH).await?;
                Ok::<_, crate::store::Error>(alerts.max(store.prune_minutes(PRUNE_BATCH).await?))
            };
            match pruned.await {
                Ok(most) if most < u64::from(PRUNE_BATCH) => break,
                Ok(_) => {}
                Err(error) => {
                    tried_again!(error, "old alerts could not be removed");
                    break;
                }
            }
        }
    }
}
