//! How fast, and when to stop: rate limits, circuit breakers and disable policies between the contract's form and ours.

use super::Violations;
use super::time::{from_duration, to_duration};
use crate::api::proto;
use crate::domain::circuit::{CircuitPolicy, DisablePolicy};
use crate::domain::rate::RateLimit;

/// A caller's limit, `None` inside where there is to be none; `None` with its problem noted.
pub(super) fn rate_limit(given: Option<&proto::RateLimit>, violations: &mut Violations) -> Option<Option<RateLimit>> {
    match given {
        None => Some(None),
        Some(given) => {
            violations.take("endpoint.rate_limit.per_second", RateLimit::parse(given.per_second, given.burst)).map(Some)
        }
    }
}

/// A caller's breaker, absent parts taken from the defaults; `None` with every bad part noted.
pub(super) fn circuit_breaker(
    given: Option<&proto::CircuitBreaker>,
    violations: &mut Violations,
) -> Option<CircuitPolicy> {
    let Some(given) = given else { return Some(CircuitPolicy::default()) };
    let open = span(given.open_duration.as_ref(), "endpoint.circuit_breaker.open_duration", violations);
    let max = span(given.max_open_duration.as_ref(), "endpoint.circuit_breaker.max_open_duration", violations);
    parsed(CircuitPolicy::parse(given.failure_threshold, open?, max?), "endpoint.circuit_breaker", violations)
}

/// A caller's policy, absent parts taken from the defaults; `None` with every bad part noted.
pub(super) fn disable_policy(
    given: Option<&proto::DisablePolicy>,
    violations: &mut Violations,
) -> Option<DisablePolicy> {
    let Some(given) = given else { return Some(DisablePolicy::default()) };
    let failing_for = span(given.failing_for.as_ref(), "endpoint.disable_policy.failing_for", violations);
    parsed(DisablePolicy::parse(given.consecutive_failures, failing_for?), "endpoint.disable_policy", violations)
}

/// A span that may be absent; `None` with its problem noted.
fn span(
    given: Option<&prost_types::Duration>,
    path: &'static str,
    violations: &mut Violations,
) -> Option<Option<std::time::Duration>> {
    match given {
        None => Some(None),
        Some(given) => violations.take(path, from_duration(given)).map(Some),
    }
}

fn parsed<T>(
    parsed: Result<T, (&'static str, crate::domain::Problem)>,
    path: &str,
    violations: &mut Violations,
) -> Option<T> {
    parsed.map_err(|(part, problem)| violations.invalid(format!("{path}.{part}"), problem)).ok()
}

/// A limit as callers see it.
pub(super) const fn rate_limit_to_proto(limit: RateLimit) -> proto::RateLimit {
    proto::RateLimit { per_second: limit.per_second, burst: limit.burst }
}

/// A breaker as callers see it.
pub(super) fn circuit_breaker_to_proto(policy: CircuitPolicy) -> proto::CircuitBreaker {
    proto::CircuitBreaker {
        failure_threshold: Some(policy.failure_threshold),
        open_duration: Some(to_duration(policy.open_duration)),
        max_open_duration: Some(to_duration(policy.max_open_duration)),
    }
}

/// A policy as callers see it.
pub(super) fn disable_policy_to_proto(policy: DisablePolicy) -> proto::DisablePolicy {
    proto::DisablePolicy {
        consecutive_failures: Some(policy.consecutive_failures),
        failing_for: Some(to_duration(policy.failing_for)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic::Code;

    use super::super::tests::refused;
    use super::*;

    const fn seconds(seconds: i64) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos: 0 })
    }

    #[test]
    fn what_is_left_out_has_the_documented_default() {
        let mut v = Violations::new();
        assert_eq!(rate_limit(None, &mut v), Some(None));
        for given in [None, Some(&proto::CircuitBreaker::default())] {
            assert_eq!(circuit_breaker(given, &mut v), Some(CircuitPolicy::default()));
        }
        for given in [None, Some(&proto::DisablePolicy::default())] {
            assert_eq!(disable_policy(given, &mut v), Some(DisablePolicy::default()));
        }
        let shown = circuit_breaker_to_proto(CircuitPolicy::default());
        let expected = (Some(10), seconds(30), seconds(3_600));
        assert_eq!((shown.failure_threshold, shown.open_duration, shown.max_open_duration), expected);
        let shown = disable_policy_to_proto(DisablePolicy::default());
        assert_eq!((shown.consecutive_failures, shown.failing_for), (Some(10), seconds(24 * 3_600)));
        assert!(v.is_empty());
    }

    #[test]
    fn what_is_given_is_taken() {
        let mut v = Violations::new();
        let given = proto::RateLimit { per_second: 0.5, burst: 3 };
        assert_eq!(rate_limit(Some(&given), &mut v).flatten().map(rate_limit_to_proto), Some(given));
        let given = proto::CircuitBreaker {
            failure_threshold: Some(0),
            open_duration: seconds(7_200),
            max_open_duration: None,
        };
        let policy = circuit_breaker(Some(&given), &mut v).expect("good");
        assert_eq!((policy.failure_threshold, policy.max_open_duration), (0, Duration::from_secs(7_200)));
        let given = proto::DisablePolicy { consecutive_failures: Some(0), failing_for: seconds(0) };
        assert_eq!(disable_policy(Some(&given), &mut v).map(disable_policy_to_proto), Some(given));
        assert!(v.is_empty());
    }

    #[test]
    fn every_bad_part_is_named() {
        let mut v = Violations::new();
        for per_second in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(rate_limit(Some(&proto::RateLimit { per_second, burst: 1 }), &mut v), None);
        }
        let breaker = |open_duration, max_open_duration| proto::CircuitBreaker {
            failure_threshold: None,
            open_duration,
            max_open_duration,
        };
        for bad in [breaker(seconds(0), None), breaker(seconds(-1), seconds(-1)), breaker(seconds(10), seconds(9))] {
            assert_eq!(circuit_breaker(Some(&bad), &mut v), None);
        }
        let bad = proto::DisablePolicy { consecutive_failures: None, failing_for: seconds(-1) };
        assert_eq!(disable_policy(Some(&bad), &mut v), None);
        let (code, mut paths) = refused(&v.into_status());
        paths.sort();
        paths.dedup();
        assert_eq!(code, Code::InvalidArgument);
        let expected = [
            "circuit_breaker.max_open_duration",
            "circuit_breaker.open_duration",
            "disable_policy.failing_for",
            "rate_limit.per_second",
        ];
        assert_eq!(paths, expected.map(|part| format!("endpoint.{part}")));
    }
}
