//! Opens alerts where failures come in a row, by what counts of the last minutes say, and for disabled endpoints; closes
//! those whose condition has ceased to hold.
//!
//! Each process looks at the endpoints that failed in it, which it knows. What was lost with a process is found by a look
//! at all of them now and then.

use std::time::{Duration, Instant};

use crate::domain::alert::{AlertRules, Finding};
use crate::store::{Result, Store};
use crate::telemetry::log::tried_again;

/// Between two looks at the endpoints that failed meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two additions of what was counted.
const COUNT_EVERY: Duration = Duration::from_secs(5);
/// Between two looks at every endpoint.
const ALL_EVERY: Duration = Duration::from_secs(30);
/// Looks at many rows take a fiftieth of the time at most.
const SHARE: u32 = 50;

/// Failures in a row, disabled endpoints, and the ends of alerts.
pub(super) async fn look_often(store: &Store, rules: &AlertRules) {
    let mut wait = LOOK_EVERY;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if let Err(error) = open_failing(store, rules).await {
            // The look at all endpoints finds them.
            tried_again!(error, "failing endpoints could not be looked at");
        }
        let began = Instant::now();
        match open_disabled_and_close(store, rules, wait).await {
            Ok(()) => wait = LOOK_EVERY.max(began.elapsed() * SHARE),
            Err(error) => tried_again!(error, "alerts could not be looked at"),
        }
    }
}

async fn open_failing(store: &Store, rules: &AlertRules) -> Result<()> {
    let faltering = store.take_faltering();
    if faltering.is_empty() {
        return Ok(());
    }
    let past = faltering.iter().filter_map(|one| Some((rules.failing(one.endpoint, one.ended)?, one.is_ordinary)));
    store.open_past_alerts(past.collect()).await?;
    let endpoints: Vec<_> = faltering.iter().map(|one| one.endpoint).collect();
    let failing = store.failures_in_a_row(&endpoints, rules.failing_min()).await?;
    let present: Vec<Finding> =
        failing.iter().filter_map(|(endpoint, count)| rules.failing(*endpoint, *count)).collect();
    store.open_alerts(&present).await?;
    Ok(())
}

async fn open_disabled_and_close(store: &Store, rules: &AlertRules, every: Duration) -> Result<()> {
    if !store.take_turn("alerts", every).await? {
        return Ok(());
    }
    let disabled = store.disabled_unalerted().await?;
    let findings: Vec<Finding> =
        disabled.iter().map(|(endpoint, reason)| Finding::disabled(*endpoint, reason)).collect();
    store.open_alerts(&findings).await?;
    let mut last = None;
    loop {
        let page = store.open_alerts_after(last.as_ref(), rules.window).await?;
        let Some(end) = page.last().copied() else { return Ok(()) };
        let over: Vec<_> =
            page.iter().filter(|open| rules.is_over(open.kind, &open.figures)).map(|open| open.id).collect();
        if !over.is_empty() {
            store.close_alerts(&over).await?;
        }
        last = Some(end);
    }
}

/// What the counts of the last minutes say of the endpoints at which something went wrong just now.
pub(super) async fn count_often(store: &Store, rules: &AlertRules) {
    loop {
        tokio::time::sleep(COUNT_EVERY).await;
        if let Err(error) = count(store, rules).await {
            tried_again!(error, "attempts could not be added up; trying again");
        }
    }
}

async fn count(store: &Store, rules: &AlertRules) -> Result<()> {
    let troubled = store.record_counts().await?;
    let counts = store.counts_within(&troubled, rules.window).await?;
    let findings: Vec<Finding> =
        counts.iter().flat_map(|(endpoint, counts)| rules.by_counts(*endpoint, counts)).collect();
    store.open_alerts(&findings).await?;
    Ok(())
}

/// Failures in a row that no process remembers.
pub(super) async fn look_at_all(store: &Store, rules: &AlertRules) {
    let mut wait = ALL_EVERY;
    loop {
        tokio::time::sleep(wait).await;
        let began = Instant::now();
        match open_all_failing(store, rules).await {
            Ok(()) => wait = ALL_EVERY.max(began.elapsed() * SHARE),
            Err(error) => tried_again!(error, "the endpoints' failures could not be looked at"),
        }
    }
}

async fn open_all_failing(store: &Store, rules: &AlertRules) -> Result<()> {
    if !store.take_turn("alerts of all endpoints", ALL_EVERY).await? {
        return Ok(());
    }
    let mut last = None;
    loop {
        let page = store.all_failures_in_a_row(&rules.failing, last).await?;
        let Some(&(end, _)) = page.last() else { return Ok(()) };
        let findings: Vec<Finding> =
            page.iter().filter_map(|(endpoint, count)| rules.failing(*endpoint, *count)).collect();
        store.open_alerts(&findings).await?;
        last = Some(end);
    }
}
