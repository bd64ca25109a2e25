//! When a failed delivery is tried again: which policy holds for it, and backoff and jitter as pure arithmetic over
//! delays.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Problem;
use super::pattern::{EventPattern, any_matches};

/// How often and after what delays a delivery is retried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// The delay before each retry, before jitter.
    pub backoff: Backoff,
    /// The share, 0–1, by which a delay is moved at most, either way.
    pub jitter: f64,
    /// How many requests may follow the first, 0–100.
    pub max_retries: u32,
}

/// The shape of the delays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backoff {
    /// `initial_delay × multiplier^(n−1)`, at most `max_delay`.
    Exponential {
        /// Before the first retry; at least 1 ms.
        initial_delay: Duration,
        /// The factor from one delay to the next, 1–100.
        multiplier: f64,
        /// The longest delay; not below `initial_delay`, at most 7 days.
        max_delay: Duration,
    },
    /// One by one; beyond the end the last one repeats.
    Schedule {
        /// 1 to 100 delays of at most 7 days each.
        delays: Vec<Duration>,
    },
}

/// A policy for events of certain types.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventRetryPolicy {
    /// Which; at least one.
    pub event_types: Vec<EventPattern>,
    /// Their policy.
    pub policy: RetryPolicy,
}

/// What the server's settings say, for endpoints that do not.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RetryDefaults {
    /// For certain event types; the first that matches counts.
    pub by_event: Vec<EventRetryPolicy>,
    /// For all others.
    pub policy: RetryPolicy,
}

impl RetryDefaults {
    /// The policy that holds for an event: the endpoint's for its type, else the endpoint's, else the server's for its
    /// type, else the server's.
    pub fn choose<'p>(
        &'p self,
        endpoint_by_event: &'p [EventRetryPolicy],
        endpoint: Option<&'p RetryPolicy>,
        event_type: &str,
    ) -> &'p RetryPolicy {
        first_match(endpoint_by_event, event_type)
            .or(endpoint)
            .or_else(|| first_match(&self.by_event, event_type))
            .unwrap_or(&self.policy)
    }
}

fn first_match<'p>(policies: &'p [EventRetryPolicy], event_type: &str) -> Option<&'p RetryPolicy> {
    policies.iter().find(|one| any_matches(&one.event_types, event_type)).map(|one| &one.policy)
}

impl Default for Backoff {
    fn default() -> Self {
        Self::Exponential {
            initial_delay: INITIAL_DELAY_DEFAULT,
            multiplier: MULTIPLIER_DEFAULT,
            max_delay: MAX_DELAY_DEFAULT,
        }
    }
}

/// What an exponential backoff has where it does not say.
pub const INITIAL_DELAY_DEFAULT: Duration = Duration::from_secs(1);
/// The factor from one delay to the next.
pub const MULTIPLIER_DEFAULT: f64 = 2.0;
/// The longest delay.
pub const MAX_DELAY_DEFAULT: Duration = Duration::from_secs(300);

impl Default for RetryPolicy {
    /// 1, 2, 4, 8, 16 s, each ±30 %: six requests in all.
    fn default() -> Self {
        Self::with_defaults(Backoff::default())
    }
}

/// The longest delay a policy may name.
pub const DELAY_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// How many retries a policy may make.
pub const RETRIES_MAX: u32 = 100;
/// How many delays a schedule may have: one for each retry.
pub const SCHEDULE_MAX: usize = RETRIES_MAX as usize;
/// How many policies for event types an endpoint, or the server, may have.
pub const EVENT_POLICIES_MAX: usize = 32;

impl Backoff {
    /// An exponential backoff whose parts are within their bounds; the problem comes with the part's name.
    pub fn exponential(
        initial_delay: Duration,
        multiplier: f64,
        max_delay: Duration,
    ) -> Result<Self, (&'static str, Problem)> {
        if !(Duration::from_millis(1)..=DELAY_MAX).contains(&initial_delay) {
            return Err(("initial_delay", Problem::new("is out of range; allowed are 1 ms to 7 days")));
        }
        if !(1.0..=100.0).contains(&multiplier) {
            return Err(("multiplier", Problem::new("is out of range; allowed is 1 to 100")));
        }
        if !(initial_delay..=DELAY_MAX).contains(&max_delay) {
            return Err(("max_delay", Problem::new("is out of range; allowed is initial_delay to 7 days")));
        }
        Ok(Self::Exponential { initial_delay, multiplier, max_delay })
    }

    /// A schedule whose delays are within their bounds; the problem comes with the place of the delay that is not.
    pub fn schedule(delays: Vec<Duration>) -> Result<Self, (Option<usize>, Problem)> {
        if !(1..=SCHEDULE_MAX).contains(&delays.len()) {
            let count = delays.len();
            return Err((None, Problem::new(format!("has {count} delays; allowed are 1 to {SCHEDULE_MAX}"))));
        }
        match delays.iter().position(|delay| *delay > DELAY_MAX) {
            Some(place) => Err((Some(place), Problem::new("is out of range; allowed are 0 to 7 days"))),
            None => Ok(Self::Schedule { delays }),
        }
    }

    /// How many retries there are where a policy does not say.
    pub fn max_retries_default(&self) -> u32 {
        match self {
            Self::Exponential { .. } => 5,
            Self::Schedule { delays } => u32::try_from(delays.len()).unwrap_or(RETRIES_MAX),
        }
    }

    /// The delay before the `retry`-th retry (1 is the first), before jitter.
    fn base(&self, retry: u32) -> Duration {
        match *self {
            Self::Schedule { ref delays } => {
                let place = usize::try_from(retry.saturating_sub(1)).unwrap_or(usize::MAX);
                delays.get(place).or(delays.last()).copied().unwrap_or_default()
            }
            Self::Exponential { initial_delay, multiplier, max_delay } => {
                let exponent = i32::try_from(retry.saturating_sub(1)).unwrap_or(i32::MAX);
                let seconds = initial_delay.as_secs_f64() * multiplier.powi(exponent);
                // `powi` may reach infinity; the comparison below then picks the cap.
                if seconds < max_delay.as_secs_f64() { Duration::from_secs_f64(seconds) } else { max_delay }
            }
        }
    }
}

impl RetryPolicy {
    /// The policy of a backoff that says nothing else.
    pub fn with_defaults(backoff: Backoff) -> Self {
        Self { jitter: 0.3, max_retries: backoff.max_retries_default(), backoff }
    }

    /// The preset that outlasts a receiver's outage: 5 s, 5 min, 30 min, 2, 5, 10, 14, 20 and 24 h.
    pub fn long() -> Self {
        const SECONDS: [u64; 9] = [5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400];
        Self::with_defaults(Backoff::Schedule { delays: SECONDS.map(Duration::from_secs).to_vec() })
    }

    /// The delay before the `retry`-th retry (1 is the first): the backoff's, moved by a uniform share of
    /// ±`jitter`. `unit` is the caller's random number in [0, 1).
    pub fn delay(&self, retry: u32, unit: f64) -> Duration {
        let share = 1.0 + self.jitter.clamp(0.0, 1.0) * (2.0 * unit.clamp(0.0, 1.0) - 1.0);
        // `max` also makes nothing of what is no number.
        self.backoff.base(retry).mul_f64(share.max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_default_waits_1_2_4_8_16_seconds_both_ways_of_it() {
        let policy = RetryPolicy::default();
        for (retry, seconds) in [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (5, 16.0)] {
            assert_eq!(policy.delay(retry, 0.5).as_secs_f64(), seconds);
            assert!((policy.delay(retry, 0.0).as_secs_f64() - seconds * 0.7).abs() < 1e-6);
            assert!((policy.delay(retry, 1.0).as_secs_f64() - seconds * 1.3).abs() < 1e-6);
        }
    }

    #[test]
    fn a_schedule_goes_delay_by_delay_and_repeats_its_last() {
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        let schedule = Backoff::schedule(vec![minutes(1), minutes(5), minutes(30)]).expect("in bounds");
        let policy = RetryPolicy::with_defaults(schedule);
        assert_eq!(policy.max_retries, 3);
        for (retry, expected) in [(0, 1), (1, 1), (2, 5), (3, 30), (4, 30), (u32::MAX, 30)] {
            assert_eq!(policy.delay(retry, 0.5), minutes(expected), "{retry}");
        }
        let long = RetryPolicy::long();
        let total: Duration = (1..=long.max_retries).map(|retry| long.delay(retry, 0.5)).sum();
        assert_eq!((long.max_retries, total), (9, Duration::from_secs(5 + 35 * 60 + 75 * 3_600)));
    }

    #[test]
    fn a_schedule_out_of_bounds_names_the_delay() {
        let place = |delays: Vec<Duration>| Backoff::schedule(delays).expect_err("out of bounds").0;
        assert_eq!(place(Vec::new()), None);
        assert_eq!(place(vec![Duration::ZERO; SCHEDULE_MAX + 1]), None);
        assert_eq!(place(vec![DELAY_MAX, DELAY_MAX + Duration::from_nanos(1)]), Some(1));
        assert!(Backoff::schedule(vec![Duration::ZERO; SCHEDULE_MAX]).is_ok());
    }

    #[test]
    fn the_endpoint_goes_before_the_server_and_the_event_type_before_the_rest() {
        let policy = |max_retries| RetryPolicy { max_retries, ..RetryPolicy::default() };
        let of_event = |patterns: &[&str], max_retries| EventRetryPolicy {
            event_types: patterns.iter().map(|text| EventPattern::parse(text).expect("a pattern")).collect(),
            policy: policy(max_retries),
        };
        let server = RetryDefaults { by_event: vec![of_event(&["order.*", "user.*"], 30)], policy: policy(40) };
        let by_event = [of_event(&["order.paid"], 10), of_event(&["order.*"], 11)];
        let own = policy(20);
        for (by_event, own, event_type, expected) in [
            (by_event.as_slice(), Some(&own), "order.paid", 10),
            (&by_event, Some(&own), "order.sent", 11),
            (&by_event, Some(&own), "user.left", 20),
            (&by_event, None, "user.left", 30),
            (&[], Some(&own), "order.paid", 20),
            (&[], None, "order.paid", 30),
            (&[], None, "other", 40),
            (&[], None, "hooklane.endpoint.disabled", 40),
        ] {
            assert_eq!(server.choose(by_event, own, event_type).max_retries, expected, "{event_type}");
        }
    }

    #[test]
    fn a_policy_survives_the_database() {
        for policy in [RetryPolicy::default(), RetryPolicy::long()] {
            let stored = EventRetryPolicy { event_types: vec![EventPattern::All], policy };
            let text = serde_json::to_string(&stored).expect("JSON");
            assert_eq!(serde_json::from_str::<EventRetryPolicy>(&text).expect("the same"), stored);
        }
    }

    /// Policies within the bounds of the contract, of either shape.
    fn policies() -> impl Strategy<Value = RetryPolicy> {
        let exponential = (1u64..600_000, 1.0f64..=100.0, 1u64..604_800_000).prop_map(|(initial, multiplier, max)| {
            let initial = Duration::from_millis(initial.min(max));
            Backoff::exponential(initial, multiplier, Duration::from_millis(max)).expect("in bounds")
        });
        let delay = (0u64..=604_800_000).prop_map(Duration::from_millis);
        let schedule = prop::collection::vec(delay, 1..=SCHEDULE_MAX)
            .prop_map(|delays| Backoff::schedule(delays).expect("in bounds"));
        let backoff = prop_oneof![exponential, schedule];
        (backoff, 0.0f64..=1.0, 0..=RETRIES_MAX).prop_map(|(backoff, jitter, max_retries)| RetryPolicy {
            backoff,
            jitter,
            max_retries,
        })
    }

    proptest! {
        #[test]
        fn no_attempt_number_and_seed_leaves_the_bounds(
            policy in policies(),
            retry in prop_oneof![0u32..=200, any::<u32>()],
            unit in prop_oneof![0.0f64..1.0, any::<f64>()],
        ) {
            let base = policy.backoff.base(retry);
            prop_assert!(base <= DELAY_MAX);
            let (delay, base) = (policy.delay(retry, unit).as_secs_f64(), base.as_secs_f64());
            prop_assert!(delay >= base * (1.0 - policy.jitter) - 1e-6 && delay <= base * (1.0 + policy.jitter) + 1e-6);
        }

        #[test]
        fn jitter_spreads_over_both_sides_of_the_base(policy in policies(), retry in 1u32..=200) {
            prop_assume!(policy.jitter > 0.01 && policy.backoff.base(retry) > Duration::from_millis(1));
            let base = policy.backoff.base(retry).as_secs_f64();
            let delays: Vec<f64> = (0..100).map(|n| policy.delay(retry, f64::from(n) / 100.0).as_secs_f64()).collect();
            let below = delays.iter().filter(|delay| **delay < base).count();
            let above = delays.iter().filter(|delay| **delay > base).count();
            prop_assert!((48..=51).contains(&below) && (48..=51).contains(&above), "{} below, {} above", below, above);
            let (least, most) = (base * (1.0 - policy.jitter * 0.97), base * (1.0 + policy.jitter * 0.97));
            prop_assert!(delays[0] <= least && delays[99] >= most, "the whole width");
        }

        #[test]
        fn every_delay_stays_within_its_bounds(
            initial_ms in 1u64..600_000,
            multiplier in 1.0f64..=100.0,
            max_ms in 1u64..604_800_000,
            jitter in 0.0f64..=1.0,
            retry in 0u32..=u32::MAX,
            unit in 0.0f64..1.0,
        ) {
            let initial = Duration::from_millis(initial_ms.min(max_ms));
            let backoff = Backoff::exponential(initial, multiplier, Duration::from_millis(max_ms)).expect("in bounds");
            let base = backoff.base(retry);
            prop_assert!(base >= initial && base <= Duration::from_millis(max_ms));
            let policy = RetryPolicy { backoff, jitter, max_retries: 5 };
            let (delay, base) = (policy.delay(retry, unit).as_secs_f64(), base.as_secs_f64());
            prop_assert!(delay >= base * (1.0 - jitter) - 1e-6 && delay <= base * (1.0 + jitter) + 1e-6);
            let on_its_side = if unit < 0.5 { delay <= base + 1e-6 } else { delay >= base - 1e-6 };
            prop_assert!(on_its_side);
        }
    }

    #[test]
    fn parts_out_of_range_are_named() {
        let second = Duration::from_secs(1);
        let part = |result: Result<Backoff, (&'static str, Problem)>| result.expect_err("out of range").0;
        assert_eq!(part(Backoff::exponential(Duration::ZERO, 2.0, second)), "initial_delay");
        assert_eq!(part(Backoff::exponential(second, f64::NAN, second)), "multiplier");
        assert_eq!(part(Backoff::exponential(second, 2.0, Duration::from_millis(5))), "max_delay");
    }
}
