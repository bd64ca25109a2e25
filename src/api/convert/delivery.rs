//! Deliveries, attempts and transitions as callers see them; and the words for where a delivery stands.

use std::sync::Arc;

use super::time::{to_duration, to_timestamp};
use crate::api::convert;
use crate::api::proto;
use crate::domain::attempt::{Attempt, AttemptOutcome};
use crate::domain::counted;
use crate::domain::delivery::DeliveryState;
use crate::store::{DeliveryRecord, DeliveryRow, HeldUp, TimelineEvent, Waits};

/// A delivery alone, as lists show it.
pub(in crate::api) fn to_proto(row: DeliveryRow) -> proto::Delivery {
    let is_waiting = matches!(row.state, DeliveryState::Pending | DeliveryState::Retrying);
    let next_attempt = row.due_at.filter(|_| is_waiting && row.waits != Some(Waits::Expiry));
    let last_error = row.last_error.filter(|_| row.state != DeliveryState::Succeeded).unwrap_or_default();
    let standing = Standing {
        state: row.state,
        reason: row.reason,
        attempt_count: row.attempt_count,
        last_status: row.last_status,
        last_error: &last_error,
        is_to_be_canceled: row.cancel_requested,
        held_up: row.held_up.filter(|_| is_waiting),
        waits: row.waits,
    };
    proto::Delivery {
        id: row.id.to_string(),
        event_id: row.event.to_string(),
        endpoint_id: row.endpoint.to_string(),
        tenant: row.tenant.to_string(),
        event_type: row.event_type,
        state: i32::from(row.state.number()),
        reason: standing.words(),
        attempt_count: row.attempt_count,
        priority: i32::from(row.priority),
        ordering_key: row.ordering_key.unwrap_or_default(),
        idempotency_key: row.idempotency_key.unwrap_or_default(),
        replay_of: row.replay_of.map(|id| id.to_string()).unwrap_or_default(),
        create_time: Some(to_timestamp(row.id.time())),
        next_attempt_time: next_attempt.map(to_timestamp),
        settle_time: row.settle_time.map(to_timestamp),
        last_status_code: row.last_status,
        last_error,
        ..proto::Delivery::default()
    }
}

/// A delivery with everything that is known of it.
pub(in crate::api) fn record_to_proto(record: DeliveryRecord) -> proto::Delivery {
    let event = record.event.map(Arc::unwrap_or_clone);
    proto::Delivery {
        attempts: record.attempts.into_iter().map(attempt_to_proto).collect(),
        event: event.map(convert::event::to_proto),
        ..to_proto(record.row)
    }
}

/// A transition for the live stream, with the delivery as it was after it.
pub(in crate::api) fn transition_to_proto(event: &TimelineEvent) -> proto::DeliveryEvent {
    let attempt = event.attempt.as_ref();
    let last_error = attempt.map(|attempt| attempt.error.clone()).unwrap_or_default();
    let last_status = attempt.map_or(0, |attempt| u32::from(attempt.status));
    let standing = Standing {
        state: event.state,
        reason: event.reason.clone(),
        attempt_count: event.attempt_count,
        last_status,
        last_error: &last_error,
        is_to_be_canceled: false,
        held_up: None,
        waits: None,
    };
    proto::DeliveryEvent {
        kind: i32::from(event.kind.number()),
        occur_time: Some(to_timestamp(event.time)),
        delivery: Some(proto::Delivery {
            id: event.delivery.to_string(),
            event_id: event.event.to_string(),
            endpoint_id: event.endpoint.to_string(),
            tenant: event.tenant.to_string(),
            event_type: event.event_type.clone(),
            state: i32::from(event.state.number()),
            reason: standing.words(),
            attempt_count: event.attempt_count,
            priority: i32::from(event.priority),
            ordering_key: event.ordering_key.clone().unwrap_or_default(),
            idempotency_key: event.idempotency_key.clone().unwrap_or_default(),
            create_time: Some(to_timestamp(event.delivery.time())),
            next_attempt_time: event.next_attempt_time.map(to_timestamp),
            settle_time: event.state.is_settled().then(|| to_timestamp(event.time)),
            last_status_code: last_status,
            last_error,
            ..proto::Delivery::default()
        }),
        attempt: attempt.cloned().map(attempt_to_proto),
    }
}

/// An attempt for an answer.
pub(in crate::api) fn attempt_to_proto(attempt: Attempt) -> proto::Attempt {
    let has_duration = attempt.outcome.is_some_and(|outcome| outcome != AttemptOutcome::Lost);
    proto::Attempt {
        number: attempt.number,
        trigger: i32::from(attempt.trigger.number()),
        outcome: match attempt.outcome {
            Some(outcome) => i32::from(outcome.number()),
            None => proto::AttemptOutcome::InFlight.into(),
        },
        start_time: Some(to_timestamp(attempt.start_time)),
        duration: has_duration.then(|| to_duration(attempt.duration)),
        url: attempt.url,
        status_code: u32::from(attempt.status),
        response_headers: attempt
            .response_headers
            .into_iter()
            .map(|(name, value)| proto::Header { name, value })
            .collect(),
        response_body: attempt.response_body,
        response_truncated: attempt.response_truncated,
        error: attempt.error,
        next_attempt_time: attempt.next_attempt_time.map(to_timestamp),
        replica_id: attempt.replica_id,
        request_headers: Vec::new(),
    }
}

/// What the words for a delivery's standing are made of.
struct Standing<'a> {
    state: DeliveryState,
    /// Why it came to its end, where the database says so.
    reason: Option<String>,
    attempt_count: u32,
    last_status: u32,
    last_error: &'a str,
    is_to_be_canceled: bool,
    held_up: Option<HeldUp>,
    waits: Option<Waits>,
}

impl Standing<'_> {
    /// Why the delivery is in its state, and what it waits for.
    fn words(self) -> String {
        if let Some(reason) = self.reason.filter(|_| self.state.is_settled()) {
            return reason;
        }
        if let Some(Waits::Behind { first, has_failed }) = self.waits {
            let failed = if has_failed { ", which failed; retry or cancel it" } else { "" };
            return format!("waits behind {first}{failed}");
        }
        match self.state {
            DeliveryState::Pending if self.waits == Some(Waits::Time) => "waits for its deliver_time".to_owned(),
            DeliveryState::Retrying if self.waits == Some(Waits::Expiry) => {
                format!("{}; expires before another attempt would be due", self.last_error)
            }
            DeliveryState::Pending => format!("waits for its first attempt{}", held_up_words(self.held_up.as_ref())),
            DeliveryState::InFlight if self.is_to_be_canceled => {
                format!("attempt {} is under way; canceled when it ends, unless it succeeds", self.attempt_count)
            }
            DeliveryState::InFlight => format!("attempt {} is under way", self.attempt_count),
            DeliveryState::Retrying => {
                let after = if self.last_error.is_empty() { "" } else { "; " };
                let held_up = held_up_words(self.held_up.as_ref());
                format!("{}{after}waits for its next attempt{held_up}", self.last_error)
            }
            DeliveryState::Succeeded if self.last_status > 0 => {
                format!("the endpoint answered with HTTP {}", self.last_status)
            }
            DeliveryState::Succeeded => "the endpoint accepted it".to_owned(),
            DeliveryState::Failed if self.last_error.is_empty() => "no further attempt is made".to_owned(),
            DeliveryState::Failed => self.last_error.to_owned(),
            DeliveryState::Canceled => "was canceled".to_owned(),
            DeliveryState::Expired => "its expire_time passed".to_owned(),
        }
    }
}

/// What it waits for besides, as words to be added; empty where that is nothing.
fn held_up_words(held_up: Option<&HeldUp>) -> String {
    match held_up {
        None => String::new(),
        Some(HeldUp::Paused) => ": the endpoint is paused".to_owned(),
        Some(HeldUp::Disabled(reason)) if reason.is_empty() => ": the endpoint is disabled".to_owned(),
        Some(HeldUp::Disabled(reason)) => format!(": the endpoint is disabled, because {reason}"),
        Some(HeldUp::CircuitOpen(until)) => format!(": the endpoint's circuit is open until {until}"),
        Some(HeldUp::Probe) => ": a probe shows whether the endpoint is back".to_owned(),
        Some(HeldUp::RateLimit(per_second)) => {
            format!(": the endpoint's rate limit admits {} a second", counted(*per_second, "request", "requests"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::attempt::AttemptTrigger;
    use crate::domain::fields::Tenant;
    use crate::domain::time::Timestamp;

    #[test]
    fn outcomes_have_the_contracts_names_in_logs_and_metrics() {
        for outcome in AttemptOutcome::EVERY.iter().copied() {
            let known = proto::AttemptOutcome::try_from(i32::from(outcome.number())).expect("one of the contract's");
            assert_eq!(format!("ATTEMPT_OUTCOME_{}", outcome.as_str().to_uppercase()), known.as_str_name());
        }
    }

    fn row(state: DeliveryState) -> DeliveryRow {
        let uuid = uuid::Uuid::from_u128(0x0189_0a5d_ac96_774b_bcce_b302_099a_8057);
        DeliveryRow {
            id: crate::domain::id::DeliveryId::from_uuid(uuid),
            event: crate::domain::id::EventId::from_uuid(uuid),
            endpoint: crate::domain::id::EndpointId::from_uuid(uuid),
            tenant: Tenant::default_tenant(),
            event_type: "order.created".to_owned(),
            state,
            reason: None,
            attempt_count: 2,
            priority: 2,
            idempotency_key: None,
            replay_of: None,
            ordering_key: None,
            due_at: Some(Timestamp::from_micros(1)),
            waits: None,
            settle_time: None,
            last_status: 503,
            last_error: Some("HTTP 503: Service Unavailable".to_owned()),
            cancel_requested: false,
            held_up: None,
        }
    }

    fn check(row: DeliveryRow, reason: &str) {
        assert_eq!(to_proto(row).reason, reason);
    }

    #[test]
    fn every_state_has_its_words() {
        use DeliveryState::*;
        check(row(Pending), "waits for its first attempt");
        check(row(InFlight), "attempt 2 is under way");
        let canceling = DeliveryRow { cancel_requested: true, ..row(InFlight) };
        check(canceling, "attempt 2 is under way; canceled when it ends, unless it succeeds");
        check(row(Retrying), "HTTP 503: Service Unavailable; waits for its next attempt");
        check(DeliveryRow { last_error: None, ..row(Retrying) }, "waits for its next attempt");
        let held_up = |state, held_up| DeliveryRow { held_up: Some(held_up), ..row(state) };
        check(held_up(Pending, HeldUp::Paused), "waits for its first attempt: the endpoint is paused");
        check(
            held_up(Retrying, HeldUp::CircuitOpen(Timestamp::from_micros(0))),
            "HTTP 503: Service Unavailable; waits for its next attempt: the endpoint's circuit is open until \
             1970-01-01T00:00:00Z",
        );
        check(
            held_up(Pending, HeldUp::Disabled("it is gone".to_owned())),
            "waits for its first attempt: the endpoint is disabled, because it is gone",
        );
        check(
            held_up(Pending, HeldUp::RateLimit(0.5)),
            "waits for its first attempt: the endpoint's rate limit admits 0.5 requests a second",
        );
        check(held_up(InFlight, HeldUp::Paused), "attempt 2 is under way");
        check(DeliveryRow { last_status: 204, ..row(Succeeded) }, "the endpoint answered with HTTP 204");
        check(DeliveryRow { reason: Some("QUEUE_FULL".to_owned()), ..row(Failed) }, "QUEUE_FULL");
        check(row(Failed), "HTTP 503: Service Unavailable");
        let waiting = |state, waits| DeliveryRow { waits: Some(waits), ..row(state) };
        check(waiting(Pending, Waits::Time), "waits for its deliver_time");
        check(waiting(Retrying, Waits::Time), "HTTP 503: Service Unavailable; waits for its next attempt");
        let expiring = "HTTP 503: Service Unavailable; expires before another attempt would be due";
        check(waiting(Retrying, Waits::Expiry), expiring);
        let first = row(Pending).id;
        for state in [Pending, Retrying] {
            check(waiting(state, Waits::Behind { first, has_failed: false }), &format!("waits behind {first}"));
            let blocked = format!("waits behind {first}, which failed; retry or cancel it");
            check(waiting(state, Waits::Behind { first, has_failed: true }), &blocked);
        }
    }

    #[test]
    fn the_next_attempt_is_shown_only_where_one_is_waited_for() {
        for (state, shown) in [
            (DeliveryState::Pending, true),
            (DeliveryState::InFlight, false),
            (DeliveryState::Retrying, true),
            (DeliveryState::Failed, false),
        ] {
            assert_eq!(to_proto(row(state)).next_attempt_time.is_some(), shown, "{state:?}");
        }
    }

    #[test]
    fn attempts_under_way_or_lost_have_no_duration() {
        let attempt = |outcome| Attempt {
            number: 1,
            trigger: AttemptTrigger::Schedule,
            outcome,
            start_time: Timestamp::from_micros(0),
            duration: Duration::from_millis(5),
            url: String::new(),
            status: 0,
            response_headers: Vec::new(),
            response_body: bytes::Bytes::new(),
            response_truncated: false,
            error: String::new(),
            next_attempt_time: None,
            replica_id: String::new(),
        };
        let running = attempt_to_proto(attempt(None));
        assert_eq!((running.outcome(), running.duration), (proto::AttemptOutcome::InFlight, None));
        assert_eq!(attempt_to_proto(attempt(Some(AttemptOutcome::Lost))).duration, None);
        assert!(attempt_to_proto(attempt(Some(AttemptOutcome::Timeout))).duration.is_some());
    }
}
