//! Reading the past of the timeline: where it begins, and its pages, with the filter in the statement.
//!
//! There is no index by time. Transactions are numbered in the order in which they began to write, and rows are stamped
//! when their transaction began, so the beginning is found by halving the numbers, and from there on rows are read by
//! number as the live ones are.

use std::time::Duration;

use sqlx::types::Uuid;

use super::position::{Batch, Cursor, Key, Snapshot};
use super::{
    Page, TailError, TransitionKind, columns, epoch, floor, is_kept, limit_of, rows_of, waited_for, went_on_from,
};
use crate::domain::fields::Tenant;
use crate::domain::id::{DeliveryId, EndpointId, EventId};
use crate::domain::time::Timestamp;
use crate::store::Store;
use crate::store::error::{Error, Result};
use crate::store::types::PgTime;

/// Which transitions a reader of the past wants, as far as a statement can tell. What is empty holds for all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct TimelineFilter {
    /// One tenant's; `None` for all.
    pub tenant: Option<Tenant>,
    /// Of one of these endpoints.
    pub endpoints: Vec<EndpointId>,
    /// Of this event.
    pub event: Option<EventId>,
    /// Of this delivery.
    pub delivery: Option<DeliveryId>,
    /// Of one of these kinds.
    pub kinds: Vec<TransitionKind>,
}

impl TimelineFilter {
    const fn is_empty(&self) -> bool {
        self.tenant.is_none()
            && self.endpoints.is_empty()
            && self.event.is_none()
            && self.delivery.is_none()
            && self.kinds.is_empty()
    }
}

/// Rows that one page looks through at most where a filter passes few of them: some tens of milliseconds.
const SCAN_MAX: usize = 10_000;

/// How long after its stamp a transaction gets its number, at most: with its first write, and a statement of ours ends
/// within 10 s.
const NUMBERED_WITHIN: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// A [`TimelineFilter`], as `$10` to `$14`.
macro_rules! passes {
    () => {
        "
       and ($10::text is null or t.tenant = $10)
       and (cardinality($11::uuid[]) = 0 or t.endpoint_id = any($11))
       and ($12::uuid is null or t.event_id = $12) and ($13::uuid is null or t.delivery_id = $13)
       and (cardinality($14::smallint[]) = 0 or t.kind = any($14))"
    };
}

/// The first transactions of a batch that a view tells of, one for each transition, as many as a page looks through and
/// one more.
macro_rules! first_of {
    ($view:literal) => {
        concat!(
            "(select t.xid from ",
            $view,
            " t
       where t.xid >= $2::text::xid8 and t.xid < pg_snapshot_xmax($3::text::pg_snapshot)
         and t.time >= $8 and t.time < now() + interval '1 day'
       order by t.xid
       limit $15 + 1)"
        )
    };
}

/// [`super::SINCE`] for a batch whose end `$3` is known, with a filter (`$10` to `$14`), and with a bound on what is
/// looked through: `$15` transitions, told as the last transaction that belongs to it, or null where the batch ends
/// sooner.
pub(in crate::store) const REPLAY: &str = concat!(
    "
with s as materialized (
  select $3::text::pg_snapshot as upper, (
    select xid from (
      ",
    first_of!("timeline_transitions"),
    "
      union all
      ",
    first_of!("success_transitions"),
    "
    ) t
    order by xid
    limit 1 offset $15
  ) as bound
), r as materialized (
  select s.*, coalesce(s.bound, pg_snapshot_xmax(s.upper)) as last from s
)
select ",
    columns!(),
    ", pg_current_snapshot()::text, now(), ",
    epoch::line!(),
    ", r.bound::text
from r left join lateral (
  select * from (
    ",
    rows_of!("t.xid = any($1::text[]::xid8[])", "r.upper", passes!()),
    "
    union all
    ",
    rows_of!("t.xid >= $2::text::xid8 and t.xid <= r.last", "r.upper", passes!()),
    "
  ) either
  order by xid, delivery_id, attempt_count, kind
  limit $9
) t on true"
);

/// The first row of a day from a transaction on, in either table. By `timeline_xid` and `settled_succeeded_xid` of that
/// day's partitions alone.
const PROBE: &str = "
select xid::text, time from (
  (select t.xid, t.time from timeline t
   where t.time >= $1 and t.time < $2 and t.xid >= $3::text::xid8
   order by t.xid limit 1)
  union all
  (select t.xid, t.time from success_transitions t
   where t.time >= $1 and t.time < $2 and t.xid >= $3::text::xid8
   order by t.xid limit 1)
) either
order by either.xid
limit 1";

impl Store {
    /// The next rows of a batch after `after` that pass the filter, `limit` at most. The page may be empty and not the
    /// last: so much was looked through.
    pub async fn timeline_past(
        &self,
        batch: &Batch,
        after: Key,
        filter: &TimelineFilter,
        limit: usize,
    ) -> std::result::Result<Page, TailError> {
        let Batch { lower, upper } = batch;
        let scan_max = if filter.is_empty() { limit } else { limit.max(SCAN_MAX) };
        let rows = sqlx::query(REPLAY)
            .bind(waited_for(lower, after))
            .bind(went_on_from(lower, after).to_string())
            .bind(upper.snapshot.to_string())
            .bind(after.xid.to_string())
            .bind(after.delivery)
            .bind(after.attempt_count)
            .bind(after.kind)
            .bind(PgTime(floor(lower)))
            .bind(limit_of(limit))
            .bind(filter.tenant.as_ref().map(Tenant::as_str))
            .bind(filter.endpoints.iter().map(|id| id.uuid()).collect::<Vec<Uuid>>())
            .bind(filter.event.map(EventId::uuid))
            .bind(filter.delivery.map(DeliveryId::uuid))
            .bind(filter.kinds.iter().map(|kind| kind.number()).collect::<Vec<_>>())
            .bind(limit_of(scan_max))
            .fetch_all(&self.stream)
            .await?;
        let bound: Option<String> = match rows.first() {
            Some(row) => sqlx::Row::try_get(row, super::SNAPSHOT + 3)?,
            None => None,
        };
        let mut page = self.page(lower, Some(upper), &rows, limit).await?;
        if page.rest.is_none()
            && let Some(bound) = bound
        {
            let bound = bound.parse().map_err(|_| Error::Unreadable(format!("the transaction {bound}")))?;
            page.rest = Some(Key::after_all_of(bound));
        }
        Ok(page)
    }

    /// Whether nothing that follows the cursor is gone, and it counts in this cluster's transactions.
    pub async fn is_cursor_kept(&self, cursor: &Cursor) -> Result<bool> {
        let standing = epoch::standing(&self.reader).await?;
        Ok(standing.present.epoch == cursor.epoch && is_kept(cursor, standing.kept_since))
    }

    /// A cursor before everything that happened from `time` on, as far back as every transition is kept; of a time to
    /// come, that of the present. Cheap, and to be read from only once it is [`Store::refined`].
    pub async fn timeline_beginning(&self, time: Timestamp) -> Result<Cursor> {
        let standing = epoch::standing(&self.reader).await?;
        let time = time.max(standing.kept_since);
        if time > standing.present.time {
            return Ok(standing.present);
        }
        let epoch = standing.present.epoch;
        Ok(Cursor { snapshot: Snapshot::everything_to_come(), time, is_beginning: true, epoch })
    }

    /// The same beginning, moved up to where its rows begin, so that no page looks through what lies before. Some forty
    /// lookups; `end` is a transaction that none of its rows is of or follows.
    pub async fn refined(&self, beginning: &Cursor, end: u64) -> Result<Cursor> {
        let before = self.last_before(beginning.time, end).await?.max(1);
        let snapshot = Snapshot::new(before, before, Vec::new())
            .ok_or_else(|| Error::Unreadable(format!("the transaction {before}")))?;
        Ok(Cursor { snapshot, ..beginning.clone() })
    }

    /// A transaction of the day of `time` before which nothing happened at `time` or later, as late a one as halving
    /// finds; 0 where there is none.
    async fn last_before(&self, time: Timestamp, end: u64) -> Result<u64> {
        let day = Timestamp::from_micros(time.micros() - time.micros().rem_euclid(DAY.as_micros() as i64));
        let (mut low, mut high) = (0, end);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            let found: Option<(String, PgTime)> = sqlx::query_as(PROBE)
                .bind(PgTime(day))
                .bind(PgTime(day.plus(DAY)))
                .bind(middle.to_string())
                .fetch_optional(&self.stream)
                .await?;
            match found {
                // Whatever was numbered before this one was stamped before `time`.
                Some((xid, at)) if at.0.plus(NUMBERED_WITHIN) < time => {
                    let xid: u64 = xid.parse().map_err(|_| Error::Unreadable(format!("the transaction {xid}")))?;
                    low = xid.max(middle).min(high - 1);
                }
                _ => high = middle,
            }
        }
        Ok(low)
    }
}
