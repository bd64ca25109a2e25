//! What a receiver has counted: arrivals, repeats, and how long each took from the publish call.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// The longest latency that is told apart, in microseconds: an hour.
const LATENCY_US_MAX: u64 = 3_600_000_000;

/// Counts of one receiver process.
#[derive(Debug)]
pub(super) struct Tally {
    arrived: u64,
    repeated: u64,
    silenced: u64,
    unstamped: u64,
    inverted: u64,
    /// The highest number that arrived of each ordering key.
    places: HashMap<u64, u64>,
    window: Histogram<u64>,
    /// Hashes of delivery ids: a collision among a million is one in 37 million.
    seen: HashSet<u64>,
    hasher: RandomState,
    /// Arrivals by delivery id, where they are recorded.
    record: Option<HashMap<String, u32>>,
}

/// What a receiver tells.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Report {
    /// Requests that were answered 200, since the reset.
    pub(super) arrived: u64,
    /// Of those, how many were for a delivery that had arrived before.
    pub(super) repeated: u64,
    /// Requests that the silent address has read, ever.
    pub(super) silenced: u64,
    /// Arrivals without a stamp: nobody's but a mistake's.
    pub(super) unstamped: u64,
    /// Arrivals that came before the one before them behind the same key.
    pub(super) inverted: u64,
    /// Arrivals since the window began.
    pub(super) in_window: u64,
    /// Latency of those.
    pub(super) latency: Latency,
}

/// Publish call to arrival, in milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Latency {
    pub(super) p50_ms: f64,
    pub(super) p95_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) max_ms: f64,
}

impl Latency {
    /// The quantiles of microseconds.
    pub(super) fn of(micros: &Histogram<u64>) -> Self {
        let quantile = |share| micros.value_at_quantile(share) as f64 / 1_000.0;
        Self {
            p50_ms: quantile(0.5),
            p95_ms: quantile(0.95),
            p99_ms: quantile(0.99),
            max_ms: micros.max() as f64 / 1_000.0,
        }
    }
}

/// For latencies, in microseconds.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(LATENCY_US_MAX, 3).expect("an hour and three digits are within its bounds")
}

impl Report {
    /// Deliveries that arrived, each counted once.
    pub(super) const fn distinct(&self) -> u64 {
        self.arrived - self.repeated
    }
}

impl Tally {
    pub(super) fn new(is_recording: bool) -> Self {
        Self {
            arrived: 0,
            repeated: 0,
            silenced: 0,
            unstamped: 0,
            inverted: 0,
            places: HashMap::new(),
            window: histogram(),
            seen: HashSet::new(),
            hasher: RandomState::new(),
            record: is_recording.then(HashMap::new),
        }
    }

    /// One request; `sent_ns` and `now_ns` by the same clock.
    pub(super) fn arrive(&mut self, delivery: &[u8], sent_ns: Option<u64>, now_ns: u64) {
        self.arrived += 1;
        self.repeated += u64::from(!self.seen.insert(self.hasher.hash_one(delivery)));
        match sent_ns {
            Some(sent_ns) => self.window.saturating_record(now_ns.saturating_sub(sent_ns) / 1_000),
            None => self.unstamped += 1,
        }
        if let Some(record) = &mut self.record {
            *record.entry(String::from_utf8_lossy(delivery).into_owned()).or_default() += 1;
        }
    }

    /// Where the request stands behind its ordering key, if it has one. A key's first since the reset may be any.
    pub(super) fn place(&mut self, place: Option<(u64, u64)>) {
        let Some((key, number)) = place else { return };
        let highest = self.places.entry(key).or_insert(number);
        self.inverted += u64::from(number > *highest + 1);
        *highest = number.max(*highest);
    }

    /// A request that stays unanswered.
    pub(super) const fn silence(&mut self) {
        self.silenced += 1;
    }

    /// Latency is counted anew; everything else goes on.
    pub(super) fn begin_window(&mut self) {
        self.window.reset();
    }

    /// Everything is counted anew but what stays unanswered: that goes on.
    pub(super) fn reset(&mut self) {
        *self = Self { silenced: self.silenced, ..Self::new(self.record.is_some()) };
    }

    pub(super) fn report(&self) -> Report {
        Report {
            arrived: self.arrived,
            repeated: self.repeated,
            silenced: self.silenced,
            unstamped: self.unstamped,
            inverted: self.inverted,
            in_window: self.window.len(),
            latency: Latency::of(&self.window),
        }
    }

    /// Arrivals by delivery id; none where they are not recorded.
    pub(super) fn record(&self) -> HashMap<String, u32> {
        self.record.clone().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeat_is_counted_and_a_new_window_forgets_only_latency() {
        let mut tally = Tally::new(true);
        tally.arrive(b"dlv_1", Some(1_000_000), 3_000_000);
        tally.arrive(b"dlv_1", Some(1_000_000), 9_000_000);
        tally.arrive(b"dlv_2", None, 9_000_000);
        let report = tally.report();
        assert_eq!((report.arrived, report.repeated, report.distinct(), report.unstamped), (3, 1, 2, 1));
        assert!((report.latency.max_ms - 8.0).abs() < 0.1, "{report:?}");
        tally.begin_window();
        assert_eq!((tally.report().in_window, tally.report().arrived), (0, 3));
        assert_eq!(tally.record()["dlv_1"], 2);
    }

    #[test]
    fn what_overtakes_the_one_before_it_is_an_inversion_and_a_repeat_is_none() {
        let mut tally = Tally::new(false);
        for place in [(1, 4), (2, 0), (1, 5), (1, 4), (1, 6), (2, 1)] {
            tally.place(Some(place));
        }
        tally.place(None);
        assert_eq!(tally.report().inverted, 0);
        tally.place(Some((1, 8)));
        tally.place(Some((1, 7)));
        assert_eq!(tally.report().inverted, 1);
    }
}
