//! The two measurements that scenarios are made of: full load, and a fixed rate.
//!
//! What is counted is counted at the receivers. A rate and a latency belong to the steady window after the warm-up; cost
//! a delivery is over everything from the first call to the last arrival, so that no delivery's work falls outside.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::Args;
use super::callers::{Audience, Callers};
use super::cluster::{Statement, mean_ms, sql_failed};
use super::stage::Stage;
use super::tally::{Latency, Report};
use super::usage::Cpu;
use crate::cli::Failure;

/// Connections, plans and caches come to be before anything counts.
pub(super) const WARM_UP: Duration = Duration::from_secs(2);

/// Deliveries that do not arrive within this time after the last one did count as missing. A lease lapses sooner.
const DRAIN_PATIENCE: Duration = Duration::from_secs(25);
const POLL: Duration = Duration::from_millis(20);
/// For how long deliveries are put off whose claims are timed.
const PUT_OFF: Duration = Duration::from_millis(200);

/// Callers that never wait between calls.
#[derive(Debug, Clone, Serialize)]
pub(super) struct FullLoad {
    pub(super) accepted_per_s: f64,
    pub(super) delivered_per_s: f64,
    /// All deliveries over the time from the first call to the last arrival: what is left when callers outrun delivery.
    pub(super) drained_per_s: f64,
    pub(super) latency: Latency,
    pub(super) cpu_ms_per_delivery: Cpu,
    /// Deliveries in flight at the window's end: the service holds these in memory.
    pub(super) in_flight: i64,
    pub(super) arrivals: Arrivals,
    pub(super) statements: Vec<Statement>,
}

/// Calls at a fixed rate.
#[derive(Debug, Clone, Serialize)]
pub(super) struct FixedRate {
    pub(super) offered_per_s: f64,
    pub(super) accepted_per_s: f64,
    pub(super) delivered_per_s: f64,
    pub(super) latency: Latency,
    pub(super) arrivals: Arrivals,
    pub(super) statements: Vec<Statement>,
}

/// Whether what was acknowledged arrived.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Arrivals {
    pub(super) acknowledged: u64,
    pub(super) deliveries: u64,
    pub(super) missing: u64,
    pub(super) repeated: u64,
    pub(super) failed_calls: u64,
    /// Deliveries that arrived before the one before them behind the same ordering key.
    pub(super) inverted: u64,
}

impl Arrivals {
    fn of(callers: &Callers, report: Report) -> Self {
        Self {
            acknowledged: callers.acknowledged(),
            deliveries: report.distinct(),
            missing: callers.deliveries().saturating_sub(report.distinct()),
            repeated: report.repeated,
            failed_calls: callers.failed(),
            inverted: report.inverted,
        }
    }
}

/// `args.callers` callers for a warm-up and a window, and then until all has arrived.
pub(super) async fn full_load(stage: &mut Stage<'_>, args: &Args, audience: &Audience) -> Result<FullLoad, Failure> {
    let callers = Arc::new(stage.callers(args, audience)?);
    stage.cluster.begin_measurement(&stage.database).await?;
    stage.receivers.reset().await?;
    let (began, cpu) = (Instant::now(), stage.cpu());
    let stop = CancellationToken::new();
    let calling = callers.closed_loop(args.callers, &stop, u64::MAX);
    tokio::time::sleep(WARM_UP).await;

    let (window, before, acknowledged) =
        (Instant::now(), stage.receivers.begin_window().await?, callers.acknowledged());
    tokio::time::sleep(args.span()).await;
    let (after, accepted) = (stage.receivers.report().await?, callers.acknowledged() - acknowledged);
    let seconds = window.elapsed().as_secs_f64();

    let in_flight = in_flight(stage).await?;
    stop.cancel();
    calling.join_all().await;
    let end = drained(stage, &callers).await?;
    let per_second = |count: u64, seconds: f64| count as f64 / seconds;
    Ok(FullLoad {
        accepted_per_s: per_second(accepted, seconds),
        delivered_per_s: per_second(after.distinct() - before.distinct(), seconds),
        drained_per_s: per_second(end.report.distinct(), (end.at - began).as_secs_f64()),
        latency: after.latency,
        cpu_ms_per_delivery: stage.cpu().per_delivery_since(&cpu, end.report.distinct()),
        in_flight,
        arrivals: Arrivals::of(&callers, end.report),
        statements: stage.cluster.statements(&stage.database).await?,
    })
}

/// `rate` calls a second: a warm-up first, which has ended when the window begins.
pub(super) async fn fixed_rate(
    stage: &mut Stage<'_>,
    args: &Args,
    audience: &Audience,
    rate: f64,
) -> Result<FixedRate, Failure> {
    let warming = Arc::new(stage.callers(args, audience)?);
    stage.receivers.reset().await?;
    warming.open_loop(rate, WARM_UP).await?;
    drained(stage, &warming).await?;

    let callers = Arc::new(stage.callers(args, audience)?);
    // New connections are made by a first call, which is none of the window's.
    callers.open_loop(50.0, Duration::from_millis(200)).await?;
    drained_of(stage, &[&warming, &callers]).await?;
    stage.cluster.begin_measurement(&stage.database).await?;
    let (window, before, acknowledged) =
        (Instant::now(), stage.receivers.begin_window().await?, callers.acknowledged());
    callers.open_loop(rate, args.span()).await?;
    let end = drained_of(stage, &[&warming, &callers]).await?;
    let seconds = (end.at - window).as_secs_f64().max(args.span().as_secs_f64());
    let mut arrivals = Arrivals::of(&callers, end.report);
    arrivals.deliveries -= before.distinct();
    arrivals.missing = end.missing;
    Ok(FixedRate {
        offered_per_s: rate,
        accepted_per_s: (callers.acknowledged() - acknowledged) as f64 / seconds,
        delivered_per_s: (end.report.distinct() - before.distinct()) as f64 / seconds,
        latency: end.report.latency,
        arrivals,
        statements: stage.cluster.statements(&stage.database).await?,
    })
}

/// The mean time of a claim, in milliseconds, while `rate` deliveries a second fall due; `None` where the server does not
/// count statements. What is due at once is claimed by its publish, so these are put off by a moment.
pub(super) async fn claim_ms(
    stage: &mut Stage<'_>,
    args: &Args,
    audience: &Audience,
    rate: f64,
) -> Result<Option<f64>, Failure> {
    let callers = Arc::new(stage.callers(args, audience)?.putting_off(PUT_OFF));
    stage.receivers.reset().await?;
    stage.cluster.begin_measurement(&stage.database).await?;
    callers.open_loop(rate, args.span()).await?;
    drained(stage, &callers).await?;
    Ok(mean_ms(&stage.cluster.statements(&stage.database).await?, "claim"))
}

async fn in_flight(stage: &Stage<'_>) -> Result<i64, Failure> {
    let mut connection = stage.cluster.connect(&stage.database).await?;
    sqlx::query_scalar("select count(*) from hooklane.outstanding where state = 2")
        .fetch_one(&mut connection)
        .await
        .map_err(sql_failed)
}

/// The end of a measurement.
struct Drained {
    /// When the last delivery arrived, or was given up.
    at: Instant,
    missing: u64,
    report: Report,
}

async fn drained(stage: &mut Stage<'_>, callers: &Arc<Callers>) -> Result<Drained, Failure> {
    drained_of(stage, &[callers]).await
}

/// Waits until everything that these callers were promised has arrived since the reset.
async fn drained_of(stage: &mut Stage<'_>, callers: &[&Arc<Callers>]) -> Result<Drained, Failure> {
    let promised: u64 = callers.iter().map(|callers| callers.deliveries()).sum();
    if let Some(callers) = callers.iter().find(|callers| callers.acknowledged() == 0) {
        return Err(Failure::other(format!(
            "no publish was acknowledged; the last answer: {}",
            callers.last_failure()
        )));
    }
    let (mut last, mut at) = (0, Instant::now());
    loop {
        let report = stage.receivers.report().await?;
        if report.distinct() > last {
            (last, at) = (report.distinct(), Instant::now());
        }
        let missing = promised.saturating_sub(last);
        if missing == 0 || at.elapsed() > DRAIN_PATIENCE {
            return Ok(Drained { at, missing, report });
        }
        stage.service.must_live()?;
        tokio::time::sleep(POLL).await;
    }
}
