//! Deliveries that failed for good, for whoever is told of them: each failure once, whatever order transactions commit in
//! and whatever is retried or removed meanwhile, from a place that is kept in the database.
//!
//! The place is a snapshot, as in `tail`: what it could not see is new. What is visible by now beside it is read in
//! pages, and the place moves once a page is told of; told again after a crash, a failure is the same event again.

use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Uuid;

use super::Store;
use super::error::{Error, Result};
use super::types::{PgTime, count};
use crate::domain::alert::FailedDelivery;
use crate::domain::fields::Tenant;
use crate::domain::id::{DeliveryId, EndpointId, EventId};

/// Failures that are to be told of, and where telling goes on after them.
#[derive(Debug)]
pub struct FailurePage {
    /// Of tenants with somebody who wants to be told; no operational events' own.
    pub failures: Vec<FailedDelivery>,
    place: Place,
    next: Option<(String, Uuid)>,
}

/// Where telling stands: snapshots and transaction ids as text.
#[derive(Debug)]
struct Place {
    since: String,
    since_time: PgTime,
    until: String,
    xid: String,
    delivery: Uuid,
}

/// Rows of a page.
const PAGE: i64 = 500;

/// Who is told of failed deliveries, by the patterns that match `hooklane.delivery.failed`: word for word the condition of
/// `endpoints_told_of_failures`.
macro_rules! is_told {
    () => {
        "e.delete_time is null and e.event_types && array['hooklane.*', 'hooklane.delivery.*', 'hooklane.delivery.failed']"
    };
}

/// Takes up pages that are under way, or fixes what the next ones end with. A place beyond the present snapshot is that of
/// another cluster, from which the data was copied: it begins anew.
/// Where nobody is told (`endpoints_told_of_failures` is empty) the place moves on, and no timeline is read.
const BEGIN: &str = concat!(
    "
update failures_told f
set since = case when n.is_known then f.since else n.snapshot end,
    since_time = case when n.is_known then f.since_time else now() end,
    until = case when n.is_known and f.until is not null then f.until else n.snapshot end,
    until_time = case when n.is_known and f.until is not null then f.until_time else now() end,
    xid = case when n.is_known and f.until is not null then f.xid else '0'::xid8 end,
    delivery_id = case when n.is_known and f.until is not null then f.delivery_id
                       else '00000000-0000-0000-0000-000000000000' end
from (
  select pg_current_snapshot() as snapshot,
         (select pg_snapshot_xmax(t.since) <= pg_snapshot_xmax(pg_current_snapshot()) from failures_told t) as is_known
) n
returning f.since::text, f.since_time, f.until::text, f.xid::text, f.delivery_id,
          exists (select from endpoints e where ",
    is_told!(),
    ") as is_anybody_told"
);

/// By `timeline_failed` in its order: failures that `until` sees and `since` did not, beyond the last one told of. The
/// time leaves out the days before; no transaction of ours is open for an hour. The last status is that of the attempt
/// that failed, or stands with the delivery, which failed at the same time.
const NEW: &str = concat!(
    "
select t.xid::text, t.time, t.delivery_id, t.event_id, t.endpoint_id, t.tenant, t.event_type, t.attempt_count,
       coalesce(t.reason, '') as reason,
       coalesce(t.status, (select s.last_status from settled_failed s where s.id = t.delivery_id and s.settle_time = t.time),
                0) as last_status,
       t.event_type not like 'hooklane.%'
         and exists (select from endpoints e where e.tenant = t.tenant and ",
    is_told!(),
    ") as is_told
from timeline t
where t.kind = 5 and t.time > $3 - interval '1 hour' and t.xid >= pg_snapshot_xmin($1::pg_snapshot)
  and not pg_visible_in_snapshot(t.xid, $1::pg_snapshot) and pg_visible_in_snapshot(t.xid, $2::pg_snapshot)
  and (t.xid, t.delivery_id) > ($4::xid8, $5)
order by t.xid, t.delivery_id
limit $6"
);

/// Moves on, unless another replica has meanwhile.
const ADVANCE: &str = "
update failures_told set xid = $4::xid8, delivery_id = $5
where since::text = $1 and until::text = $2 and xid::text = $3 and delivery_id = $6";

/// The pages are at their end.
const FINISH: &str = "
update failures_told
set since = until, since_time = until_time, until = null, until_time = null, xid = null, delivery_id = null
where since::text = $1 and until::text = $2";

impl Store {
    /// The next failures to tell of; `None` where there is nothing to be told.
    pub async fn failures_untold(&self) -> Result<Option<FailurePage>> {
        let begun = sqlx::query(BEGIN).fetch_optional(&self.reader).await?;
        let row = begun.ok_or_else(|| Error::Unreadable("no row in failures_told".to_owned()))?;
        let place = Place {
            since: row.try_get("since")?,
            since_time: row.try_get("since_time")?,
            until: row.try_get("until")?,
            xid: row.try_get("xid")?,
            delivery: row.try_get("delivery_id")?,
        };
        if !row.try_get("is_anybody_told")? {
            self.finish_failures(&place).await?;
            return Ok(None);
        }
        let rows = sqlx::query(NEW)
            .bind(&place.since)
            .bind(&place.until)
            .bind(place.since_time)
            .bind(&place.xid)
            .bind(place.delivery)
            .bind(PAGE)
            .fetch_all(&self.reader)
            .await?;
        let is_full = i64::try_from(rows.len()).is_ok_and(|read| read == PAGE);
        let last = rows.last().filter(|_| is_full);
        let next = last.map(|row| Ok::<_, Error>((row.try_get("xid")?, row.try_get("delivery_id")?))).transpose()?;
        let failures = rows.iter().filter_map(|row| read_failure(row).transpose()).collect::<Result<Vec<_>>>()?;
        Ok(Some(FailurePage { failures, place, next }))
    }

    /// Goes on after a page that is told of; answers whether more of it waits.
    pub async fn failures_told(&self, page: FailurePage) -> Result<bool> {
        let Some((xid, delivery)) = page.next else {
            self.finish_failures(&page.place).await?;
            return Ok(false);
        };
        sqlx::query(ADVANCE)
            .bind(page.place.since)
            .bind(page.place.until)
            .bind(page.place.xid)
            .bind(xid)
            .bind(delivery)
            .bind(page.place.delivery)
            .execute(&self.reader)
            .await?;
        Ok(true)
    }

    async fn finish_failures(&self, place: &Place) -> Result<()> {
        sqlx::query(FINISH).bind(&place.since).bind(&place.until).execute(&self.reader).await?;
        Ok(())
    }
}

/// `None` for one that nobody is told of.
fn read_failure(row: &PgRow) -> Result<Option<FailedDelivery>> {
    if !row.try_get("is_told")? {
        return Ok(None);
    }
    Ok(Some(FailedDelivery {
        time: row.try_get::<PgTime, _>("time")?.0,
        delivery: DeliveryId::from_uuid(row.try_get("delivery_id")?),
        event: EventId::from_uuid(row.try_get("event_id")?),
        endpoint: EndpointId::from_uuid(row.try_get("endpoint_id")?),
        tenant: Tenant::from_stored(row.try_get("tenant")?),
        event_type: row.try_get("event_type")?,
        reason: row.try_get("reason")?,
        attempts: count(row.try_get("attempt_count")?),
        last_status: count(row.try_get("last_status")?),
    }))
}
