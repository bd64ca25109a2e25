//! How fast: a token bucket over given instants, exact over any span however late its caller looks.

use std::time::{Duration, Instant};

use super::Problem;

/// Most requests an endpoint, a tenant or the installation gets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateLimit {
    /// Requests a second on average: positive and finite.
    pub per_second: f64,
    /// Requests at once after a quiet spell; 0 means `per_second` rounded up.
    pub burst: u32,
}

impl RateLimit {
    /// Checks a limit's rate.
    pub fn parse(per_second: f64, burst: u32) -> Result<Self, Problem> {
        if per_second.is_finite() && per_second > 0.0 {
            Ok(Self { per_second, burst })
        } else {
            Err(Problem::new("is out of range; allowed is a number above 0"))
        }
    }

    /// Requests a second, within what can be reckoned with: one in thirty years is none, a thousand million are no limit.
    const fn rate(self) -> f64 {
        self.per_second.clamp(1e-9, 1e9)
    }

    /// Tokens that a quiet bucket holds.
    fn depth(self) -> f64 {
        if self.burst == 0 { self.rate().ceil() } else { f64::from(self.burst) }
    }
}

/// What a caller may be late by without losing a token, beyond the burst: timers come a millisecond late, and a bucket of
/// one token would lose a tenth of 100 requests a second by that. It is 0.2 % of ten seconds.
const SLACK: Duration = Duration::from_millis(20);
/// The longest wait that is told; whoever waits looks again then.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);
/// What rounding may take from a token.
const ROUNDING: f64 = 1e-6;

/// A limit and what may be sent under it now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bucket {
    limit: RateLimit,
    /// Tokens at `at`.
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// A bucket that was empty at `since`.
    pub const fn empty(limit: RateLimit, since: Instant) -> Self {
        Self { limit, tokens: 0.0, at: since }
    }

    /// Another limit from now on; what was saved up stays, within the new one's burst.
    pub fn change(&mut self, limit: RateLimit, now: Instant) {
        self.tokens = self.tokens_at(now);
        self.at = self.at.max(now);
        self.limit = limit;
    }

    /// The limit.
    pub const fn limit(&self) -> RateLimit {
        self.limit
    }

    /// Takes a token, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        self.take_up_to(1, now) == 1
    }

    /// Takes as many tokens as there are, `count` at most; answers how many.
    pub fn take_up_to(&mut self, count: u32, now: Instant) -> u32 {
        let tokens = self.tokens_at(now);
        let taken = count.min(whole(tokens));
        self.tokens = (tokens - f64::from(taken)).max(0.0);
        self.at = self.at.max(now);
        taken
    }

    /// Gives tokens back that were not used.
    pub fn give_back(&mut self, count: u32) {
        self.tokens += f64::from(count);
    }

    /// How many requests may have started `ahead` from now, if one starts whenever it may.
    pub fn count_within(&self, ahead: Duration, now: Instant) -> u32 {
        whole(self.tokens_at(now) + ahead.as_secs_f64() * self.limit.rate())
    }

    /// When a token is there: `now` or later, a day ahead at most.
    pub fn next_at(&self, now: Instant) -> Instant {
        let missing = 1.0 - self.tokens_at(now);
        if missing <= ROUNDING {
            return now;
        }
        let wait = Duration::try_from_secs_f64(missing / self.limit.rate()).unwrap_or(WAIT_MAX);
        now.max(self.at) + wait.min(WAIT_MAX)
    }

    /// Whether nothing more can be saved up: forgetting the bucket then loses nothing.
    pub fn is_full(&self, now: Instant) -> bool {
        self.tokens_at(now) + ROUNDING >= self.limit.depth()
    }

    fn room(&self) -> f64 {
        self.limit.depth() + self.limit.rate() * SLACK.as_secs_f64()
    }

    fn tokens_at(&self, now: Instant) -> f64 {
        let waited = now.saturating_duration_since(self.at).as_secs_f64();
        (self.tokens + waited * self.limit.rate()).min(self.room())
    }
}

/// Whole tokens; a cast saturates.
fn whole(tokens: f64) -> u32 {
    (tokens + ROUNDING).floor() as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limit(per_second: f64, burst: u32) -> RateLimit {
        RateLimit::parse(per_second, burst).expect("in bounds")
    }

    #[test]
    fn only_positive_finite_rates_are_limits() {
        for rate in [0.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(RateLimit::parse(rate, 1).is_err(), "{rate}");
        }
        for (rate, burst, depth) in
            [(0.001, 0, 1.0), (1.0, 0, 1.0), (1.5, 0, 2.0), (100.0, 0, 100.0), (100.0, 1, 1.0), (0.5, 7, 7.0)]
        {
            assert_eq!(limit(rate, burst).depth(), depth);
        }
    }

    #[test]
    fn an_empty_bucket_fills_to_its_burst_and_no_further() {
        let start = Instant::now();
        let mut bucket = Bucket::empty(limit(2.0, 3), start);
        assert!(!bucket.take(start) && !bucket.take(start + Duration::from_millis(499)));
        assert_eq!(bucket.next_at(start), start + Duration::from_millis(500));
        assert!(bucket.take(start + Duration::from_millis(500)));
        assert!(!bucket.take(start + Duration::from_millis(500)));
        let quiet = start + Duration::from_secs(3_600);
        assert!(bucket.is_full(quiet));
        assert_eq!(bucket.take_up_to(100, quiet), 3);
        assert!(!bucket.is_full(quiet));
        bucket.give_back(2);
        assert_eq!(bucket.take_up_to(100, quiet), 2);
    }

    #[test]
    fn a_lower_limit_takes_what_was_saved_up_beyond_it() {
        let start = Instant::now();
        let mut bucket = Bucket::empty(limit(100.0, 100), start);
        let now = start + Duration::from_secs(10);
        bucket.change(limit(1.0, 5), now);
        assert_eq!(bucket.take_up_to(100, now), 5);
        let next_at = bucket.next_at(now);
        assert!(next_at > now + Duration::from_millis(950) && next_at <= now + Duration::from_secs(1));
    }

    #[test]
    fn extreme_rates_overflow_nothing() {
        let start = Instant::now();
        for rate in [f64::MIN_POSITIVE, 1e-300, 1e300, f64::MAX] {
            let mut bucket = Bucket::empty(limit(rate, u32::MAX), start);
            let later = start + Duration::from_secs(3_600);
            let taken = bucket.take_up_to(u32::MAX, later);
            assert_eq!(taken > 0, rate > 1.0);
            assert!(bucket.next_at(later) <= later + WAIT_MAX);
            assert_eq!(bucket.count_within(WAIT_MAX, later) > 0, rate > 1.0);
            bucket.change(limit(1.0, 1), later + WAIT_MAX);
            assert_eq!(bucket.take_up_to(9, later + WAIT_MAX), u32::from(rate > 1.0));
        }
    }

    proptest! {
        /// However the looks fall, a busy bucket gives its rate, and no window of any length more than that and its burst.
        #[test]
        fn a_busy_bucket_gives_its_rate_and_no_window_more(
            rate in 0.5f64..500.0,
            burst in 1u32..50,
            delays in prop::collection::vec(0u64..15_000, 1..400),
        ) {
            let start = Instant::now();
            let mut bucket = Bucket::empty(limit(rate, burst), start);
            let (mut now, mut taken) = (start, Vec::new());
            for delay_us in delays {
                // As soon as a token is there, or up to 15 ms later.
                now = bucket.next_at(now) + Duration::from_micros(delay_us);
                prop_assert!(bucket.count_within(Duration::ZERO, now) >= 1);
                while bucket.take(now) {
                    taken.push(now);
                }
            }
            let span = now.duration_since(start).as_secs_f64();
            let expected = rate * span;
            prop_assert!((taken.len() as f64) <= expected + 1.0 && (taken.len() as f64) >= expected - 1.0 - rate * 0.015,
                         "{} of {expected}", taken.len());
            for (place, first) in taken.iter().enumerate().step_by(7) {
                let in_window = |last: &&Instant| last.duration_since(*first) <= Duration::from_secs(1);
                let count = taken[place..].iter().take_while(in_window).count();
                prop_assert!(count as f64 <= f64::from(burst) + rate * 1.02 + 1.0);
            }
        }
    }
}
