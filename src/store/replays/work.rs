//! A step of whichever replay is next: collecting its items, putting a batch of them back, or clearing up behind it.
//!
//! A step is one transaction that holds the replay's row: it does a little and writes down how far it came, or nothing
//! of it happened. So a replay goes on where it was, whoever was killed, and replays nothing twice.
//!
//! It must not be felt by live traffic. A step takes little, and after it the replay rests in proportion to what the step
//! took, which grows when the database is busy. An endpoint gets no more than its lane can start at once and about as
//! many again: what is published to it meanwhile waits behind those alone.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sqlx::types::Uuid;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row};

use super::collect::collect;
use super::{COLUMNS, Replay, ReplayState, read_replay};
use crate::domain::id::{EndpointId, ReplayId};
use crate::store::error::Result;
use crate::store::{Due, Store};

/// What a call of [`Store::work_on_replays`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worked {
    /// There is more to do, after this time.
    Again(Duration),
    /// There is nothing to do.
    Idle,
}

/// Items removed by one step behind an ended replay.
const CLEAR: i64 = 5_000;
/// Clearing up makes no request: a fifth of the time.
const REST_AFTER_CLEARING: f64 = 4.0;
/// When to look again for room in full lanes.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How much a replay may be behind its pace and still catch up, in seconds: what timers are late, and not what it was
/// stopped.
pub(super) const CATCH_UP: f64 = 0.1;

/// The next one that nobody works on, and until when it rests. Locks its row, by `replays_uncleared`.
const NEXT: &str = ", walk, walked_to, extract(epoch from greatest(next_time - now(), interval '0'))::float8,
  (select count(*) from replays r where not r.is_cleared and r.state = 1)
from replays where not is_cleared
order by next_time
limit 1
for update skip locked";

const ADVANCE: &str = "
update replays set
  walk = $2, walked_to = $3, matched = matched + $4, replayed = replayed + $5, skipped = skipped + $6,
  next_time = greatest(clock_timestamp() + make_interval(secs => $7),
                       greatest(next_time, clock_timestamp() - make_interval(secs => $8)) + make_interval(secs => $9))
where id = $1";

/// What matched and was not replayed had moved, whenever it was looked for.
const COMPLETE: &str = "
update replays set state = 2, end_time = clock_timestamp(),
                   skipped = case when dry_run then 0 else greatest(matched - replayed, 0) end
where id = $1";

const FAIL: &str = "update replays set state = 4, error = $2, end_time = now() where id = $1 and state = 1";

/// By `replay_items_pkey`.
const CLEAR_ITEMS: &str = "
delete from replay_items i
where (i.replay_id, i.endpoint_id, i.id) in (
  select c.replay_id, c.endpoint_id, c.id from replay_items c where c.replay_id = $1
  order by c.replay_id, c.endpoint_id, c.id
  limit $2
)";

const CLEAR_LANES: &str = "
with gone as (delete from replay_lanes where replay_id = $1)
update replays set is_cleared = true where id = $1";

/// The replay's row as it was locked.
pub(super) struct Locked {
    pub(super) replay: Replay,
    pub(super) walk: Option<i32>,
    pub(super) walked_to: Option<Uuid>,
    pub(super) rest: f64,
    pub(super) running: f64,
}

/// What a step did.
#[derive(Default)]
pub(super) struct Step {
    pub(super) walk: Option<i32>,
    pub(super) walked_to: Option<Uuid>,
    pub(super) matched: i64,
    /// By endpoint.
    pub(super) replayed: BTreeMap<Uuid, i64>,
    pub(super) skipped: i64,
    pub(super) is_last: bool,
    /// There was nothing to do yet.
    pub(super) is_waiting: bool,
    pub(super) rest_for_each: f64,
}

impl Store {
    /// Does a step of whichever replay is next. Any replica may, at any time: each replay is worked on by one.
    pub async fn work_on_replays(&self) -> Result<Worked> {
        let mut connection = self.engine.lend().await?;
        let mut locked = None;
        let worked = self.engine.bounded(self.step(&mut connection, &mut locked)).await?;
        connection.give_back_after(&worked);
        match (worked, locked) {
            (Ok((worked, replayed)), _) => {
                self.announce_replayed(replayed);
                Ok(worked)
            }
            // Tried again, it would fail again.
            (Err(error), Some(id)) if !error.is_passing() => {
                tracing::error!(replay = %ReplayId::from_uuid(id), %error, "a replay could not go on");
                let words = "the database refused it; the server's log tells more";
                sqlx::query(FAIL).bind(id).bind(words).execute(&self.engine).await?;
                Ok(Worked::Again(Duration::ZERO))
            }
            (Err(error), _) => Err(error),
        }
    }

    async fn step(
        &self,
        connection: &mut PgConnection,
        locked_id: &mut Option<Uuid>,
    ) -> Result<(Worked, BTreeMap<Uuid, i64>)> {
        let mut transaction = connection.begin().await?;
        let Some(locked) = next(&mut transaction).await? else {
            transaction.rollback().await?;
            return Ok((Worked::Idle, BTreeMap::new()));
        };
        if locked.rest > 0.0 {
            transaction.rollback().await?;
            return Ok((Worked::Again(Duration::from_secs_f64(locked.rest.min(1.0))), BTreeMap::new()));
        }
        let id = locked.replay.id.uuid();
        *locked_id = Some(id);
        let began = Instant::now();
        let step = if locked.replay.state != ReplayState::Running {
            clear(&mut transaction, id).await?
        } else if let Some(walk) = locked.walk {
            collect(&mut transaction, &locked, walk).await?
        } else {
            self.put_back(&mut transaction, &locked.replay).await?
        };
        let took = began.elapsed().as_secs_f64();
        let least = if step.is_waiting { LOOK_AGAIN.as_secs_f64() } else { 0.0 };
        let rest = (took * ((step.rest_for_each + 1.0) * locked.running.max(1.0) - 1.0)).max(least);
        let done: i64 = step.replayed.values().sum();
        let rate = locked.replay.asked.max_per_second;
        sqlx::query(ADVANCE)
            .bind(id)
            .bind(step.walk)
            .bind(step.walked_to)
            .bind(step.matched)
            .bind(done)
            .bind(step.skipped)
            .bind(rest)
            .bind(CATCH_UP)
            .bind(if rate > 0.0 { done as f64 / rate } else { 0.0 })
            .execute(&mut *transaction)
            .await?;
        if step.is_last {
            sqlx::query(COMPLETE).bind(id).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok((Worked::Again(Duration::from_secs_f64(rest)), step.replayed))
    }

    fn announce_replayed(&self, replayed: BTreeMap<Uuid, i64>) {
        if replayed.is_empty() {
            return;
        }
        let now = self.clock.now();
        let endpoints = || replayed.iter().map(|(id, count)| (EndpointId::from_uuid(*id), *count));
        self.backlog.change(endpoints());
        self.hint(endpoints().map(|(endpoint, _)| Due { endpoint, at: now, priority: None }).collect());
    }
}

async fn next(connection: &mut PgConnection) -> Result<Option<Locked>> {
    let select = AssertSqlSafe(format!("select {COLUMNS}{NEXT}"));
    let Some(row) = sqlx::query(select).fetch_optional(connection).await? else { return Ok(None) };
    Ok(Some(Locked {
        replay: read_replay(&row)?,
        walk: row.try_get(17)?,
        walked_to: row.try_get(18)?,
        rest: row.try_get(19)?,
        running: row.try_get::<i64, _>(20)? as f64,
    }))
}

async fn clear(connection: &mut PgConnection, id: Uuid) -> Result<Step> {
    let cleared = sqlx::query(CLEAR_ITEMS).bind(id).bind(CLEAR).execute(&mut *connection).await?.rows_affected();
    if cleared == 0 {
        sqlx::query(CLEAR_LANES).bind(id).execute(connection).await?;
    }
    Ok(Step { rest_for_each: REST_AFTER_CLEARING, ..Step::default() })
}
