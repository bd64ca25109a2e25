//! Scenario `backlog`: a live endpoint beside a silent one, without and with a backlog that waits for the silent one.

use std::time::Duration;

use serde::Serialize;
use sqlx::types::Uuid;

use super::Args;
use super::callers::{Audience, Target};
use super::cluster::Cluster;
use super::fill::{self, filling};
use super::measure::{self, FixedRate};
use super::progress;
use super::stage::Stage;
use crate::api::proto::Ordering;
use crate::cli::Failure;
use crate::domain::id::EndpointId;

/// What the live endpoint is offered, in events a second.
const RATE: f64 = 200.0;
/// The silent lane fills, the sweep has seen the backlog, caches are warm.
const SETTLE_IN: Duration = Duration::from_secs(5);

/// Rows that wait.
const FILL: &str = filling!(", queued as (
  insert into hooklane.outstanding (id, endpoint_id, event_id, due_at, state, priority, payload_format, tenant, event_type)
  select id, endpoint_id, event_id, hooklane.uuid_time(id), 1, 2, 1, 'default', 'bench.event' from ids
)
insert into hooklane.timeline (time, delivery_id, endpoint_id, event_id, kind, state, priority, attempt_count,
                               next_attempt_at, tenant, event_type)
select hooklane.uuid_time(id), id, endpoint_id, event_id, 1, 1, 2, 0, hooklane.uuid_time(id), 'default', 'bench.event'
from ids"
);

/// What it measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct BacklogReport {
    pub(super) rows: i64,
    pub(super) without: FixedRate,
    pub(super) with: FixedRate,
    /// With over without.
    pub(super) p99_ratio: f64,
    /// The claim statement's mean time, with over without; none where the server does not count statements.
    pub(super) claim_ratio: Option<f64>,
    pub(super) claim_ms: Option<(f64, f64)>,
    /// Requests the silent endpoint holds open.
    pub(super) silenced: u64,
    pub(super) peak_rss_mb: f64,
}

pub(super) async fn run(cluster: &Cluster, args: &Args) -> Result<BacklogReport, Failure> {
    let mut stage = Stage::set(cluster, "backlog").await?;
    let targets = stage.register(args, 2, 1, Ordering::Unordered).await?;
    let (silent, live): (Vec<Target>, Vec<Target>) = targets.into_iter().partition(|target| !target.is_live);
    let audience = Audience::InTurn(live);
    let without = measure::fixed_rate(&mut stage, args, &audience, RATE).await?;
    let claim_without_ms = measure::claim_ms(&mut stage, args, &audience, RATE).await?;

    progress(&format!("backlog: writing {} waiting deliveries", args.backlog_rows));
    stage.service.kill().await?;
    let id = silent.first().and_then(|target| target.id.parse::<EndpointId>().ok());
    let id = id.ok_or_else(|| Failure::internal("the silent endpoint has no id"))?;
    fill(&stage, args.backlog_rows, &[id.uuid()]).await?;
    stage.renew_service().await?;
    tokio::time::sleep(SETTLE_IN).await;
    let with = measure::fixed_rate(&mut stage, args, &audience, RATE).await?;

    let claim_ms = claim_without_ms.zip(measure::claim_ms(&mut stage, args, &audience, RATE).await?);
    let report = BacklogReport {
        rows: args.backlog_rows,
        p99_ratio: with.latency.p99_ms / without.latency.p99_ms,
        claim_ratio: claim_ms.map(|(without, with)| with / without),
        claim_ms,
        silenced: stage.receivers.report().await?.silenced,
        peak_rss_mb: stage.peak_rss_mb(),
        without,
        with,
    };
    stage.strike().await?;
    Ok(report)
}

/// Writes rows that wait for these endpoints.
pub(super) async fn fill(stage: &Stage<'_>, rows: i64, endpoints: &[Uuid]) -> Result<(), Failure> {
    fill::fill(stage, FILL, rows, endpoints, "outstanding").await
}
