//! Scenario `history`: deliveries a second with millions of settled rows of past days, and with none.

use serde::Serialize;
use sqlx::AssertSqlSafe;

use super::Args;
use super::callers::Audience;
use super::cluster::{Cluster, execute, sql_failed};
use super::measure::{self, FullLoad};
use super::progress;
use super::stage::Stage;
use crate::api::proto::Ordering;
use crate::cli::Failure;

/// Past days that the rows are spread over. The service has made yesterday's partition; these lie before it.
const DAYS: i64 = 10;

/// What it measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct HistoryReport {
    pub(super) rows: i64,
    pub(super) without: FullLoad,
    pub(super) with: FullLoad,
    /// Delivered a second, with over without.
    pub(super) ratio: f64,
}

pub(super) async fn run(cluster: &Cluster, args: &Args) -> Result<HistoryReport, Failure> {
    let mut stage = Stage::set(cluster, "history").await?;
    stage.register(args, 1, 0, Ordering::Unordered).await?;
    let without = measure::full_load(&mut stage, args, &Audience::Everyone).await?;
    stage.service.kill().await?;
    for day in 0..DAYS {
        progress(&format!("history: writing day {} of {DAYS}", day + 1));
        fill(&stage, day, args.history_rows / DAYS).await?;
    }
    stage.renew_service().await?;
    let with = measure::full_load(&mut stage, args, &Audience::Everyone).await?;
    let ratio = with.delivered_per_s / without.delivered_per_s;
    stage.strike().await?;
    Ok(HistoryReport { rows: args.history_rows, without, with, ratio })
}

/// One day's partition and its rows, in the order in which they would have been settled.
async fn fill(stage: &Stage<'_>, day: i64, rows: i64) -> Result<(), Failure> {
    let mut connection = stage.cluster.connect(&stage.database).await?;
    // The service's partitions are days of UTC, and so are these.
    let ago = day + 2;
    let name: String =
        sqlx::query_scalar("select to_char(date_trunc('day', now()) - $1 * interval '1 day', 'YYYYMMDD')")
            .bind(ago)
            .fetch_one(&mut connection)
            .await
            .map_err(sql_failed)?;
    let partition = format!(
        "create table hooklane.settled_succeeded_{name} partition of hooklane.settled_succeeded
         for values from ('{name}') to (date '{name}' + 1)"
    );
    execute(&mut connection, &partition).await?;
    let rows = format!(
        "insert into hooklane.settled_succeeded (id, endpoint_id, event_id, settle_time, claim_gen, attempt_count,
                                                 last_status, priority, payload_format, tenant, event_type, xid,
                                                 started_at, duration_us, trigger, response_truncated, url,
                                                 response_headers, response_body, replica)
         select (millis || '7' || substr(d, 1, 3) || '8' || substr(d, 4, 15))::uuid,
                (select id from hooklane.endpoints limit 1),
                (millis || '7' || substr(d, 5, 3) || '9' || substr(d, 8, 15))::uuid,
                at, 1, 1, 200, 2, 1, 'default', 'bench.event', pg_current_xact_id(), at, 1000, 1, false,
                'http://127.0.0.1:8080/live/0', 'content-length: 0', '', 'bench'
         from generate_series(1, {rows}) as n
         cross join lateral (select timestamptz '{name}' + n * interval '86399 s' / {rows} as at) as t
         cross join lateral (select lpad(to_hex(floor(extract(epoch from at) * 1000)::bigint), 12, '0') as millis, md5(n::text) as d) as i"
    );
    sqlx::query(AssertSqlSafe(rows)).execute(&mut connection).await.map_err(sql_failed)?;
    execute(&mut connection, &format!("vacuum analyze hooklane.settled_succeeded_{name}")).await
}
