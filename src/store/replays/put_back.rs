//! Putting back: a batch of a replay's items, shared among the lanes that have room.

use std::collections::{BTreeMap, HashMap, HashSet};

use sqlx::postgres::PgRow;
use sqlx::types::Uuid;
use sqlx::{PgConnection, Row};

use super::Replay;
use super::work::{CATCH_UP, LOOK_AGAIN, Step};
use crate::domain::id::{EndpointId, uuid_floor, uuid_time};
use crate::domain::time::Timestamp;
use crate::store::Store;
use crate::store::error::Result;
use crate::store::types::PgTime;

/// Deliveries put back by one step.
const BATCH: i64 = 100;
/// Lanes looked at by one step.
const LANES: i64 = 64;
/// A replay rests so many times as long as putting a batch back took: it works for a twentieth of the time, all running
/// ones together.
const REST: f64 = 19.0;

/// Lanes with items, the longest not looked at first, and their room: twice what the endpoint takes at once, less what
/// is due there, counted by `outstanding_due` up to that. A tombstone is told by a null. At an ordered endpoint what is
/// parked takes room as well, by `outstanding_order` behind its first thousand keys, but for what is parked behind a
/// failed one: that may be what the replay is to put back. Whether the next item is such a one stands last.
const ROOMS: &str = "
select l.endpoint_id as endpoint, l.done_to, l.items_left as items,
       case when e.room is not null then greatest(e.room - q.due - p.parked, 0) end as room,
       coalesce(e.is_ordered, false) as is_ordered, coalesce(b.is_blocking, false) as is_next_blocking
from (
  select r.* from replay_lanes r where r.replay_id = $1 and r.items_left > 0 and r.look_time <= now()
  order by r.look_time limit $2
) l
left join lateral (
  select greatest(2 * e.max_in_flight, 16)::bigint as room, e.ordering <> 1 as is_ordered from endpoints e
  where e.id = l.endpoint_id and e.delete_time is null
  limit 1
) e on true
cross join lateral (
  select count(*) as due from (
    select from outstanding o
    where o.endpoint_id = l.endpoint_id and o.priority = any('{1,2,3}'::smallint[]) and o.due_at <= now()
    limit coalesce(e.room, 0)
  ) o
) q
cross join lateral (
  select count(*) as parked from (
    select from (
      select k.key, k.blocked_by from order_keys k where k.endpoint_id = l.endpoint_id and e.is_ordered
      order by k.endpoint_id, k.key limit 1000
    ) k
    cross join lateral (
      select from outstanding o
      where o.endpoint_id = l.endpoint_id and o.order_key = k.key and o.due_at = 'infinity'
      order by o.endpoint_id, o.order_key, o.seq limit e.room
    ) o
    where k.blocked_by is null
    limit coalesce(e.room, 0)
  ) o
) p
cross join lateral (
  select e.is_ordered and exists (
    select from (
      select i.id, i.settle_time from replay_items i
      where i.replay_id = $1 and i.endpoint_id = l.endpoint_id and i.id > l.done_to
      order by i.replay_id, i.endpoint_id, i.id limit 1
    ) i
    cross join lateral (
      select f.order_key from settled_failed f where f.id = i.id and f.settle_time = i.settle_time limit 1
    ) f
    cross join lateral (
      select k.blocked_by from order_keys k where k.endpoint_id = l.endpoint_id and k.key = f.order_key limit 1
    ) k
    where k.blocked_by = i.id
  ) as is_blocking
) b";

/// The items of lanes behind one, in id order, by `replay_items_pkey`; how far they go is a third array and its condition.
macro_rules! items {
    ($until:literal, $condition:literal) => {
        concat!(
            "
select i.endpoint_id, i.id, i.settle_time, i.is_succeeded
from unnest($2::uuid[], $3::uuid[], ",
            $until,
            ") as l (endpoint_id, done_to, until)
cross join lateral (
  select i.* from replay_items i
  where i.replay_id = $1 and i.endpoint_id = l.endpoint_id and i.id > l.done_to ",
            $condition,
            "
) i"
        )
    };
}

/// The next ones, as many as there is room for.
const ITEMS: &str = items!("$4::bigint[]", "order by i.id limit l.until");

/// Items of ordered endpoints that were published in one millisecond go together: in it, ids tell no order.
const ITEMS_BESIDE: &str = items!("$4::uuid[]", "and i.id < l.until order by i.id");

const LANES_DONE: &str = "
update replay_lanes l set done_to = u.done_to, items_left = l.items_left - u.done, look_time = clock_timestamp()
from unnest($2::uuid[], $3::uuid[], $4::bigint[]) as u (endpoint_id, done_to, done)
where l.replay_id = $1 and l.endpoint_id = u.endpoint_id";

const LANES_FULL: &str = "
update replay_lanes l set look_time = clock_timestamp() + make_interval(secs => $3)
where l.replay_id = $1 and l.endpoint_id = any($2)";

const IS_DONE: &str = "select not exists (select from replay_lanes where replay_id = $1 and items_left > 0)";

impl Store {
    /// Puts a batch of items back, shared among the lanes that have room.
    pub(super) async fn put_back(&self, connection: &mut PgConnection, replay: &Replay) -> Result<Step> {
        let id = replay.id.uuid();
        let mut step = Step { rest_for_each: REST, ..Step::default() };
        let looked: Vec<Lane> = sqlx::query_as(ROOMS).bind(id).bind(LANES).fetch_all(&mut *connection).await?;
        let share = share(&looked, batch(replay.asked.max_per_second), |lane, room| self.room(lane, room));
        step.skipped = share.gone.iter().map(|(_, _, items)| items).sum();
        let mut items = self.items(connection, id, &share.served).await?;
        let ordered = looked.iter().filter(|lane| lane.is_ordered).map(|lane| lane.endpoint).collect();
        items.extend(beside(connection, id, &items, ordered).await?);
        let done = self.restore_items(connection, &items, id).await?;
        step.skipped += (items.len() - done.len()) as i64;
        for (endpoint, _) in done {
            *step.replayed.entry(endpoint).or_default() += 1;
        }
        record_lanes(connection, id, &share, &items).await?;
        step.is_waiting = items.is_empty() && share.gone.is_empty();
        if step.is_waiting || items.len() < BATCH as usize {
            step.is_last = sqlx::query_scalar(IS_DONE).bind(id).fetch_one(&mut *connection).await?;
        }
        Ok(step)
    }

    /// A lane's room within the bounds of the queue. What others wait for goes on past them: it may be why they are full.
    fn room(&self, lane: &Lane, room: i64) -> i64 {
        let bound = match self.backlog.is_full() {
            true => 0,
            false => self.backlog.endpoint_room(EndpointId::from_uuid(lane.endpoint)),
        };
        room.min(bound.max(i64::from(lane.is_next_blocking)))
    }

    async fn items(&self, connection: &mut PgConnection, id: Uuid, served: &[(Uuid, Uuid, i64)]) -> Result<Vec<Item>> {
        if served.is_empty() {
            return Ok(Vec::new());
        }
        let rows = sqlx::query(ITEMS)
            .bind(id)
            .bind(served.iter().map(|(endpoint, ..)| *endpoint).collect::<Vec<_>>())
            .bind(served.iter().map(|(_, done_to, _)| *done_to).collect::<Vec<_>>())
            .bind(served.iter().map(|(.., room)| *room).collect::<Vec<_>>())
            .fetch_all(connection)
            .await?;
        rows.iter().map(Item::read).collect()
    }
}

/// What was published to ordered endpoints in the same millisecond as the last of their items here.
async fn beside(connection: &mut PgConnection, id: Uuid, items: &[Item], ordered: HashSet<Uuid>) -> Result<Vec<Item>> {
    let mut lasts: BTreeMap<Uuid, Uuid> = BTreeMap::new();
    for item in items.iter().filter(|item| ordered.contains(&item.endpoint)) {
        let last = lasts.entry(item.endpoint).or_insert(item.id);
        *last = item.id.max(*last);
    }
    if lasts.is_empty() {
        return Ok(Vec::new());
    }
    let floor = |last: &Uuid| uuid_floor(Timestamp::from_micros(uuid_time(*last).micros() + 1_000));
    let rows = sqlx::query(ITEMS_BESIDE)
        .bind(id)
        .bind(lasts.keys().copied().collect::<Vec<_>>())
        .bind(lasts.values().copied().collect::<Vec<_>>())
        .bind(lasts.values().map(floor).collect::<Vec<_>>())
        .fetch_all(connection)
        .await?;
    rows.iter().map(Item::read).collect()
}

pub(super) struct Item {
    endpoint: Uuid,
    pub(super) id: Uuid,
    pub(super) settle_time: PgTime,
    pub(super) is_succeeded: bool,
}

impl Item {
    fn read(row: &PgRow) -> Result<Self> {
        Ok(Self {
            endpoint: row.try_get(0)?,
            id: row.try_get(1)?,
            settle_time: row.try_get(2)?,
            is_succeeded: row.try_get(3)?,
        })
    }
}

/// A lane as it was found.
#[derive(Debug, sqlx::FromRow)]
struct Lane {
    endpoint: Uuid,
    done_to: Uuid,
    items: i64,
    /// `None`: its endpoint is gone.
    room: Option<i64>,
    is_ordered: bool,
    /// Whether others wait for its next item.
    is_next_blocking: bool,
}

/// Lanes as a batch is shared among them.
#[derive(Debug, Default, PartialEq)]
struct Share {
    /// Endpoint, where it is, and how many it gets.
    served: Vec<(Uuid, Uuid, i64)>,
    full: Vec<Uuid>,
    /// Tombstones, with all their items.
    gone: Vec<(Uuid, Uuid, i64)>,
}

/// Deliveries of a step at this pace: a tenth of a second's.
fn batch(max_per_second: f64) -> i64 {
    // Saturates; 0 stands for no bound.
    if max_per_second > 0.0 { ((max_per_second * CATCH_UP) as i64).clamp(1, BATCH) } else { BATCH }
}

/// Shares a batch: each lane gets what is left for as many lanes as are left, and no more than its room.
fn share(looked: &[Lane], batch: i64, room_of: impl Fn(&Lane, i64) -> i64) -> Share {
    let mut share = Share::default();
    let mut hungry = Vec::new();
    for lane in looked {
        match lane.room.map(|room| room_of(lane, room)) {
            None => share.gone.push((lane.endpoint, lane.done_to, lane.items)),
            Some(0) => share.full.push(lane.endpoint),
            Some(room) => hungry.push((lane.endpoint, lane.done_to, room.min(lane.items))),
        }
    }
    let (mut left, mut lanes) = (batch, hungry.len() as i64);
    for (endpoint, done_to, room) in hungry {
        let part = room.min((left + lanes - 1) / lanes);
        left -= part;
        lanes -= 1;
        if part > 0 {
            share.served.push((endpoint, done_to, part));
        }
    }
    share
}

async fn record_lanes(connection: &mut PgConnection, id: Uuid, share: &Share, items: &[Item]) -> Result<()> {
    let mut done: HashMap<Uuid, (Uuid, i64)> = HashMap::new();
    for item in items {
        let (done_to, count) = done.entry(item.endpoint).or_insert((item.id, 0));
        *done_to = item.id.max(*done_to);
        *count += 1;
    }
    done.extend(share.gone.iter().map(|(endpoint, done_to, left)| (*endpoint, (*done_to, *left))));
    if !done.is_empty() {
        sqlx::query(LANES_DONE)
            .bind(id)
            .bind(done.keys().copied().collect::<Vec<_>>())
            .bind(done.values().map(|(done_to, _)| *done_to).collect::<Vec<_>>())
            .bind(done.values().map(|(_, count)| *count).collect::<Vec<_>>())
            .execute(&mut *connection)
            .await?;
    }
    if !share.full.is_empty() {
        let again = LOOK_AGAIN.as_secs_f64();
        sqlx::query(LANES_FULL).bind(id).bind(&share.full).bind(again).execute(connection).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(endpoint: u128, items: i64, room: Option<i64>) -> Lane {
        Lane {
            endpoint: Uuid::from_u128(endpoint),
            done_to: Uuid::nil(),
            items,
            room,
            is_ordered: false,
            is_next_blocking: false,
        }
    }

    fn served(looked: &[Lane], batch: i64) -> Vec<(u128, i64)> {
        let share = share(looked, batch, |_, room| room);
        share.served.iter().map(|(endpoint, _, part)| (endpoint.as_u128(), *part)).collect()
    }

    #[test]
    fn a_batch_is_shared_among_the_lanes_that_have_room() {
        assert_eq!(served(&[lane(1, 1_000, Some(128))], 100), [(1, 100)]);
        assert_eq!(served(&[lane(1, 1_000, Some(30)), lane(2, 1_000, Some(200))], 100), [(1, 30), (2, 70)]);
        assert_eq!(served(&[lane(1, 5, Some(30)), lane(2, 1, Some(200))], 100), [(1, 5), (2, 1)]);
        assert_eq!(served(&[lane(1, 9, Some(9)), lane(2, 9, Some(9)), lane(3, 9, Some(9))], 2), [(1, 1), (2, 1)]);
        let share = share(&[lane(1, 7, None), lane(2, 7, Some(0)), lane(3, 7, Some(1))], 100, |_, room| room);
        assert_eq!((share.gone.len(), share.full.len(), share.served.len()), (1, 1, 1));
    }

    #[test]
    fn a_step_at_a_pace_is_a_tenth_of_a_seconds() {
        for (pace, expected) in [(0.0, BATCH), (0.001, 1), (5.0, 1), (500.0, 50), (1e12, BATCH)] {
            assert_eq!(batch(pace), expected, "{pace}");
        }
    }
}
