//! Dead letters: failed deliveries that wait for somebody to retry, replay or dismiss them. Read and dismissed here.
//!
//! They are listed by when they failed, which is how the days' partitions are ordered: a page reads the newest of them
//! alone.

use std::time::{Duration, Instant};

use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Uuid;

use super::Store;
use super::error::Result;
use super::types::{PgTime, count, regex_of};
use crate::domain::fields::Tenant;
use crate::domain::id::{DeliveryId, EndpointId, EventId};
use crate::domain::pattern::EventPattern;
use crate::domain::time::Timestamp;

/// A failed delivery with what is needed to judge it.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetter {
    /// The delivery.
    pub delivery: DeliveryId,
    /// Its event.
    pub event: EventId,
    /// Where it was to go.
    pub endpoint: EndpointId,
    /// Whose it is.
    pub tenant: Tenant,
    /// The event's type.
    pub event_type: String,
    /// The published bytes; empty once their retention is over.
    pub payload: bytes::Bytes,
    /// The endpoint's URL, without secrets.
    pub endpoint_url: String,
    /// Why it failed, in words.
    pub reason: String,
    /// Attempts that were made.
    pub attempts: u32,
    /// When it failed.
    pub dead_time: Timestamp,
    /// When it stops to be a dead letter.
    pub expire_time: Timestamp,
    /// When the last attempt began that ended with a result.
    pub last_attempt_time: Option<Timestamp>,
}

/// Where a page of dead letters ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadLetterPlace {
    /// When the last one failed.
    pub dead_time: Timestamp,
    /// The last one.
    pub id: DeliveryId,
}

/// Which dead letters.
#[derive(Debug, Default, Clone)]
pub struct DeadLetterFilter {
    /// One tenant's; `None` for all.
    pub tenant: Option<Tenant>,
    /// One endpoint's.
    pub endpoint: Option<EndpointId>,
    /// Of types that one of these matches; empty for any.
    pub event_types: Vec<EventPattern>,
    /// Failed after.
    pub dead_after: Option<Timestamp>,
    /// Failed before.
    pub dead_before: Option<Timestamp>,
    /// These alone; empty for all.
    pub deliveries: Vec<DeliveryId>,
}

/// What came of dismissing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dismissal {
    /// Dead letters that there were.
    pub matched: u64,
    /// Those of them that are none any more.
    pub dismissed: u64,
}

/// Rows read at most for one page: where a type is rare, a page is short and the next one goes on.
const SCAN_MAX: i64 = 5_000;
/// Payloads of one page together, unless its first is larger: clients take messages of 4 MiB.
const PAGE_BYTES_MAX: i64 = 2 * 1024 * 1024;
/// Rows looked at by one statement that counts.
const COUNT_BATCH: i64 = 50_000;
/// Rows dismissed by one statement.
const DISMISS_BATCH: i64 = 2_000;
/// How long one call dismisses; the next goes on.
const DISMISS_MAX: Duration = Duration::from_secs(20);

/// Newest first, by `settled_failed_dead_endpoint`, `…_tenant` or `settled_failed_dead` backwards: partitions one after
/// the other. Planned for its parameters (readers plan anew each time), so that conditions on null fall away.
/// `$8` rows are looked at and `$9` kept; the last column is where the looking ended, if there may be more.
/// A settling that ended an attempt wrote it to the timeline at the same moment.
pub(super) const LIST: &str = "
with walked as materialized (
  select f.id, f.settle_time, f.event_type
  from settled_failed f
  where f.state = 5 and f.dismiss_time is null and f.settle_time > now() - make_interval(secs => $1)
    and ($2::text is null or f.tenant = $2) and ($3::uuid is null or f.endpoint_id = $3)
    and ($4::timestamptz is null or f.settle_time > $4) and ($5::timestamptz is null or f.settle_time < $5)
    and ($6::timestamptz is null or (f.settle_time, f.id) < ($6, $7::uuid))
  order by f.settle_time desc, f.id desc
  limit $8
), kept as materialized (
  select w.id, w.settle_time from walked w
  where $10::text is null or w.event_type ~ $10
  order by w.settle_time desc, w.id desc
  limit $9
)
select f.id, f.event_id, f.endpoint_id, f.tenant, f.event_type, f.reason, f.attempt_count, f.settle_time,
       (select e.shown_url from endpoints e where e.id = f.endpoint_id),
       (select t.started_at from timeline t
        where t.delivery_id = f.id and t.number is not null
          and t.time >= uuid_time(f.id) - interval '1 hour' and t.time <= f.settle_time
        order by t.time desc limit 1),
       coalesce((select octet_length(v.payload) from events v where v.id = f.event_id),
                (select octet_length(v.payload) from events_kept v where v.id = f.event_id))::bigint
from kept k cross join lateral (
  select f.* from settled_failed f where f.id = k.id and f.settle_time = k.settle_time
) f
order by f.settle_time desc, f.id desc";

/// Where the looking of [`LIST`] ended: for a page that came out short.
const LIST_END: &str = "
select w.settle_time, w.id, w.count from (
  select f.id, f.settle_time, row_number() over (order by f.settle_time desc, f.id desc) as count
  from settled_failed f
  where f.state = 5 and f.dismiss_time is null and f.settle_time > now() - make_interval(secs => $1)
    and ($2::text is null or f.tenant = $2) and ($3::uuid is null or f.endpoint_id = $3)
    and ($4::timestamptz is null or f.settle_time > $4) and ($5::timestamptz is null or f.settle_time < $5)
    and ($6::timestamptz is null or (f.settle_time, f.id) < ($6, $7::uuid))
  order by f.settle_time desc, f.id desc
  limit $8
) w
where w.count = $8";

/// The payloads of a page, by the key of each table.
const PAYLOADS: &str = "
select id, payload from events where id = any($1)
union all
select id, payload from events_kept where id = any($1)";

/// A batch, oldest first, by the indexes of [`LIST`], and what is asked about it; `$10` ends what is looked at, so that it
/// ends although more fail meanwhile.
macro_rules! of_walked {
    ($asked:literal) => {
        concat!(
            "
with walked as materialized (
  select f.id, f.settle_time, f.event_type
  from settled_failed f
  where f.state = 5 and f.dismiss_time is null and f.settle_time > now() - make_interval(secs => $1)
    and ($2::text is null or f.tenant = $2) and ($3::uuid is null or f.endpoint_id = $3)
    and ($4::timestamptz is null or f.settle_time > $4) and ($5::timestamptz is null or f.settle_time < $5)
    and ($6::timestamptz is null or (f.settle_time, f.id) > ($6, $7::uuid))
    and ($9::uuid[] is null or f.id = any($9)) and f.settle_time <= $10
  order by f.settle_time, f.id
  limit $8
)",
            $asked
        )
    };
}

/// Answers how many were looked at and matched, and where the looking ended.
const COUNT: &str = of_walked!(
    "
select count(*), count(*) filter (where $11::text is null or event_type ~ $11), max(settle_time),
       (select id from walked order by settle_time desc, id desc limit 1)
from walked"
);

/// The same, and what matches is dismissed. Rows are found again by their key, within the days they are of.
const DISMISS: &str = of_walked!(
    ", dismissed as (
  update settled_failed f set dismiss_time = now()
  where f.id = any(array(select w.id from walked w where $11::text is null or w.event_type ~ $11))
    and f.settle_time >= (select min(w.settle_time) from walked w)
    and f.settle_time <= (select max(w.settle_time) from walked w)
    and f.state = 5 and f.dismiss_time is null
  returning f.id
)
select count(*), (select count(*) from dismissed), max(settle_time),
       (select id from walked order by settle_time desc, id desc limit 1)
from walked"
);

impl Store {
    /// Dead letters, newest first, `limit` at most; and after which one to go on, where there may be more.
    pub async fn list_dead_letters(
        &self,
        filter: &DeadLetterFilter,
        before: Option<DeadLetterPlace>,
        limit: u32,
    ) -> Result<(Vec<DeadLetter>, Option<DeadLetterPlace>)> {
        let kept_max = i64::from(limit) + 1;
        let scanned_max = if filter.event_types.is_empty() { kept_max } else { SCAN_MAX.max(kept_max) };
        let bind = |sql: &'static str| {
            sqlx::query(sql)
                .bind(self.retention.dead_letters.as_secs_f64())
                .bind(filter.tenant.as_ref().map(Tenant::as_str))
                .bind(filter.endpoint.map(EndpointId::uuid))
                .bind(filter.dead_after.map(PgTime))
                .bind(filter.dead_before.map(PgTime))
                .bind(before.map(|place| PgTime(place.dead_time)))
                .bind(before.map(|place| place.id.uuid()))
                .bind(scanned_max)
        };
        let rows = bind(LIST).bind(kept_max).bind(regex_of(&filter.event_types)).fetch_all(&self.reader).await?;
        let (mut letters, sizes): (Vec<DeadLetter>, Vec<i64>) =
            rows.iter().map(|row| self.read_dead_letter(row)).collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let place = |letter: &DeadLetter| DeadLetterPlace { dead_time: letter.dead_time, id: letter.delivery };
        let room = (limit as usize).min(fitting(&sizes));
        let mut end = None;
        if letters.len() > room {
            letters.truncate(room);
            end = letters.last().map(place);
        } else if !filter.event_types.is_empty() {
            let ended: Option<(PgTime, Uuid, i64)> = {
                let row = bind(LIST_END).fetch_optional(&self.reader).await?;
                row.map(|row| Ok::<_, sqlx::Error>((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))).transpose()?
            };
            end = ended.map(|(time, id, _)| DeadLetterPlace { dead_time: time.0, id: DeliveryId::from_uuid(id) });
        }
        self.add_payloads(&mut letters).await?;
        Ok((letters, end))
    }

    /// How many dead letters there are; with `is_forced` they are dismissed as well: none any more, while the deliveries
    /// stay. Works for 20 s at most; what is matched and not dismissed then is left for the next call.
    pub async fn dismiss_dead_letters(&self, filter: &DeadLetterFilter, is_forced: bool) -> Result<Dismissal> {
        let until = self.clock.now();
        let matched = self.over_dead_letters(COUNT, filter, until, COUNT_BATCH, None).await?;
        if !is_forced {
            return Ok(Dismissal { matched, dismissed: 0 });
        }
        let end = Instant::now() + DISMISS_MAX;
        let dismissed = self.over_dead_letters(DISMISS, filter, until, DISMISS_BATCH, Some(end)).await?;
        Ok(Dismissal { matched: matched.max(dismissed), dismissed })
    }

    /// Takes one of the statements over all dead letters, batch after batch; answers the sum of what it says.
    async fn over_dead_letters(
        &self,
        sql: &'static str,
        filter: &DeadLetterFilter,
        until: Timestamp,
        batch: i64,
        end: Option<Instant>,
    ) -> Result<u64> {
        let ids =
            (!filter.deliveries.is_empty()).then(|| filter.deliveries.iter().map(|id| id.uuid()).collect::<Vec<_>>());
        let types = regex_of(&filter.event_types);
        let mut sum = 0;
        let mut after: Option<(PgTime, Uuid)> = None;
        loop {
            let (walked, found, time, id): (i64, i64, Option<PgTime>, Option<Uuid>) = sqlx::query_as(sql)
                .bind(self.retention.dead_letters.as_secs_f64())
                .bind(filter.tenant.as_ref().map(Tenant::as_str))
                .bind(filter.endpoint.map(EndpointId::uuid))
                .bind(filter.dead_after.map(PgTime))
                .bind(filter.dead_before.map(PgTime))
                .bind(after.map(|(time, _)| time))
                .bind(after.map(|(_, id)| id))
                .bind(batch)
                .bind(&ids)
                .bind(PgTime(until))
                .bind(&types)
                .fetch_one(&self.reader)
                .await?;
            sum += u64::try_from(found).unwrap_or_default();
            after = time.zip(id);
            if walked < batch || after.is_none() || end.is_some_and(|end| Instant::now() >= end) {
                return Ok(sum);
            }
        }
    }

    async fn add_payloads(&self, letters: &mut [DeadLetter]) -> Result<()> {
        let events: Vec<Uuid> = letters.iter().map(|letter| letter.event.uuid()).collect();
        if events.is_empty() {
            return Ok(());
        }
        let rows: Vec<(Uuid, Vec<u8>)> = sqlx::query_as(PAYLOADS).bind(events).fetch_all(&self.reader).await?;
        let payloads: std::collections::HashMap<Uuid, bytes::Bytes> =
            rows.into_iter().map(|(id, payload)| (id, payload.into())).collect();
        for letter in letters {
            // Letters of one event share its bytes.
            letter.payload = payloads.get(&letter.event.uuid()).cloned().unwrap_or_default();
        }
        Ok(())
    }

    fn read_dead_letter(&self, row: &PgRow) -> Result<(DeadLetter, i64)> {
        let PgTime(dead_time) = row.try_get(7)?;
        let letter = DeadLetter {
            delivery: DeliveryId::from_uuid(row.try_get(0)?),
            event: EventId::from_uuid(row.try_get(1)?),
            endpoint: EndpointId::from_uuid(row.try_get(2)?),
            tenant: Tenant::from_stored(row.try_get(3)?),
            event_type: row.try_get(4)?,
            payload: bytes::Bytes::new(),
            endpoint_url: row.try_get::<Option<String>, _>(8)?.unwrap_or_default(),
            reason: row.try_get(5)?,
            attempts: count(row.try_get(6)?),
            dead_time,
            expire_time: dead_time.plus(self.retention.dead_letters),
            last_attempt_time: row.try_get::<Option<PgTime>, _>(9)?.map(|time| time.0),
        };
        Ok((letter, row.try_get::<Option<i64>, _>(10)?.unwrap_or_default()))
    }
}

/// How many entries of a page fit into [`PAGE_BYTES_MAX`]; one at least.
fn fitting(sizes: &[i64]) -> usize {
    let mut left = PAGE_BYTES_MAX;
    let fit = sizes.iter().take_while(|size| {
        left -= *size;
        left >= 0
    });
    fit.count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_holds_what_clients_take() {
        assert_eq!(fitting(&[]), 1);
        assert_eq!(fitting(&[PAGE_BYTES_MAX + 1, 1]), 1);
        assert_eq!(fitting(&[PAGE_BYTES_MAX / 2, PAGE_BYTES_MAX / 2, 1]), 2);
        assert_eq!(fitting(&[1, 2, 3]), 3);
    }
}
