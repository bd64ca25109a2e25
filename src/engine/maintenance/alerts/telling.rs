//! Publishes operational events: of alerts, level by level and of their end, and of deliveries that failed for good.
//!
//! An event is published first and noted as told then. Whoever dies in between leaves it to be published again, under
//! the same key: the same event.

use std::time::Duration;

use futures::future::join_all;

use crate::domain::alert::AlertRules;
use crate::domain::event::NewEvent;
use crate::store::{PublishError, Publisher, Result, Store, UntoldAlert};
use crate::telemetry::log::tried_again;

/// Between two looks at what is to be told.
const EVERY: Duration = Duration::from_secs(1);
/// Alerts of one look.
const ALERTS_MAX: u32 = 500;

/// Tells of alerts.
pub(super) async fn of_alerts(store: &Store, publisher: &Publisher, rules: &AlertRules) {
    loop {
        tokio::time::sleep(EVERY).await;
        let told = async {
            if !store.take_turn("telling of alerts", EVERY).await? {
                return Ok(());
            }
            let untold = store.untold_alerts(ALERTS_MAX).await?;
            let each = untold.iter().map(|one| tell_of_alert(store, publisher, rules, one));
            join_all(each).await.into_iter().collect::<Result<()>>()
        };
        if let Err(error) = told.await {
            tried_again!(error, "alerts could not be told of; trying again");
        }
    }
}

/// Levels in their order, then the end.
async fn tell_of_alert(store: &Store, publisher: &Publisher, rules: &AlertRules, one: &UntoldAlert) -> Result<()> {
    let id = one.alert.id;
    for level in rules.levels(one.alert.kind, one.told_level, one.level) {
        if let Some(event) = one.alert.opening(level)
            && !publish(publisher, event).await
        {
            return Ok(());
        }
        store.alert_told(id, level, false).await?;
    }
    if one.alert.close_time.is_some() && !one.is_close_told {
        if let Some(event) = one.alert.recovery()
            && !publish(publisher, event).await
        {
            return Ok(());
        }
        store.alert_told(id, one.level, true).await?;
    }
    Ok(())
}

/// Tells of deliveries that failed for good.
pub(super) async fn of_failures(store: &Store, publisher: &Publisher) {
    loop {
        tokio::time::sleep(EVERY).await;
        let told = async {
            if store.take_turn("telling of failures", EVERY).await? {
                while tell_of_failures(store, publisher).await? {}
            }
            Result::Ok(())
        };
        if let Err(error) = told.await {
            tried_again!(error, "failed deliveries could not be told of; trying again");
        }
    }
}

/// Tells of a page of them; answers whether there are more.
async fn tell_of_failures(store: &Store, publisher: &Publisher) -> Result<bool> {
    let Some(page) = store.failures_untold().await? else { return Ok(false) };
    let each = page.failures.iter().map(|failure| publish(publisher, failure.told()));
    if !join_all(each).await.into_iter().all(|is_told| is_told) {
        return Ok(false);
    }
    store.failures_told(page).await
}

/// Whether nothing remains to be done for an event: it is published, or never can be.
async fn publish(publisher: &Publisher, event: NewEvent) -> bool {
    let event_type = event.event_type.clone();
    // It names what the event is about.
    let key = event.idempotency_key.clone().unwrap_or_default();
    match publisher.publish(event).await {
        Ok(_) => true,
        // A publisher took the key, or the database refuses the row: it would the next time, too. The others are said of
        // events that name their endpoints, which these never do.
        Err(
            error @ (PublishError::KeyConflict
            | PublishError::Refused(_)
            | PublishError::EndpointNotFound(_)
            | PublishError::OrderingKeyMissing(_)
            | PublishError::DeliverTimeInOrder(_)),
        ) => {
            tracing::error!(%error, %event_type, key, "an operational event cannot be published");
            true
        }
        Err(error @ (PublishError::QueueFull | PublishError::Unavailable | PublishError::Internal)) => {
            tracing::warn!(%error, %event_type, key, "an operational event waits to be published");
            false
        }
    }
}
