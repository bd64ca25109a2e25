//! Reading the timeline as it grows, and its past: every committed row exactly once, whatever order transactions commit
//! in.
//!
//! The cursor is a snapshot. What is new is what that snapshot could not see: rows whose transaction was not visible in
//! it and is visible now. A sequence would skip rows that commit late; waiting for the oldest running transaction would
//! stall behind any writer left open anywhere in the cluster. `position` says where in that a reader stands, `epoch` what
//! a cursor is worth, `replay` how the past is read.

mod epoch;
mod keys;
mod position;
mod replay;

use std::sync::Arc;
use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::PgRow;

pub use self::epoch::StreamKey;
pub(super) use self::epoch::ensure as ensure_stream_key;
pub use self::position::{Batch, Cursor, Key, Position, Snapshot};
pub(super) use self::replay::REPLAY;
pub use self::replay::TimelineFilter;
use super::Store;
use super::error::{Error, Result};
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
    /// The transaction that made it: its place among the others.
    pub xid: u64,
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
    /// The event's key that endpoints may order by.
    pub ordering_key: Option<String>,
    /// When the next attempt is due, where one is.
    pub next_attempt_time: Option<Timestamp>,
    /// The attempt that ended, where one did.
    pub attempt: Option<Attempt>,
}

/// What a reader got of a batch.
#[derive(Debug)]
pub struct Page {
    /// The batch.
    pub batch: Batch,
    /// Its next rows, in the order of their keys.
    pub events: Vec<TimelineEvent>,
    /// Where to go on in the same batch; `None` when it has ended.
    pub rest: Option<Key>,
}

/// Why the timeline was not read.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    /// What is to be read may be gone: dropped with its day, or numbered by another line of transactions.
    #[error("the cursor is older than what is kept")]
    Expired,
    /// The statement failed.
    #[error(transparent)]
    Store(#[from] Error),
}

impl From<sqlx::Error> for TailError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// How much earlier than its commit a row may say that it happened, for all that is read: rows are stamped with the
/// start of their transaction, ours end within seconds, and a commit may hang until a standby is back. It only leaves
/// whole days' partitions out, so it can be ample.
const LATE_MAX: Duration = Duration::from_secs(24 * 3_600);
/// The same where it decides whether a cursor is still whole: a long hang does not begin at the very midnight from which
/// on everything happens to be kept.
const LATE_AT_BOUND_MAX: Duration = Duration::from_secs(60);
/// A cursor younger than this has lost nothing to retention, which drops days that are over.
const YOUNG: Duration = Duration::from_secs(3_600);

/// What a row of the timeline tells, as [`read_transition`] reads it.
macro_rules! columns {
    () => {
        "t.number, t.trigger, t.outcome, t.started_at, t.duration_us, t.url, t.status, t.response_headers,
       t.response_body, t.response_truncated, t.error, t.next_attempt_at, t.replica,
       t.kind, t.time, t.delivery_id, t.endpoint_id, t.event_id, t.tenant, t.event_type, t.state, t.priority,
       t.attempt_count, t.reason, t.xid::text"
    };
}
use columns;

/// The transitions in some transactions that the snapshot `$upper` sees and that pass `$filter`, of those that a view
/// tells: after the key `$4` to `$7`, none older than `$8`, `$9` at most.
macro_rules! rows_told_by {
    ($view:literal, $xids:literal, $upper:literal, $filter:expr) => {
        concat!(
            "(select t.* from ",
            $view,
            " t
     where ",
            $xids,
            " and t.time >= $8 and t.time < now() + interval '1 day'
       and pg_visible_in_snapshot(t.xid, ",
            $upper,
            ")
       and (t.xid, t.delivery_id, t.attempt_count, t.kind) > ($4::text::xid8, $5::uuid, $6::int, $7::smallint)",
            $filter,
            "
     order by t.xid, t.delivery_id, t.attempt_count, t.kind
     limit $9)"
        )
    };
}
use rows_told_by;

/// The same of all transitions. View by view: in a view of both no index's order would be seen, and everything be sorted.
macro_rules! rows_of {
    ($xids:literal, $upper:literal, $filter:expr) => {
        concat!(
            $crate::store::tail::rows_told_by!("timeline_transitions", $xids, $upper, $filter),
            "
    union all
    ",
            $crate::store::tail::rows_told_by!("success_transitions", $xids, $upper, $filter)
        )
    };
}
use rows_of;

/// The next rows of a batch from the transactions `$1` that the lower snapshot saw running and all from `$2` on, of the
/// upper snapshot `$3` (null: the present one). After the key `$4` to `$7`, none older than `$8`, `$9` at most.
/// Reads by `timeline_xid` and `settled_succeeded_xid`: what ran then by lookups, so that a transaction left open for days
/// costs nothing, and what came since in the indexes' order. No locks.
pub(super) const SINCE: &str = concat!(
    "
with s as materialized (
  select coalesce($3::text::pg_snapshot, pg_current_snapshot()) as upper
)
select ",
    columns!(),
    ", s.upper::text, now(), ",
    epoch::line!(),
    "
from s left join lateral (
  select * from (
    ",
    rows_of!("t.xid = any($1::text[]::xid8[])", "s.upper", ""),
    "
    union all
    ",
    rows_of!("t.xid >= $2::text::xid8 and t.xid < pg_snapshot_xmax(s.upper)", "s.upper", ""),
    "
  ) either
  order by xid, delivery_id, attempt_count, kind
  limit $9
) t on true"
);

impl Store {
    /// What the stream's tokens are authenticated with.
    pub const fn stream_key(&self) -> &StreamKey {
        &self.stream_key
    }

    /// The cursor of what is committed by now.
    pub async fn timeline_cursor(&self) -> Result<Cursor> {
        Ok(epoch::standing(&self.reader).await?.present)
    }

    /// What was committed since `lower`, `limit` rows at most: the first page of a batch that ends now, or the next one
    /// after `rest` of a batch that has begun.
    pub async fn timeline_since(
        &self,
        lower: &Arc<Cursor>,
        rest: Option<(&Arc<Cursor>, Key)>,
        limit: usize,
    ) -> std::result::Result<Page, TailError> {
        let (upper, after) = rest.unzip();
        let after = after.unwrap_or_else(|| Key::before(&lower.snapshot));
        let rows = sqlx::query(SINCE)
            .bind(waited_for(lower, after))
            .bind(went_on_from(lower, after).to_string())
            .bind(upper.map(|upper| upper.snapshot.to_string()))
            .bind(after.xid.to_string())
            .bind(after.delivery)
            .bind(after.attempt_count)
            .bind(after.kind)
            .bind(PgTime(floor(lower)))
            .bind(limit_of(limit))
            .fetch_all(&self.stream)
            .await?;
        self.page(lower, upper, &rows, limit).await
    }

    /// Makes a page of a statement's rows, of which there is at least one.
    async fn page(
        &self,
        lower: &Arc<Cursor>,
        upper: Option<&Arc<Cursor>>,
        rows: &[PgRow],
        limit: usize,
    ) -> std::result::Result<Page, TailError> {
        let first = rows.first().ok_or_else(|| Error::Unreadable("a batch without a snapshot".to_owned()))?;
        let present = epoch::read_cursor(first, SNAPSHOT, SNAPSHOT + 1, SNAPSHOT + 2)?;
        if present.epoch != lower.epoch {
            return Err(TailError::Expired);
        }
        let is_young = !lower.is_beginning && present.time.since(lower.time) < YOUNG;
        // After the rows were read: days only ever go.
        if !is_young && !is_kept(lower, epoch::standing(&self.reader).await?.kept_since) {
            return Err(TailError::Expired);
        }
        let mut events = rows.iter().filter_map(|row| read_transition(row).transpose()).collect::<Result<Vec<_>>>()?;
        // They come in this order; no clause of the statement promises it, and sorted rows cost nothing to sort.
        events.sort_by_key(TimelineEvent::key);
        self.fill_keys(&mut events).await?;
        let rest = if events.len() >= limit { events.last().map(TimelineEvent::key) } else { None };
        let upper = upper.map_or_else(|| Arc::new(present), Arc::clone);
        Ok(Page { batch: Batch { lower: Arc::clone(lower), upper }, events, rest })
    }
}

/// Whether nothing that follows the cursor may be gone.
fn is_kept(lower: &Cursor, kept_since: Timestamp) -> bool {
    let slack = if lower.is_beginning { Duration::ZERO } else { LATE_AT_BOUND_MAX };
    lower.time >= kept_since.plus(slack)
}

/// Before which no row is wanted.
fn floor(lower: &Cursor) -> Timestamp {
    if lower.is_beginning { lower.time } else { lower.time.minus(LATE_MAX) }
}

/// The transactions that the cursor saw running, as far as their rows are not all read.
fn waited_for(lower: &Cursor, after: Key) -> Vec<String> {
    lower.snapshot.xip().iter().filter(|xid| **xid >= after.xid).map(u64::to_string).collect()
}

/// The first transaction of those that the cursor had not seen begin whose rows are not all read. Not one that is done
/// with: a page that looked through nothing else would not get past it.
fn went_on_from(lower: &Cursor, after: Key) -> u64 {
    let is_done_with = after == Key::after_all_of(after.xid);
    lower.snapshot.xmax().max(after.xid.saturating_add(is_done_with.into()))
}

fn limit_of(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

impl TimelineEvent {
    /// Its place in its batch.
    pub fn key(&self) -> Key {
        Key {
            xid: self.xid,
            delivery: self.delivery.uuid(),
            attempt_count: i32::try_from(self.attempt_count).unwrap_or(i32::MAX),
            kind: self.kind.number(),
        }
    }

    /// About what it takes in memory.
    pub fn bytes(&self) -> usize {
        let keys = [self.idempotency_key.as_ref(), self.ordering_key.as_ref()];
        let texts = [Some(&self.event_type), self.reason.as_ref()].into_iter().chain(keys);
        let texts: usize = texts.flatten().map(String::len).sum();
        let attempt = self.attempt.as_ref().map_or(0, |attempt| {
            let headers: usize =
                attempt.response_headers.iter().map(|(name, value)| name.len() + value.len() + 48).sum();
            attempt.response_body.len() + attempt.url.len() + attempt.error.len() + headers
        });
        size_of::<Self>() + texts + attempt
    }

    /// One to test with.
    #[cfg(test)]
    pub fn sample(xid: u64) -> Self {
        let id = uuid::Uuid::from_u128(u128::from(xid));
        Self {
            xid,
            kind: TransitionKind::Queued,
            time: Timestamp::from_micros(0),
            delivery: DeliveryId::from_uuid(id),
            endpoint: EndpointId::from_uuid(id),
            event: EventId::from_uuid(id),
            tenant: Tenant::from_stored("default".to_owned()),
            event_type: "a".to_owned(),
            state: DeliveryState::Pending,
            priority: 2,
            attempt_count: 0,
            reason: None,
            idempotency_key: None,
            ordering_key: None,
            next_attempt_time: None,
            attempt: None,
        }
    }
}

/// Where the columns that are no row's begin: the snapshot, the time, the line of transactions.
const SNAPSHOT: usize = 25;

/// A row's transition, without its event's keys; `None` for the one row that tells the snapshot where nothing is new.
fn read_transition(row: &PgRow) -> Result<Option<TimelineEvent>> {
    let Some(kind) = row.try_get::<Option<i16>, _>(13)? else { return Ok(None) };
    let xid: String = row.try_get(24)?;
    Ok(Some(TimelineEvent {
        xid: xid.parse().map_err(|_| Error::Unreadable(format!("the transaction {xid}")))?,
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
        idempotency_key: None,
        ordering_key: None,
    }))
}
