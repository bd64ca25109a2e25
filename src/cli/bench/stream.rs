//! Scenario `stream`: how soon a stream on any replica tells of a publish, what streams that nobody reads change about
//! it, and what a stream costs deliveries.
//!
//! An event carries the moment of its publish call as its idempotency key, which streams show. A stream counts as having
//! told of it when its QUEUED transition is here.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::task::JoinHandle;
use tonic::Streaming;

use super::Args;
use super::callers::{self, Audience, Callers, Client};
use super::cluster::Cluster;
use super::http::Receivers;
use super::measure::{self, FullLoad, WARM_UP};
use super::stage::{Service, Stage};
use super::stamp::{sent_ns_of_key, wall_ns};
use super::tally::{Latency, histogram};
use super::{progress, usage};
use crate::api::proto::stream_delivery_events_response::Item;
use crate::api::proto::{
    DeliveryEventKind, Endpoint, Ordering, StreamDeliveryEventsRequest, StreamDeliveryEventsResponse,
};
use crate::cli::Failure;

const REPLICAS: usize = 3;
/// Each event is queued and succeeds: two transitions.
const EVENTS_PER_S: f64 = 1_000.0;
const STALLED: usize = 1_000;
/// Streams of one connection that nobody reads.
const STALLED_OF_ONE: usize = 50;
/// How long what was acknowledged may take to be told.
const PATIENCE: Duration = Duration::from_secs(25);

/// What it measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct StreamReport {
    pub(super) replicas: usize,
    pub(super) notified: StreamRun,
    pub(super) unnotified: StreamRun,
    pub(super) stalled: usize,
    pub(super) beside_stalled: StreamRun,
    /// The p99 beside streams that nobody reads, over that without them.
    pub(super) stalled_ratio: f64,
    pub(super) without_stream: FullLoad,
    pub(super) with_stream: FullLoad,
    /// Once more without: a machine's speed drifts by more than a stream costs.
    pub(super) without_again: FullLoad,
    /// Delivered a second, with over the mean of both without.
    pub(super) delivered_ratio: f64,
}

impl StreamReport {
    pub(super) const fn runs(&self) -> [&StreamRun; 3] {
        [&self.notified, &self.unnotified, &self.beside_stalled]
    }
}

/// A run at the fixed rate, with a stream on each replica.
#[derive(Debug, Clone, Serialize)]
pub(super) struct StreamRun {
    pub(super) transitions_per_s: f64,
    /// From the publish call to the stream, of all streams.
    pub(super) latency: Latency,
    /// Transitions of acknowledged events that a stream did not tell, of all streams.
    pub(super) missing: u64,
    pub(super) repeated: u64,
    /// Of the replica with the most.
    pub(super) peak_rss_mb: f64,
}

pub(super) async fn run(cluster: &Cluster, args: &Args) -> Result<StreamReport, Failure> {
    progress("stream: with NOTIFY");
    let notified = at_fixed_rate(cluster, args, "stream_notified", true, 0).await?;
    progress("stream: without NOTIFY");
    let unnotified = at_fixed_rate(cluster, args, "stream_unnotified", false, 0).await?;
    progress(&format!("stream: beside {STALLED} streams that nobody reads"));
    let beside_stalled = at_fixed_rate(cluster, args, "stream_stalled", true, STALLED).await?;
    progress("stream: deliveries at full load without a stream, with one, and without");
    let mut stage = Stage::set(cluster, "stream_load").await?;
    stage.register(args, 1, 0, Ordering::Unordered).await?;
    let without_stream = measure::full_load(&mut stage, args, &Audience::Everyone).await?;
    let seen = Seen::new();
    let watching = watch(stage.service.grpc(), &seen).await?;
    let with_stream = measure::full_load(&mut stage, args, &Audience::Everyone).await?;
    watching.abort();
    let without_again = measure::full_load(&mut stage, args, &Audience::Everyone).await?;
    stage.strike().await?;
    let without_per_s = f64::midpoint(without_stream.delivered_per_s, without_again.delivered_per_s);
    Ok(StreamReport {
        replicas: REPLICAS,
        stalled: STALLED,
        stalled_ratio: beside_stalled.latency.p99_ms / notified.latency.p99_ms,
        delivered_ratio: with_stream.delivered_per_s / without_per_s,
        notified,
        unnotified,
        beside_stalled,
        without_stream,
        with_stream,
        without_again,
    })
}

async fn at_fixed_rate(
    cluster: &Cluster,
    args: &Args,
    database: &str,
    notify: bool,
    stalled: usize,
) -> Result<StreamRun, Failure> {
    let database = format!("bench_{database}");
    let url = cluster.create_database(&database).await?;
    let receivers = Receivers::start(false).await?;
    let settings = [("HOOKLANE_DATABASE_NOTIFY", if notify { "true" } else { "false" })];
    let mut replicas = Vec::new();
    for _ in 0..REPLICAS {
        replicas.push(Service::start_with(&url, None, &settings).await?);
    }
    let clients = callers::connect(replicas[0].grpc(), args.channels)?;
    let endpoint = Endpoint { url: receivers.live_url(0), ..Endpoint::default() };
    callers::register(&clients[0], vec![endpoint]).await?;
    // On the last replica; the callers are the first one's.
    let unread = stall(replicas[REPLICAS - 1].grpc(), stalled).await?;
    let mut streams = Vec::new();
    for replica in &replicas {
        let seen = Seen::new();
        streams.push((watch(replica.grpc(), &seen).await?, seen));
    }
    let callers = Arc::new(Callers::new(clients, args.payload_bytes, Audience::Everyone).stamping_keys());
    callers.open_loop(EVENTS_PER_S, WARM_UP).await?;
    await_all(&callers, &streams, &mut replicas).await?;
    streams.iter().for_each(|(_, seen)| seen.begin_window());
    cluster.begin_measurement(&database).await?;
    let (began, before) = (Instant::now(), callers.acknowledged());
    callers.open_loop(EVENTS_PER_S, args.span()).await?;
    let seconds = began.elapsed().as_secs_f64();
    await_all(&callers, &streams, &mut replicas).await?;

    let mut latencies = histogram();
    let (mut missing, mut repeated) = (0, 0);
    for (watching, seen) in &streams {
        watching.abort();
        let seen = seen.0.lock().unwrap_or_else(PoisonError::into_inner);
        latencies.add(&seen.latencies).map_err(|error| Failure::internal(error.to_string()))?;
        missing += (2 * callers.acknowledged()).saturating_sub(seen.transitions.len() as u64);
        repeated += seen.repeated;
    }
    drop(unread);
    let peaks = replicas.iter().map(|replica| usage::peak_rss_mb(replica.pid()));
    let run = StreamRun {
        transitions_per_s: 2.0 * (callers.acknowledged() - before) as f64 / seconds,
        latency: Latency::of(&latencies),
        missing,
        repeated,
        peak_rss_mb: peaks.fold(0.0, f64::max),
    };
    for replica in &mut replicas {
        replica.must_live()?;
        replica.kill().await?;
    }
    cluster.drop_database(&database).await?;
    Ok(run)
}

/// Waits until every stream has told both transitions of everything acknowledged, or nothing more comes.
async fn await_all(
    callers: &Callers,
    streams: &[(JoinHandle<()>, Seen)],
    replicas: &mut [Service],
) -> Result<(), Failure> {
    if callers.acknowledged() == 0 {
        return Err(Failure::other(format!(
            "no publish was acknowledged; the last answer: {}",
            callers.last_failure()
        )));
    }
    let (mut told, mut at) = (0, Instant::now());
    loop {
        let counts: Vec<u64> = streams.iter().map(|(_, seen)| seen.count()).collect();
        let sum: u64 = counts.iter().sum();
        if sum > told {
            (told, at) = (sum, Instant::now());
        }
        if counts.iter().all(|count| *count >= 2 * callers.acknowledged()) || at.elapsed() > PATIENCE {
            return Ok(());
        }
        replicas.iter_mut().try_for_each(Service::must_live)?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What a stream has told.
#[derive(Debug, Clone)]
struct Seen(Arc<Mutex<Told>>);

#[derive(Debug)]
struct Told {
    /// Deliveries and kinds.
    transitions: HashSet<(String, i32)>,
    repeated: u64,
    /// From the call, in microseconds.
    latencies: Histogram<u64>,
}

impl Seen {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Told { transitions: HashSet::new(), repeated: 0, latencies: histogram() })))
    }

    fn count(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).transitions.len() as u64
    }

    fn begin_window(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).latencies.reset();
    }

    fn tell(&self, message: StreamDeliveryEventsResponse) {
        let Some(Item::Event(event)) = message.item else { return };
        let (now_ns, kind) = (wall_ns(), event.kind());
        let delivery = event.delivery.unwrap_or_default();
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kind == DeliveryEventKind::Queued
            && let Some(sent_ns) = sent_ns_of_key(&delivery.idempotency_key)
        {
            told.latencies.saturating_record(now_ns.saturating_sub(sent_ns) / 1_000);
        }
        let is_new = told.transitions.insert((delivery.id, kind.into()));
        told.repeated += u64::from(!is_new);
    }
}

/// Opens a stream and reads it until it is aborted.
async fn watch(service: SocketAddr, seen: &Seen) -> Result<JoinHandle<()>, Failure> {
    let clients = callers::connect_without_deadline(service, 1)?;
    let mut messages = open(&clients[0]).await?;
    let seen = seen.clone();
    Ok(tokio::spawn(async move {
        while let Ok(Some(message)) = messages.message().await {
            seen.tell(message);
        }
    }))
}

/// Streams that are live and never read again: the first message of each has been.
async fn stall(service: SocketAddr, count: usize) -> Result<Vec<Streaming<StreamDeliveryEventsResponse>>, Failure> {
    let clients = callers::connect_without_deadline(service, count.div_ceil(STALLED_OF_ONE))?;
    let mut streams = Vec::with_capacity(count);
    for place in 0..count {
        streams.push(open(&clients[place % clients.len()]).await?);
    }
    Ok(streams)
}

async fn open(client: &Client) -> Result<Streaming<StreamDeliveryEventsResponse>, Failure> {
    let failed = |status: tonic::Status| Failure::other(format!("a stream could not be opened: {status}"));
    let request = StreamDeliveryEventsRequest::default();
    let mut messages = client.clone().stream_delivery_events(request).await.map_err(failed)?.into_inner();
    messages.message().await.map_err(failed)?;
    Ok(messages)
}
