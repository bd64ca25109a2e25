//! The inbox: events that `hooklane.publish` was called with, whose transactions have committed. Read here in the order of
//! the calls, taken by the transaction that publishes them, and laid to rest with a note where they are not published as
//! events of their own.

use sqlx::postgres::PgRow;
use sqlx::types::{Json, Uuid};
use sqlx::{PgConnection, Row};

use super::error::Result;
use super::types::{PgTime, stored};
use super::{Store, partitions};
use crate::domain::event::NewEvent;
use crate::domain::fields::{ContentType, Tenant};
use crate::domain::id::EventId;
use crate::domain::pattern::EventType;
use crate::domain::schedule::{Priority, Schedule};

/// An event that waits to be taken up.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) place: Place,
    pub(super) event: NewEvent,
}

/// Whether there may be more behind a page.
pub(super) fn is_full(page: &[Waiting]) -> bool {
    let bytes: usize = page.iter().map(|one| one.event.payload.len()).sum();
    page.len() as i64 >= PAGE || bytes as i64 >= PAGE_BYTES_MAX
}

/// What of the inbox an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// The order of the calls.
    pub(super) seq: i64,
    /// What the caller was told that the event is.
    pub(super) id: EventId,
    /// Whether the caller was told of an event that was published before.
    pub(super) is_repeat: bool,
}

/// Rows of one page.
const PAGE: i64 = 256;
/// Payload bytes of one page, about: one more event than that may come.
const PAGE_BYTES_MAX: i64 = 4 * 1024 * 1024;

/// After `$1`, and those of `$4` before it, by `inbox_pkey`. The size of a payload is read without the payload. No locks.
const WAITING: &str = "
select q.seq, q.id, q.is_repeat, q.tenant, q.event_type, q.payload, q.idempotency_key, q.metadata, q.priority,
       q.ordering_key, q.deliver_time, q.expire_time
from (
  select p.*, sum(octet_length(p.payload)) over (order by p.seq) - octet_length(p.payload) as bytes_before
  from (
    select * from inbox i where i.seq = any($4::bigint[])
    union all
    (select * from inbox i where i.seq > $1 order by i.seq limit $2)
  ) p
) q
where q.bytes_before < $3
order by q.seq
limit $2";

/// Locks the rows in the order of `inbox_pkey`; whoever comes second waits for the first and finds them gone.
const TAKE: &str = "delete from inbox where seq = any($1) returning seq";

/// Those with a note are stored as events without deliveries, that their callers find it by the id they were told.
const REST: &str = "
with taken as (
  delete from inbox where seq = any($1::bigint[]) returning *
)
insert into events (id, tenant, event_type, payload, content_type, idempotency_key, metadata, priority, ordering_key,
                    deliver_time, expire_time, routing_note)
select t.id, t.tenant, t.event_type, t.payload, $3, t.idempotency_key, t.metadata, t.priority, t.ordering_key,
       t.deliver_time, t.expire_time, ($2::text[])[array_position($1::bigint[], t.seq)]
from taken t
where ($2::text[])[array_position($1::bigint[], t.seq)] is not null
on conflict do nothing";

/// What replicas are set to, for the calls to know. Written where it differs.
const LIMITS: &str = "update publish_limits set payload_bytes_max = $1 where payload_bytes_max <> $1";

/// Takes the rows of events that are about to be published, in the publishing transaction; answers those that are there
/// no more, because another replica has published them.
pub(super) async fn take(connection: &mut PgConnection, mut seqs: Vec<i64>) -> Result<Vec<i64>> {
    seqs.sort_unstable();
    let taken: Vec<i64> = sqlx::query_scalar(TAKE).bind(&seqs).fetch_all(connection).await?;
    seqs.retain(|seq| !taken.contains(seq));
    Ok(seqs)
}

impl Store {
    /// What waits after a place, and at some before it, in the order of the calls, up to a page of it.
    pub(super) async fn waiting_in_inbox(&self, after: i64, before: &[i64]) -> Result<Vec<Waiting>> {
        let page = sqlx::query(WAITING).bind(after).bind(PAGE).bind(PAGE_BYTES_MAX).bind(before);
        let rows = page.fetch_all(&self.engine).await?;
        let waiting = rows.iter().map(read_waiting).collect::<Result<Vec<_>>>()?;
        // Ids are of the calls' time: what waited for longer than partitions are made back needs one of its own day.
        let drawn = waiting.iter().map(|one| one.place.id.time());
        partitions::ensure_for_events(&self.reader, self.clock.now(), drawn).await?;
        Ok(waiting)
    }

    /// Removes rows that are not published as events of their own, each with what is to be said of it, if anything is.
    pub(super) async fn rest_inbox(&self, rows: &[(i64, Option<String>)]) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let (seqs, notes): (Vec<i64>, Vec<Option<&str>>) =
            rows.iter().map(|(seq, note)| (*seq, note.as_deref())).unzip();
        sqlx::query(REST).bind(seqs).bind(notes).bind(ContentType::DEFAULT).execute(&self.engine).await?;
        Ok(())
    }

    /// Tells `hooklane.publish` how large a payload may be.
    pub(super) async fn tell_publish_limits(&self, payload_bytes_max: u64) -> Result<()> {
        let bytes = i64::try_from(payload_bytes_max).unwrap_or(i64::MAX);
        sqlx::query(LIMITS).bind(bytes).execute(&self.reader).await?;
        Ok(())
    }
}

fn read_waiting(row: &PgRow) -> Result<Waiting> {
    let time = |column: usize| -> Result<_> { Ok(row.try_get::<Option<PgTime>, _>(column)?.map(|time| time.0)) };
    Ok(Waiting {
        place: Place {
            seq: row.try_get(0)?,
            id: EventId::from_uuid(row.try_get::<Uuid, _>(1)?),
            is_repeat: row.try_get(2)?,
        },
        event: NewEvent {
            tenant: Tenant::from_stored(row.try_get(3)?),
            event_type: EventType::from_stored(row.try_get(4)?),
            payload: row.try_get::<Vec<u8>, _>(5)?.into(),
            content_type: ContentType::default(),
            idempotency_key: row.try_get(6)?,
            metadata: row.try_get::<Option<Json<_>>, _>(7)?.map(|metadata| metadata.0).unwrap_or_default(),
            source: None,
            endpoint_ids: Vec::new(),
            inline_endpoint: None,
            schedule: Schedule {
                priority: stored("priority", row.try_get(8)?, Priority::from_number)?,
                ordering_key: row.try_get(9)?,
                deliver_time: time(10)?,
                expire_time: time(11)?,
            },
            trace: None,
        },
    })
}
