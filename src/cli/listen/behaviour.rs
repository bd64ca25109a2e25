//! How the receiver answers: what it was told, and the decision for one request. No I/O here.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::Full;

use super::Verdict;

/// How requests are answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Behaviour {
    /// The status of an answer; `None` means 200, and 401 to a bad signature.
    pub status: Option<StatusCode>,
    /// How many requests of each delivery fail before one may succeed.
    pub fail_first: u32,
    /// The share of requests that fail at random, 0–1.
    pub fail_rate: f64,
    /// The status of those failures.
    pub fail_status: StatusCode,
    /// How long an answer waits.
    pub delay: Duration,
    /// Whether answers never come.
    pub silent: bool,
    /// Seconds in a `Retry-After` header on answers that are not 2xx.
    pub retry_after: Option<u64>,
    /// Headers of every answer. Not `content-length`, which follows from the body.
    pub headers: HeaderMap,
    /// The body of every answer.
    pub body: Bytes,
}

impl Default for Behaviour {
    /// 200 at once, 401 to a bad signature.
    fn default() -> Self {
        Self {
            status: None,
            fail_first: 0,
            fail_rate: 0.0,
            fail_status: StatusCode::SERVICE_UNAVAILABLE,
            delay: Duration::ZERO,
            silent: false,
            retry_after: None,
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }
}

impl Behaviour {
    /// The status a request is answered with, `None` for never. `earlier` tells how many requests of the same delivery
    /// there were; it is asked only when that decides. `draw` is uniform in 0..1.
    pub(super) fn decide(&self, verdict: Verdict, earlier: impl FnOnce() -> u32, draw: f64) -> Option<StatusCode> {
        if self.silent {
            return None;
        }
        if self.status.is_none() && matches!(verdict, Verdict::Bad(_)) {
            return Some(StatusCode::UNAUTHORIZED);
        }
        let fails = (self.fail_first > 0 && earlier() < self.fail_first) || draw < self.fail_rate;
        Some(if fails { self.fail_status } else { self.status.unwrap_or(StatusCode::OK) })
    }

    /// The answer with that status.
    pub(super) fn answer(&self, status: StatusCode) -> Response<Full<Bytes>> {
        let bodiless = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let body = if bodiless { Bytes::new() } else { self.body.clone() };
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status;
        *response.headers_mut() = self.headers.clone();
        if let Some(seconds) = self.retry_after
            && !status.is_success()
        {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// How many requests of each delivery there were: of the latest [`DELIVERIES_MAX`] deliveries, by the hash of their id.
pub(super) struct Seen {
    hasher: RandomState,
    counts: HashMap<u64, u32>,
    oldest_first: VecDeque<u64>,
}

/// 24 bytes each.
const DELIVERIES_MAX: usize = 1_000_000;

impl Seen {
    pub(super) fn new() -> Self {
        Self { hasher: RandomState::new(), counts: HashMap::new(), oldest_first: VecDeque::new() }
    }

    /// Counts a request; answers how many there were before. Requests without a delivery id count as one delivery.
    pub(super) fn count(&mut self, delivery_id: Option<&str>) -> u32 {
        let key = self.hasher.hash_one(delivery_id);
        if let Some(count) = self.counts.get_mut(&key) {
            let earlier = *count;
            *count = count.saturating_add(1);
            return earlier;
        }
        if self.oldest_first.len() == DELIVERIES_MAX
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.counts.remove(&oldest);
        }
        self.oldest_first.push_back(key);
        self.counts.insert(key, 1);
        0
    }

    pub(super) fn forget(&mut self) {
        self.counts.clear();
        self.oldest_first.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::verification::Rejected;

    #[test]
    fn a_status_is_decided_in_this_order_silence_signature_failures_status() {
        let bad = Verdict::Bad(Rejected::Mismatch);
        let plain = Behaviour::default();
        let failing = Behaviour { fail_first: 2, fail_rate: 0.5, ..plain.clone() };
        let explicit = Behaviour { status: Some(StatusCode::ACCEPTED), ..failing.clone() };
        let silent = Behaviour { silent: true, ..explicit.clone() };
        for (behaviour, verdict, earlier, draw, status) in [
            (&plain, Verdict::Unchecked, 0, 0.0, Some(200)),
            (&plain, Verdict::Good, 0, 0.0, Some(200)),
            (&plain, bad, 0, 0.0, Some(401)),
            (&failing, Verdict::Good, 1, 0.9, Some(503)),
            (&failing, Verdict::Good, 2, 0.9, Some(200)),
            (&failing, Verdict::Good, 2, 0.4, Some(503)),
            (&failing, bad, 0, 0.0, Some(401)),
            (&explicit, bad, 2, 0.9, Some(202)),
            (&explicit, bad, 0, 0.9, Some(503)),
            (&silent, bad, 0, 0.0, None),
        ] {
            let decided = behaviour.decide(verdict, || earlier, draw).map(|status| status.as_u16());
            assert_eq!(decided, status, "{verdict:?} {earlier} {draw}");
        }
    }

    #[test]
    fn retry_after_comes_with_failures_alone() {
        let behaviour = Behaviour { retry_after: Some(30), body: Bytes::from_static(b"x"), ..Behaviour::default() };
        assert_eq!(behaviour.answer(StatusCode::SERVICE_UNAVAILABLE).headers()[RETRY_AFTER], "30");
        assert!(!behaviour.answer(StatusCode::OK).headers().contains_key(RETRY_AFTER));
    }
}
