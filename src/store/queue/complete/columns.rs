//! A batch of completions as arrays.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::types::Uuid;

use super::{AttemptRecord, Completion, EXPIRED_REASON, Settlement};
use crate::domain::attempt::AttemptOutcome;
use crate::domain::delivery::{DeliveryState, is_endpoints_doing};
use crate::domain::endpoint::HEALTH_ALPHA;
use crate::store::types::{PgTime, headers_to_text, micros};

/// A batch as the statement's arrays, in id order.
#[derive(Default)]
pub(super) struct Columns<'c> {
    pub(super) ids: Vec<Uuid>,
    pub(super) settling: Vec<Uuid>,
    pub(super) retried: Vec<Uuid>,
    pub(super) claim_gens: Vec<i32>,
    pub(super) states: Vec<i16>,
    pub(super) attempt_counts: Vec<i32>,
    pub(super) reasons: Vec<Option<&'c str>>,
    pub(super) delays_us: Vec<i64>,
    pub(super) started_at: Vec<Option<PgTime>>,
    pub(super) durations_us: Vec<Option<i64>>,
    pub(super) outcomes: Vec<Option<i16>>,
    pub(super) statuses: Vec<Option<i32>>,
    pub(super) triggers: Vec<Option<i16>>,
    pub(super) truncated: Vec<Option<bool>>,
    pub(super) urls: Vec<Option<&'c str>>,
    pub(super) errors: Vec<Option<&'c str>>,
    pub(super) headers: Vec<Option<String>>,
    pub(super) bodies: Vec<Option<&'c [u8]>>,
    health: BTreeMap<Uuid, HealthChange>,
}

impl<'c> Columns<'c> {
    pub(super) fn of(completions: &'c [Completion]) -> Self {
        let mut sorted: Vec<&Completion> = completions.iter().collect();
        sorted.sort_unstable_by_key(|one| one.id);
        let mut columns = Self::default();
        for one in sorted {
            columns.push(one);
        }
        columns
    }

    /// What the batch does to the health of its endpoints.
    pub(super) fn health(&self) -> HealthColumns {
        HealthColumns::of(&self.health)
    }

    fn push(&mut self, one: &'c Completion) {
        let (state, reason, delay) = match &one.settlement {
            Settlement::Succeeded => (DeliveryState::Succeeded, None, Duration::ZERO),
            Settlement::Failed(reason) => (DeliveryState::Failed, Some(reason.as_str()), Duration::ZERO),
            Settlement::Canceled(reason) => (DeliveryState::Canceled, Some(reason.as_str()), Duration::ZERO),
            Settlement::Expired => (DeliveryState::Expired, Some(EXPIRED_REASON), Duration::ZERO),
            Settlement::Retry { delay } => (DeliveryState::Retrying, None, *delay),
        };
        let to = if state.is_settled() { &mut self.settling } else { &mut self.retried };
        to.push(one.id.uuid());
        self.ids.push(one.id.uuid());
        self.claim_gens.push(one.claim_gen);
        self.states.push(state.number());
        self.attempt_counts.push(one.attempt_count.cast_signed());
        self.reasons.push(reason);
        self.delays_us.push(micros(delay));
        self.push_attempt(one.attempt.as_ref());
        if let Some(attempt) = &one.attempt
            && is_endpoints_doing(attempt.result.outcome)
        {
            let is_success = attempt.result.outcome == AttemptOutcome::Succeeded;
            self.health.entry(one.endpoint.uuid()).or_default().add(is_success);
        }
    }

    fn push_attempt(&mut self, attempt: Option<&'c AttemptRecord>) {
        let result = attempt.map(|attempt| &attempt.result);
        self.started_at.push(attempt.map(|attempt| PgTime(attempt.started_at)));
        self.triggers.push(attempt.map(|attempt| attempt.trigger.number()));
        self.urls.push(attempt.map(|attempt| &*attempt.url));
        self.durations_us.push(result.map(|result| micros(result.duration)));
        self.outcomes.push(result.map(|result| result.outcome.number()));
        self.statuses.push(result.map(|result| i32::from(result.status)));
        self.truncated.push(result.map(|result| result.response_truncated));
        self.errors.push(result.map(|result| result.error.as_str()).filter(|error| !error.is_empty()));
        self.headers.push(result.map(|result| headers_to_text(&result.response_headers)));
        self.bodies.push(result.map(|result| &*result.response_body));
    }
}

/// What a batch does to an endpoint's health: `score × kept + added`, and the failures at its end.
#[derive(Debug, Clone, Copy)]
pub(super) struct HealthChange {
    kept: f64,
    added: f64,
    failures: i32,
    had_success: bool,
    had_failure: bool,
}

impl Default for HealthChange {
    fn default() -> Self {
        Self { kept: 1.0, added: 0.0, failures: 0, had_success: false, had_failure: false }
    }
}

impl HealthChange {
    pub(super) fn add(&mut self, is_success: bool) {
        let keep = 1.0 - HEALTH_ALPHA;
        self.kept *= keep;
        self.added = self.added * keep + if is_success { HEALTH_ALPHA } else { 0.0 };
        self.failures = if is_success { 0 } else { self.failures + 1 };
        self.had_success |= is_success;
        self.had_failure |= !is_success;
    }
}

/// Health changes as the statement's arrays, in id order.
#[derive(Default)]
pub(super) struct HealthColumns {
    pub(super) endpoints: Vec<Uuid>,
    pub(super) kept: Vec<f64>,
    pub(super) added: Vec<f64>,
    pub(super) failures: Vec<i32>,
    pub(super) had_success: Vec<bool>,
    pub(super) had_failure: Vec<bool>,
}

impl HealthColumns {
    pub(super) fn of(changes: &BTreeMap<Uuid, HealthChange>) -> Self {
        let mut columns = Self::default();
        for (endpoint, change) in changes {
            columns.endpoints.push(*endpoint);
            columns.kept.push(change.kept);
            columns.added.push(change.added);
            columns.failures.push(change.failures);
            columns.had_success.push(change.had_success);
            columns.had_failure.push(change.had_failure);
        }
        columns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_moves_health_as_its_attempts_one_by_one_would() {
        let attempts = [true, false, false, true, false];
        let mut change = HealthChange::default();
        let mut score = 0.5;
        for is_success in attempts {
            change.add(is_success);
            score = score * (1.0 - HEALTH_ALPHA) + if is_success { HEALTH_ALPHA } else { 0.0 };
        }
        assert!((0.5 * change.kept + change.added - score).abs() < 1e-12);
        assert_eq!((change.failures, change.had_success, change.had_failure), (1, true, true));
    }
}
