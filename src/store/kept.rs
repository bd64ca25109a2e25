//! Payloads that outlast their day: copied to `events_kept` before it leaves, and removed once nothing needs them.
//!
//! Whoever looks for an event looks in `events` first and here for what is missing there. In this order nothing is
//! missed: an event is here before it is gone from there.

use sqlx::types::Uuid;
use sqlx::{AssertSqlSafe, PgConnection};

use super::Store;
use super::error::Result;

/// Events copied by one statement. With payloads of the largest default size it moves 50 MB.
const KEEP_BATCH: i64 = 200;
/// Rows looked at by one statement that removes.
const PRUNE_BATCH: i64 = 1_000;

/// The columns of an event, but for its id, of which `events` and `events_kept` have the same.
const COLUMNS: &str = "tenant, event_type, payload, content_type, idempotency_key, metadata, cloudevents_source, priority, \
                       ordering_key, deliver_time, expire_time, trace, routing_note";

/// Copies a batch of those events of a table (its name goes in here) that a delivery refers to which waits, or is settled
/// and kept: after `$1` and up to `$2`, `$3` references at most. A reference stands at the delivery's id, which is among
/// those of its event, or for a delivery that was made later at the event's. Walks the deliveries' keys, the index
/// `deliveries_apart_event` and the table's key. A delivery that changes its table meanwhile is in one of them, because
/// the statement has one snapshot. Locks nothing that others write.
fn keep(table: &str) -> String {
    format!(
        "
with needed as materialized (
  select place, event_id from (
    (select o.id as place, o.event_id from outstanding o where o.id > $1 and o.id <= $2 order by o.id limit $3)
    union all
    (select s.id, s.event_id from settled_succeeded s where s.id > $1 and s.id <= $2 order by s.id limit $3)
    union all
    (select f.id, f.event_id from settled_failed f where f.id > $1 and f.id <= $2 order by f.id limit $3)
    union all
    (select a.event_id, a.event_id from deliveries_apart a
     where a.event_id > $1 and a.event_id <= $2 and exists (select from deliveries d where d.id = a.delivery_id)
     order by a.event_id limit $3)
  ) n
  order by place
  limit $3
), kept as (
  insert into events_kept (id, {COLUMNS})
  select id, {COLUMNS} from hooklane.{table} e
  where e.id = any(array(select distinct event_id from needed))
    and not exists (select from events_kept k where k.id = e.id)
  on conflict (id) do nothing
  returning id
)
select (select count(*) from needed), (select place from needed order by place desc limit 1),
       (select count(*) from kept)"
    )
}

/// Removes, of a batch after `$1`, those that no delivery refers to any more. By `events_kept_pkey`, the deliveries' keys
/// and `deliveries_apart_event`, whose rows go first. Nothing while a day is on its way out: a
/// transaction that still sees its deliveries may put one back.
const PRUNE: &str = "
with walked as materialized (
  select id, deliveries_from(id) as low, deliveries_to(id) as high from events_kept where id > $1 order by id limit $2
), removed as (
  delete from events_kept k where k.id = any(array(
    select w.id from walked w
    where not exists (select from pg_inherits i where i.inhdetachpending)
      and not exists (select from outstanding o where o.id >= w.low and o.id <= w.high and o.event_id = w.id)
      and not exists (select from settled_succeeded s where s.id >= w.low and s.id <= w.high and s.event_id = w.id)
      and not exists (select from settled_failed f where f.id >= w.low and f.id <= w.high and f.event_id = w.id)
      and not exists (select from deliveries_apart a where a.event_id = w.id)))
  returning k.id
)
select (select count(*) from walked), (select id from walked order by id desc limit 1), (select count(*) from removed)";

/// The same for what is known beside a delivery as long as there is one. By the primary keys.
macro_rules! prune_beside {
    ($table:literal) => {
        concat!(
            "
with walked as materialized (
  select delivery_id as id from ",
            $table,
            " where delivery_id > $1 order by delivery_id limit $2
), removed as (
  delete from ",
            $table,
            " r where r.delivery_id = any(array(
    select w.id from walked w
    where not exists (select from pg_inherits i where i.inhdetachpending)
      and not exists (select from outstanding o where o.id = w.id)
      and not exists (select from settled_succeeded s where s.id = w.id)
      and not exists (select from settled_failed f where f.id = w.id)))
  returning r.delivery_id
)
select (select count(*) from walked), (select id from walked order by id desc limit 1), (select count(*) from removed)"
        )
    };
}

/// Replays that ended so long ago that whatever they put back has been forgotten.
const PRUNE_REPLAYS: &str = "delete from replays where is_cleared and end_time < now() - make_interval(secs => $1)";

/// What a batch did: how many it looked at, where that ended, and how many it moved.
type Batch = (i64, Option<Uuid>, i64);

/// Copies every event of the table that is still needed; answers how many. `table` is a quoted name.
pub(super) async fn keep_needed(store: &Store, connection: &mut PgConnection, table: &str) -> Result<u64> {
    let bounds = format!(
        "select deliveries_from((select id from hooklane.{table} order by id limit 1)),
                deliveries_to((select id from hooklane.{table} order by id desc limit 1))"
    );
    let bounds = sqlx::query_as(AssertSqlSafe(bounds)).fetch_one(&mut *connection);
    let (Some(first), Some(last)): (Option<Uuid>, Option<Uuid>) = store.reader.bounded(bounds).await?? else {
        return Ok(0);
    };
    let mut after = Uuid::from_u128(first.as_u128().saturating_sub(1));
    let mut sum = 0;
    loop {
        let batch = sqlx::query_as(AssertSqlSafe(keep(table))).bind(after).bind(last).bind(KEEP_BATCH);
        let (needed, to, kept): Batch = store.reader.bounded(batch.fetch_one(&mut *connection)).await??;
        sum += u64::try_from(kept).unwrap_or_default();
        match to {
            Some(to) if needed == KEEP_BATCH => after = to,
            _ => return Ok(sum),
        }
    }
}

impl Store {
    /// Removes what was kept longer than its day and is not needed any more; answers how many rows.
    pub async fn prune_kept(&self) -> Result<u64> {
        let mut sum = 0;
        for sql in [prune_beside!("replay_deliveries"), prune_beside!("deliveries_apart"), PRUNE] {
            let mut after = Uuid::nil();
            loop {
                let batch = sqlx::query_as(sql).bind(after).bind(PRUNE_BATCH).fetch_one(&self.reader).await?;
                let (walked, to, removed): Batch = batch;
                sum += u64::try_from(removed).unwrap_or_default();
                match to {
                    Some(to) if walked == PRUNE_BATCH => after = to,
                    _ => break,
                }
            }
        }
        let replays = sqlx::query(PRUNE_REPLAYS).bind(self.retention.longest().as_secs_f64());
        Ok(sum + replays.execute(&self.reader).await?.rows_affected())
    }
}
