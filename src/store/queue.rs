//! The engine's verbs on `outstanding`: claim, payloads, complete, renew, release, and the sweep that finds work.
//!
//! Every change names the `claim_gen` it was made under; a stale one changes nothing. Leases and due times are the
//! database's, spans go in and instants come out. The file is long because each verb stands beside its statement.

mod complete;
mod elsewhere;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::{Json, Uuid};

pub use self::complete::{AttemptRecord, CANCELED_REASON, Completion, EXPIRED_REASON, Settled, Settlement};
pub(super) use self::complete::{COMPLETE, SUCCEED};
pub(super) use self::elsewhere::{ELSEWHERE, FOLLOW};
pub use self::elsewhere::{Elsewhere, Followed};
use super::Store;
use super::error::Result;
use super::types::{PgTime, count, stored};
use crate::domain::attempt::{AttemptOutcome, AttemptTrigger};
use crate::domain::cloudevents::Source;
use crate::domain::endpoint::PayloadFormat;
use crate::domain::event::Event;
use crate::domain::fields::{ContentType, Tenant};
use crate::domain::id::{DeliveryId, EndpointId, EventId, IdMap};
use crate::domain::pattern::EventType;
use crate::domain::schedule::{Priority, Schedule};
use crate::domain::time::Timestamp;
use crate::domain::trace::TraceContext;

/// How long a claim holds unless it is renewed: so long that two renewals may fail, and so short that what a killed
/// replica had in flight goes on elsewhere within 15 s.
pub const LEASE: Duration = Duration::from_secs(12);

/// An endpoint with work due at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// When the work is due, by the database's clock.
    pub at: Timestamp,
    /// Of which priority it is; `None` where nobody knows.
    pub priority: Option<Priority>,
}

/// An endpoint that the sweep found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Swept {
    /// When the first of its work is due.
    pub due: Due,
    /// Its version.
    pub version: i64,
    /// Its circuit, see [`super::Gates::circuit_until`].
    pub circuit_until: Option<Timestamp>,
}

/// A hungry lane: how much it can take of one priority, and from where.
#[derive(Debug, Clone, Copy)]
pub struct LaneRequest {
    /// Whose deliveries.
    pub endpoint: EndpointId,
    /// Which of them.
    pub priority: Priority,
    /// How many at most; at least 1.
    pub room: u32,
    /// What the lane holds already, and asks for in other priorities before this one, for the endpoint's cap: it holds as
    /// it is at the claim, whatever the lane knows.
    pub held: u32,
    /// How many beyond the cap may be held, to be started as soon as others end.
    pub ahead: u32,
    /// Nothing due before this is waiting, as far as the lane knows: the claim starts there, past the index entries of
    /// what was delivered already.
    pub low_water: Timestamp,
    /// The endpoint's version that the lane goes by; 0 where it knows none. Where there is a rate limit, it must be the
    /// current one.
    pub version: i64,
    /// The endpoint's circuit as the lane knows it, see [`super::Gates::circuit_until`]: it must be as it is.
    pub circuit_until: Option<Timestamp>,
}

/// What a claim gave.
#[derive(Debug, Default)]
pub struct Claims {
    /// The deliveries.
    pub claimed: Vec<Claimed>,
    /// Those of them whose last attempt was lost with its worker.
    pub lost: Vec<DeliveryId>,
    /// Lanes that got nothing because they do not know what lets their endpoint's requests through.
    pub refused: Vec<EndpointId>,
}

/// A delivery this process holds, until it completes or releases it or the lease lapses.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// The delivery.
    pub id: DeliveryId,
    /// Its endpoint, and the version of it that is current.
    pub endpoint: EndpointId,
    /// The endpoint's version at the claim: by it the holder knows whether what it remembers is current.
    pub endpoint_version: i64,
    /// Its event.
    pub event: EventId,
    /// The fence: names this claim in everything that follows.
    pub claim_gen: i32,
    /// This attempt's number, 1 is the first.
    pub attempt: u32,
    /// Retries spent of the present budget.
    pub retries_spent: u32,
    /// Attempts lost so far.
    pub lost_count: u32,
    /// How the body looks.
    pub format: PayloadFormat,
    /// Why the attempt is made.
    pub trigger: AttemptTrigger,
    /// Of a probe, how often the endpoint's circuit had opened, 1 or more; else 0.
    pub openings: u32,
    /// Whether somebody canceled it while its worker was lost: then it is not sent again.
    pub cancel_requested: bool,
    /// When it was due.
    pub due_at: Timestamp,
    /// Which lane's part it was taken from.
    pub priority: Priority,
    /// It is not sent after this.
    pub expire_at: Option<Timestamp>,
    /// What it is the first of, where its endpoint is ordered.
    pub order_key: Option<Box<str>>,
    /// When it was claimed.
    pub claimed_at: Timestamp,
}

/// One statement for all hungry lanes, a row for each priority of a lane. What it takes is found by `outstanding_due` from
/// the low-water mark on, locked in due order, and left out where somebody else holds them; endpoints are read in the same snapshot, so nothing is
/// claimed for a deleted or paused one, or through an open circuit, and one probe at most through a half-open one. A lane
/// that does not know of such a gate gets nothing but word of it, with a null id. What was in flight and lapsed is
/// recorded as LOST here.
/// The update finds its rows by `outstanding_pkey` from an array, and `limit 1` keeps each lane's endpoint a lookup by
/// `endpoints_pkey`: joined, an empty table's statistics would make either a scan of the table.
/// A replica that the others have given up (`$8`) claims nothing, whatever it believes.
pub(super) const CLAIM: &str = "
with lanes as materialized (
  select l.endpoint_id, l.priority, l.low_water, e.version, e.shown_url, e.circuit_openings, e.is_known,
         case when not e.is_known or e.circuit_until > now() then 0
              when e.circuit_until is not null then least(l.room, 1)
              else greatest(least(l.room, e.max_in_flight + l.ahead - l.held), 0) end as room
  from unnest($1::uuid[], $2::int[], $3::timestamptz[], $6::int[], $7::int[], $9::bigint[], $10::timestamptz[],
              $11::smallint[])
    as l (endpoint_id, room, low_water, held, ahead, version, circuit_until, priority)
  cross join lateral (
    select case e.ordering when 3 then 1 else e.max_in_flight end as max_in_flight, e.version, e.shown_url,
           e.circuit_until, e.circuit_openings,
           e.state = 1 and (e.rate_per_second is null or e.version = l.version)
             and e.circuit_until is not distinct from l.circuit_until as is_known
    from endpoints e
    where e.id = l.endpoint_id and e.delete_time is null
    limit 1
  ) e
  where $8::uuid is null or exists (select from replicas r where r.id = $8)
), picked as materialized (
  select d.*, lanes.version, lanes.shown_url, lanes.circuit_openings
  from lanes cross join lateral (
    select o.* from outstanding o
    where o.endpoint_id = lanes.endpoint_id and o.priority = lanes.priority
      and o.due_at >= lanes.low_water and o.due_at <= now()
      and (o.lease_until is null or o.lease_until <= now())
    order by o.priority, o.due_at
    limit lanes.room
    for no key update skip locked
  ) d
), claimed as (
  update outstanding o
  set state = 2, lease_until = now() + make_interval(secs => $4), attempt_started_at = now(), replica = $5,
      claim_gen = o.claim_gen + 1, attempt_count = o.attempt_count + 1,
      lost_count = o.lost_count + (o.state = 2)::int,
      trigger = case when o.endpoint_id = any(array(select endpoint_id from lanes where circuit_openings > 0)) then 3
                     when o.trigger = 3 then 1 else o.trigger end
  where o.id = any(array(select id from picked))
), lost as (
  insert into timeline (time, delivery_id, endpoint_id, event_id, kind, state, priority, attempt_count, number,
                        started_at, duration_us, next_attempt_at, trigger, outcome, tenant, event_type, url, error,
                        replica)
  select now(), id, endpoint_id, event_id, 3, 3, priority, attempt_count, attempt_count,
         attempt_started_at, (extract(epoch from lease_until - attempt_started_at) * 1000000)::bigint, now(), trigger,
         9, tenant, event_type, shown_url, 'the worker was lost before the result was on record', replica
  from picked where state = 2
)
select id, endpoint_id, version, event_id, claim_gen + 1 as claim_gen, attempt_count + 1 as attempt, retries_spent,
       lost_count + (state = 2)::int as lost_count, payload_format,
       case when circuit_openings > 0 then 3 when trigger = 3 then 1 else trigger end::smallint as trigger,
       cancel_requested, due_at, now() as at, circuit_openings,
       priority, expire_at, order_key, state = 2 as was_lost
from picked
union all
select null, endpoint_id, null, null, null, null, null, null, null, null, null, null, null, null,
       null, null, null, null
from lanes where not is_known";

/// The columns of an event, as [`read_event`] reads them.
macro_rules! event_columns {
    () => {
        "id, tenant, event_type, payload, content_type, idempotency_key, metadata, cloudevents_source, priority,
       ordering_key, deliver_time, expire_time, trace"
    };
}

/// Reads by `events_pkey`; the bounds leave out the days' partitions that hold none of the ids.
const PAYLOADS: &str =
    concat!("select ", event_columns!(), " from events where id = any($1) and id >= $2 and id <= $3");

/// Those that have outlasted their day, by `events_kept_pkey`.
const PAYLOADS_KEPT: &str = concat!("select ", event_columns!(), " from events_kept where id = any($1)");

/// A HOT update: no indexed column changes.
pub(super) const RENEW: &str = "
update outstanding o set lease_until = now() + make_interval(secs => $3)
where o.id = any($1::uuid[]) and o.claim_gen = ($2::int[])[width_bucket(o.id, $1::uuid[])] and o.state = 2
returning o.id";

/// Hands claims back whose request never left: the attempt is not counted.
pub(super) const RELEASE: &str = "
update outstanding o
set state = case when o.attempt_count > 1 then 3 else 1 end, attempt_count = o.attempt_count - 1,
    lease_until = null, attempt_started_at = null, replica = null, claim_gen = o.claim_gen + 1
where o.id = any($1::uuid[]) and o.claim_gen = ($2::int[])[width_bucket(o.id, $1::uuid[])]
  and o.state = 2 and not o.cancel_requested
returning o.endpoint_id, o.due_at, o.priority";

/// Every active endpoint with something that no worker holds, when the first of it is due, for each priority, and by what
/// a lane sees whether it knows the endpoint as it is: a loose index scan over `outstanding_due`, one step an endpoint and
/// priority, whatever its backlog. What is parked behind others is no work yet.
pub(super) const SWEEP: &str = "
with recursive e as (
  (select endpoint_id, priority from outstanding order by endpoint_id, priority limit 1)
  union all
  select n.endpoint_id, n.priority
  from e cross join lateral (
    select o.endpoint_id, o.priority from outstanding o
    where (o.endpoint_id, o.priority) > (e.endpoint_id, e.priority)
    order by o.endpoint_id, o.priority limit 1
  ) n
)
select e.endpoint_id, d.due_at, e.priority, p.version, p.circuit_until
from e cross join lateral (
  select p.version, p.circuit_until from endpoints p
  where p.id = e.endpoint_id and p.state = 1 and p.delete_time is null
  limit 1
) p cross join lateral (
  select o.due_at from outstanding o
  where o.endpoint_id = e.endpoint_id and o.priority = e.priority and o.due_at < 'infinity'
    and (o.lease_until is null or o.lease_until <= now())
  order by o.priority, o.due_at limit 1
) d";

/// What is to fall due next in these lanes, of each priority the first of it. By `outstanding_due`, one step for each row.
pub(super) const UPCOMING: &str = "
select e.endpoint_id, d.due_at, p.priority
from unnest($1::uuid[]) as e (endpoint_id)
cross join unnest('{1,2,3}'::smallint[]) as p (priority)
cross join lateral (
  select o.due_at from outstanding o
  where o.endpoint_id = e.endpoint_id and o.priority = p.priority and o.due_at > $2 and o.due_at < 'infinity'
    and (o.lease_until is null or o.lease_until <= now())
  order by o.priority, o.due_at limit $3
) d";

impl Store {
    /// Claims work for hungry lanes, `room` for each at most, oldest due first.
    pub async fn claim(&self, lanes: &[LaneRequest]) -> Result<Claims> {
        let began = Instant::now();
        let rows = sqlx::query(CLAIM)
            .bind(lanes.iter().map(|lane| lane.endpoint.uuid()).collect::<Vec<_>>())
            .bind(lanes.iter().map(|lane| lane.room.cast_signed()).collect::<Vec<_>>())
            .bind(lanes.iter().map(|lane| PgTime(lane.low_water)).collect::<Vec<_>>())
            .bind(LEASE.as_secs_f64())
            .bind(&self.replica)
            .bind(lanes.iter().map(|lane| lane.held.cast_signed()).collect::<Vec<_>>())
            .bind(lanes.iter().map(|lane| lane.ahead.cast_signed()).collect::<Vec<_>>())
            .bind(self.claims_as())
            .bind(lanes.iter().map(|lane| lane.version).collect::<Vec<_>>())
            .bind(lanes.iter().map(|lane| lane.circuit_until.map(PgTime)).collect::<Vec<_>>())
            .bind(lanes.iter().map(|lane| lane.priority.number()).collect::<Vec<_>>())
            .fetch_all(&self.engine)
            .await?;
        let mut claims = Claims::default();
        for row in &rows {
            match row.try_get::<Option<Uuid>, _>(0)? {
                Some(_) => {
                    let claimed = read_claimed(row)?;
                    if row.try_get(17)? {
                        claims.lost.push(claimed.id);
                    }
                    claims.claimed.push(claimed);
                }
                None => claims.refused.push(EndpointId::from_uuid(row.try_get(1)?)),
            }
        }
        self.metrics.claims.observe(began.elapsed(), claims.claimed.len());
        self.metrics.attempts(AttemptOutcome::Lost).inc_by(claims.lost.len() as u64);
        Ok(claims)
    }

    /// The events of claimed deliveries. A second statement: a client that stalled inside the claim's own would pin its
    /// locked rows past every timeout.
    pub async fn payloads(&self, ids: &[EventId]) -> Result<IdMap<EventId, Arc<Event>>> {
        let mut unknown = ids.to_vec();
        unknown.sort_unstable();
        unknown.dedup();
        let mut events = self.recent.take_known(&mut unknown);
        let uuids: Vec<Uuid> = unknown.iter().map(|id| id.uuid()).collect();
        let (Some(low), Some(high)) = (uuids.first().copied(), uuids.last().copied()) else {
            return Ok(events);
        };
        let mut rows = sqlx::query(PAYLOADS).bind(uuids).bind(low).bind(high).fetch_all(&self.engine).await?;
        if rows.len() < unknown.len() {
            let found: HashSet<Uuid> = rows.iter().map(|row| row.try_get(0)).collect::<sqlx::Result<_>>()?;
            let missing: Vec<Uuid> = unknown.iter().map(|id| id.uuid()).filter(|id| !found.contains(id)).collect();
            rows.extend(sqlx::query(PAYLOADS_KEPT).bind(missing).fetch_all(&self.engine).await?);
        }
        for row in &rows {
            let event = read_event(row)?;
            events.insert(event.id, Arc::new(event));
        }
        Ok(events)
    }

    /// Makes the leases of these claims last again; answers those that still hold.
    pub async fn renew(&self, claims: &[(DeliveryId, i32)]) -> Result<Vec<DeliveryId>> {
        let (ids, gens) = columns(claims);
        let held: Vec<Uuid> =
            sqlx::query_scalar(RENEW).bind(ids).bind(gens).bind(LEASE.as_secs_f64()).fetch_all(&self.engine).await?;
        Ok(held.into_iter().map(DeliveryId::from_uuid).collect())
    }

    /// Hands claims back that were never started, without spending an attempt.
    pub async fn release(&self, claims: &[(DeliveryId, i32)]) -> Result<()> {
        let (ids, gens) = columns(claims);
        let mut due: BTreeMap<(Uuid, i16), PgTime> = BTreeMap::new();
        let rows: Vec<(Uuid, PgTime, i16)> =
            sqlx::query_as(RELEASE).bind(ids).bind(gens).fetch_all(&self.engine).await?;
        for (endpoint, at, priority) in rows {
            let first = due.entry((endpoint, priority)).or_insert(at);
            *first = at.min(*first);
        }
        self.hint(due.into_iter().map(|((endpoint, priority), at)| due_of(endpoint, at, priority)).collect());
        Ok(())
    }

    /// Every endpoint with waiting work, with the due time of the first of it, for each priority.
    pub async fn sweep(&self) -> Result<Vec<Swept>> {
        type Row = (Uuid, PgTime, i16, i64, Option<PgTime>);
        let rows: Vec<Row> = sqlx::query_as(SWEEP).fetch_all(&self.engine).await?;
        let swept = |(endpoint, at, priority, version, circuit_until): Row| Swept {
            due: due_of(endpoint, at, priority),
            version,
            circuit_until: circuit_until.map(|until| until.0),
        };
        Ok(rows.into_iter().map(swept).collect())
    }

    /// What falls due next at these endpoints, after `since`: the first `limit` of each priority.
    pub async fn upcoming(&self, endpoints: &[EndpointId], since: Timestamp, limit: usize) -> Result<Vec<Due>> {
        let rows: Vec<(Uuid, PgTime, i16)> = sqlx::query_as(UPCOMING)
            .bind(endpoints.iter().map(|id| id.uuid()).collect::<Vec<_>>())
            .bind(PgTime(since))
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(&self.engine)
            .await?;
        Ok(rows.into_iter().map(|(endpoint, at, priority)| due_of(endpoint, at, priority)).collect())
    }

    /// Counts anew what is outstanding; answers how long that took.
    pub async fn count_backlog(&self) -> Result<Duration> {
        self.backlog.count(&self.reader).await
    }
}

pub(super) fn due_of(endpoint: Uuid, at: PgTime, priority: i16) -> Due {
    Due { endpoint: EndpointId::from_uuid(endpoint), at: at.0, priority: Priority::from_number(priority) }
}

/// In id order: a row's place is found by halving.
fn columns(claims: &[(DeliveryId, i32)]) -> (Vec<Uuid>, Vec<i32>) {
    let mut sorted = claims.to_vec();
    sorted.sort_unstable();
    sorted.into_iter().map(|(id, claim_gen)| (id.uuid(), claim_gen)).unzip()
}

fn read_claimed(row: &PgRow) -> Result<Claimed> {
    Ok(Claimed {
        id: DeliveryId::from_uuid(row.try_get(0)?),
        endpoint: EndpointId::from_uuid(row.try_get(1)?),
        endpoint_version: row.try_get(2)?,
        event: EventId::from_uuid(row.try_get(3)?),
        claim_gen: row.try_get(4)?,
        attempt: count(row.try_get(5)?),
        retries_spent: count(row.try_get(6)?),
        lost_count: count(row.try_get(7)?),
        format: stored("payload format", row.try_get(8)?, PayloadFormat::from_number)?,
        trigger: stored("trigger", row.try_get(9)?, AttemptTrigger::from_number)?,
        cancel_requested: row.try_get(10)?,
        due_at: row.try_get::<PgTime, _>(11)?.0,
        claimed_at: row.try_get::<PgTime, _>(12)?.0,
        openings: count(row.try_get(13)?),
        priority: stored("priority", row.try_get(14)?, Priority::from_number)?,
        expire_at: row.try_get::<Option<PgTime>, _>(15)?.map(|time| time.0),
        order_key: row.try_get(16)?,
    })
}

/// Reads the columns of `PAYLOADS`, in their order.
pub(super) fn read_event(row: &PgRow) -> Result<Event> {
    Ok(Event {
        id: EventId::from_uuid(row.try_get(0)?),
        tenant: Tenant::from_stored(row.try_get(1)?),
        event_type: EventType::from_stored(row.try_get(2)?),
        payload: row.try_get::<Vec<u8>, _>(3)?.into(),
        content_type: ContentType::from_stored(row.try_get(4)?),
        idempotency_key: row.try_get(5)?,
        metadata: row.try_get::<Option<Json<_>>, _>(6)?.map(|metadata| metadata.0).unwrap_or_default(),
        source: row.try_get::<Option<String>, _>(7)?.map(Source::from_stored),
        schedule: Schedule {
            priority: stored("priority", row.try_get(8)?, Priority::from_number)?,
            ordering_key: row.try_get(9)?,
            deliver_time: row.try_get::<Option<PgTime>, _>(10)?.map(|time| time.0),
            expire_time: row.try_get::<Option<PgTime>, _>(11)?.map(|time| time.0),
        },
        trace: row.try_get::<Option<&[u8]>, _>(12)?.and_then(TraceContext::from_bytes),
    })
}
