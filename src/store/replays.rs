//! Replays: durable jobs that put many settled deliveries back. Started, read and canceled here. `work` takes
//! the steps of those that run: `collect`, then `put_back`.

mod collect;
mod put_back;
mod restore;
mod work;

use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Uuid;

pub use self::work::Worked;
use super::Store;
use super::error::Result;
use super::types::{PgTime, stored};
use crate::domain::delivery::DeliveryState;
use crate::domain::endpoint::stored_enum;
use crate::domain::fields::Tenant;
use crate::domain::id::{DeliveryId, EndpointId, ReplayId};
use crate::domain::pattern::EventPattern;
use crate::domain::time::Timestamp;

/// Where a replay stands. The discriminants are the contract's and the database's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayState {
    /// It is at work, on whichever replica.
    Running = 1,
    /// Everything that matched was replayed or skipped; of a dry run, counted.
    Completed = 2,
    /// Somebody ended it.
    Canceled = 3,
    /// It could not go on.
    Failed = 4,
}

stored_enum!(ReplayState { Running, Completed, Canceled, Failed });

/// Which deliveries a replay takes. Those that failed and were dismissed as dead letters are taken by their ids alone.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplayFilter {
    /// Whose.
    pub tenant: Tenant,
    /// These endpoints'; empty for all.
    pub endpoints: Vec<EndpointId>,
    /// Of types that one of these matches; empty for any.
    pub event_types: Vec<EventPattern>,
    /// In one of these settled states; empty for FAILED.
    pub states: Vec<DeliveryState>,
    /// Made at or after.
    pub create_after: Option<Timestamp>,
    /// Made before.
    pub create_before: Option<Timestamp>,
    /// These alone; empty for all.
    pub deliveries: Vec<DeliveryId>,
}

/// A replay to be started.
#[derive(Debug, Clone, PartialEq)]
pub struct NewReplay {
    /// What it takes.
    pub filter: ReplayFilter,
    /// Whether it only counts.
    pub is_dry_run: bool,
    /// Deliveries a second at most; 0: as many as live traffic leaves room for.
    pub max_per_second: f64,
}

/// A replay and its progress.
#[derive(Debug, Clone, PartialEq)]
pub struct Replay {
    /// Its id.
    pub id: ReplayId,
    /// What was asked for.
    pub asked: NewReplay,
    /// Where it stands.
    pub state: ReplayState,
    /// Deliveries that matched so far.
    pub matched: u64,
    /// Of those, how many were put back or made anew.
    pub replayed: u64,
    /// Of those, how many were left alone: they had moved meanwhile, or their endpoint is gone.
    pub skipped: u64,
    /// Why it failed.
    pub error: Option<String>,
    /// When it was started.
    pub create_time: Timestamp,
    /// When it ended.
    pub end_time: Option<Timestamp>,
}

/// Why a replay was not started.
#[derive(Debug, thiserror::Error)]
pub enum StartReplayError {
    /// `RUNNING_MAX` are running.
    #[error("as many replays are running as may be")]
    TooMany,
    /// The statement failed.
    #[error(transparent)]
    Store(#[from] super::Error),
}

/// Replays that run at once: each is looked at every few milliseconds.
const RUNNING_MAX: i64 = 16;

const COLUMNS: &str = "id, tenant, endpoint_ids, event_types, states, create_after, create_before, delivery_ids, dry_run, \
                       max_per_second, state, matched, replayed, skipped, error, create_time, end_time";

/// Counts by `replays_uncleared`.
const START: &str = "
insert into replays (id, tenant, endpoint_ids, event_types, states, create_after, create_before, delivery_ids, dry_run,
                     max_per_second, state, walk, walked_to, next_time, create_time)
select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 1, 0, null, now(), now()
where (select count(*) from replays r where not r.is_cleared and r.state = 1) < $11
returning ";

const ONE: &str = " from replays where id = $1";

/// Newest first by `replays_tenant` or `replays_pkey`.
const LIST: &str = " from replays
where ($1::text is null or tenant = $1) and ($2::uuid is null or id < $2)
order by id desc
limit $3";

/// Waits for the batch that is under way. One that has ended already stays as it is.
const CANCEL: &str = "update replays set state = 3, end_time = now() where id = $1 and state = 1";

impl Store {
    /// Starts a replay of what is settled by now.
    pub async fn start_replay(&self, new: &NewReplay) -> std::result::Result<Replay, StartReplayError> {
        let filter = &new.filter;
        let row = sqlx::query(sqlx::AssertSqlSafe(format!("{START}{COLUMNS}")))
            .bind(self.clock.new_uuid())
            .bind(filter.tenant.as_str())
            .bind(filter.endpoints.iter().map(|id| id.uuid()).collect::<Vec<_>>())
            .bind(filter.event_types.iter().map(ToString::to_string).collect::<Vec<_>>())
            .bind(filter.states.iter().map(|state| state.number()).collect::<Vec<_>>())
            .bind(filter.create_after.map(PgTime))
            .bind(filter.create_before.map(PgTime))
            .bind(filter.deliveries.iter().map(|id| id.uuid()).collect::<Vec<_>>())
            .bind(new.is_dry_run)
            .bind(new.max_per_second)
            .bind(RUNNING_MAX)
            .fetch_optional(&self.engine)
            .await
            .map_err(super::Error::from)?;
        let replay = read_replay(&row.ok_or(StartReplayError::TooMany)?)?;
        self.replay_started.notify_one();
        Ok(replay)
    }

    /// Ends when this process has started a replay since the last time.
    pub async fn replay_started(&self) {
        self.replay_started.notified().await;
    }

    /// One replay.
    pub async fn replay(&self, id: ReplayId) -> Result<Option<Replay>> {
        let select = sqlx::AssertSqlSafe(format!("select {COLUMNS}{ONE}"));
        let row = sqlx::query(select).bind(id.uuid()).fetch_optional(&self.reader).await?;
        row.as_ref().map(read_replay).transpose()
    }

    /// Replays, newest first.
    pub async fn list_replays(
        &self,
        tenant: Option<&Tenant>,
        before: Option<ReplayId>,
        limit: u32,
    ) -> Result<Vec<Replay>> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!("select {COLUMNS}{LIST}")))
            .bind(tenant.map(Tenant::as_str))
            .bind(before.map(ReplayId::uuid))
            .bind(i64::from(limit))
            .fetch_all(&self.reader)
            .await?;
        rows.iter().map(read_replay).collect()
    }

    /// Ends a replay: what it put back stays. `None` where there is no such replay.
    pub async fn cancel_replay(&self, id: ReplayId) -> Result<Option<Replay>> {
        sqlx::query(CANCEL).bind(id.uuid()).execute(&self.engine).await?;
        self.replay(id).await
    }
}

fn read_replay(row: &PgRow) -> Result<Replay> {
    let time = |column: usize| -> Result<_> { Ok(row.try_get::<Option<PgTime>, _>(column)?.map(|time| time.0)) };
    let number = |column: usize| -> Result<_> { Ok(u64::try_from(row.try_get::<i64, _>(column)?).unwrap_or_default()) };
    let pattern = |text: &String| {
        EventPattern::parse(text).map_err(|_| super::Error::Unreadable(format!("the event pattern {text}")))
    };
    Ok(Replay {
        id: ReplayId::from_uuid(row.try_get(0)?),
        asked: NewReplay {
            filter: ReplayFilter {
                tenant: Tenant::from_stored(row.try_get(1)?),
                endpoints: row.try_get::<Vec<Uuid>, _>(2)?.into_iter().map(EndpointId::from_uuid).collect(),
                event_types: row.try_get::<Vec<String>, _>(3)?.iter().map(pattern).collect::<Result<_>>()?,
                states: row
                    .try_get::<Vec<i16>, _>(4)?
                    .into_iter()
                    .map(|number| stored("delivery state", number, DeliveryState::from_number))
                    .collect::<Result<_>>()?,
                create_after: time(5)?,
                create_before: time(6)?,
                deliveries: row.try_get::<Vec<Uuid>, _>(7)?.into_iter().map(DeliveryId::from_uuid).collect(),
            },
            is_dry_run: row.try_get(8)?,
            max_per_second: row.try_get(9)?,
        },
        state: stored("replay state", row.try_get(10)?, ReplayState::from_number)?,
        matched: number(11)?,
        replayed: number(12)?,
        skipped: number(13)?,
        error: row.try_get(14)?,
        create_time: row.try_get::<PgTime, _>(15)?.0,
        end_time: time(16)?,
    })
}
