//! Retry policies between the contract's form and ours.

use std::time::Duration;

use super::Violations;
use super::time::{from_duration, to_duration};
use crate::api::proto::retry_policy::Backoff as ProtoBackoff;
use crate::api::proto::{
    BackoffSchedule, EventRetryPolicy as ProtoEventPolicy, ExponentialBackoff, RetryPolicy as ProtoPolicy,
};
use crate::domain::Problem;
use crate::domain::endpoint::EVENT_TYPES_MAX;
use crate::domain::pattern::EventPattern;
use crate::domain::retry::{
    Backoff, DELAY_MAX, EVENT_POLICIES_MAX, EventRetryPolicy, INITIAL_DELAY_DEFAULT, MAX_DELAY_DEFAULT,
    MULTIPLIER_DEFAULT, RETRIES_MAX, RetryPolicy, SCHEDULE_MAX,
};

/// A caller's policy at `path`, absent parts taken from the defaults; `None` with every bad part noted.
pub(super) fn from_proto(policy: &ProtoPolicy, path: &str, violations: &mut Violations) -> Option<RetryPolicy> {
    let backoff = match &policy.backoff {
        None => Some(Backoff::default()),
        Some(ProtoBackoff::Exponential(parts)) => exponential(parts, path, violations),
        Some(ProtoBackoff::Schedule(schedule)) => scheduled(schedule, path, violations),
    };
    let is_share = policy.jitter.is_none_or(|jitter| (0.0..=1.0).contains(&jitter));
    if !is_share {
        violations.invalid(format!("{path}.jitter"), Problem::new("is out of range; allowed is 0 to 1"));
    }
    let is_count = policy.max_retries.is_none_or(|count| count <= RETRIES_MAX);
    if !is_count {
        violations.invalid(format!("{path}.max_retries"), Problem::new("is out of range; allowed is 0 to 100"));
    }
    let defaults = RetryPolicy::with_defaults(backoff?);
    Some(RetryPolicy {
        jitter: policy.jitter.unwrap_or(defaults.jitter),
        max_retries: policy.max_retries.unwrap_or(defaults.max_retries),
        backoff: defaults.backoff,
    })
    .filter(|_| is_share && is_count)
}

/// A caller's policies for event types; `None` with every bad part noted, its place in the path.
pub(super) fn events_from_proto(
    policies: &[ProtoEventPolicy],
    path: &'static str,
    violations: &mut Violations,
) -> Option<Vec<EventRetryPolicy>> {
    if policies.len() > EVENT_POLICIES_MAX {
        let problem = Problem::new(format!("has {} entries; allowed are {EVENT_POLICIES_MAX}", policies.len()));
        violations.invalid(path, problem);
        return None;
    }
    let parsed = policies.iter().enumerate().map(|(place, given)| {
        let types = format!("{path}[{place}].event_types");
        let event_types = match given.event_types.is_empty() {
            true => violations.take(types, Err(Problem::new("is empty; at least one pattern is needed"))),
            false => violations.take_all(types, &given.event_types, EVENT_TYPES_MAX, EventPattern::parse),
        };
        let policy = given.retry_policy.clone().unwrap_or_default();
        let policy = from_proto(&policy, &format!("{path}[{place}].retry_policy"), violations);
        Some(EventRetryPolicy { event_types: event_types?, policy: policy? })
    });
    // All of them, so that every bad one is noted.
    let parsed: Vec<_> = parsed.collect();
    parsed.into_iter().collect()
}

fn scheduled(schedule: &BackoffSchedule, path: &str, violations: &mut Violations) -> Option<Backoff> {
    let delays = format!("{path}.schedule.delays");
    let count = schedule.delays.len();
    let spans = schedule.delays.iter().take(SCHEDULE_MAX).enumerate();
    let parsed: Vec<_> = spans
        .map(|(place, span)| {
            let within = |delay: Duration| match delay <= DELAY_MAX {
                true => Ok(delay),
                false => Err(Problem::new("is out of range; allowed are 0 to 7 days")),
            };
            violations.take(format!("{delays}[{place}]"), from_duration(span).and_then(within))
        })
        .collect();
    if !(1..=SCHEDULE_MAX).contains(&count) {
        let problem = Problem::new(format!("has {count} delays; allowed are 1 to {SCHEDULE_MAX}"));
        violations.invalid(delays, problem);
        return None;
    }
    Backoff::schedule(parsed.into_iter().collect::<Option<_>>()?).ok()
}

fn exponential(parts: &ExponentialBackoff, path: &str, violations: &mut Violations) -> Option<Backoff> {
    let part = |name: &str| format!("{path}.exponential.{name}");
    let mut is_good = true;
    let mut delay = |name, given: &Option<prost_types::Duration>, default, neutral: Duration| match given {
        None => default,
        Some(span) => violations.take(part(name), from_duration(span)).unwrap_or_else(|| {
            is_good = false;
            neutral
        }),
    };
    let mut initial_delay =
        delay("initial_delay", &parts.initial_delay, INITIAL_DELAY_DEFAULT, Duration::from_millis(1));
    let mut max_delay = delay("max_delay", &parts.max_delay, MAX_DELAY_DEFAULT, DELAY_MAX);
    let mut multiplier = parts.multiplier.unwrap_or(MULTIPLIER_DEFAULT);
    // The rule names one part at a time: a bad one is replaced by a value that hides no other.
    loop {
        match Backoff::exponential(initial_delay, multiplier, max_delay) {
            Ok(backoff) => return is_good.then_some(backoff),
            Err((name, problem)) => {
                is_good = false;
                violations.invalid(part(name), problem);
                match name {
                    "initial_delay" => initial_delay = Duration::from_millis(1),
                    "multiplier" => multiplier = 1.0,
                    _ => max_delay = DELAY_MAX,
                }
            }
        }
    }
}

/// A policy for an answer, every part in it.
pub(super) fn to_proto(policy: &RetryPolicy) -> ProtoPolicy {
    let backoff = match &policy.backoff {
        Backoff::Exponential { initial_delay, multiplier, max_delay } => {
            ProtoBackoff::Exponential(ExponentialBackoff {
                initial_delay: Some(to_duration(*initial_delay)),
                multiplier: Some(*multiplier),
                max_delay: Some(to_duration(*max_delay)),
            })
        }
        Backoff::Schedule { delays } => {
            ProtoBackoff::Schedule(BackoffSchedule { delays: delays.iter().copied().map(to_duration).collect() })
        }
    };
    ProtoPolicy { backoff: Some(backoff), jitter: Some(policy.jitter), max_retries: Some(policy.max_retries) }
}

/// A policy for event types for an answer.
pub(super) fn event_to_proto(policy: &EventRetryPolicy) -> ProtoEventPolicy {
    ProtoEventPolicy {
        event_types: policy.event_types.iter().map(EventPattern::to_string).collect(),
        retry_policy: Some(to_proto(&policy.policy)),
    }
}

/// The parts of a policy that an update mask may name by themselves.
pub(super) const PARTS: [&str; 8] = [
    "jitter",
    "max_retries",
    "exponential",
    "exponential.initial_delay",
    "exponential.multiplier",
    "exponential.max_delay",
    "schedule",
    "schedule.delays",
];

/// `base` with the named parts taken from `given`; a part that is unset there goes back to its default. A number of
/// retries that is its backoff's default stays that of the backoff it comes to.
pub(super) fn merge(base: Option<&RetryPolicy>, given: &ProtoPolicy, parts: &[&'static str]) -> ProtoPolicy {
    let base = base.cloned().unwrap_or_default();
    let mut merged = to_proto(&base);
    if base.max_retries == base.backoff.max_retries_default() {
        merged.max_retries = None;
    }
    let given_exponential = match &given.backoff {
        Some(ProtoBackoff::Exponential(parts)) => *parts,
        _ => ExponentialBackoff::default(),
    };
    for part in parts {
        match *part {
            "jitter" => merged.jitter = given.jitter,
            "max_retries" => merged.max_retries = given.max_retries,
            "schedule" | "schedule.delays" => {
                merged.backoff = given.backoff.clone().filter(|given| matches!(given, ProtoBackoff::Schedule(_)));
            }
            "exponential" => merged.backoff = Some(ProtoBackoff::Exponential(given_exponential)),
            part => {
                // In the place of a schedule comes an exponential backoff whose other parts are the defaults.
                let mut changed = match merged.backoff {
                    Some(ProtoBackoff::Exponential(parts)) => parts,
                    _ => ExponentialBackoff::default(),
                };
                match part {
                    "exponential.initial_delay" => changed.initial_delay = given_exponential.initial_delay,
                    "exponential.multiplier" => changed.multiplier = given_exponential.multiplier,
                    _ => changed.max_delay = given_exponential.max_delay,
                }
                merged.backoff = Some(ProtoBackoff::Exponential(changed));
            }
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::super::tests::refused;
    use super::*;

    const PATH: &str = "endpoint.retry_policy";

    fn seconds(seconds: i64) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos: 0 })
    }

    #[test]
    fn absent_parts_are_the_defaults() {
        let mut violations = Violations::new();
        assert_eq!(from_proto(&ProtoPolicy::default(), PATH, &mut violations), Some(RetryPolicy::default()));
        let exponential = ProtoBackoff::Exponential(ExponentialBackoff::default());
        let policy = ProtoPolicy { backoff: Some(exponential), ..ProtoPolicy::default() };
        assert_eq!(from_proto(&policy, PATH, &mut violations), Some(RetryPolicy::default()));
        assert!(violations.is_empty());
        assert_eq!(from_proto(&to_proto(&RetryPolicy::default()), PATH, &mut violations), Some(RetryPolicy::default()));
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
        assert_eq!(from_proto(&policy, PATH, &mut violations), None);
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
        assert_eq!(from_proto(&merged, PATH, &mut violations), Some(expected));
    }

    fn schedule(delays: &[i64]) -> Option<ProtoBackoff> {
        Some(ProtoBackoff::Schedule(BackoffSchedule {
            delays: delays.iter().filter_map(|delay| seconds(*delay)).collect(),
        }))
    }

    #[test]
    fn a_schedule_has_as_many_retries_as_delays_unless_it_says() {
        let mut violations = Violations::new();
        for (max_retries, expected) in [(None, 3), (Some(0), 0), (Some(10), 10)] {
            let given = ProtoPolicy { backoff: schedule(&[60, 0, 604_800]), max_retries, jitter: None };
            let policy = from_proto(&given, PATH, &mut violations).expect("good");
            assert_eq!(policy.max_retries, expected);
            assert_eq!(from_proto(&to_proto(&policy), PATH, &mut violations), Some(policy));
        }
    }

    #[test]
    fn every_bad_delay_and_event_policy_is_named() {
        let policy = |backoff| Some(ProtoPolicy { backoff, jitter: Some(-0.1), max_retries: None });
        let policies = [
            ProtoEventPolicy {
                event_types: vec!["a".to_owned(), "b*".to_owned()],
                retry_policy: policy(schedule(&[])),
            },
            ProtoEventPolicy { event_types: Vec::new(), retry_policy: policy(schedule(&[1, -1, 604_801])) },
            ProtoEventPolicy { event_types: vec!["a".to_owned()], retry_policy: None },
        ];
        let mut violations = Violations::new();
        assert_eq!(events_from_proto(&policies, "p", &mut violations), None);
        let (code, mut paths) = refused(&violations.into_status());
        paths.sort();
        assert_eq!(code, Code::InvalidArgument);
        let expected = [
            "p[0].event_types[1]",
            "p[0].retry_policy.jitter",
            "p[0].retry_policy.schedule.delays",
            "p[1].event_types",
            "p[1].retry_policy.jitter",
            "p[1].retry_policy.schedule.delays[1]",
            "p[1].retry_policy.schedule.delays[2]",
        ];
        assert_eq!(paths, expected);
        let many = vec![policies[2].clone(); EVENT_POLICIES_MAX + 1];
        let mut violations = Violations::new();
        assert_eq!(
            events_from_proto(&many[1..], "p", &mut violations).map(|kept| kept.len()),
            Some(EVENT_POLICIES_MAX)
        );
        assert_eq!(events_from_proto(&many, "p", &mut violations), None);
    }

    #[test]
    fn a_merge_may_change_the_shape_of_the_backoff() {
        let merged = |base: &RetryPolicy, given: Option<ProtoBackoff>, part| {
            let given = ProtoPolicy { backoff: given, ..ProtoPolicy::default() };
            from_proto(&merge(Some(base), &given, &[part]), PATH, &mut Violations::new()).expect("good")
        };
        let scheduled = merged(&RetryPolicy::default(), schedule(&[1, 2]), "schedule.delays");
        assert_eq!(
            (scheduled.backoff.clone(), scheduled.max_retries),
            (Backoff::schedule(vec![Duration::from_secs(1), Duration::from_secs(2)]).expect("good"), 2)
        );
        let kept = RetryPolicy { max_retries: 7, ..scheduled.clone() };
        assert_eq!(merged(&kept, schedule(&[1]), "schedule").max_retries, 7);
        assert_eq!(merged(&scheduled, None, "schedule"), RetryPolicy::default());
        let exponential = ExponentialBackoff { initial_delay: seconds(7), ..ExponentialBackoff::default() };
        let back = merged(&scheduled, Some(ProtoBackoff::Exponential(exponential)), "exponential.initial_delay");
        assert_eq!(
            back.backoff,
            Backoff::exponential(Duration::from_secs(7), 2.0, Duration::from_secs(300)).expect("good")
        );
    }
}
