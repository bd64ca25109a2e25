//! Scenario `healthy`: millions of deliveries while another session holds a snapshot open, as a dump does, so that vacuum
//! can remove nothing; and what claims and tables have come back to after it has ended.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use super::callers::Audience;
use super::cluster::{Cluster, execute, sql_failed};
use super::measure::{self, FixedRate};
use super::stage::Stage;
use super::{Args, progress};
use crate::api::proto::Ordering;
use crate::cli::Failure;

/// Deliveries of an event.
const ENDPOINTS: usize = 10;
/// What is offered where claims are timed, in events a second.
const RATE: f64 = 200.0;
/// Autovacuum looks at a database each minute, and may have to come by twice.
const VACUUM_PATIENCE: Duration = Duration::from_secs(240);
const POLL: Duration = Duration::from_millis(500);

/// The hot table with its indexes, in pages and rows as the server counts them.
const SIZE: &str = "
select pg_relation_size('hooklane.outstanding') / current_setting('block_size')::bigint,
       pg_indexes_size('hooklane.outstanding') / current_setting('block_size')::bigint,
       coalesce((select s.n_dead_tup from pg_stat_user_tables s where s.relid = 'hooklane.outstanding'::regclass), 0)";

/// How the hot table stands, and what a claim takes.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Standing {
    pub(super) heap_pages: i64,
    pub(super) index_pages: i64,
    pub(super) dead_rows: i64,
    /// None where the server does not count statements.
    pub(super) claim_ms: Option<f64>,
    pub(super) run: FixedRate,
}

/// What it measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct HealthyReport {
    pub(super) deliveries: u64,
    pub(super) seconds: f64,
    pub(super) before: Standing,
    /// Behind the snapshot, when all were delivered.
    pub(super) held: Standing,
    /// When autovacuum had come by after its end.
    pub(super) after: Standing,
    pub(super) missing: u64,
}

pub(super) async fn run(cluster: &Cluster, args: &Args) -> Result<HealthyReport, Failure> {
    let mut stage = Stage::set(cluster, "healthy").await?;
    stage.register(args, ENDPOINTS, 0, Ordering::Unordered).await?;
    let mut looking = cluster.connect(&stage.database).await?;
    let before = standing(&mut stage, args, &mut looking).await?;

    let mut holder = cluster.connect(&stage.database).await?;
    execute(&mut holder, "begin isolation level repeatable read; select count(*) from hooklane.endpoints").await?;
    progress(&format!("healthy: {} deliveries behind an open snapshot", args.healthy_deliveries));
    let (began, callers) = (Instant::now(), Arc::new(stage.callers(args, &Audience::Everyone)?));
    stage.receivers.reset().await?;
    let stop = CancellationToken::new();
    callers.closed_loop(args.callers, &stop, args.healthy_deliveries / ENDPOINTS as u64).join_all().await;
    let mut arrived = 0;
    let mut since = Instant::now();
    while arrived < callers.deliveries() && since.elapsed() < Duration::from_secs(25) {
        let count = stage.receivers.report().await?.distinct();
        if count > arrived {
            (arrived, since) = (count, Instant::now());
        }
        stage.service.must_live()?;
        tokio::time::sleep(POLL).await;
    }
    let (deliveries, seconds) = (callers.deliveries(), began.elapsed().as_secs_f64());
    let held = standing(&mut stage, args, &mut looking).await?;

    execute(&mut holder, "commit").await?;
    progress("healthy: waiting for autovacuum");
    let since = Instant::now();
    // The first vacuum may find the table's end in use, and leaves giving it back to the next one.
    while since.elapsed() < VACUUM_PATIENCE {
        let (heap_pages, _, dead_rows) = size(&mut looking).await?;
        if dead_rows <= held.dead_rows / 10 && heap_pages <= held.heap_pages / 10 {
            break;
        }
        tokio::time::sleep(POLL).await;
    }
    let after = standing(&mut stage, args, &mut looking).await?;
    stage.strike().await?;
    Ok(HealthyReport { deliveries, seconds, before, held, after, missing: deliveries.saturating_sub(arrived) })
}

/// The size first: measuring adds to it.
async fn standing(stage: &mut Stage<'_>, args: &Args, looking: &mut PgConnection) -> Result<Standing, Failure> {
    let (heap_pages, index_pages, dead_rows) = size(looking).await?;
    let run = measure::fixed_rate(stage, args, &Audience::Everyone, RATE).await?;
    let claim_ms = measure::claim_ms(stage, args, &Audience::Everyone, RATE).await?;
    Ok(Standing { heap_pages, index_pages, dead_rows, claim_ms, run })
}

async fn size(looking: &mut PgConnection) -> Result<(i64, i64, i64), Failure> {
    sqlx::query_as(SIZE).fetch_one(looking).await.map_err(sql_failed)
}
