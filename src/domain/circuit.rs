//! When to stop: the circuit breaker of an endpoint's lane, and when an endpoint is disabled for failing.
//!
//! The database holds the circuit: failures in a row are counted and transitions made there, so that they outlast any
//! process. A lane knows it by what it was told, and adds what it sees before that: once it has counted as many failures
//! as open the circuit, or a probe has ended, it waits for the verdict.

use std::time::{Duration, Instant};

use super::Problem;

/// When an endpoint's circuit opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CircuitPolicy {
    /// Failures in a row that open it; 0 means never.
    pub failure_threshold: u32,
    /// How long it stays open at first: 1 ms to 7 days.
    pub open_duration: Duration,
    /// How long at most, doubled while probes fail: not below `open_duration`, at most 7 days.
    pub max_open_duration: Duration,
}

/// When an endpoint is disabled because it keeps failing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DisablePolicy {
    /// Failures in a row; 0 means never.
    pub consecutive_failures: u32,
    /// How long it must have been failing; at most a year.
    pub failing_for: Duration,
}

/// The threshold of a breaker that names none.
pub const FAILURE_THRESHOLD_DEFAULT: u32 = 10;
/// How long a circuit stays open at first where its policy does not say.
pub const OPEN_DURATION_DEFAULT: Duration = Duration::from_secs(30);
/// The longest that a circuit stays open where its policy does not say.
pub const MAX_OPEN_DURATION_DEFAULT: Duration = Duration::from_secs(3_600);
/// The longest that any policy may say.
pub const OPEN_DURATION_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Failures in a row that disable an endpoint whose policy does not say.
pub const DISABLE_FAILURES_DEFAULT: u32 = 10;
/// How long such an endpoint must have been failing.
pub const FAILING_FOR_DEFAULT: Duration = Duration::from_secs(24 * 3600);
/// The longest that a policy may say.
pub const FAILING_FOR_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

impl Default for CircuitPolicy {
    fn default() -> Self {
        Self {
            failure_threshold: FAILURE_THRESHOLD_DEFAULT,
            open_duration: OPEN_DURATION_DEFAULT,
            max_open_duration: MAX_OPEN_DURATION_DEFAULT,
        }
    }
}

impl CircuitPolicy {
    /// A policy whose parts are within their bounds; what is `None` has its default. The problem comes with the part's
    /// name.
    pub fn parse(
        failure_threshold: Option<u32>,
        open_duration: Option<Duration>,
        max_open_duration: Option<Duration>,
    ) -> Result<Self, (&'static str, Problem)> {
        let open = open_duration.unwrap_or(OPEN_DURATION_DEFAULT);
        if !(Duration::from_millis(1)..=OPEN_DURATION_MAX).contains(&open) {
            return Err(("open_duration", Problem::new("is out of range; allowed are 1 ms to 7 days")));
        }
        let max = max_open_duration.unwrap_or_else(|| MAX_OPEN_DURATION_DEFAULT.max(open));
        if !(open..=OPEN_DURATION_MAX).contains(&max) {
            return Err(("max_open_duration", Problem::new("is out of range; allowed is open_duration to 7 days")));
        }
        Ok(Self {
            failure_threshold: failure_threshold.unwrap_or(FAILURE_THRESHOLD_DEFAULT),
            open_duration: open,
            max_open_duration: max,
        })
    }

    /// Whether so many failures in a row open the circuit.
    pub const fn opens_at(&self, consecutive_failures: u32) -> bool {
        self.failure_threshold > 0 && consecutive_failures >= self.failure_threshold
    }

    /// How long it stays open for the `opening`-th time in a row (1 is the first).
    pub fn wait(&self, opening: u32) -> Duration {
        // Seven days are 2^30 ms: what has doubled more often than that is at its maximum.
        let doubled = self.open_duration.saturating_mul(1 << opening.saturating_sub(1).min(30));
        doubled.min(self.max_open_duration)
    }
}

impl Default for DisablePolicy {
    fn default() -> Self {
        Self { consecutive_failures: DISABLE_FAILURES_DEFAULT, failing_for: FAILING_FOR_DEFAULT }
    }
}

impl DisablePolicy {
    /// A policy whose parts are within their bounds; what is `None` has its default.
    pub fn parse(
        consecutive_failures: Option<u32>,
        failing_for: Option<Duration>,
    ) -> Result<Self, (&'static str, Problem)> {
        let failing_for = failing_for.unwrap_or(FAILING_FOR_DEFAULT);
        if failing_for > FAILING_FOR_MAX {
            return Err(("failing_for", Problem::new("is out of range; allowed are 0 to 365 days")));
        }
        Ok(Self { consecutive_failures: consecutive_failures.unwrap_or(DISABLE_FAILURES_DEFAULT), failing_for })
    }

    /// Whether an endpoint is to be disabled that has failed so often in a row, for so long.
    pub fn disables(&self, consecutive_failures: u32, failing_for: Duration) -> bool {
        self.consecutive_failures > 0
            && consecutive_failures >= self.consecutive_failures
            && failing_for >= self.failing_for
    }
}

/// What a circuit lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Everything.
    All,
    /// One request, to see whether the endpoint is back.
    Probe,
    /// Nothing.
    Nothing,
}

/// The circuit as the lane that it is of knows it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Circuit {
    /// Failures in a row that open it; 0 where it never opens, or nothing is known.
    threshold: u32,
    /// Failures in a row that ended here.
    failures: u32,
    /// Set while it is not closed: from then on it may be probed.
    open_until: Option<Instant>,
    /// Whether a probe is under way.
    is_probing: bool,
    /// Set while the verdict on what has ended is not here: how long it is waited for.
    verdict_by: Option<Instant>,
}

/// How long a verdict is waited for. It takes some milliseconds; where the database is slow, or what was counted here is
/// not what counts, the lane goes on, and the next failure asks again.
const VERDICT_MAX: Duration = Duration::from_secs(2);

impl Circuit {
    /// The policy's threshold from now on.
    pub const fn set_threshold(&mut self, threshold: u32) {
        self.threshold = threshold;
        if threshold == 0 {
            self.verdict_by = None;
        }
    }

    /// The verdict: closed, or open until then.
    pub fn decide(&mut self, open_until: Option<Instant>) {
        *self = Self { threshold: self.threshold, open_until, ..Self::default() };
    }

    /// What it lets through now.
    pub fn admits(&self, now: Instant) -> Admission {
        match self.open_until {
            _ if self.verdict_by.is_some_and(|by| by > now) => Admission::Nothing,
            None => Admission::All,
            Some(until) if until > now || self.is_probing => Admission::Nothing,
            Some(_) => Admission::Probe,
        }
    }

    /// A request that it admitted has started.
    pub const fn start(&mut self) {
        self.is_probing = self.open_until.is_some();
    }

    /// A request has ended. `is_success` is `None` where the endpoint did not cause what came of it.
    pub fn end(&mut self, is_success: Option<bool>, is_probe: bool, now: Instant) {
        if self.open_until.is_some() {
            // What was under way when it opened decides nothing any more.
            if is_probe && self.is_probing {
                self.is_probing = false;
                self.verdict_by = is_success.map(|_| now + VERDICT_MAX);
            }
            return;
        }
        match is_success {
            Some(true) => (self.failures, self.verdict_by) = (0, None),
            Some(false) => {
                self.failures += 1;
                if self.threshold > 0 && self.failures >= self.threshold {
                    // Where no verdict comes, it was not this that counts: then from the beginning.
                    (self.failures, self.verdict_by) = (0, Some(now + VERDICT_MAX));
                }
            }
            None => {}
        }
    }

    /// No request is under way: so no probe is.
    pub const fn rest(&mut self) {
        self.is_probing = false;
    }

    /// When it may admit more than now, if that follows by itself.
    pub fn changes_at(&self, now: Instant) -> Option<Instant> {
        let verdict = self.verdict_by.filter(|by| *by > now);
        let probe = self.open_until.filter(|until| *until > now);
        verdict.max(probe)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_wait_doubles_up_to_its_maximum_and_overflows_nowhere() {
        let policy = CircuitPolicy::default();
        let waits: Vec<u64> = (0..=9).map(|opening| policy.wait(opening).as_secs()).collect();
        assert_eq!(waits, [30, 30, 60, 120, 240, 480, 960, 1_920, 3_600, 3_600]);
        assert_eq!(policy.wait(u32::MAX), Duration::from_secs(3_600));
        let longest = CircuitPolicy::parse(None, Some(OPEN_DURATION_MAX), None).expect("in bounds");
        assert_eq!(longest.wait(u32::MAX), OPEN_DURATION_MAX);
        let shortest =
            CircuitPolicy::parse(None, Some(Duration::from_millis(1)), Some(OPEN_DURATION_MAX)).expect("in bounds");
        assert_eq!(shortest.wait(u32::MAX), OPEN_DURATION_MAX);
    }

    #[test]
    fn parts_out_of_range_are_named() {
        let part = |open, max| CircuitPolicy::parse(None, open, max).expect_err("out of range").0;
        assert_eq!(part(Some(Duration::ZERO), None), "open_duration");
        assert_eq!(part(Some(OPEN_DURATION_MAX + SECOND), None), "open_duration");
        assert_eq!(part(None, Some(SECOND)), "max_open_duration");
        assert_eq!(part(None, Some(Duration::ZERO)), "max_open_duration");
        assert_eq!(CircuitPolicy::parse(None, None, None), Ok(CircuitPolicy::default()));
        let long = CircuitPolicy::parse(Some(0), Some(SECOND * 7_200), None).expect("in bounds");
        assert_eq!((long.max_open_duration, long.opens_at(u32::MAX)), (SECOND * 7_200, false));
        assert_eq!(DisablePolicy::parse(None, Some(FAILING_FOR_MAX + SECOND)).expect_err("too long").0, "failing_for");
        assert_eq!(DisablePolicy::parse(None, None), Ok(DisablePolicy::default()));
    }

    #[test]
    fn an_endpoint_is_disabled_when_both_conditions_hold() {
        let hours = |hours: u64| Duration::from_secs(hours * 3_600);
        let policy = DisablePolicy::default();
        for (failures, failing_for, expected) in
            [(10, hours(24), true), (9, hours(48), false), (1_000, hours(23), false), (11, hours(25), true)]
        {
            assert_eq!(policy.disables(failures, failing_for), expected, "{failures} {failing_for:?}");
        }
        let by_count = DisablePolicy { consecutive_failures: 3, failing_for: Duration::ZERO };
        assert_eq!([2, 3].map(|failures| by_count.disables(failures, Duration::ZERO)), [false, true]);
        let never = DisablePolicy { consecutive_failures: 0, failing_for: Duration::ZERO };
        assert!(!never.disables(u32::MAX, hours(10_000)));
    }

    fn circuit(threshold: u32) -> Circuit {
        let mut circuit = Circuit::default();
        circuit.set_threshold(threshold);
        circuit
    }

    #[test]
    fn the_failure_that_fills_the_count_stops_everything_until_the_verdict() {
        let now = Instant::now();
        let mut circuit = circuit(2);
        circuit.end(Some(false), false, now);
        circuit.end(Some(true), false, now);
        circuit.end(Some(false), false, now);
        circuit.end(None, false, now);
        assert_eq!(circuit.admits(now), Admission::All, "not in a row");
        circuit.end(Some(false), false, now);
        assert_eq!(circuit.admits(now), Admission::Nothing);
        assert_eq!(circuit.changes_at(now), Some(now + VERDICT_MAX));
        assert_eq!(circuit.admits(now + VERDICT_MAX), Admission::All, "no verdict: on it goes");
        circuit.decide(Some(now + SECOND));
        assert_eq!(circuit.admits(now), Admission::Nothing);
        assert_eq!(circuit.changes_at(now), Some(now + SECOND));
        assert_eq!(circuit.admits(now + SECOND), Admission::Probe);
    }

    #[test]
    fn one_probe_goes_at_a_time_and_its_verdict_is_waited_for() {
        let start = Instant::now();
        let mut circuit = circuit(1);
        circuit.decide(Some(start));
        circuit.start();
        assert_eq!(circuit.admits(start), Admission::Nothing);
        circuit.end(Some(true), false, start);
        assert_eq!(circuit.admits(start), Admission::Nothing, "an earlier request decides nothing");
        circuit.end(None, true, start);
        assert_eq!(circuit.admits(start), Admission::Probe, "nor does a probe that shows nothing");
        circuit.start();
        circuit.end(Some(true), true, start);
        assert_eq!(circuit.admits(start), Admission::Nothing);
        circuit.decide(None);
        assert_eq!(circuit.admits(start), Admission::All);
    }

    #[test]
    fn without_a_threshold_it_never_opens() {
        let now = Instant::now();
        let mut circuit = circuit(0);
        (0..1_000).for_each(|_| circuit.end(Some(false), false, now));
        assert_eq!(circuit.admits(now), Admission::All);
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Start,
        End(Option<bool>),
        Verdict,
        Later(u16),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            Just(Step::Start),
            prop_oneof![Just(None), Just(Some(true)), Just(Some(false)), Just(Some(false))].prop_map(Step::End),
            Just(Step::Verdict),
            (0u16..3_000).prop_map(Step::Later),
        ];
        prop::collection::vec(step, 1..200)
    }

    proptest! {
        /// Beside a database that counts as it should: at most one probe at once, nothing starts while it is open, and
        /// no run of failures is longer than the threshold and what was under way.
        #[test]
        fn whatever_happens_an_open_circuit_admits_one_probe_at_a_time(steps in steps(), threshold in 1u32..5) {
            let policy = CircuitPolicy { failure_threshold: threshold, open_duration: SECOND, max_open_duration: 8 * SECOND };
            let mut circuit = circuit(threshold);
            let mut now = Instant::now();
            // Requests under way, and whether each is a probe; what the database knows.
            let mut running: Vec<bool> = Vec::new();
            let (mut failures, mut openings, mut open_until) = (0, 0, None::<Instant>);
            let mut pending = None;
            for step in steps {
                match step {
                    Step::Start => match circuit.admits(now) {
                        Admission::Nothing => {}
                        admission => {
                            let is_probe = admission == Admission::Probe;
                            prop_assert_eq!(is_probe, open_until.is_some());
                            prop_assert!(open_until.is_none_or(|until| until <= now), "sent while open");
                            prop_assert!(!is_probe || !running.contains(&true), "two probes at once");
                            circuit.start();
                            running.push(is_probe);
                        }
                    },
                    Step::End(_) if running.is_empty() => {}
                    Step::End(is_success) => {
                        let is_probe = running.remove(0);
                        circuit.end(is_success, is_probe, now);
                        match is_success {
                            Some(true) => failures = 0,
                            Some(false) => failures += 1,
                            None => {}
                        }
                        if is_probe && is_success.is_some() {
                            pending = is_success.map(|is_success| !is_success);
                        } else if open_until.is_none() && policy.opens_at(failures) {
                            pending = Some(true);
                        }
                    }
                    Step::Verdict => {
                        if let Some(opens) = pending.take() {
                            openings = if opens { openings + 1 } else { 0 };
                            open_until = opens.then(|| now + policy.wait(openings));
                            circuit.decide(open_until);
                        }
                    }
                    Step::Later(ms) if pending.is_none() => now += Duration::from_millis(ms.into()),
                    Step::Later(_) => {}
                }
                prop_assert!(circuit.changes_at(now).is_none_or(|at| at > now));
            }
        }
    }
}
