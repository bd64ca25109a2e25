//! What this replica counts and measures, and how Prometheus reads it.
//!
//! Every metric is made here, from the table, and handed out as a handle: whoever counts does no look-up. A store has one
//! [`Metrics`], and whoever has the store has it: two replicas in one process count apart.

mod calls;
mod events;
mod table;

use std::fmt;
use std::sync::{Mutex, PoisonError};

use prometheus::{
    Encoder as _, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

pub use self::calls::{Call, Calls};
pub use self::events::Events;
use self::table::{FAMILIES, Family, Kind};
use crate::domain::attempt::AttemptOutcome;
use crate::domain::endpoint::EndpointState;

/// Why metrics could not be made.
pub type Error = prometheus::Error;

/// Everything that is counted and measured, each as the table describes it.
pub struct Metrics {
    registry: Registry,
    /// What is set when somebody reads, not before.
    looks: Mutex<Vec<Box<dyn Fn() + Send>>>,
    /// Committed events.
    pub events: Events,
    /// Deliveries that came to an end.
    pub deliveries: Deliveries,
    attempts: Vec<IntCounter>,
    /// Of requests to receivers.
    pub delivery_duration: Histogram,
    /// From publish to success.
    pub end_to_end: Histogram,
    /// Outstanding deliveries.
    pub queue_size: IntGauge,
    /// How long the one has waited that is due longest.
    pub queue_oldest: Gauge,
    endpoints: IntGaugeVec,
    /// Endpoints whose circuit is not closed.
    pub open_circuits: IntGauge,
    /// Failed deliveries that wait for somebody.
    pub dead_letters: IntGauge,
    /// Replicas on the database.
    pub replicas: IntGauge,
    /// Claims.
    pub claims: Batches,
    /// Deliveries that needed none.
    pub claims_with_publish: IntCounter,
    /// Commits of published events.
    pub publishes: Batches,
    /// Commits of results.
    pub completions: Batches,
    /// Lanes of this replica.
    pub lanes: IntGauge,
    /// Requests under way.
    pub requests_in_flight: IntGauge,
    /// Open streams.
    pub stream_subscribers: IntGauge,
    /// How late the live stream is.
    pub stream_lag: Gauge,
    connections: IntGaugeVec,
    /// Whether the database answers.
    pub database_up: IntGauge,
    /// Requests that the guard forbade.
    pub guard_refusals: IntCounter,
    /// Filters that failed.
    pub filter_errors: IntCounter,
    /// Spans that were not sent.
    pub spans_dropped: IntCounter,
    /// gRPC calls.
    pub calls: Calls,
}

/// Deliveries by how they ended.
pub struct Deliveries {
    /// With a 2xx.
    pub succeeded: IntCounter,
    /// For good.
    pub failed: IntCounter,
    /// By somebody's wish.
    pub canceled: IntCounter,
    /// Because their time was over.
    pub expired: IntCounter,
}

/// Statements that take several rows.
pub struct Batches {
    /// How long each took.
    pub duration: Histogram,
    /// How many rows each had.
    pub size: Histogram,
}

impl Batches {
    /// Counts one that took so long and had so many rows.
    pub fn observe(&self, took: std::time::Duration, rows: usize) {
        self.duration.observe(took.as_secs_f64());
        self.size.observe(rows as f64);
    }
}

const fn state_label(state: EndpointState) -> &'static str {
    match state {
        EndpointState::Active => "active",
        EndpointState::Paused => "paused",
        EndpointState::Disabled => "disabled",
    }
}

impl Metrics {
    /// All of them at 0, with that many event types told apart.
    pub fn new(event_types_max: usize) -> Result<Self, Error> {
        let make = Maker(Registry::new());
        make.process()?;
        make.gauges("webhook_build_info")?.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let ended = make.counters("webhook_deliveries_total")?;
        let attempts = make.counters("webhook_attempts_total")?;
        let (took, rows) =
            (make.histograms("webhook_commit_duration_seconds")?, make.histograms("webhook_commit_batch_size")?);
        let commits =
            |kind| Batches { duration: took.with_label_values(&[kind]), size: rows.with_label_values(&[kind]) };
        let endpoints = make.gauges("webhook_endpoints")?;
        for state in EndpointState::EVERY.iter().copied() {
            endpoints.with_label_values(&[state_label(state)]);
        }
        Ok(Self {
            events: Events::new(make.counters("webhook_events_total")?, event_types_max),
            deliveries: Deliveries {
                succeeded: ended.with_label_values(&["succeeded"]),
                failed: ended.with_label_values(&["failed"]),
                canceled: ended.with_label_values(&["canceled"]),
                expired: ended.with_label_values(&["expired"]),
            },
            attempts: AttemptOutcome::EVERY
                .iter()
                .map(|outcome| attempts.with_label_values(&[outcome.as_str()]))
                .collect(),
            delivery_duration: make.histogram("webhook_delivery_duration_seconds")?,
            end_to_end: make.histogram("webhook_end_to_end_seconds")?,
            queue_size: make.gauge("webhook_queue_size")?,
            queue_oldest: make.float_gauge("webhook_queue_oldest_seconds")?,
            endpoints,
            open_circuits: make.gauge("webhook_open_circuits")?,
            dead_letters: make.gauge("webhook_dead_letters")?,
            replicas: make.gauge("webhook_replicas")?,
            claims: Batches {
                duration: make.histogram("webhook_claim_duration_seconds")?,
                size: make.histogram("webhook_claim_batch_size")?,
            },
            claims_with_publish: make.counter("webhook_claims_with_publish_total")?,
            publishes: commits("publish"),
            completions: commits("complete"),
            lanes: make.gauge("webhook_lanes")?,
            requests_in_flight: make.gauge("webhook_requests_in_flight")?,
            stream_subscribers: make.gauge("webhook_stream_subscribers")?,
            stream_lag: make.float_gauge("webhook_stream_lag_seconds")?,
            connections: make.gauges("webhook_database_connections")?,
            database_up: make.gauge("webhook_database_up")?,
            guard_refusals: make.counter("webhook_guard_refusals_total")?,
            filter_errors: make.counter("webhook_filter_errors_total")?,
            spans_dropped: make.counter("webhook_spans_dropped_total")?,
            calls: Calls::new(
                make.counters("webhook_grpc_requests_total")?,
                make.histograms("webhook_grpc_request_duration_seconds")?,
            ),
            looks: Mutex::default(),
            registry: make.0,
        })
    }

    /// The counter of attempts with that outcome.
    pub fn attempts(&self, outcome: AttemptOutcome) -> &IntCounter {
        // Its numbers begin at 1, without a gap: a test asks for each.
        &self.attempts[outcome as usize - 1]
    }

    /// How many endpoints are in that state.
    pub fn endpoints(&self, state: EndpointState) -> IntGauge {
        self.endpoints.with_label_values(&[state_label(state)])
    }

    /// How many connections of a pool are busy, and how many idle.
    pub fn connections(&self, pool: &str) -> (IntGauge, IntGauge) {
        let of = |state| self.connections.with_label_values(&[pool, state]);
        (of("busy"), of("idle"))
    }

    /// Has `look` set what is only worth setting when somebody reads.
    pub fn on_read(&self, look: impl Fn() + Send + 'static) {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(look));
    }

    /// Sets what is set on reading.
    pub fn refresh(&self) {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|look| look());
    }

    /// Everything, in Prometheus's text format.
    pub fn to_text(&self) -> String {
        self.refresh();
        let mut text = Vec::new();
        // Writing into memory does not fail, and what cannot be encoded could not be registered.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// The media type of [`Metrics::to_text`].
pub const TEXT_FORMAT: &str = prometheus::TEXT_FORMAT;

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// Makes what the table says, and nothing else.
struct Maker(Registry);

impl Maker {
    fn family(name: &str) -> Result<&'static Family, Error> {
        let place = FAMILIES.binary_search_by_key(&name, |family| family.name);
        place.map(|place| &FAMILIES[place]).map_err(|_| Error::Msg(format!("{name} is not in the table of metrics")))
    }

    fn register<M: prometheus::core::Collector + Clone + 'static>(&self, made: M) -> Result<M, Error> {
        self.0.register(Box::new(made.clone()))?;
        Ok(made)
    }

    fn opts(name: &str) -> Result<(Opts, &'static Family), Error> {
        let family = Self::family(name)?;
        Ok((Opts::new(family.name, family.help), family))
    }

    fn counter(&self, name: &str) -> Result<IntCounter, Error> {
        self.register(IntCounter::with_opts(Self::opts(name)?.0)?)
    }

    fn counters(&self, name: &str) -> Result<IntCounterVec, Error> {
        let (opts, family) = Self::opts(name)?;
        self.register(IntCounterVec::new(opts, family.labels)?)
    }

    fn gauge(&self, name: &str) -> Result<IntGauge, Error> {
        self.register(IntGauge::with_opts(Self::opts(name)?.0)?)
    }

    fn float_gauge(&self, name: &str) -> Result<Gauge, Error> {
        self.register(Gauge::with_opts(Self::opts(name)?.0)?)
    }

    fn gauges(&self, name: &str) -> Result<IntGaugeVec, Error> {
        let (opts, family) = Self::opts(name)?;
        self.register(IntGaugeVec::new(opts, family.labels)?)
    }

    fn histogram(&self, name: &str) -> Result<Histogram, Error> {
        self.register(Histogram::with_opts(Self::histogram_opts(name)?.0)?)
    }

    fn histograms(&self, name: &str) -> Result<HistogramVec, Error> {
        let (opts, family) = Self::histogram_opts(name)?;
        self.register(HistogramVec::new(opts, family.labels)?)
    }

    fn histogram_opts(name: &str) -> Result<(HistogramOpts, &'static Family), Error> {
        let family = Self::family(name)?;
        let Kind::Histogram(bounds) = family.kind else {
            return Err(Error::Msg(format!("{name} is no histogram")));
        };
        Ok((HistogramOpts::new(family.name, family.help).buckets(bounds.to_vec()), family))
    }

    /// Processor time, memory and open files of this process, as every Prometheus client names them.
    #[cfg(target_os = "linux")]
    fn process(&self) -> Result<(), Error> {
        self.0.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
    }

    #[cfg(not(target_os = "linux"))]
    fn process(&self) -> Result<(), Error> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn metrics() -> Metrics {
        Metrics::new(2).expect("the table can be made")
    }

    #[test]
    fn all_of_the_table_is_made_with_help_and_type() {
        let metrics = metrics();
        // What has no value before it is needed.
        metrics.events.count(["order.created"]);
        metrics.calls.of("Publish").end(0, None);
        metrics.calls.of("Publish").end(3, Some(std::time::Duration::from_millis(1)));
        metrics.connections("engine");
        let text = metrics.to_text();
        let described = |what: &str| -> BTreeSet<(String, String)> {
            let prefix = format!("# {what} webhook_");
            let lines = text.lines().filter_map(|line| line.strip_prefix(&prefix)?.split_once(' '));
            lines.map(|(name, rest)| (format!("webhook_{name}"), rest.to_owned())).collect()
        };
        let helps: BTreeSet<_> =
            FAMILIES.iter().map(|family| (family.name.to_owned(), family.help.to_owned())).collect();
        assert_eq!(described("HELP"), helps);
        let types: BTreeSet<_> = FAMILIES
            .iter()
            .map(|family| {
                let kind = match family.kind {
                    Kind::Counter => "counter",
                    Kind::Gauge => "gauge",
                    Kind::Histogram(_) => "histogram",
                };
                (family.name.to_owned(), kind.to_owned())
            })
            .collect();
        assert_eq!(described("TYPE"), types);
        assert!(text.contains("webhook_grpc_requests_total{code=\"INVALID_ARGUMENT\",method=\"Publish\"} 1"), "{text}");
    }

    #[test]
    fn every_outcome_and_state_has_a_counter_of_its_own() {
        let metrics = metrics();
        for (place, outcome) in AttemptOutcome::EVERY.iter().copied().enumerate() {
            metrics.attempts(outcome).inc_by(place as u64 + 1);
        }
        let text = metrics.to_text();
        for (place, outcome) in AttemptOutcome::EVERY.iter().copied().enumerate() {
            let line = format!("webhook_attempts_total{{outcome=\"{}\"}} {}", outcome.as_str(), place + 1);
            assert!(text.lines().any(|one| one == line), "{line}\n{text}");
        }
        for state in EndpointState::EVERY.iter().copied() {
            assert!(text.contains(&format!("webhook_endpoints{{state=\"{}\"}} 0", state_label(state))), "{text}");
        }
    }

    #[test]
    fn what_is_looked_at_on_reading_is_as_it_is_then() {
        let metrics = metrics();
        let lanes = metrics.lanes.clone();
        metrics.on_read(move || lanes.inc());
        assert!(metrics.to_text().contains("\nwebhook_lanes 1\n"));
        assert!(metrics.to_text().contains("\nwebhook_lanes 2\n"));
    }

    #[test]
    fn two_replicas_of_one_process_count_apart() {
        let (one, other) = (metrics(), metrics());
        one.deliveries.failed.inc();
        assert_eq!((one.deliveries.failed.get(), other.deliveries.failed.get()), (1, 0));
    }
}
