//! Scenarios `refusing` and `thousand-limited`: what waiting costs behind an open circuit, and under rate limits.

use std::time::{Duration, Instant};

use serde::Serialize;
use sqlx::types::Uuid;

use super::backlog::fill;
use super::cluster::Cluster;
use super::stage::Stage;
use super::usage::Cpu;
use super::{Args, callers, progress};
use crate::api::proto::{Endpoint, RateLimit};
use crate::cli::Failure;
use crate::domain::id::EndpointId;

/// Rows that wait.
const ROWS: i64 = 100_000;
/// Nobody listens there: a connection is refused at once.
const REFUSING_URL: &str = "http://127.0.0.1:9/";
const LIMITED: usize = 1_000;
/// Of each limited endpoint, in requests a second.
const RATE: f64 = 1.0;
/// What was filled in is found, circuits are open, the first tokens are spent.
const SETTLE_IN: Duration = Duration::from_secs(5);
/// A rate is told over no less.
const WINDOW_MIN: Duration = Duration::from_secs(10);

/// What waiting behind an open circuit costs.
#[derive(Debug, Clone, Serialize)]
pub(super) struct RefusingReport {
    pub(super) rows: i64,
    /// Shares of one processor that service and PostgreSQL took together: at rest, and with the rows waiting.
    pub(super) cpu_at_rest: f64,
    pub(super) cpu: f64,
    /// Attempts made in all.
    pub(super) attempts: i64,
}

/// What rate-limited endpoints with a backlog get, and cost.
#[derive(Debug, Clone, Serialize)]
pub(super) struct LimitedReport {
    pub(super) endpoints: usize,
    pub(super) rows: i64,
    pub(super) expected_per_s: f64,
    pub(super) delivered_per_s: f64,
    /// The share of one processor that service and PostgreSQL took together.
    pub(super) cpu: f64,
    pub(super) cpu_ms_per_delivery: Cpu,
    pub(super) peak_rss_mb: f64,
}

pub(super) async fn refusing(cluster: &Cluster, args: &Args) -> Result<RefusingReport, Failure> {
    let mut stage = Stage::set(cluster, "refusing").await?;
    tokio::time::sleep(SETTLE_IN).await;
    let (cpu_at_rest, _, _) = used(&stage, args.span()).await?;
    let endpoint = Endpoint { url: REFUSING_URL.to_owned(), ..Endpoint::default() };
    let ids = register(&stage, args, vec![endpoint]).await?;
    progress(&format!("refusing: writing {ROWS} waiting deliveries"));
    fill(&stage, ROWS, &ids).await?;
    stage.renew_service().await?;
    tokio::time::sleep(SETTLE_IN).await;
    let (cpu, _, _) = used(&stage, args.span()).await?;
    let mut connection = stage.cluster.connect(&stage.database).await?;
    let attempts = sqlx::query_scalar("select count(*) from hooklane.transitions where number is not null")
        .fetch_one(&mut connection)
        .await
        .map_err(super::cluster::sql_failed)?;
    stage.strike().await?;
    Ok(RefusingReport { rows: ROWS, cpu_at_rest, cpu, attempts })
}

pub(super) async fn limited(cluster: &Cluster, args: &Args) -> Result<LimitedReport, Failure> {
    let mut stage = Stage::set(cluster, "thousand-limited").await?;
    let limited = |place| Endpoint {
        url: stage.receivers.live_url(place),
        rate_limit: Some(RateLimit { per_second: RATE, burst: 1 }),
        ..Endpoint::default()
    };
    let ids = register(&stage, args, (0..LIMITED).map(limited).collect()).await?;
    progress(&format!("thousand-limited: writing {ROWS} waiting deliveries"));
    fill(&stage, ROWS, &ids).await?;
    stage.renew_service().await?;
    tokio::time::sleep(SETTLE_IN).await;
    let before = (stage.cpu(), stage.receivers.report().await?.distinct());
    let (cpu, seconds, delivered) = used(&stage, args.span().max(WINDOW_MIN)).await?;
    let report = LimitedReport {
        endpoints: LIMITED,
        rows: ROWS,
        expected_per_s: RATE * LIMITED as f64,
        delivered_per_s: delivered as f64 / seconds,
        cpu,
        cpu_ms_per_delivery: stage
            .cpu()
            .per_delivery_since(&before.0, stage.receivers.report().await?.distinct().saturating_sub(before.1)),
        peak_rss_mb: stage.peak_rss_mb(),
    };
    stage.strike().await?;
    Ok(report)
}

/// The share of one processor that service and PostgreSQL take over a window, its length in seconds, and how many
/// deliveries arrived in it.
async fn used(stage: &Stage<'_>, window: Duration) -> Result<(f64, f64, u64), Failure> {
    let (began, cpu, arrived) = (Instant::now(), stage.cpu(), stage.receivers.report().await?.distinct());
    tokio::time::sleep(window).await;
    let arrived = stage.receivers.report().await?.distinct().saturating_sub(arrived);
    let seconds = began.elapsed().as_secs_f64();
    let used_ms = stage.cpu().per_delivery_since(&cpu, 1).of_hooklane();
    Ok((used_ms / 1_000.0 / seconds, seconds, arrived))
}

async fn register(stage: &Stage<'_>, args: &Args, endpoints: Vec<Endpoint>) -> Result<Vec<Uuid>, Failure> {
    let clients = callers::connect(stage.service.grpc(), args.channels)?;
    let ids = callers::register(&clients[0], endpoints).await?;
    let uuid = |id: &String| id.parse::<EndpointId>().map(EndpointId::uuid);
    ids.iter().map(uuid).collect::<Result<_, _>>().map_err(|_| Failure::internal("an endpoint has no id"))
}
