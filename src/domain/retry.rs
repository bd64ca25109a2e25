//! When a failed delivery is tried again: backoff and jitter as pure arithmetic over delays.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Problem;

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
}

impl Default for Backoff {
    fn default() -> Self {
        Self::Exponential {
            initial_delay: Duration::from_secs(1),
            multiplier: 2.0,
            max_delay: Duration::from_secs(300),
        }
    }
}

impl Default for RetryPolicy {
    /// 1, 2, 4, 8, 16 s, each ±30 %: six requests in all.
    fn default() -> Self {
        Self { backoff: Backoff::default(), jitter: 0.3, max_retries: 5 }
    }
}

/// The longest delay a policy may name.
pub const DELAY_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

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

    /// The delay before the `retry`-th retry (1 is the first), before jitter.
    fn base(&self, retry: u32) -> Duration {
        match *self {
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
    /// The delay before the `retry`-th retry (1 is the first): the backoff's, moved by a uniform share of
    /// ±`jitter`. `unit` is the caller's random number in [0, 1).
    pub fn delay(&self, retry: u32, unit: f64) -> Duration {
        let share = 1.0 + self.jitter.clamp(0.0, 1.0) * (2.0 * unit.clamp(0.0, 1.0) - 1.0);
        self.backoff.base(retry).mul_f64(share)
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

    proptest! {
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
