//! What happened: events, deliveries and their attempts, for readers. Lists of deliveries stand in `lists`.

use std::sync::Arc;
use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Uuid;

use super::Store;
use super::error::Result;
use super::gates::HeldUp;
use super::queue::read_event;
use super::types::{PgTime, count, headers_from_text, stored};
use crate::domain::attempt::{Attempt, AttemptOutcome, AttemptTrigger};
use crate::domain::delivery::DeliveryState;
use crate::domain::event::Event;
use crate::domain::fields::Tenant;
use crate::domain::id::{DeliveryId, EndpointId, EventId, ReplayId};
use crate::domain::time::Timestamp;

/// A delivery as every reader sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct DeliveryRow {
    /// Its id; tells when it was made.
    pub id: DeliveryId,
    /// Its event.
    pub event: EventId,
    /// Where it goes.
    pub endpoint: EndpointId,
    /// Whose it is.
    pub tenant: Tenant,
    /// The event's type.
    pub event_type: String,
    /// Where it stands.
    pub state: DeliveryState,
    /// Why it came to its end; `None` while it has not, or where it succeeded.
    pub reason: Option<String>,
    /// Attempts made, the one in flight counted.
    pub attempt_count: u32,
    /// HIGH 1, NORMAL 2, LOW 3.
    pub priority: i16,
    /// The event's key.
    pub idempotency_key: Option<String>,
    /// The event's key that endpoints may order by.
    pub ordering_key: Option<String>,
    /// The replay that made it anew.
    pub replay_of: Option<ReplayId>,
    /// When it is (or was) due; `None` once it is settled, and while it is parked behind others.
    pub due_at: Option<Timestamp>,
    /// What it waits for, where that is something else than its turn among those that are due.
    pub waits: Option<Waits>,
    /// When it came to its end.
    pub settle_time: Option<Timestamp>,
    /// The last response's status, 0 where none came.
    pub last_status: u32,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// Whether it is to be canceled once its attempt has ended.
    pub cancel_requested: bool,
    /// What holds it up at its endpoint, where something does.
    pub held_up: Option<HeldUp>,
}

/// What a delivery waits for that is not due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    /// The time it was put off to, or the one of its retry.
    Time,
    /// Its expire_time, which comes before its retry would.
    Expiry,
    /// The first of those it is ordered behind.
    Behind {
        /// That delivery.
        first: DeliveryId,
        /// Whether it has failed, so that somebody must retry, cancel or delete it.
        has_failed: bool,
    },
}

/// An event with what became of it where it has no deliveries of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct EventRecord {
    /// The event.
    pub event: Event,
    /// In words; `None` where there is nothing to say.
    pub routing_note: Option<String>,
}

/// A delivery with everything that is known of it.
#[derive(Debug, Clone)]
pub struct DeliveryRecord {
    /// Where it stands.
    pub row: DeliveryRow,
    /// Every attempt, oldest first, the one in flight last.
    pub attempts: Vec<Attempt>,
    /// Its event; `None` once the payload's retention is over.
    pub event: Option<Arc<Event>>,
}

/// The keys of the event of a row, of whose columns `event_id` is one; null where its payload's retention is over. By
/// `events_pkey` alone, unless the event has outlasted its day.
macro_rules! event_keys {
    ($row:literal) => {
        concat!(
            "coalesce((select array[v.idempotency_key, v.ordering_key] from events v where v.id = ",
            $row,
            ".event_id),
                (select array[v.idempotency_key, v.ordering_key] from events_kept v where v.id = ",
            $row,
            ".event_id))"
        )
    };
}
pub(super) use event_keys;

/// The keys of a delivery's event, the replay that made it, and what it waits for: the first of those before it and the
/// failed one that blocks them, whether its time is to come, and whether it expires before. For a row `d`.
macro_rules! beside_delivery {
    () => {
        concat!(
            $crate::store::history::event_keys!("d"),
            ",
       (select r.replay_id from replay_deliveries r where r.delivery_id = d.id),
       case when d.due_at > now() and d.state <> 2 then (
         select array[(select k.blocked_by from order_keys k where k.endpoint_id = o.endpoint_id and k.key = o.order_key),
                      (select f.id from outstanding f where f.endpoint_id = o.endpoint_id and f.order_key = o.order_key
                       order by f.endpoint_id, f.order_key, f.seq limit 1)]
         from outstanding o where o.id = d.id and o.due_at = 'infinity') end,
       d.due_at > now() and d.state <> 2,
       d.due_at > now() and d.state <> 2
         and exists (select from outstanding o where o.id = d.id and o.expire_at < o.due_at and o.due_at < 'infinity')"
        )
    };
}
pub(super) use beside_delivery;

const ONE: &str = concat!(
    "
select d.id, d.event_id, d.endpoint_id, d.tenant, d.event_type, d.state, d.reason, d.attempt_count, d.priority,
       d.due_at, d.settle_time, d.last_status, d.last_error, d.cancel_requested,
       ",
    beside_delivery!(),
    ",
       d.attempt_started_at, d.trigger, d.replica, (select e.shown_url from endpoints e where e.id = d.endpoint_id)
from deliveries d where d.id = $1"
);

/// Reads by `timeline_attempts`, and a success by `settled_succeeded_pkey`; the time leaves out the days before the
/// delivery was made.
const ATTEMPTS: &str = "
select number, trigger, outcome, started_at, duration_us, url, status, response_headers, response_body,
       response_truncated, error, next_attempt_at, replica, time
from timeline
where delivery_id = $1 and time >= $2 and number is not null
union all
select number, trigger, outcome, started_at, duration_us, url, status, response_headers, response_body,
       response_truncated, error, next_attempt_at, replica, time
from success_transitions
where delivery_id = $1 and time >= $2
order by number, time";

/// By the key of each table. One that is in both, because its day is about to leave, is the same in both; one that is being
/// taken up is in the inbox or in `events`.
const EVENT: &str = "
select id, tenant, event_type, payload, content_type, idempotency_key, metadata, cloudevents_source, priority,
       ordering_key, deliver_time, expire_time, trace, routing_note
from events where id = $1
union all
select id, tenant, event_type, payload, content_type, idempotency_key, metadata, cloudevents_source, priority,
       ordering_key, deliver_time, expire_time, trace, routing_note
from events_kept where id = $1
union all
select id, tenant, event_type, payload, 'application/json', idempotency_key, metadata, null, priority,
       ordering_key, deliver_time, expire_time, null, 'INBOX: published in SQL and not taken up yet'
from inbox where id = $1 and not is_repeat
limit 1";

impl Store {
    /// One event; `None` where there is none, or its payload's retention is over.
    pub async fn event(&self, id: EventId) -> Result<Option<EventRecord>> {
        let row = sqlx::query(EVENT).bind(id.uuid()).fetch_optional(&self.reader).await?;
        let read = |row: &PgRow| Ok(EventRecord { event: read_event(row)?, routing_note: row.try_get(13)? });
        row.as_ref().map(read).transpose()
    }

    /// One delivery with its attempts and event.
    pub async fn delivery(&self, id: DeliveryId) -> Result<Option<DeliveryRecord>> {
        let Some(found) = sqlx::query(ONE).bind(id.uuid()).fetch_optional(&self.reader).await? else {
            return Ok(None);
        };
        let mut row = read_row(&found)?;
        self.tell_held_up(std::slice::from_mut(&mut row)).await?;
        // Ids are drawn by a tracked clock, rows are stamped by the database's own: an hour is ample.
        let since = Timestamp::from_micros(id.time().micros() - 3_600_000_000);
        let ended = sqlx::query(ATTEMPTS).bind(id.uuid()).bind(PgTime(since)).fetch_all(&self.reader).await?;
        let mut attempts = ended.iter().map(read_attempt).collect::<Result<Vec<_>>>()?;
        if row.state == DeliveryState::InFlight {
            attempts.extend(read_attempt_in_flight(&found, row.attempt_count)?);
        }
        let event = self.event(row.event).await?.map(|record| Arc::new(record.event));
        Ok(Some(DeliveryRecord { row, attempts, event }))
    }

    /// One delivery's row alone.
    pub async fn delivery_row(&self, id: DeliveryId) -> Result<Option<DeliveryRow>> {
        let found = sqlx::query(ONE).bind(id.uuid()).fetch_optional(&self.reader).await?;
        found.as_ref().map(read_row).transpose()
    }
}

/// Reads the columns of `ONE` and of the lists.
pub(super) fn read_row(row: &PgRow) -> Result<DeliveryRow> {
    let time = |column: usize| -> Result<_> { Ok(row.try_get::<Option<PgTime>, _>(column)?.map(|time| time.0)) };
    let [idempotency_key, ordering_key] = read_keys(row, 14)?;
    let waits = read_waits(row)?;
    Ok(DeliveryRow {
        id: DeliveryId::from_uuid(row.try_get(0)?),
        event: EventId::from_uuid(row.try_get(1)?),
        endpoint: EndpointId::from_uuid(row.try_get(2)?),
        tenant: Tenant::from_stored(row.try_get(3)?),
        event_type: row.try_get(4)?,
        state: stored("delivery state", row.try_get(5)?, DeliveryState::from_number)?,
        reason: row.try_get(6)?,
        attempt_count: count(row.try_get(7)?),
        priority: row.try_get(8)?,
        due_at: time(9)?.filter(|_| !matches!(waits, Some(Waits::Behind { .. }))),
        waits,
        settle_time: time(10)?,
        last_status: count(row.try_get(11)?),
        last_error: row.try_get(12)?,
        cancel_requested: row.try_get(13)?,
        idempotency_key,
        ordering_key,
        replay_of: row.try_get::<Option<Uuid>, _>(15)?.map(ReplayId::from_uuid),
        held_up: None,
    })
}

/// The idempotency and ordering key of an event; none once its payload's retention is over.
fn read_keys(row: &PgRow, column: usize) -> Result<[Option<String>; 2]> {
    let keys: Option<Vec<Option<String>>> = row.try_get(column)?;
    Ok(keys.and_then(|keys| keys.try_into().ok()).unwrap_or_default())
}

fn read_waits(row: &PgRow) -> Result<Option<Waits>> {
    let ids: Option<Vec<Option<Uuid>>> = row.try_get(16)?;
    if let Some([blocked_by, first]) = ids.and_then(|ids| <[Option<Uuid>; 2]>::try_from(ids).ok()) {
        let behind = |id| Waits::Behind { first: DeliveryId::from_uuid(id), has_failed: blocked_by.is_some() };
        return Ok(blocked_by.or(first).map(behind));
    }
    let is_to_come = row.try_get::<Option<bool>, _>(17)?.unwrap_or_default();
    let is_to_expire = row.try_get::<Option<bool>, _>(18)?.unwrap_or_default();
    Ok(match (is_to_come, is_to_expire) {
        (true, true) => Some(Waits::Expiry),
        (true, false) => Some(Waits::Time),
        _ => None,
    })
}

fn read_attempt(row: &PgRow) -> Result<Attempt> {
    let headers: Option<String> = row.try_get(7)?;
    Ok(Attempt {
        number: count(row.try_get(0)?),
        trigger: stored("trigger", row.try_get(1)?, AttemptTrigger::from_number)?,
        outcome: Some(stored("outcome", row.try_get(2)?, AttemptOutcome::from_number)?),
        start_time: row.try_get::<PgTime, _>(3)?.0,
        duration: Duration::from_micros(u64::try_from(row.try_get::<i64, _>(4)?).unwrap_or_default()),
        url: row.try_get::<Option<String>, _>(5)?.unwrap_or_default(),
        status: row.try_get::<Option<i32>, _>(6)?.and_then(|status| u16::try_from(status).ok()).unwrap_or_default(),
        response_headers: headers.as_deref().map(headers_from_text).unwrap_or_default(),
        response_body: row.try_get::<Option<Vec<u8>>, _>(8)?.unwrap_or_default().into(),
        response_truncated: row.try_get::<Option<bool>, _>(9)?.unwrap_or_default(),
        error: row.try_get::<Option<String>, _>(10)?.unwrap_or_default(),
        next_attempt_time: row.try_get::<Option<PgTime>, _>(11)?.map(|time| time.0),
        replica_id: row.try_get::<Option<String>, _>(12)?.unwrap_or_default(),
    })
}

/// The attempt that the delivery's own row tells of.
fn read_attempt_in_flight(row: &PgRow, number: u32) -> Result<Option<Attempt>> {
    let started: Option<PgTime> = row.try_get(19)?;
    let Some(PgTime(start_time)) = started else { return Ok(None) };
    let trigger: Option<i16> = row.try_get(20)?;
    Ok(Some(Attempt {
        number,
        trigger: stored("trigger", trigger.unwrap_or_default(), AttemptTrigger::from_number)?,
        outcome: None,
        start_time,
        duration: Duration::ZERO,
        url: row.try_get::<Option<String>, _>(22)?.unwrap_or_default(),
        status: 0,
        response_headers: Vec::new(),
        response_body: bytes::Bytes::new(),
        response_truncated: false,
        error: String::new(),
        next_attempt_time: None,
        replica_id: row.try_get::<Option<String>, _>(21)?.unwrap_or_default(),
    }))
}

/// A timeline row's attempt, for the live stream.
pub(super) fn read_timeline_attempt(row: &PgRow) -> Result<Option<Attempt>> {
    let number: Option<i32> = row.try_get(0)?;
    number.map(|_| read_attempt(row)).transpose()
}
