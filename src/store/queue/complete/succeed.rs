//! Completing what nearly every batch is: attempts that succeeded.
//!
//! The statement does to these what [`super::COMPLETE`] would, without a place for what does not become of them.

use std::collections::BTreeMap;

use sqlx::PgExecutor;
use sqlx::types::Uuid;

use super::columns::{HealthChange, HealthColumns};
use super::{Answer, Completion};
use crate::store::error::Result;
use crate::store::types::{PgTime, headers_to_text, micros};

/// Locks as [`super::COMPLETE`] does, and uses its indexes. `$1` are the ids, ascending; `$9` and `$10` are what addresses
/// and headers there are, `$15` and `$16` each row's place among them. Answers how many claims were current, beside every
/// one where some were not.
pub(in crate::store) const SUCCEED: &str = "
with won as (
  delete from outstanding o
  where o.id = any($1::uuid[]) and o.claim_gen = ($2::int[])[width_bucket(o.id, $1::uuid[])] and o.state = 2
  returning o.id, o.endpoint_id, o.event_id, o.claim_gen, o.priority, o.payload_format, o.tenant, o.event_type,
            o.replica, width_bucket(o.id, $1::uuid[]) as i
), succeeded as (
  insert into settled_succeeded (id, endpoint_id, event_id, settle_time, claim_gen, attempt_count, last_status,
                                 priority, payload_format, tenant, event_type, xid, started_at, duration_us, trigger,
                                 response_truncated, url, response_headers, response_body, replica)
  select w.id, w.endpoint_id, w.event_id, now(), w.claim_gen, ($3::int[])[w.i], ($6::int[])[w.i],
         w.priority, w.payload_format, w.tenant, w.event_type, pg_current_xact_id(), ($4::timestamptz[])[w.i],
         ($5::bigint[])[w.i], ($7::smallint[])[w.i], ($8::boolean[])[w.i], ($9::text[])[($15::int[])[w.i]],
         ($10::text[])[($16::int[])[w.i]], coalesce(($11::bytea[])[w.i], ''), w.replica
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

pub(super) async fn write<'c>(on: impl PgExecutor<'c>, batch: &[Completion]) -> Result<Vec<Answer>> {
    let columns = Successes::of(batch);
    let health = HealthColumns::of(&columns.health);
    let rows = sqlx::query_as(SUCCEED)
        .bind(columns.ids)
        .bind(columns.claim_gens)
        .bind(columns.attempt_counts)
        .bind(columns.started_at)
        .bind(columns.durations_us)
        .bind(columns.statuses)
        .bind(columns.triggers)
        .bind(columns.truncated)
        .bind(columns.urls.values)
        .bind(columns.headers.values.into_iter().map(headers_to_text).collect::<Vec<_>>())
        .bind(columns.bodies)
        .bind(health.endpoints)
        .bind(health.kept)
        .bind(health.added)
        .bind(columns.urls.places)
        .bind(columns.headers.places)
        .fetch_all(on)
        .await?;
    Ok(rows)
}

/// A batch as the statement's arrays, in id order.
#[derive(Default)]
struct Successes<'c> {
    ids: Vec<Uuid>,
    claim_gens: Vec<i32>,
    attempt_counts: Vec<i32>,
    started_at: Vec<PgTime>,
    durations_us: Vec<i64>,
    statuses: Vec<i32>,
    triggers: Vec<i16>,
    truncated: Vec<bool>,
    urls: Repeated<&'c str>,
    headers: Repeated<&'c [(String, String)]>,
    /// Empty where all of them are.
    bodies: Vec<&'c [u8]>,
    health: BTreeMap<Uuid, HealthChange>,
}

impl<'c> Successes<'c> {
    fn of(batch: &'c [Completion]) -> Self {
        let mut sorted: Vec<_> =
            batch.iter().filter_map(|one| one.attempt.as_ref().map(|attempt| (one, attempt))).collect();
        sorted.sort_unstable_by_key(|(one, _)| one.id);
        let mut columns = Self::default();
        for (one, attempt) in sorted {
            let result = &attempt.result;
            columns.ids.push(one.id.uuid());
            columns.claim_gens.push(one.claim_gen);
            columns.attempt_counts.push(one.attempt_count.cast_signed());
            columns.started_at.push(PgTime(attempt.started_at));
            columns.durations_us.push(micros(result.duration));
            columns.statuses.push(i32::from(result.status));
            columns.triggers.push(attempt.trigger.number());
            columns.truncated.push(result.response_truncated);
            columns.urls.push(&attempt.url);
            columns.headers.push(&result.response_headers);
            columns.bodies.push(&result.response_body);
            columns.health.entry(one.endpoint.uuid()).or_default().add(true);
        }
        if columns.bodies.iter().all(|body| body.is_empty()) {
            columns.bodies.clear();
        }
        columns
    }
}

/// A column of few values: each once, and for each row the place of its own, from 1.
#[derive(Default)]
struct Repeated<T> {
    values: Vec<T>,
    places: Vec<i32>,
}

/// How many values back one is looked for: beyond it, it stands there again.
const LOOK_BACK: usize = 16;

impl<T: PartialEq> Repeated<T> {
    fn push(&mut self, value: T) {
        let back = self.values.iter().rev().take(LOOK_BACK).position(|known| *known == value);
        let place = back.map_or(self.values.len(), |back| self.values.len() - 1 - back);
        if place == self.values.len() {
            self.values.push(value);
        }
        self.places.push(i32::try_from(place + 1).unwrap_or(i32::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_stands_once_as_far_as_one_looks_back() {
        let mut column = Repeated::default();
        let mut pushed: Vec<usize> = vec![7, 8, 7, 7, 8, 9];
        pushed.extend(100..100 + LOOK_BACK);
        pushed.extend([9, 7]);
        for value in &pushed {
            column.push(*value);
        }
        let read = |place: &i32| column.values[usize::try_from(*place).expect("a place") - 1];
        assert_eq!(column.places.iter().map(read).collect::<Vec<_>>(), pushed);
        assert_eq!(column.places[..6], [1, 2, 1, 1, 2, 3]);
        assert_eq!(column.values.len(), 3 + LOOK_BACK + 2, "what is far back stands there again");
    }
}
