//! Retry policies between the contract's form and ours.

use std::time::Duration;

use super::Violations;
use super::time::{from_duration, to_duration};
use crate::api::proto::retry_policy::Backoff as ProtoBackoff;
use crate::api::proto::{ExponentialBackoff, RetryPolicy as ProtoPolicy};
use crate::domain::Problem;
use crate::domain::retry::{Backoff, DELAY_MAX, RetryPolicy};

const RETRIES_MAX: u32 = 100;

/// A caller's policy, absent parts taken from the defaults; `None` with every bad part noted.
pub(super) fn from_proto(policy: &ProtoPolicy, violations: &mut Violations) -> Option<RetryPolicy> {
    let defaults = RetryPolicy::default();
    let jitter = policy.jitter.unwrap_or(defaults.jitter);
    let is_share = (0.0..=1.0).contains(&jitter);
    if !is_share {
        violations.invalid("endpoint.retry_policy.jitter", Problem::new("is out of range; allowed is 0 to 1"));
    }
    let max_retries = policy.max_retries.unwrap_or(defaults.max_retries);
    if max_retries > RETRIES_MAX {
        violations.invalid("endpoint.retry_policy.max_retries", Problem::new("is out of range; allowed is 0 to 100"));
    }
    let backoff = match &policy.backoff {
        None => Some(defaults.backoff),
        Some(ProtoBackoff::Exponential(parts)) => exponential(parts, violations),
        Some(ProtoBackoff::Schedule(_)) => {
            violations.unbuilt("endpoint.retry_policy.schedule");
            None
        }
    };
    Some(RetryPolicy { backoff: backoff?, jitter, max_retries }).filter(|_| is_share && max_retries <= RETRIES_MAX)
}

fn exponential(parts: &ExponentialBackoff, violations: &mut Violations) -> Option<Backoff> {
    const INITIAL_DELAY: &str = "endpoint.retry_policy.exponential.initial_delay";
    const MULTIPLIER: &str = "endpoint.retry_policy.exponential.multiplier";
    const MAX_DELAY: &str = "endpoint.retry_policy.exponential.max_delay";
    let Backoff::Exponential { initial_delay, multiplier, max_delay } = Backoff::default();
    let mut is_good = true;
    let mut delay = |path, given: &Option<prost_types::Duration>, default, neutral: Duration| match given {
        None => default,
        Some(span) => violations.take(path, from_duration(span)).unwrap_or_else(|| {
            is_good = false;
            neutral
        }),
    };
    let mut initial_delay = delay(INITIAL_DELAY, &parts.initial_delay, initial_delay, Duration::from_millis(1));
    let mut max_delay = delay(MAX_DELAY, &parts.max_delay, max_delay, DELAY_MAX);
    let mut multiplier = parts.multiplier.unwrap_or(multiplier);
    // The rule names one part at a time: a bad one is replaced by a value that hides no other.
    loop {
        match Backoff::exponential(initial_delay, multiplier, max_delay) {
            Ok(backoff) => return is_good.then_some(backoff),
            Err((part, problem)) => {
                is_good = false;
                match part {
                    "initial_delay" => {
                        violations.invalid(INITIAL_DELAY, problem);
                        initial_delay = Duration::from_millis(1);
                    }
                    "multiplier" => {
                        violations.invalid(MULTIPLIER, problem);
                        multiplier = 1.0;
                    }
                    _ => {
                        violations.invalid(MAX_DELAY, problem);
                        max_delay = DELAY_MAX;
                    }
                }
            }
        }
    }
}

/// A policy for an answer, every part in it.
pub(super) fn to_proto(policy: &RetryPolicy) -> ProtoPolicy {
    let Backoff::Exponential { initial_delay, multiplier, max_delay } = policy.backoff;
    ProtoPolicy {
        backoff: Some(ProtoBackoff::Exponential(ExponentialBackoff {
            initial_delay: Some(to_duration(initial_delay)),
            multiplier: Some(multiplier),
            max_delay: Some(to_duration(max_delay)),
        })),
        jitter: Some(policy.jitter),
        max_retries: Some(policy.max_retries),
    }
}

/// The parts of a policy that an update mask may name by themselves.
pub(super) const PARTS: [&str; 7] = [
    "jitter",
    "max_retries",
    "exponential",
    "exponential.initial_delay",
    "exponential.multiplier",
    "exponential.max_delay",
    "schedule",
];

/// `base` with the named parts taken from `given`; a part that is unset there goes back to its default.
pub(super) fn merge(base: Option<&RetryPolicy>, given: &ProtoPolicy, parts: &[&'static str]) -> ProtoPolicy {
    let mut merged = to_proto(&base.cloned().unwrap_or_default());
    let given_exponential = match &given.backoff {
        Some(ProtoBackoff::Exponential(parts)) => *parts,
        _ => ExponentialBackoff::default(),
    };
    for part in parts {
        match (*part, &mut merged.backoff) {
            ("jitter", _) => merged.jitter = given.jitter,
            ("max_retries", _) => merged.max_retries = given.max_retries,
            ("schedule", backoff) if matches!(given.backoff, Some(ProtoBackoff::Schedule(_))) => {
                backoff.clone_from(&given.backoff);
            }
            ("exponential", backoff) => *backoff = Some(ProtoBackoff::Exponential(given_exponential)),
            (part, Some(ProtoBackoff::Exponential(into))) => match part {
                "exponential.initial_delay" => into.initial_delay = given_exponential.initial_delay,
                "exponential.multiplier" => into.multiplier = given_exponential.multiplier,
                "exponential.max_delay" => into.max_delay = given_exponential.max_delay,
                _ => {}
            },
            _ => {}
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::super::tests::refused;
    use super::*;

    fn seconds(seconds: i64) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos: 0 })
    }

    #[test]
    fn absent_parts_are_the_defaults() {
        let mut violations = Violations::new();
        assert_eq!(from_proto(&ProtoPolicy::default(), &mut violations), Some(RetryPolicy::default()));
        let exponential = ProtoBackoff::Exponential(ExponentialBackoff::default());
        let policy = ProtoPolicy { backoff: Some(exponential), ..ProtoPolicy::default() };
        assert_eq!(from_proto(&policy, &mut violations), Some(RetryPolicy::default()));
        assert!(violations.is_empty());
        assert_eq!(from_proto(&to_proto(&RetryPolicy::default()), &mut violations), Some(RetryPolicy::default()));
    }

    #[test]
    fn every_bad_part_is_named() {
        let policy = ProtoPolicy {
            backoff: Some(ProtoBackoff::Exponential(ExponentialBackoff {
                initial_delay: seconds(-1),
                multiplier: Some(f64::NAN),
                max_delay: seconds(8 * 24 * 3600),
            })),
            jitter: Some(1.1),
            max_retries: Some(101),
        };
        let mut violations = Violations::new();
        assert_eq!(from_proto(&policy, &mut violations), None);
        let (code, mut paths) = refused(&violations.into_status());
        paths.sort();
        assert_eq!(code, Code::InvalidArgument);
        assert_eq!(
            paths,
            ["exponential.initial_delay", "exponential.max_delay", "exponential.multiplier", "jitter", "max_retries"]
                .map(|part| format!("endpoint.retry_policy.{part}"))
        );
    }

    #[test]
    fn a_merge_changes_the_named_parts_alone() {
        let base = RetryPolicy { max_retries: 9, jitter: 0.1, ..RetryPolicy::default() };
        let given = ProtoPolicy {
            backoff: Some(ProtoBackoff::Exponential(ExponentialBackoff {
                initial_delay: seconds(7),
                multiplier: Some(3.0),
                max_delay: None,
            })),
            jitter: Some(0.5),
            max_retries: Some(1),
        };
        let mut violations = Violations::new();
        let merged = merge(Some(&base), &given, &["exponential.initial_delay", "max_retries"]);
        let expected = RetryPolicy {
            backoff: Backoff::Exponential {
                initial_delay: Duration::from_secs(7),
                multiplier: 2.0,
                max_delay: Duration::from_secs(300),
            },
            jitter: 0.1,
            max_retries: 1,
        };
        assert_eq!(from_proto(&merged, &mut violations), Some(expected));
    }
}
