//! What an operator does to one delivery: retry and cancel; and what a deleted endpoint's deliveries come to.

use sqlx::types::Uuid;

use super::error::Result;
use super::queue::CANCELED_REASON;
use super::types::PgTime;
use super::{Due, Store};
use crate::domain::attempt::{AttemptOutcome, AttemptTrigger};
use crate::domain::delivery::DeliveryState;
use crate::domain::id::{DeliveryId, EndpointId};
use crate::domain::time::Timestamp;

/// Why a delivery was not retried.
#[derive(Debug, thiserror::Error)]
pub enum RetryRefused {
    /// There is no such delivery.
    #[error("there is no such delivery")]
    NotFound,
    /// It succeeded.
    #[error("the delivery succeeded")]
    Succeeded,
    /// It is pending or in flight.
    #[error("the delivery is still to be attempted")]
    NotSettled,
    /// Its endpoint is gone.
    #[error("the endpoint is deleted")]
    EndpointDeleted,
    /// The statement failed.
    #[error(transparent)]
    Store(#[from] super::Error),
}

/// Why a delivery was not canceled.
#[derive(Debug, thiserror::Error)]
pub enum CancelRefused {
    /// There is no such delivery.
    #[error("there is no such delivery")]
    NotFound,
    /// It has come to its end already.
    #[error("the delivery is settled")]
    Settled,
    /// The statement failed.
    #[error(transparent)]
    Store(#[from] super::Error),
}

/// The end of a statement that retries deliveries by hand, in a part `retried`: the timeline tells of each.
macro_rules! tell_of_retried {
    ($answer:literal) => {
        concat!(
            "), told as (
  insert into timeline (time, delivery_id, endpoint_id, event_id, kind, state, priority, attempt_count,
                        next_attempt_at, tenant, event_type)
  select now(), id, endpoint_id, event_id, 8, state, priority, attempt_count, nullif(due_at, 'infinity'), tenant,
         event_type
  from retried
)",
            $answer
        )
    };
}
pub(super) use tell_of_retried;

/// A waiting retry becomes due now with a fresh budget; one that is parked behind others stays there. Locks one row by
/// `outstanding_pkey`.
const RETRY_WAITING: &str = concat!(
    "
with retried as (
  update outstanding o
  set due_at = case when o.due_at = 'infinity' then o.due_at else now() end, claim_gen = o.claim_gen + 1,
      retries_spent = 0, lost_count = 0, trigger = 2, expire_at = case when o.expire_at > now() then o.expire_at end
  where o.id = $1 and o.state = 3
    and exists (select from endpoints e where e.id = o.endpoint_id and e.delete_time is null)
  returning *
",
    tell_of_retried!(
        "
select endpoint_id from retried"
    )
);

/// Settled ones go back to the outstanding, for a retry or a replay: attempt numbers go on, the fence grows, the budget is
/// fresh. `$2` and `$3` bound when they settled, which leaves out the other days; `$4` is why the next attempt is made.
/// Locks the rows in id order, by `settled_failed_pkey`. Those of an ordered endpoint take their place again, or another
/// ([`super::order`]).
pub(super) const RESTORE: &str = concat!(
    "
with taken as (
  delete from settled_failed f
  where f.id = any($1::uuid[]) and f.settle_time >= $2 and f.settle_time <= $3 and f.order_key is null
    and exists (select from endpoints e where e.id = f.endpoint_id and e.delete_time is null)
  returning *
), retried as (
  insert into outstanding (id, endpoint_id, event_id, due_at, claim_gen, attempt_count, last_status, state, priority,
                           payload_format, trigger, tenant, event_type, last_error, expire_at)
  select id, endpoint_id, event_id, now(), claim_gen + 1, attempt_count, last_status,
         case when attempt_count > 0 then 3 else 1 end, priority, payload_format, $4, tenant, event_type, last_error,
         case when expire_at > now() then expire_at end
  from taken
  returning *
",
    tell_of_retried!(
        "
select endpoint_id, id from retried"
    )
);

/// Ends deliveries that wait: takes those that the condition names, and puts them on record as settled in a state (a
/// number of the contract) for a reason.
macro_rules! end_waiting {
    ($condition:literal, $state:literal, $reason:literal $(,)?) => {
        concat!(
            "
with taken as (
  delete from outstanding o where o.state <> 2 and ",
            $condition,
            " returning *
), moved as (
  insert into settled_failed (id, endpoint_id, event_id, settle_time, claim_gen, attempt_count, last_status, state,
                              priority, payload_format, tenant, event_type, reason, last_error, order_key, seq,
                              expire_at)
  select id, endpoint_id, event_id, now(), claim_gen + 1, attempt_count, last_status, ",
            $state,
            ", priority, payload_format, tenant, event_type, ",
            $reason,
            ", last_error, order_key, seq, expire_at
  from taken
), told as (
  insert into timeline (time, delivery_id, endpoint_id, event_id, kind, state, priority, attempt_count, reason, tenant,
                        event_type)
  select now(), id, endpoint_id, event_id, ",
            $state,
            ", ",
            $state,
            ", priority, attempt_count, ",
            $reason,
            ", tenant, event_type
  from taken
)
select endpoint_id, order_key from taken"
        )
    };
}
pub(super) use end_waiting;

/// One that waits is canceled at once; the head of a key only with what follows from that ([`super::order`]). Locks one
/// row by `outstanding_pkey`.
const CANCEL_WAITING: &str =
    end_waiting!("o.id = $1 and (o.order_key is null or o.due_at = 'infinity')", "6", "$2::text");

/// One in flight ends its attempt first; the claim stays valid so that the attempt's result is kept.
const CANCEL_IN_FLIGHT: &str = "
update outstanding o set cancel_requested = true where o.id = $1 and o.state = 2 returning o.endpoint_id";

/// Why a deleted endpoint's deliveries end.
const DELETED_REASON: &str = "the endpoint was deleted";

/// A batch of a deleted endpoint's deliveries that no worker holds; an attempt whose worker died is recorded as LOST.
const CANCEL_DELETED: &str = "
with picked as materialized (
  select o.id from outstanding o
  where o.endpoint_id = $1 and (o.lease_until is null or o.lease_until <= now())
  order by o.id
  limit $2
  for update skip locked
), taken as (
  delete from outstanding o where o.id = any(array(select id from picked)) returning *
), moved as (
  insert into settled_failed (id, endpoint_id, event_id, settle_time, claim_gen, attempt_count, last_status, state,
                              priority, payload_format, tenant, event_type, reason, last_error, order_key, seq,
                              expire_at)
  select id, endpoint_id, event_id, now(), claim_gen + 1, attempt_count, last_status, 6, priority, payload_format,
         tenant, event_type, $3, last_error, order_key, seq, expire_at
  from taken
), told as (
  insert into timeline (time, delivery_id, endpoint_id, event_id, kind, state, priority, attempt_count, number,
                        started_at, duration_us, trigger, outcome, tenant, event_type, reason, error, replica)
  select now(), id, endpoint_id, event_id, 6, 6, priority, attempt_count, null, null, null, null, null, tenant,
         event_type, $3, null, null
  from taken
  union all
  select now(), id, endpoint_id, event_id, 3, 3, priority, attempt_count, attempt_count, attempt_started_at,
         (extract(epoch from lease_until - attempt_started_at) * 1000000)::bigint, trigger, 9, tenant, event_type,
         null, 'the worker was lost before the result was on record', replica
  from taken where state = 2
)
select count(*), array(select id from taken where state = 2), now() from taken";

const CANCEL_DELETED_IN_FLIGHT: &str = "
update outstanding o set cancel_requested = true
where o.endpoint_id = $1 and o.state = 2 and o.lease_until > now() and not o.cancel_requested";

/// Tombstones that may still have outstanding deliveries: a publish that matched just before the deletion may commit
/// just after it.
const TOMBSTONES: &str = "select id from endpoints where delete_time is not null and drain_time is null";

const DRAINED: &str = "
update endpoints e set drain_time = now()
where e.id = $1 and e.delete_time < now() - interval '5 minutes'
  and not exists (select from outstanding o where o.endpoint_id = e.id)";

/// Bounds of settle times that leave none out.
pub(super) const SETTLED_EVER: (PgTime, PgTime) =
    (PgTime(Timestamp::from_micros(i64::MIN)), PgTime(Timestamp::from_micros(i64::MAX)));

/// Deliveries canceled by one statement.
const CANCEL_BATCH: i64 = 1_000;

impl Store {
    /// Makes a delivery due now, with a fresh retry budget.
    pub async fn retry(&self, id: DeliveryId) -> std::result::Result<(), RetryRefused> {
        let waiting = sqlx::query_scalar(RETRY_WAITING).bind(id.uuid()).fetch_optional(&self.engine).await;
        if let Some(endpoint) = waiting.map_err(super::Error::from)? {
            self.announce(endpoint, 0);
            return Ok(());
        }
        let settled = sqlx::query_scalar(RESTORE)
            .bind(vec![id.uuid()])
            .bind(SETTLED_EVER.0)
            .bind(SETTLED_EVER.1)
            .bind(AttemptTrigger::Manual.number())
            .fetch_optional(&self.engine)
            .await;
        if let Some(endpoint) = settled.map_err(super::Error::from)? {
            self.announce(endpoint, 1);
            return Ok(());
        }
        if self.retry_ordered(id).await? {
            return Ok(());
        }
        let row = self.delivery_row(id).await?.ok_or(RetryRefused::NotFound)?;
        Err(match row.state {
            DeliveryState::Succeeded => RetryRefused::Succeeded,
            _ if self.endpoint(row.endpoint).await?.is_none() => RetryRefused::EndpointDeleted,
            _ => RetryRefused::NotSettled,
        })
    }

    /// Cancels a delivery: at once where it waits, after its attempt where one is under way. Of those that failed one can
    /// be canceled that others wait for.
    pub async fn cancel(&self, id: DeliveryId) -> std::result::Result<(), CancelRefused> {
        // Between the two statements it may be claimed or handed back, so both are tried more than once.
        for _ in 0..3 {
            let waiting =
                sqlx::query_as(CANCEL_WAITING).bind(id.uuid()).bind(CANCELED_REASON).fetch_optional(&self.engine).await;
            if let Some((endpoint, _)) = waiting.map_err(super::Error::from)?.map(|row: (Uuid, Option<String>)| row) {
                self.backlog.change([(EndpointId::from_uuid(endpoint), -1)]);
                self.metrics.deliveries.canceled.inc();
                self.hint(Vec::new());
                return Ok(());
            }
            let in_flight = sqlx::query_scalar(CANCEL_IN_FLIGHT).bind(id.uuid()).fetch_optional(&self.engine).await;
            if in_flight.map_err(super::Error::from)?.is_some_and(|_: Uuid| true) || self.cancel_ordered(id).await? {
                return Ok(());
            }
            match self.delivery_row(id).await? {
                None => return Err(CancelRefused::NotFound),
                Some(row) if row.state.is_settled() => return Err(CancelRefused::Settled),
                Some(_) => {}
            }
        }
        Err(super::Error::Unreadable("a delivery that keeps changing hands".to_owned()).into())
    }

    /// Cancels a batch of a deleted endpoint's deliveries; answers how many, 0 when none is left to cancel now.
    /// Those in flight are marked, and end canceled unless their attempt succeeds.
    pub async fn cancel_deleted(&self, endpoint: EndpointId) -> Result<u64> {
        let marked = sqlx::query(CANCEL_DELETED_IN_FLIGHT).bind(endpoint.uuid()).execute(&self.reader).await?;
        let (canceled, lost, at): (i64, Vec<Uuid>, PgTime) = sqlx::query_as(CANCEL_DELETED)
            .bind(endpoint.uuid())
            .bind(CANCEL_BATCH)
            .bind(DELETED_REASON)
            .fetch_one(&self.reader)
            .await?;
        self.backlog.change([(endpoint, -canceled)]);
        let canceled = u64::try_from(canceled).unwrap_or_default();
        self.metrics.deliveries.canceled.inc_by(canceled);
        self.metrics.attempts(AttemptOutcome::Lost).inc_by(lost.len() as u64);
        self.hint(Vec::new());
        let lost: Vec<_> = lost.into_iter().map(DeliveryId::from_uuid).collect();
        self.tell_of_lost(&lost, at.0).await;
        Ok(marked.rows_affected() + canceled)
    }

    /// Deleted endpoints that may still have outstanding deliveries.
    pub async fn tombstones(&self) -> Result<Vec<EndpointId>> {
        let ids: Vec<Uuid> = sqlx::query_scalar(TOMBSTONES).fetch_all(&self.reader).await?;
        Ok(ids.into_iter().map(EndpointId::from_uuid).collect())
    }

    /// Lays a tombstone to rest once nothing can be outstanding for it any more.
    pub async fn rest_tombstone(&self, endpoint: EndpointId) -> Result<()> {
        sqlx::query(DRAINED).bind(endpoint.uuid()).execute(&self.reader).await?;
        Ok(())
    }

    pub(super) fn announce(&self, endpoint: Uuid, added: i64) {
        let endpoint = EndpointId::from_uuid(endpoint);
        self.backlog.change([(endpoint, added)]);
        self.hint(vec![Due { endpoint, at: self.clock.now(), priority: None }]);
    }
}
