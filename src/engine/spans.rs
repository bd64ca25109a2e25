//! The spans of claims and attempts. Where no trace is recorded, each costs a look at an option.

use super::Shared;
use super::attempt::Ready;
use crate::domain::attempt::AttemptResult;
use crate::domain::event::Event;
use crate::domain::time::Timestamp;
use crate::egress::Target;
use crate::store::Claimed;
use crate::telemetry::traces::{Kind, Span};

/// Records that these were claimed, between `began` and now, their events read and all.
pub(super) fn of_claim(shared: &Shared, ready: &[Ready], began: Timestamp) {
    let Some(traces) = shared.store.traces() else { return };
    let now = shared.store.clock().now();
    for one in ready {
        if let Some(span) = traces.begin(Kind::Internal, "claim", one.event.trace.as_ref(), began) {
            let waited = began.since(one.claimed.due_at).as_secs_f64();
            let span = with_ids(span, &one.claimed)
                .with("webhook.delivery.waited_seconds", waited)
                .with("webhook.batch.size", ready.len() as i64);
            traces.end(span, now);
        }
    }
}

/// Begins the span of an attempt; its receiver is told of it.
pub(super) fn begin_attempt(
    shared: &Shared,
    claimed: &Claimed,
    event: &Event,
    target: &Target,
    now: Timestamp,
) -> Option<Span> {
    let span = shared.store.traces()?.begin(Kind::Client, "POST", event.trace.as_ref(), now)?;
    let url = Some(target.shown_url());
    Some(with_ids(span, claimed).of_attempt(claimed.id, claimed.attempt, event.event_type.as_str(), url))
}

/// Records an attempt that has ended.
pub(super) fn end_attempt(shared: &Shared, span: Span, result: &AttemptResult) {
    let Some(traces) = shared.store.traces() else { return };
    let span = match result.status {
        0 => span,
        status => span.with("http.response.status_code", i64::from(status)),
    };
    let span = if result.error.is_empty() { span } else { span.failed(result.error.clone()) };
    traces.end(span, shared.store.clock().now());
}

fn with_ids(span: Span, claimed: &Claimed) -> Span {
    span.of_delivery(claimed.event, claimed.id, claimed.endpoint)
}
