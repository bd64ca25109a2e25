//! Completing what nearly every batch is: attempts that succeeded, all under claims of one generation.
//!
//! The statement does to these what [`super::COMPLETE`] would, without a place for what does not become of them.

use sqlx::PgExecutor;

use super::columns::Columns;
use super::{Answer, Completion};
use crate::store::error::Result;

/// Locks as [`super::COMPLETE`] does, and uses its indexes. `$1` are the ids, ascending, `$2` is the generation of their
/// claims. Answers how many of those were current, beside every one where some were not.
pub(in crate::store) const SUCCEED: &str = "
with won as (
  delete from outstanding o
  where o.id = any($1::uuid[]) and o.claim_gen = $2 and o.state = 2
  returning o.id, o.endpoint_id, o.event_id, o.priority, o.payload_format, o.tenant, o.event_type, o.replica,
            array_position($1::uuid[], o.id) as i
), succeeded as (
  insert into settled_succeeded (id, endpoint_id, event_id, settle_time, claim_gen, attempt_count, last_status,
                                 priority, payload_format, tenant, event_type, xid, started_at, duration_us, trigger,
                                 response_truncated, url, response_headers, response_body, replica)
  select w.id, w.endpoint_id, w.event_id, now(), $2, ($3::int[])[w.i], ($6::int[])[w.i],
         w.priority, w.payload_format, w.tenant, w.event_type, pg_current_xact_id(), ($4::timestamptz[])[w.i],
         ($5::bigint[])[w.i], ($7::smallint[])[w.i], ($8::boolean[])[w.i], ($9::text[])[w.i], ($10::text[])[w.i],
         ($11::bytea[])[w.i], w.replica
  from won w
), healed as (
  update endpoint_health h
  set score = least(h.score * f.kept + f.added, 1), failing_since = null, consecutive_failures = 0,
      last_success_time = now()
  from unnest($12::uuid[], $13::float8[], $14::float8[]) as f (endpoint_id, kept, added)
  where h.endpoint_id = f.endpoint_id and h.endpoint_id = any($12::uuid[])
)
select t.count, w.id, null::timestamptz, null::int, null::smallint
from (select count(*) from won) t
left join won w on t.count < cardinality($1::uuid[])";

/// The generation of a batch's claims, where this statement is for it.
pub(super) fn claim_gen_of(batch: &[Completion]) -> Option<i32> {
    let claim_gen = batch.first()?.claim_gen;
    batch.iter().all(|one| one.is_plain_success() && one.claim_gen == claim_gen).then_some(claim_gen)
}

pub(super) async fn write<'c>(on: impl PgExecutor<'c>, claim_gen: i32, columns: Columns<'_>) -> Result<Vec<Answer>> {
    let health = columns.health();
    let rows = sqlx::query_as(SUCCEED)
        .bind(columns.ids)
        .bind(claim_gen)
        .bind(columns.attempt_counts)
        .bind(columns.started_at)
        .bind(columns.durations_us)
        .bind(columns.statuses)
        .bind(columns.triggers)
        .bind(columns.truncated)
        .bind(columns.urls)
        .bind(columns.headers)
        .bind(columns.bodies)
        .bind(health.endpoints)
        .bind(health.kept)
        .bind(health.added)
        .fetch_all(on)
        .await?;
    Ok(rows)
}
