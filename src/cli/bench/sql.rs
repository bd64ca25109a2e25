//! Scenario `sql`: publishing from SQL, in transactions of sixteen connections at a fixed rate, and of one that is alone.

use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::task::JoinSet;

use super::Args;
use super::cluster::{Cluster, Statement, sql_failed};
use super::measure::WARM_UP;
use super::stage::Stage;
use super::stamp::{Payloads, wall_ns};
use super::tally::{Latency, Report};
use crate::api::proto::Ordering;
use crate::cli::Failure;

/// Connections, and what they publish together, in events a second.
const CONNECTIONS: usize = 16;
const RATE: f64 = 5_000.0;
/// What the one that is alone publishes.
const IDLE_RATE: f64 = 20.0;
/// Events that do not arrive within this time after the last one did count as missing.
const DRAIN_PATIENCE: Duration = Duration::from_secs(25);
const POLL: Duration = Duration::from_millis(20);

/// As an application would, the event's type apart.
const PUBLISH: &str = "select hooklane.publish(event_type => 'bench.event', payload => $1::json)";

/// What it measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct SqlReport {
    pub(super) idle: SqlRun,
    pub(super) busy: SqlRun,
    pub(super) statements: Vec<Statement>,
}

/// Events at a fixed rate.
#[derive(Debug, Clone, Serialize)]
pub(super) struct SqlRun {
    pub(super) connections: usize,
    pub(super) offered_per_s: f64,
    /// Transactions that were committed.
    pub(super) committed_per_s: f64,
    pub(super) delivered_per_s: f64,
    /// From the call to the arrival, the commit in between.
    pub(super) latency: Latency,
    /// Rows in the inbox at the window's end.
    pub(super) waiting: i64,
    pub(super) missing: u64,
    pub(super) repeated: u64,
}

pub(super) async fn run(cluster: &Cluster, args: &Args) -> Result<SqlReport, Failure> {
    let mut stage = Stage::set(cluster, "sql").await?;
    stage.register(args, 1, 0, Ordering::Unordered).await?;
    let idle = at_rate(&mut stage, args, 1, IDLE_RATE).await?;
    cluster.begin_measurement(&stage.database).await?;
    let busy = at_rate(&mut stage, args, CONNECTIONS, RATE).await?;
    let statements = cluster.statements(&stage.database).await?;
    stage.strike().await?;
    Ok(SqlReport { idle, busy, statements })
}

/// A warm-up, a window, and then until all has arrived.
async fn at_rate(stage: &mut Stage<'_>, args: &Args, connections: usize, rate: f64) -> Result<SqlRun, Failure> {
    stage.receivers.reset().await?;
    let mut publishing = JoinSet::new();
    let began = Instant::now();
    let (warm, end) = (began + WARM_UP, began + WARM_UP + args.span());
    for place in 0..connections {
        let mut connection = stage.cluster.connect(&stage.database).await?;
        let payloads = Payloads::of(args.payload_bytes);
        let pause = Duration::from_secs_f64(connections as f64 / rate);
        publishing.spawn(async move {
            let (mut committed, mut in_window) = (0_u64, 0_u64);
            // Evenly among the connections; whoever comes late calls at once.
            let mut due = began + pause.mul_f64(place as f64 / connections as f64);
            while due < end {
                tokio::time::sleep_until(due.into()).await;
                let payload = payloads.stamped(wall_ns());
                let payload = String::from_utf8_lossy(&payload).into_owned();
                sqlx::query(PUBLISH).bind(payload).execute(&mut connection).await.map_err(sql_failed)?;
                committed += 1;
                in_window += u64::from((warm..end).contains(&Instant::now()));
                due += pause;
            }
            Ok::<_, Failure>((committed, in_window))
        });
    }
    tokio::time::sleep_until(warm.into()).await;
    let (window, before) = (Instant::now(), stage.receivers.begin_window().await?);
    tokio::time::sleep_until(end.into()).await;
    let (after, seconds) = (stage.receivers.report().await?, window.elapsed().as_secs_f64());
    let mut looking = stage.cluster.connect(&stage.database).await?;
    let waiting: i64 =
        sqlx::query_scalar("select count(*) from hooklane.inbox").fetch_one(&mut looking).await.map_err(sql_failed)?;
    let (mut committed, mut in_window) = (0, 0);
    while let Some(ended) = publishing.join_next().await {
        let counted = ended.map_err(|error| Failure::internal(error.to_string()))??;
        (committed, in_window) = (committed + counted.0, in_window + counted.1);
    }
    let last = drained(stage, committed).await?;
    Ok(SqlRun {
        connections,
        offered_per_s: rate,
        committed_per_s: in_window as f64 / args.span().as_secs_f64(),
        delivered_per_s: (after.distinct() - before.distinct()) as f64 / seconds,
        latency: after.latency,
        waiting,
        missing: committed.saturating_sub(last.distinct()),
        repeated: last.repeated,
    })
}

/// What the receivers count once everything that was committed has arrived, or is given up.
async fn drained(stage: &mut Stage<'_>, committed: u64) -> Result<Report, Failure> {
    let (mut count, mut at) = (0, Instant::now());
    loop {
        let report = stage.receivers.report().await?;
        if report.distinct() > count {
            (count, at) = (report.distinct(), Instant::now());
        }
        if count >= committed || at.elapsed() > DRAIN_PATIENCE {
            return Ok(report);
        }
        stage.service.must_live()?;
        tokio::time::sleep(POLL).await;
    }
}
