//! What a replay does to its items: settled deliveries go on, succeeded ones are made anew, each in its place where its
//! endpoint is ordered.

use std::collections::HashSet;

use sqlx::PgConnection;
use sqlx::types::Uuid;

use super::put_back::Item;
use crate::domain::attempt::AttemptTrigger;
use crate::domain::id::uuid_time;
use crate::store::error::Result;
use crate::store::operate::{RESTORE, SETTLED_EVER};
use crate::store::types::PgTime;
use crate::store::{Store, order};

/// What a succeeded delivery would be ordered by if its event were published now; see `Plan::order_key`.
macro_rules! succeeded_with_key {
    () => {
        "
  select s.*, case when v.deliver_time is null then case e.ordering when 2 then v.ordering_key when 3 then '' end end
           as order_key,
         case when v.expire_time > now() then v.expire_time end as expire_at
  from settled_succeeded s
  cross join lateral (
    select e.ordering from endpoints e where e.id = s.endpoint_id and e.delete_time is null limit 1
  ) e
  cross join lateral (
    select v.ordering_key, v.deliver_time, v.expire_time from events v where v.id = s.event_id
    union all
    select v.ordering_key, v.deliver_time, v.expire_time from events_kept v where v.id = s.event_id
    limit 1
  ) v
  where s.id = any($1::uuid[]) and s.settle_time >= $2 and s.settle_time <= $3"
    };
}

/// Succeeded ones are made anew: another delivery of the same event to the same endpoint, the old one stays. Found by
/// `settled_succeeded_pkey` within the days they settled in. `$4` are the new ids. Those that are ordered take a place
/// behind the key `$6`, which the caller has locked; without one, only those are found that are not ordered.
const MAKE_ANEW: &str = concat!(
    "
with found as materialized (
  select s.*, ($4::uuid[])[array_position($1::uuid[], s.id)] as new_id,
         case when $7::boolean then 'infinity' else now() end as due_at
  from (",
    succeeded_with_key!(),
    "
  ) s
  where $6::text is not null or s.order_key is null
), queued as (
  insert into outstanding (id, endpoint_id, event_id, due_at, state, priority, payload_format, trigger, tenant,
                           event_type, expire_at, order_key, seq)
  select new_id, endpoint_id, event_id, due_at, 1, priority, payload_format, 4, tenant, event_type, expire_at, $6,
         case when $6 is not null then nextval('order_seq') end
  from found
), marked as (
  insert into replay_deliveries (delivery_id, replay_id) select new_id, $5 from found
), apart as (
  insert into deliveries_apart (delivery_id, event_id, tenant) select new_id, event_id, tenant from found
), told as (
  insert into timeline (time, delivery_id, endpoint_id, event_id, kind, state, priority, attempt_count,
                        next_attempt_at, tenant, event_type)
  select now(), new_id, endpoint_id, event_id, 1, 1, priority, 0, nullif(due_at, 'infinity'), tenant, event_type
  from found
)
select endpoint_id, id from found"
);

/// Succeeded ones that are ordered, and by which keys.
const KEYS: &str = concat!(
    "select s.id, s.endpoint_id, s.order_key, s.settle_time from (",
    succeeded_with_key!(),
    "
) s
where s.order_key is not null"
);

impl Store {
    /// Puts items back, all in one statement of each kind but for those that are ordered. Answers the endpoints and ids of
    /// those that were there.
    pub(super) async fn restore_items(
        &self,
        connection: &mut PgConnection,
        items: &[Item],
        replay: Uuid,
    ) -> Result<Vec<(Uuid, Uuid)>> {
        let [mut failed, mut succeeded] = [false, true].map(|is_succeeded| Part::of(items, is_succeeded));
        let mut done = Vec::new();
        if !failed.ids.is_empty() {
            let put_back = sqlx::query_as(RESTORE)
                .bind(&failed.ids)
                .bind(failed.settled.0)
                .bind(failed.settled.1)
                .bind(AttemptTrigger::Replay.number())
                .fetch_all(&mut *connection)
                .await?;
            failed.drop_done(&put_back);
            done.extend(put_back);
        }
        if !succeeded.ids.is_empty() {
            let made = self.make_anew(connection, &succeeded, replay, None).await?;
            succeeded.drop_done(&made);
            done.extend(made);
        }
        done.extend(self.put_back_ordered(connection, &failed, &succeeded, replay).await?);
        Ok(done)
    }

    /// What is ordered among the rest of a batch, one by one in publish order, so that each key keeps its order: by the
    /// ids' milliseconds and, within one, as they settled, which those of a key do one after the other. Locks all the
    /// deliveries first and then all their keys, as everywhere.
    async fn put_back_ordered(
        &self,
        connection: &mut PgConnection,
        failed: &Part,
        succeeded: &Part,
        replay: Uuid,
    ) -> Result<Vec<(Uuid, Uuid)>> {
        let taken = match failed.ids.is_empty() {
            true => Vec::new(),
            false => order::take(connection, &failed.ids, failed.settled).await?,
        };
        let found: Vec<(Uuid, Uuid, String, PgTime)> = match succeeded.ids.is_empty() {
            true => Vec::new(),
            false => {
                let keys =
                    sqlx::query_as(KEYS).bind(&succeeded.ids).bind(succeeded.settled.0).bind(succeeded.settled.1);
                keys.fetch_all(&mut *connection).await?
            }
        };
        let taken = taken.iter().map(|one| (one.id, one.settle_time, one.key(), Some(one)));
        let found = found.iter().map(|(id, endpoint, key, time)| (*id, *time, (*endpoint, key.as_str()), None));
        let mut ordered: Vec<_> = taken.chain(found).collect();
        ordered.sort_unstable_by_key(|(id, settle_time, ..)| (uuid_time(*id), *settle_time, *id));
        if ordered.is_empty() {
            return Ok(Vec::new());
        }
        let keys = ordered.iter().map(|(_, _, key, _)| *key).collect();
        let mut free = order::join(connection, &keys).await?;
        let mut done = Vec::new();
        for (id, _, key, taken) in ordered {
            if let Some(taken) = taken {
                order::restore(connection, taken, free.remove(&key), AttemptTrigger::Replay).await?;
                done.push((key.0, id));
                continue;
            }
            let one = Part { ids: vec![id], settled: succeeded.settled };
            let made = self.make_anew(connection, &one, replay, Some((key.1, !free.contains(&key)))).await?;
            if !made.is_empty() {
                free.remove(&key);
            }
            done.extend(made);
        }
        Ok(done)
    }

    /// Makes succeeded ones anew, behind a key and parked there, or those that are not ordered. Answers their endpoints
    /// and ids.
    async fn make_anew(
        &self,
        connection: &mut PgConnection,
        part: &Part,
        replay: Uuid,
        place: Option<(&str, bool)>,
    ) -> Result<Vec<(Uuid, Uuid)>> {
        let new_ids: Vec<Uuid> = part.ids.iter().map(|_| self.clock.new_uuid()).collect();
        let made = sqlx::query_as(MAKE_ANEW)
            .bind(&part.ids)
            .bind(part.settled.0)
            .bind(part.settled.1)
            .bind(new_ids)
            .bind(replay)
            .bind(place.map(|(key, _)| key))
            .bind(place.is_some_and(|(_, is_parked)| is_parked))
            .fetch_all(connection)
            .await?;
        Ok(made)
    }
}

/// Items of one kind, in the order of ids, in which every writer of several rows locks them.
struct Part {
    ids: Vec<Uuid>,
    /// When the first and the last of them settled.
    settled: (PgTime, PgTime),
}

impl Part {
    fn of(items: &[Item], is_succeeded: bool) -> Self {
        let chosen = || items.iter().filter(|item| item.is_succeeded == is_succeeded);
        let times = || chosen().map(|item| item.settle_time);
        let mut ids: Vec<Uuid> = chosen().map(|item| item.id).collect();
        ids.sort_unstable();
        Self { ids, settled: times().min().zip(times().max()).unwrap_or(SETTLED_EVER) }
    }

    fn drop_done(&mut self, done: &[(Uuid, Uuid)]) {
        let done: HashSet<Uuid> = done.iter().map(|(_, id)| *id).collect();
        self.ids.retain(|id| !done.contains(id));
    }
}
