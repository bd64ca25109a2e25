//! What the log tells of deliveries: one that failed for good at `info`, an attempt that is made again at `debug`, each
//! once and with the ids by which it is found. The module's name in filters is `hooklane::delivery`.
//!
//! A receiver that fails is no trouble of this program's, so none of it is a warning.

use crate::domain::attempt::AttemptResult;
use crate::domain::event::Event;
use crate::store::{Claimed, Settlement};
use crate::telemetry::log::DELIVERY;

/// A line about an attempt, at a level, with what is said of it besides the ids.
macro_rules! tell {
    ($level:ident, $claimed:ident, $event:ident, $result:ident, $($said:tt)+) => {
        tracing::$level!(
            target: DELIVERY,
            delivery = %$claimed.id,
            event = %$event.id,
            endpoint = %$claimed.endpoint,
            trace_id = %$event.trace_id(),
            tenant = $event.tenant.as_str(),
            event_type = $event.event_type.as_str(),
            attempt = $claimed.attempt,
            outcome = $result.outcome.as_str(),
            $($said)+
        )
    };
}

/// Tells of an attempt that failed.
pub(super) fn of_attempt(claimed: &Claimed, event: &Event, result: &AttemptResult, settlement: &Settlement) {
    match settlement {
        Settlement::Failed(reason) => tell!(info, claimed, event, result, reason, "a delivery failed for good"),
        Settlement::Retry { delay } => {
            let (error, retry_in_seconds) = (&result.error, delay.as_secs_f64());
            tell!(debug, claimed, event, result, error, retry_in_seconds, "an attempt failed");
        }
        Settlement::Succeeded | Settlement::Canceled(_) | Settlement::Expired => {}
    }
}

/// Tells of a delivery that failed without a request, its event read or not.
pub(super) fn of_unsent(claimed: &Claimed, event: Option<&Event>, settlement: &Settlement) {
    if let Settlement::Failed(reason) = settlement {
        tracing::info!(
            target: DELIVERY,
            delivery = %claimed.id,
            event = %claimed.event,
            endpoint = %claimed.endpoint,
            trace_id = event.map(|event| tracing::field::display(event.trace_id())),
            reason,
            "a delivery failed for good"
        );
    }
}
