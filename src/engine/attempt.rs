//! One claimed delivery from dispatch to its completion: sent, judged, handed on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::Shared;
use super::claims::release;
use super::judge::Judgement;
use super::roster::Prepared;
use super::{spans, told};
use crate::domain::attempt::AttemptOutcome;
use crate::domain::delivery::{Decision, LOST_ATTEMPTS_MAX, Unsent, is_endpoints_doing, lane_hold, settle, unsent};
use crate::domain::event::Event;
use crate::domain::id::EndpointId;
use crate::domain::time::Timestamp;
use crate::egress::Outgoing;
use crate::store::{AttemptRecord, CANCELED_REASON, Claimed, Completion, Settlement};

/// A claim with everything its request needs.
pub(super) struct Ready {
    pub(super) claimed: Claimed,
    pub(super) endpoint: Arc<Prepared>,
    pub(super) event: Arc<Event>,
    /// When it is too late to send it under this claim.
    pub(super) start_by: Instant,
}

/// A request has ended: its lane has room again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    pub(super) endpoint: EndpointId,
    /// Whether the receiver answered, whatever it said.
    pub(super) is_answered: bool,
    /// Whether it succeeded; `None` where the endpoint did not cause what came of it.
    pub(super) is_success: Option<bool>,
    /// Whether it was to show that the endpoint is back.
    pub(super) is_probe: bool,
    /// How long the endpoint asked to be left alone.
    pub(super) hold: Option<Duration>,
}

/// Sends one delivery and hands its result to the completer.
pub(super) async fn run(shared: Arc<Shared>, ready: Ready, ended: mpsc::UnboundedSender<Ended>) {
    // Nothing that speaks against the receiver.
    let is_probe = ready.claimed.openings > 0;
    let nothing = Ended { endpoint: ready.claimed.endpoint, is_answered: true, is_success: None, is_probe, hold: None };
    if Instant::now() >= ready.start_by {
        let _ = ended.send(nothing);
        shared.leases.drop_all([ready.claimed.id]);
        return release(&shared, vec![ready]).await;
    }
    // Claimed ahead, it may have waited past its time.
    if let Some(settlement) = without_request(&ready.claimed, shared.store.clock().now()) {
        let _ = ended.send(nothing);
        told::of_unsent(&ready.claimed, Some(&ready.event), &settlement);
        let completion = completion_without_request(&ready.claimed, Some(&ready.event), settlement);
        return shared.record(completion, None).await;
    }
    let Ready { claimed, endpoint, event, .. } = ready;
    let now = shared.store.clock().now();
    let span = spans::begin_attempt(&shared, &claimed, &event, &endpoint.target, now);
    // Where we record nothing, the receiver goes on with the publisher's trace.
    let trace = match &span {
        Some(span) => span.context().clone(),
        None => event.trace_of_attempt(claimed.id, claimed.attempt),
    };
    let outgoing = Outgoing {
        target: &endpoint.target,
        event: &event,
        delivery_id: claimed.id,
        format: claimed.format,
        attempt: claimed.attempt,
        now,
        trace: trace.clone(),
    };
    let under_way = &shared.store.metrics().requests_in_flight;
    under_way.inc();
    let result = shared.egress.send(outgoing).await;
    under_way.dec();
    if let Some(span) = span {
        spans::end_attempt(&shared, span, &result);
    }
    let is_success = is_endpoints_doing(result.outcome).then_some(result.outcome == AttemptOutcome::Succeeded);
    // The scheduler may have ended already; then nobody needs the room.
    let _ = ended.send(Ended {
        endpoint: claimed.endpoint,
        is_answered: result.status != 0,
        is_success,
        is_probe: claimed.openings > 0,
        hold: lane_hold(&result),
    });
    let judgement = Judgement::of(&claimed, &endpoint, &result, is_success);
    let policy = endpoint.retry_policy(event.event_type.as_str());
    let settlement = match settle(claimed.retries_spent, &result, policy, rand::random()) {
        Decision::Succeed => Settlement::Succeeded,
        Decision::Retry { delay } => Settlement::Retry { delay },
        Decision::Fail => Settlement::Failed(result.error.clone()),
    };
    told::of_attempt(&claimed, &event, &result, &settlement);
    let completion = Completion {
        id: claimed.id,
        endpoint: claimed.endpoint,
        claim_gen: claimed.claim_gen,
        attempt_count: claimed.attempt,
        attempt: Some(AttemptRecord {
            started_at: claimed.claimed_at,
            trigger: claimed.trigger,
            url: Arc::clone(&endpoint.shown_url),
            result,
            is_operational: event.event_type.is_operational(),
        }),
        trace: Some(trace),
        settlement,
        order_key: claimed.order_key,
    };
    shared.record(completion, judgement).await;
}

/// What a claim comes to that is not to be sent; `None` where it is.
pub(super) fn without_request(claimed: &Claimed, now: Timestamp) -> Option<Settlement> {
    let is_expired = claimed.expire_at.is_some_and(|at| at <= now);
    Some(match unsent(claimed.cancel_requested, claimed.lost_count, is_expired)? {
        Unsent::Expired => Settlement::Expired,
        Unsent::Canceled => Settlement::Canceled(CANCELED_REASON.to_owned()),
        Unsent::LostTooOften => {
            Settlement::Failed(format!("{LOST_ATTEMPTS_MAX} attempts were lost with their workers"))
        }
    })
}

/// Ends a claim without a request: the attempt it would have been is not counted. Its event where that was read.
pub(super) fn completion_without_request(
    claimed: &Claimed,
    event: Option<&Event>,
    settlement: Settlement,
) -> Completion {
    Completion {
        id: claimed.id,
        endpoint: claimed.endpoint,
        claim_gen: claimed.claim_gen,
        attempt_count: claimed.attempt.saturating_sub(1),
        attempt: None,
        trace: event.map(|event| event.trace_of_attempt(claimed.id, claimed.attempt)),
        settlement,
        order_key: claimed.order_key.clone(),
    }
}
