//! A delivery's states and the one decision about it: what follows from an attempt's result.

use std::time::Duration;

use super::attempt::{AttemptOutcome, AttemptResult};
use super::endpoint::stored_enum;
use super::retry::RetryPolicy;

/// Where a delivery stands. The discriminants are the contract's and the database's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeliveryState {
    /// Waits for its first attempt.
    Pending = 1,
    /// A request is under way.
    InFlight = 2,
    /// Waits for another attempt.
    Retrying = 3,
    /// A 2xx was received.
    Succeeded = 4,
    /// No further attempt will be made.
    Failed = 5,
    /// An operator or the endpoint's deletion ended it.
    Canceled = 6,
    /// Its time ran out before an attempt succeeded.
    Expired = 7,
}

stored_enum!(DeliveryState { Pending, InFlight, Retrying, Succeeded, Failed, Canceled, Expired });

impl DeliveryState {
    /// Whether no further attempt follows by itself.
    pub const fn is_settled(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Canceled | Self::Expired)
    }
}

/// How many lost attempts end a delivery, so that one which kills its worker ends.
pub const LOST_ATTEMPTS_MAX: u32 = 10;

/// How long a Retry-After may hold an endpoint's whole lane.
pub const LANE_HOLD_MAX: Duration = Duration::from_secs(300);

/// Why a claimed delivery is ended without a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsent {
    /// Somebody canceled it while its worker was lost.
    Canceled,
    /// [`LOST_ATTEMPTS_MAX`] of its attempts were lost.
    LostTooOften,
    /// It is worth nothing any more to who published it.
    Expired,
}

/// Decides whether a claim's request leaves: `None` where it does.
pub const fn unsent(cancel_requested: bool, lost_count: u32, is_expired: bool) -> Option<Unsent> {
    if cancel_requested {
        return Some(Unsent::Canceled);
    }
    if lost_count >= LOST_ATTEMPTS_MAX {
        return Some(Unsent::LostTooOften);
    }
    if is_expired { Some(Unsent::Expired) } else { None }
}

/// What follows from an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The delivery succeeded.
    Succeed,
    /// Another attempt follows after `delay`.
    Retry {
        /// From now to the next attempt.
        delay: Duration,
    },
    /// No further attempt follows.
    Fail,
}

/// Decides what follows from `result`, the attempt after `retries_spent` retries. `unit` is a random number in [0, 1).
pub fn settle(retries_spent: u32, result: &AttemptResult, policy: &RetryPolicy, unit: f64) -> Decision {
    if result.outcome == AttemptOutcome::Succeeded {
        return Decision::Succeed;
    }
    if !is_retryable(result.outcome, result.status) || retries_spent >= policy.max_retries {
        return Decision::Fail;
    }
    let delay = policy.delay(retries_spent + 1, unit);
    Decision::Retry { delay: delay.max(result.retry_after.unwrap_or_default()) }
}

/// How long the result holds the endpoint's whole lane: its Retry-After, at most [`LANE_HOLD_MAX`].
pub fn lane_hold(result: &AttemptResult) -> Option<Duration> {
    result.retry_after.map(|wait| wait.min(LANE_HOLD_MAX))
}

/// Whether the endpoint caused the result: only that counts for its health.
pub const fn is_endpoints_doing(outcome: AttemptOutcome) -> bool {
    !matches!(outcome, AttemptOutcome::Lost | AttemptOutcome::Blocked)
}

/// 5xx, 408, 429, 3xx (never followed) and everything short of a status are retried; other 4xx and BLOCKED are not.
const fn is_retryable(outcome: AttemptOutcome, status: u16) -> bool {
    match outcome {
        AttemptOutcome::HttpError => matches!(status, 300..=399 | 408 | 429 | 500..=599),
        AttemptOutcome::Succeeded | AttemptOutcome::Blocked => false,
        AttemptOutcome::Timeout
        | AttemptOutcome::DnsFailed
        | AttemptOutcome::ConnectFailed
        | AttemptOutcome::TlsFailed
        | AttemptOutcome::ProtocolError
        | AttemptOutcome::Lost => true,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn result(outcome: AttemptOutcome, status: u16) -> AttemptResult {
        AttemptResult {
            outcome,
            duration: Duration::ZERO,
            status,
            response_headers: Vec::new(),
            response_body: Bytes::new(),
            response_truncated: false,
            error: String::new(),
            retry_after: None,
        }
    }

    fn check(outcome: AttemptOutcome, status: u16, expected: Decision) {
        let decision = settle(0, &result(outcome, status), &RetryPolicy::default(), 0.5);
        assert_eq!(decision, expected, "{outcome:?} {status}");
    }

    #[test]
    fn outcomes_follow_the_contract() {
        use AttemptOutcome::*;
        let retry = Decision::Retry { delay: Duration::from_secs(1) };
        check(Succeeded, 200, Decision::Succeed);
        check(Succeeded, 299, Decision::Succeed);
        for status in [301, 302, 307, 408, 429, 500, 503, 599] {
            check(HttpError, status, retry);
        }
        for status in [400, 401, 404, 409, 410, 422] {
            check(HttpError, status, Decision::Fail);
        }
        for outcome in [Timeout, DnsFailed, ConnectFailed, TlsFailed, ProtocolError] {
            check(outcome, 0, retry);
        }
        check(Blocked, 0, Decision::Fail);
    }

    #[test]
    fn canceled_often_lost_and_expired_deliveries_are_not_sent() {
        assert_eq!(unsent(false, LOST_ATTEMPTS_MAX - 1, false), None);
        assert_eq!(unsent(false, LOST_ATTEMPTS_MAX - 1, true), Some(Unsent::Expired));
        assert_eq!(unsent(false, LOST_ATTEMPTS_MAX, true), Some(Unsent::LostTooOften));
        assert_eq!(unsent(true, LOST_ATTEMPTS_MAX, true), Some(Unsent::Canceled));
    }

    #[test]
    fn retries_end_when_they_are_spent() {
        let failed = result(AttemptOutcome::Timeout, 0);
        let policy = RetryPolicy::default();
        assert_eq!(settle(4, &failed, &policy, 0.5), Decision::Retry { delay: Duration::from_secs(16) });
        assert_eq!(settle(5, &failed, &policy, 0.5), Decision::Fail);
        let none = RetryPolicy { max_retries: 0, ..policy };
        assert_eq!(settle(0, &failed, &none, 0.5), Decision::Fail);
    }

    #[test]
    fn retry_after_delays_and_never_hastens() {
        let policy = RetryPolicy::default();
        let mut answer = result(AttemptOutcome::HttpError, 503);
        answer.retry_after = Some(Duration::from_secs(60));
        assert_eq!(settle(0, &answer, &policy, 0.5), Decision::Retry { delay: Duration::from_secs(60) });
        answer.retry_after = Some(Duration::from_millis(10));
        assert_eq!(settle(0, &answer, &policy, 0.5), Decision::Retry { delay: Duration::from_secs(1) });
        answer.retry_after = Some(Duration::from_secs(3_600));
        assert_eq!(lane_hold(&answer), Some(LANE_HOLD_MAX));
    }
}
