//! Opens alerts for endpoints with too many deliveries outstanding, or with one that waits for too long.

use std::time::{Duration, Instant};

use crate::domain::alert::{AlertRules, Finding};
use crate::store::{Result, Store};
use crate::telemetry::log::tried_again;

/// Between two looks at least this, and fifty times what the last one took: some 2 s for 100,000 endpoints with work.
const EVERY_MIN: Duration = Duration::from_secs(2);
const SHARE: u32 = 50;

pub(super) async fn run(store: &Store, rules: &AlertRules) {
    let mut wait = EVERY_MIN;
    loop {
        tokio::time::sleep(wait).await;
        let began = Instant::now();
        match look(store, rules, wait).await {
            Ok(()) => wait = EVERY_MIN.max(began.elapsed() * SHARE),
            Err(error) => tried_again!(error, "backlogs could not be looked at"),
        }
    }
}

async fn look(store: &Store, rules: &AlertRules, every: Duration) -> Result<()> {
    if !store.take_turn("alerts of backlogs", every).await? {
        return Ok(());
    }
    let backlogs = store.backlogs(rules.backlog_outstanding, rules.backlog_age).await?;
    let findings: Vec<Finding> =
        backlogs.iter().filter_map(|(endpoint, count, age)| rules.backlog(*endpoint, *count, *age)).collect();
    store.open_alerts(&findings).await?;
    Ok(())
}
