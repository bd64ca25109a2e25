//! Keys that deliveries are ordered by. Of each the first delivery is due; those behind it are parked, due at infinity.
//!
//! `order_keys` has a row for each key with something outstanding or a failed head that blocks it, and its lock is what
//! publishing to the key and ending its head take turns by. Locks are taken in one order everywhere: a delivery that
//! ends or is taken back first, keys in the order of their index next, parked deliveries last. Whoever has locked a
//! parked delivery waits for no key.

mod by_hand;
mod mend;

pub(super) use self::by_hand::{restore, take};
pub use self::mend::{Place, Walk};

use std::collections::{BTreeMap, BTreeSet, HashSet};

use sqlx::PgConnection;
use sqlx::types::Uuid;

use super::Due;
use super::error::Result;
use super::queue::due_of;
use super::types::PgTime;
use crate::domain::id::DeliveryId;

/// Deliveries ordered by it go one after the other: endpoint and key.
pub(super) type OrderKey<'k> = (Uuid, &'k str);

/// What FIFO endpoints order by: no ordering key is empty.
pub(super) const ONLY_KEY: &str = "";

/// Locks keys for a publish and makes those that are missing: a key that is made here has nothing before it. Waits for
/// whoever ends the head of one of them. By `order_keys_pkey`; the arrays are in its order.
pub(super) const JOIN: &str = "
insert into order_keys as k (endpoint_id, key)
select q.endpoint_id, q.key from unnest($1::uuid[], $2::text[]) as q (endpoint_id, key)
on conflict (endpoint_id, key) do update set is_shared = true
returning k.endpoint_id, k.key, k.is_shared";

/// Locks keys whose head has ended, in the order of the arrays, which is that of `order_keys_pkey`. A statement of its
/// own: the next one has to see what was published to them while this one waited.
pub(super) const LOCK: &str = "
select count(*)
from unnest($1::uuid[], $2::text[]) as q (endpoint_id, key)
cross join lateral (
  select 1 from order_keys k where k.endpoint_id = q.endpoint_id and k.key = q.key limit 1 for update
) k";

/// Blocks keys whose head has failed for good, where their endpoint wants that now. What was canceled meanwhile is not
/// among the failed. By `order_keys_pkey`, `endpoints_pkey` and `settled_failed_pkey` of today's partition.
pub(super) const BLOCK: &str = "
update order_keys k set blocked_by = b.id, blocked_time = now()
from (
  select f.endpoint_id, f.key, f.id from unnest($1::uuid[], $2::text[], $3::uuid[]) as f (endpoint_id, key, id)
  where (select e.ordering <> 1 and e.ordering_on_failure = 1 from endpoints e
         where e.id = f.endpoint_id and e.delete_time is null limit 1)
    and (select s.state = 5 from settled_failed s where s.id = f.id and s.settle_time = now() limit 1)
) b
where k.endpoint_id = b.endpoint_id and k.key = b.key";

/// Makes the first delivery of each key due, where it is parked, and removes the keys that have none. Changes nothing
/// where the first one is under way, and nothing at a blocked key: it can be written again at any time. The keys are
/// locked. Answers how many of the first ones were parked, beside those that are due now: fewer, where one of them was
/// canceled at this moment. By `order_keys_pkey`, `outstanding_order`, `outstanding_pkey`.
pub(super) const ADVANCE: &str = "
with keys as materialized (
  select q.endpoint_id, q.key, k.place
  from unnest($1::uuid[], $2::text[]) as q (endpoint_id, key)
  cross join lateral (
    select k.ctid as place from order_keys k
    where k.endpoint_id = q.endpoint_id and k.key = q.key and k.blocked_by is null
    limit 1
  ) k
), firsts as materialized (
  select k.place, f.id, f.due_at = 'infinity' as is_parked
  from keys k left join lateral (
    select o.id, o.due_at from outstanding o
    where o.endpoint_id = k.endpoint_id and o.order_key = k.key
    order by o.endpoint_id, o.order_key, o.seq limit 1
  ) f on true
), advanced as (
  update outstanding o set due_at = now()
  where o.id = any(array(select id from firsts where is_parked)) and o.due_at = 'infinity'
  returning o.endpoint_id, o.priority
), emptied as (
  delete from order_keys k where k.ctid = any(array(select place from firsts where id is null))
)
select t.count, a.endpoint_id, now(), a.priority
from (select count(*) from firsts where is_parked) t left join advanced a on true";

/// Takes a place behind each of the keys in the caller's transaction, which holds their locks until it ends. Answers the
/// keys that have nothing before that place.
pub(super) async fn join<'k>(
    connection: &mut PgConnection,
    keys: &BTreeSet<OrderKey<'k>>,
) -> Result<HashSet<OrderKey<'k>>> {
    let (endpoints, names): (Vec<Uuid>, Vec<&str>) = keys.iter().copied().unzip();
    let rows: Vec<(Uuid, String, bool)> =
        sqlx::query_as(JOIN).bind(endpoints).bind(names).fetch_all(connection).await?;
    let busy: HashSet<(Uuid, &str)> =
        rows.iter().filter(|(.., is_shared)| *is_shared).map(|(endpoint, key, _)| (*endpoint, key.as_str())).collect();
    Ok(keys.iter().filter(|key| !busy.contains(key)).copied().collect())
}

/// Lets the next delivery of each of these keys go on, whose head has ended in the caller's transaction; where it failed,
/// its id stands beside the key, and its endpoint says whether that blocks it. Answers what is due now.
pub(super) async fn pass_on(
    connection: &mut PgConnection,
    ended: &BTreeMap<OrderKey<'_>, Option<DeliveryId>>,
) -> Result<Vec<Due>> {
    if ended.is_empty() {
        return Ok(Vec::new());
    }
    let (endpoints, keys): (Vec<Uuid>, Vec<&str>) = ended.keys().copied().unzip();
    lock(connection, &endpoints, &keys).await?;
    let failed: Vec<_> = ended.iter().filter_map(|((endpoint, key), id)| Some((*endpoint, *key, (*id)?))).collect();
    if !failed.is_empty() {
        sqlx::query(BLOCK)
            .bind(failed.iter().map(|(endpoint, ..)| *endpoint).collect::<Vec<_>>())
            .bind(failed.iter().map(|(_, key, _)| *key).collect::<Vec<_>>())
            .bind(failed.iter().map(|(.., id)| id.uuid()).collect::<Vec<_>>())
            .execute(&mut *connection)
            .await?;
    }
    advance(connection, &endpoints, &keys).await
}

/// Locks keys; the arrays are in their index's order.
pub(super) async fn lock(connection: &mut PgConnection, endpoints: &[Uuid], keys: &[&str]) -> Result<()> {
    sqlx::query(LOCK).bind(endpoints).bind(keys).execute(connection).await?;
    Ok(())
}

/// Lets the first delivery of each key go on that is parked. The caller holds the keys' locks.
pub(super) async fn advance(connection: &mut PgConnection, endpoints: &[Uuid], keys: &[&str]) -> Result<Vec<Due>> {
    let mut due = Vec::new();
    loop {
        let rows: Vec<(i64, Option<Uuid>, PgTime, Option<i16>)> =
            sqlx::query_as(ADVANCE).bind(endpoints).bind(keys).fetch_all(&mut *connection).await?;
        let parked = rows.first().map_or(0, |(count, ..)| *count);
        let advanced =
            rows.into_iter().filter_map(|(_, endpoint, at, priority)| Some(due_of(endpoint?, at, priority?)));
        let before = due.len();
        due.extend(advanced);
        // One that ended while it was parked: the one behind it is the first now, as the next statement sees.
        if i64::try_from(due.len() - before).is_ok_and(|advanced| advanced >= parked) {
            return Ok(due);
        }
    }
}
