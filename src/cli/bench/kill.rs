//! Scenario `kill`: the service is killed ten times and PostgreSQL three times under load, and everything is counted.
//!
//! The oracle is the receiver's record. What was in flight at a fault is read from the database before the service is
//! back, when nobody writes to it any more: each of those may arrive twice, and each shows as LOST, or was completed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use sqlx::types::Uuid;
use tokio_util::sync::CancellationToken;

use super::Args;
use super::callers::{self, Audience, Callers};
use super::cluster::{Cluster, sql_failed, wait_for_none};
use super::http::Receivers;
use super::progress;
use super::stage::Service;
use crate::api::proto::Endpoint;
use crate::cli::Failure;
use crate::cli::postgres::RestartMode;

const DATABASE: &str = "bench_kill";
/// Lanes of 64: enough that a fault meets many deliveries in flight.
const ENDPOINTS: usize = 4;
const RESUME_PATIENCE: Duration = Duration::from_secs(60);
/// A lease lapses after 12 s, and a delivery may have been lost more than once.
const DRAIN_PATIENCE: Duration = Duration::from_secs(120);

/// K is a kill of the service, P an immediate restart of PostgreSQL.
const FAULTS: &[u8] = b"KKKPKKKPKKKPK";

const OUTSTANDING: &str = "select count(*) from hooklane.outstanding";
/// A backend ends its statement, and commits it, after its client is gone.
const BACKENDS: &str =
    "select count(*) from pg_stat_activity where application_name = 'hooklane' and datname = current_database()";
const IN_FLIGHT: &str = "select id, attempt_count from hooklane.outstanding where state = 2";
const LOST: &str = "select delivery_id, number from hooklane.timeline where outcome = 9";

/// A delivery and the number of its attempt.
type Attempt = (Uuid, i32);

/// What was counted.
#[derive(Debug, Clone, Serialize)]
pub(super) struct KillReport {
    pub(super) acknowledged_events: u64,
    pub(super) acknowledged_deliveries: usize,
    pub(super) failed_calls: u64,
    pub(super) service_kills: usize,
    pub(super) postgres_restarts: usize,
    /// Acknowledged deliveries that never arrived.
    pub(super) lost_deliveries: usize,
    /// Arrivals beyond the first of each delivery.
    pub(super) duplicates: u64,
    /// Attempts in flight at the faults: the bound of duplicates.
    pub(super) in_flight: usize,
    /// LOST attempts in the timeline.
    pub(super) lost_attempts: usize,
    /// Attempts in flight when the service was killed that the timeline does not show as LOST.
    pub(super) unrecorded: usize,
    /// Deliveries still outstanding at the end.
    pub(super) outstanding: i64,
    /// From PostgreSQL's return to the next acknowledgement and arrival, the longest, in seconds.
    pub(super) resumed_s: f64,
    pub(super) seconds: f64,
}

impl KillReport {
    /// What the promise is broken by, in words; empty when it is kept.
    pub(super) fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        let mut expect = |holds: bool, what: String| {
            if !holds {
                failures.push(what);
            }
        };
        expect(self.lost_deliveries == 0, format!("{} acknowledged deliveries never arrived", self.lost_deliveries));
        expect(self.outstanding == 0, format!("{} deliveries are still outstanding", self.outstanding));
        expect(
            self.duplicates <= self.in_flight as u64,
            format!("{} duplicates, {} were in flight at the faults", self.duplicates, self.in_flight),
        );
        expect(self.unrecorded == 0, format!("{} lost attempts do not show as LOST", self.unrecorded));
        expect(self.resumed_s <= 15.0, format!("PostgreSQL was back for {:.1} s before work went on", self.resumed_s));
        failures
    }
}

pub(super) async fn run(cluster: &mut Cluster, args: &Args) -> Result<KillReport, Failure> {
    let began = Instant::now();
    let database_url = cluster.create_database(DATABASE).await?;
    let receivers = Receivers::start(true).await?;
    let mut service = Service::start(&database_url, None).await?;
    let clients = callers::connect(service.grpc(), args.channels)?;
    let endpoint = |place| Endpoint { url: receivers.live_url(place), ..Endpoint::default() };
    callers::register(&clients[0], (0..ENDPOINTS).map(endpoint).collect()).await?;
    let callers = Arc::new(Callers::new(clients, args.payload_bytes, Audience::Everyone).keeping_ids());
    let stop = CancellationToken::new();
    // Each event goes to every endpoint: 20,000 events are 80,000 deliveries.
    let calling = callers.closed_loop(args.callers, &stop, args.kill_events);

    let (mut killed, mut crashed) = (HashSet::new(), HashSet::new());
    let mut resumed = Duration::ZERO;
    for (place, fault) in FAULTS.iter().enumerate() {
        // Callers are in full swing when a fault comes and when it is over, and leave enough for those that follow.
        let share = args.kill_events / (FAULTS.len() as u64 + 1);
        let begin = (place as u64 + 1) * share;
        let allowed = begin + share * 9 / 10;
        callers.allow(allowed);
        wait_for(&mut service, || callers.acknowledged() >= begin).await?;
        if *fault == b'K' {
            progress(&format!("kill: fault {}: SIGKILL to the service", place + 1));
            service.kill().await?;
            killed.extend(in_flight(cluster, Quiet::Wait).await?);
            service = Service::start(&database_url, Some(service.grpc())).await?;
        } else {
            progress(&format!("kill: fault {}: immediate restart of PostgreSQL", place + 1));
            cluster.restart(RestartMode::Immediate).await?;
            let (back, acknowledged) = (Instant::now(), callers.acknowledged());
            let arrived = receivers.report().await?.arrived;
            crashed.extend(in_flight(cluster, Quiet::No).await?);
            // Callers may have come to all they may while that was read.
            let enough = (acknowledged + 1).min(allowed);
            wait_for(&mut service, || callers.acknowledged() >= enough).await?;
            wait_for_arrivals(&receivers, arrived).await?;
            resumed = resumed.max(back.elapsed());
        }
    }
    callers.allow(args.kill_events);
    wait_for(&mut service, || callers.acknowledged() >= args.kill_events).await?;
    stop.cancel();
    calling.join_all().await;
    let mut connection = cluster.connect(DATABASE).await?;
    let outstanding = wait_for_none(&mut connection, OUTSTANDING, DRAIN_PATIENCE).await?;

    let arrived: HashMap<String, u32> = receivers.get("/record").await?;
    let tally = receivers.report().await?;
    let lost: Vec<Attempt> = sqlx::query_as(LOST).fetch_all(&mut connection).await.map_err(sql_failed)?;
    let lost: HashSet<Attempt> = lost.into_iter().collect();
    let acknowledged = callers.ids();
    let report = KillReport {
        failed_calls: callers.failed(),
        service_kills: FAULTS.iter().filter(|fault| **fault == b'K').count(),
        postgres_restarts: FAULTS.iter().filter(|fault| **fault == b'P').count(),
        lost_deliveries: acknowledged.iter().filter(|id| !arrived.contains_key(*id)).count(),
        acknowledged_events: callers.acknowledged(),
        acknowledged_deliveries: acknowledged.len(),
        duplicates: tally.repeated,
        in_flight: killed.union(&crashed).count(),
        lost_attempts: lost.len(),
        unrecorded: killed.difference(&lost).count(),
        outstanding,
        resumed_s: resumed.as_secs_f64(),
        seconds: began.elapsed().as_secs_f64(),
    };
    drop(connection);
    service.kill().await?;
    cluster.drop_database(DATABASE).await?;
    Ok(report)
}

async fn wait_for(service: &mut Service, mut holds: impl FnMut() -> bool) -> Result<(), Failure> {
    let deadline = Instant::now() + RESUME_PATIENCE;
    while !holds() {
        service.must_live()?;
        if Instant::now() >= deadline {
            return Err(Failure::other(format!("no progress for {} s under load", RESUME_PATIENCE.as_secs())));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// Whether to wait until nobody of the service's is left in the database.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quiet {
    Wait,
    No,
}

async fn in_flight(cluster: &Cluster, quiet: Quiet) -> Result<Vec<Attempt>, Failure> {
    let mut connection = cluster.connect(DATABASE).await?;
    if quiet == Quiet::Wait {
        wait_for_none(&mut connection, BACKENDS, Duration::from_secs(10)).await?;
    }
    sqlx::query_as(IN_FLIGHT).fetch_all(&mut connection).await.map_err(sql_failed)
}

/// Waits until so many more than `arrived` have arrived that some were claimed from the database that came back: more
/// than all lanes held at the fault.
async fn wait_for_arrivals(receivers: &Receivers, arrived: u64) -> Result<(), Failure> {
    let deadline = Instant::now() + RESUME_PATIENCE;
    while receivers.report().await?.arrived <= arrived + (ENDPOINTS * 64) as u64 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
