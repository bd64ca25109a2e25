//! Reading the timeline as it grows: every committed row exactly once, whatever order transactions commit in.
//!
//! The cursor is a snapshot. What is new is what that snapshot could not see: rows whose transaction was not visible in
//! it and is visible now. A sequence would skip rows that commit late; waiting for the oldest running transaction would
//! stall behind any writer left open anywhere in the cluster.

use sqlx::Row;
use sqlx::postgres::PgRow;

use super::Store;
use super::connections::Connections;
use super::error::Result;
use super::history::read_timeline_attempt;
use super::types::{PgTime, count, stored};
use crate::domain::attempt::Attempt;
use crate::domain::delivery::DeliveryState;
use crate::domain::endpoint::stored_enum;
use crate::domain::fields::Tenant;
use crate::domain::id::{DeliveryId, EndpointId, EventId};
use crate::domain::time::Timestamp;

/// What a timeline row tells. The discriminants are the contract's and the database's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TransitionKind {
    /// The delivery was made, or waits again.
    Queued = 1,
    /// An attempt failed and another follows.
    AttemptFailed = 2,
    /// An attempt's worker was lost.
    AttemptLost = 3,
    /// It succeeded.
    Succeeded = 4,
    /// It failed for good.
    Failed = 5,
    /// It was canceled.
    Canceled = 6,
    /// Its time ran out.
    Expired = 7,
    /// Somebody asked for another attempt.
    RetryRequested = 8,
}

stored_enum!(TransitionKind {
    Queued,
    AttemptFailed,
    AttemptLost,
    Succeeded,
    Failed,
    Canceled,
    Expired,
    RetryRequested
});

/// One transition of one delivery.
#[derive(Debug, Clone)]
pub struct TimelineEvent {
    /// What happened.
    pub kind: TransitionKind,
    /// When, by the database's clock.
    pub time: Timestamp,
    /// To which delivery.
    pub delivery: DeliveryId,
    /// Its endpoint.
    pub endpoint: EndpointId,
    /// Its event.
    pub event: EventId,
    /// Whose it is.
    pub tenant: Tenant,
    /// The event's type.
    pub event_type: String,
    /// The state it is in since.
    pub state: DeliveryState,
    /// HIGH 1, NORMAL 2, LOW 3.
    pub priority: i16,
    /// Attempts made by then.
    pub attempt_count: u32,
    /// Why, where it came to its end.
    pub reason: Option<String>,
    /// The event's key.
    pub idempotency_key: Option<String>,
    /// When the next attempt is due, where one is.
    pub next_attempt_time: Option<Timestamp>,
    /// The attempt that ended, where one did.
    pub attempt: Option<Attempt>,
}

/// Where a reader of the timeline stands: a `pg_snapshot` as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor(String);

const NOW: &str = "select pg_current_snapshot()::text";

/// Everything committed since the cursor, and the cursor after it, of one and the same snapshot. Reads by
/// `timeline_xid`, keys by `events_pkey`. Rows of one delivery come in their order: each transition is a transaction after the one before.
const SINCE: &str = "
select t.number, t.trigger, t.outcome, t.started_at, t.duration_us, t.url, t.status, t.response_headers,
       t.response_body, t.response_truncated, t.error, t.next_attempt_at, t.replica,
       t.kind, t.time, t.delivery_id, t.endpoint_id, t.event_id, t.tenant, t.event_type, t.state, t.priority,
       t.attempt_count, t.reason, n.snapshot,
       (select v.idempotency_key from events v where v.id = t.event_id)
from (select pg_current_snapshot()::text as snapshot) n
left join timeline t
  on t.xid >= pg_snapshot_xmin($1::pg_snapshot) and not pg_visible_in_snapshot(t.xid, $1::pg_snapshot)
order by t.time, t.xid";

impl Store {
    /// The cursor of what is committed by now.
    pub async fn timeline_cursor(&self) -> Result<Cursor> {
        Ok(Cursor(sqlx::query_scalar(NOW).fetch_one(&self.reader).await?))
    }

    /// What was committed since `cursor`, and where that ends.
    pub async fn timeline_since(&self, cursor: &Cursor) -> Result<(Vec<TimelineEvent>, Cursor)> {
        read_since(&self.reader, cursor).await
    }
}

async fn read_since(pool: &Connections, cursor: &Cursor) -> Result<(Vec<TimelineEvent>, Cursor)> {
    let rows = sqlx::query(SINCE).bind(&cursor.0).fetch_all(pool).await?;
    let next = rows.first().map(|row| row.try_get(24)).transpose()?.map_or_else(|| cursor.clone(), Cursor);
    let events = rows.iter().filter_map(|row| read_transition(row).transpose()).collect::<Result<Vec<_>>>()?;
    Ok((events, next))
}

/// `None` for the one row that tells the snapshot where nothing is new.
fn read_transition(row: &PgRow) -> Result<Option<TimelineEvent>> {
    let Some(kind) = row.try_get::<Option<i16>, _>(13)? else { return Ok(None) };
    Ok(Some(TimelineEvent {
        attempt: read_timeline_attempt(row)?,
        next_attempt_time: row.try_get::<Option<PgTime>, _>(11)?.map(|time| time.0),
        kind: stored("timeline kind", kind, TransitionKind::from_number)?,
        time: row.try_get::<PgTime, _>(14)?.0,
        delivery: DeliveryId::from_uuid(row.try_get(15)?),
        endpoint: EndpointId::from_uuid(row.try_get(16)?),
        event: EventId::from_uuid(row.try_get(17)?),
        tenant: Tenant::from_stored(row.try_get(18)?),
        event_type: row.try_get(19)?,
        state: stored("delivery state", row.try_get(20)?, DeliveryState::from_number)?,
        priority: row.try_get(21)?,
        attempt_count: count(row.try_get(22)?),
        reason: row.try_get(23)?,
        idempotency_key: row.try_get(25)?,
    }))
}
