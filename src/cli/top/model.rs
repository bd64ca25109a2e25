//! What is known of the service: figures of a window, endpoints, and what the live stream told in the last seconds.
//! Moments are spans since the program began; nothing here reads a clock.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::feed::News;
use crate::api::proto::{DeliveryEvent, DeliveryEventKind, Endpoint, EndpointStats, GetStatsResponse};

/// Everything that a picture is made of.
pub(super) struct Model {
    pub(super) place: String,
    pub(super) tenant: String,
    pub(super) window: prost_types::Duration,
    pub(super) stats: Option<GetStatsResponse>,
    pub(super) endpoints: Option<HashMap<String, Endpoint>>,
    /// The latest first.
    pub(super) failures: VecDeque<DeliveryEvent>,
    pub(super) sort: Sort,
    /// How many lanes above the first one that is shown.
    pub(super) first: usize,
    /// Whether the stream tells of what happens.
    pub(super) is_live: Option<bool>,
    /// Why the figures are not of now.
    pub(super) trouble: Option<String>,
    rates: Rates,
}

/// What lanes are sorted by: most first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Sort {
    Outstanding,
    Oldest,
    Delivered,
    Failing,
}

/// One endpoint at work.
pub(super) struct Lane<'a> {
    pub(super) stats: &'a EndpointStats,
    pub(super) endpoint: Option<&'a Endpoint>,
    pub(super) rate: Count,
}

/// What the stream told of: as counts of the window below, or a second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Count {
    pub(super) queued: f64,
    pub(super) succeeded: f64,
    /// Attempts that failed or were lost.
    pub(super) failed: f64,
}

/// Rates are those of so many whole seconds.
const RATE_SECONDS: u64 = 10;
const FAILURES_MAX: usize = 200;

impl Model {
    pub(super) fn new(place: String, tenant: String, window: prost_types::Duration, sort: Sort) -> Self {
        Self {
            place,
            tenant,
            window,
            stats: None,
            endpoints: None,
            failures: VecDeque::new(),
            sort,
            first: 0,
            is_live: None,
            trouble: None,
            rates: Rates::default(),
        }
    }

    /// Takes in what came at `now`.
    pub(super) fn take(&mut self, news: News, now: Duration) {
        match news {
            News::Stats(stats) => {
                self.stats = Some(*stats);
                self.trouble = None;
            }
            News::Endpoints(endpoints) => {
                self.endpoints = Some(endpoints.into_iter().map(|one| (one.id.clone(), one)).collect());
            }
            News::Event(event) => self.note(*event, now),
            News::Live(is_live) => self.is_live = Some(is_live),
            News::Away(words) => self.trouble = Some(words),
            // The caller ends with it.
            News::Refused(failure) => self.trouble = Some(failure.to_string()),
        }
    }

    /// Whether there is an answer to every question.
    pub(super) const fn is_complete(&self) -> bool {
        self.stats.is_some() && self.endpoints.is_some() && self.is_live.is_some()
    }

    pub(super) const fn sort_by_next(&mut self) {
        self.sort = match self.sort {
            Sort::Outstanding => Sort::Oldest,
            Sort::Oldest => Sort::Delivered,
            Sort::Delivered => Sort::Failing,
            Sort::Failing => Sort::Outstanding,
        };
    }

    /// The picture keeps to what there is.
    pub(super) const fn scroll(&mut self, lanes: isize) {
        self.first = self.first.saturating_add_signed(lanes);
    }

    /// Of all endpoints together, a second.
    pub(super) fn rate(&self, now: Duration) -> Count {
        self.rates.of(None, now)
    }

    /// Those that GetStats tells of, sorted.
    pub(super) fn lanes(&self, now: Duration) -> Vec<Lane<'_>> {
        let endpoints = self.endpoints.as_ref();
        let stats = self.stats.iter().flat_map(|stats| &stats.endpoints);
        let mut lanes: Vec<_> = stats
            .map(|stats| Lane {
                stats,
                endpoint: endpoints.and_then(|endpoints| endpoints.get(&stats.endpoint_id)),
                rate: self.rates.of(Some(&stats.endpoint_id), now),
            })
            .collect();
        let weight = |lane: &Lane<'_>| match self.sort {
            Sort::Outstanding => lane.stats.outstanding as f64,
            Sort::Oldest => {
                lane.stats.oldest_due_age.as_ref().map_or(-1.0, |age| age.seconds as f64 + f64::from(age.nanos) / 1e9)
            }
            Sort::Delivered => lane.rate.succeeded,
            Sort::Failing => lane.rate.failed,
        };
        lanes.sort_by(|one, other| {
            weight(other).total_cmp(&weight(one)).then_with(|| one.stats.endpoint_id.cmp(&other.stats.endpoint_id))
        });
        lanes
    }

    fn note(&mut self, event: DeliveryEvent, now: Duration) {
        let kind = event.kind();
        let endpoint = event.delivery.as_ref().map(|delivery| delivery.endpoint_id.as_str()).unwrap_or_default();
        // A delivery that fails for good ends with an attempt that failed, if it had any.
        let is_failed_attempt = matches!(kind, DeliveryEventKind::AttemptFailed | DeliveryEventKind::AttemptLost)
            || kind == DeliveryEventKind::Failed && event.attempt.is_some();
        self.rates.add(endpoint, now, |count| match kind {
            DeliveryEventKind::Queued => count.queued += 1.0,
            DeliveryEventKind::Succeeded => count.succeeded += 1.0,
            _ if is_failed_attempt => count.failed += 1.0,
            _ => {}
        });
        if is_failed_attempt || matches!(kind, DeliveryEventKind::Failed | DeliveryEventKind::Expired) {
            self.failures.push_front(event);
            self.failures.truncate(FAILURES_MAX);
        }
    }
}

/// Counts by the second, the latest last.
#[derive(Debug, Default)]
struct Rates(VecDeque<(u64, HashMap<String, Count>)>);

impl Rates {
    fn add(&mut self, endpoint: &str, now: Duration, note: impl Fn(&mut Count)) {
        let second = now.as_secs();
        if self.0.back().is_none_or(|(last, _)| *last != second) {
            self.0.push_back((second, HashMap::new()));
        }
        while self.0.front().is_some_and(|(first, _)| first + RATE_SECONDS < second) {
            self.0.pop_front();
        }
        if let Some((_, counts)) = self.0.back_mut() {
            match counts.get_mut(endpoint) {
                Some(count) => note(count),
                None => note(counts.entry(endpoint.to_owned()).or_default()),
            }
        }
    }

    /// A second, over the whole seconds before this one; of a program that has just begun, over fewer.
    fn of(&self, endpoint: Option<&str>, now: Duration) -> Count {
        let second = now.as_secs();
        let mut sum = Count::default();
        for (_, counts) in self.0.iter().filter(|(then, _)| *then < second && then + RATE_SECONDS >= second) {
            let counted = counts.iter().filter(|(id, _)| endpoint.is_none_or(|wanted| *id == wanted));
            for (_, count) in counted {
                sum.queued += count.queued;
                sum.succeeded += count.succeeded;
                sum.failed += count.failed;
            }
        }
        let seconds = second.clamp(1, RATE_SECONDS) as f64;
        Count { queued: sum.queued / seconds, succeeded: sum.succeeded / seconds, failed: sum.failed / seconds }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::api::proto::{Attempt, Delivery};

    pub(in crate::cli::top) fn event(kind: DeliveryEventKind, endpoint: &str) -> News {
        let delivery = Delivery { id: "dlv_1".to_owned(), endpoint_id: endpoint.to_owned(), ..Delivery::default() };
        let attempt = (kind != DeliveryEventKind::Queued).then(|| Attempt { number: 1, ..Attempt::default() });
        let kind = kind.into();
        News::Event(Box::new(DeliveryEvent { kind, delivery: Some(delivery), attempt, occur_time: None }))
    }

    pub(in crate::cli::top) fn model(outstanding: &[(&str, u64)]) -> Model {
        let window = prost_types::Duration { seconds: 300, nanos: 0 };
        let mut model = Model::new("127.0.0.1:50051".to_owned(), String::new(), window, Sort::Outstanding);
        let endpoints = outstanding.iter().map(|(id, outstanding)| EndpointStats {
            endpoint_id: (*id).to_owned(),
            outstanding: *outstanding,
            ..EndpointStats::default()
        });
        let stats = GetStatsResponse { endpoints: endpoints.collect(), ..GetStatsResponse::default() };
        model.take(News::Stats(Box::new(stats)), Duration::ZERO);
        model
    }

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn rates_are_of_the_last_whole_seconds() {
        let mut model = model(&[]);
        for millis in [20_000, 20_500, 21_000, 29_999] {
            model.take(event(DeliveryEventKind::Succeeded, "a"), at(millis));
        }
        model.take(event(DeliveryEventKind::AttemptFailed, "b"), at(29_999));
        assert_eq!(model.rate(at(30_000)), Count { queued: 0.0, succeeded: 0.4, failed: 0.1 });
        assert_eq!(model.rate(at(31_500)).succeeded, 0.2, "the first two are over");
        assert_eq!(model.rate(at(60_000)), Count::default());
        model.take(event(DeliveryEventKind::Queued, "a"), at(60_000));
        assert_eq!(model.rates.0.len(), 1, "what is over is forgotten");
    }

    #[test]
    fn at_the_beginning_rates_are_of_fewer_seconds() {
        let mut model = model(&[]);
        model.take(event(DeliveryEventKind::Queued, "a"), at(100));
        model.take(event(DeliveryEventKind::Queued, "a"), at(1_100));
        assert_eq!(model.rate(at(2_000)).queued, 1.0);
    }

    #[test]
    fn lanes_are_sorted_by_what_is_asked_for() {
        let mut model = model(&[("a", 1), ("b", 5), ("c", 3)]);
        model.take(event(DeliveryEventKind::Succeeded, "a"), at(100));
        model.take(event(DeliveryEventKind::AttemptFailed, "c"), at(100));
        let order = |model: &Model| -> Vec<String> {
            model.lanes(at(1_000)).iter().map(|lane| lane.stats.endpoint_id.clone()).collect()
        };
        assert_eq!(order(&model), ["b", "c", "a"]);
        model.sort_by_next();
        model.sort_by_next();
        assert_eq!((model.sort, order(&model)[0].as_str()), (Sort::Delivered, "a"));
        model.sort_by_next();
        assert_eq!((model.sort, order(&model)[0].as_str()), (Sort::Failing, "c"));
    }

    #[test]
    fn the_latest_failures_are_kept_and_no_more() {
        let mut model = model(&[]);
        for _ in 0..FAILURES_MAX + 1 {
            model.take(event(DeliveryEventKind::AttemptFailed, "a"), at(0));
        }
        model.take(event(DeliveryEventKind::Failed, "b"), at(0));
        model.take(event(DeliveryEventKind::Queued, "c"), at(0));
        let latest = model.failures[0].delivery.as_ref().map(|delivery| delivery.endpoint_id.as_str());
        assert_eq!((model.failures.len(), latest), (FAILURES_MAX, Some("b")));
    }
}
