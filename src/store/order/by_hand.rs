//! What an operator does to a delivery of an ordered endpoint: it keeps its place, takes another, or makes room.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::types::Uuid;
use sqlx::{Connection as _, PgConnection};

use super::{OrderKey, advance, join, lock, pass_on};
use crate::domain::attempt::AttemptTrigger;
use crate::domain::id::{DeliveryId, EndpointId};
use crate::store::error::Result;
use crate::store::operate::{SETTLED_EVER, end_waiting, tell_of_retried};
use crate::store::queue::CANCELED_REASON;
use crate::store::types::PgTime;
use crate::store::{Due, Store};

/// Locks settled deliveries of ordered endpoints, in id order by `settled_failed_pkey`: before their keys, as everywhere.
/// `$2` and `$3` bound when they settled, which leaves out the other days.
const TAKE: &str = "
select f.id, f.endpoint_id as endpoint, f.order_key, f.settle_time from settled_failed f
where f.id = any($1::uuid[]) and f.settle_time >= $2 and f.settle_time <= $3 and f.order_key is not null
  and exists (select from endpoints e where e.id = f.endpoint_id and e.delete_time is null)
order by f.id
for update of f";

/// Puts one back: where others wait for it, at their head, in its own place; else behind them. `$4`: nothing else is
/// ordered by the key, which the caller has locked.
const RETRY: &str = concat!(
    "
with unblocked as (
  update order_keys k set blocked_by = null, blocked_time = null
  where k.endpoint_id = $2 and k.key = $3 and k.blocked_by = $1
  returning k.key
), taken as (
  delete from settled_failed f where f.id = $1 and f.settle_time = $5 returning *
), placed as (
  select t.*, u.key is not null as is_head from taken t left join unblocked u on true
), retried as (
  insert into outstanding (id, endpoint_id, event_id, due_at, claim_gen, attempt_count, last_status, state, priority,
                           payload_format, trigger, tenant, event_type, last_error, expire_at, order_key, seq)
  select id, endpoint_id, event_id, case when is_head or $4 then now() else 'infinity' end, claim_gen + 1,
         attempt_count, last_status, case when attempt_count > 0 then 3 else 1 end, priority, payload_format, $6, tenant,
         event_type, last_error, case when expire_at > now() then expire_at end, order_key,
         case when is_head then seq else nextval('order_seq') end
  from placed
  returning *
",
    tell_of_retried!("
select count(*) from retried")
);

/// The head of a key that waits for its first or next attempt.
const CANCEL_HEAD: &str =
    end_waiting!("o.id = $1 and o.order_key is not null and o.due_at < 'infinity'", "6", "$2::text");

/// One that has failed and that others wait for. By `settled_failed_pkey` and `order_keys_pkey`.
const CANCEL_BLOCKING: &str = "
with canceled as (
  update settled_failed f set state = 6, reason = $2, claim_gen = f.claim_gen + 1
  where f.id = $1 and f.state = 5 and f.order_key is not null
    and exists (select from order_keys k
                where k.endpoint_id = f.endpoint_id and k.key = f.order_key and k.blocked_by = f.id)
  returning *
), told as (
  insert into timeline (time, delivery_id, endpoint_id, event_id, kind, state, priority, attempt_count, reason, tenant,
                        event_type)
  select now(), id, endpoint_id, event_id, 6, 6, priority, attempt_count, $2, tenant, event_type from canceled
)
select endpoint_id, order_key from canceled";

const UNBLOCK: &str = "
update order_keys k set blocked_by = null, blocked_time = null
where k.endpoint_id = $1 and k.key = $2 and k.blocked_by = $3";

/// A settled delivery of an ordered endpoint whose row is locked.
#[derive(Debug, sqlx::FromRow)]
pub(in crate::store) struct Taken {
    pub(in crate::store) id: Uuid,
    endpoint: Uuid,
    order_key: String,
    pub(in crate::store) settle_time: PgTime,
}

impl Taken {
    pub(in crate::store) fn key(&self) -> OrderKey<'_> {
        (self.endpoint, &self.order_key)
    }
}

/// What a cancel did.
struct Canceled {
    endpoint: Uuid,
    /// Whether it was outstanding.
    was_outstanding: bool,
    due: Vec<Due>,
}

impl Store {
    /// Retries a settled delivery of an ordered endpoint; `false` where it is none.
    pub(in crate::store) async fn retry_ordered(&self, id: DeliveryId) -> Result<bool> {
        let mut lent = self.engine.lend().await?;
        let retried = self.engine.bounded(retry_on(&mut lent, id)).await?;
        lent.give_back_after(&retried);
        let Some(endpoint) = retried? else { return Ok(false) };
        self.announce(endpoint, 1);
        Ok(true)
    }

    /// Cancels the waiting head of a key, or a failed one that blocks it; `false` where it is neither.
    pub(in crate::store) async fn cancel_ordered(&self, id: DeliveryId) -> Result<bool> {
        let mut lent = self.engine.lend().await?;
        let canceled = self.engine.bounded(cancel_on(&mut lent, id)).await?;
        lent.give_back_after(&canceled);
        let Some(Canceled { endpoint, was_outstanding, due }) = canceled? else { return Ok(false) };
        self.backlog.change([(EndpointId::from_uuid(endpoint), -i64::from(was_outstanding))]);
        self.metrics.deliveries.canceled.inc();
        self.hint(due);
        Ok(true)
    }
}

async fn retry_on(connection: &mut PgConnection, id: DeliveryId) -> Result<Option<Uuid>> {
    let mut transaction = connection.begin().await?;
    let taken = take(&mut transaction, &[id.uuid()], SETTLED_EVER).await?;
    let Some(one) = taken.first() else {
        transaction.rollback().await?;
        return Ok(None);
    };
    let free = join(&mut transaction, &BTreeSet::from([one.key()])).await?;
    restore(&mut transaction, one, !free.is_empty(), AttemptTrigger::Manual).await?;
    transaction.commit().await?;
    Ok(Some(one.endpoint))
}

/// Locks those of these settled deliveries that are of ordered endpoints.
pub(in crate::store) async fn take(
    connection: &mut PgConnection,
    ids: &[Uuid],
    (since, until): (PgTime, PgTime),
) -> Result<Vec<Taken>> {
    Ok(sqlx::query_as(TAKE).bind(ids).bind(since).bind(until).fetch_all(connection).await?)
}

/// Puts one back that the caller has taken and whose key it has joined.
pub(in crate::store) async fn restore(
    connection: &mut PgConnection,
    taken: &Taken,
    is_free: bool,
    trigger: AttemptTrigger,
) -> Result<()> {
    sqlx::query(RETRY)
        .bind(taken.id)
        .bind(taken.endpoint)
        .bind(&taken.order_key)
        .bind(is_free)
        .bind(taken.settle_time)
        .bind(trigger.number())
        .execute(connection)
        .await?;
    Ok(())
}

async fn cancel_on(connection: &mut PgConnection, id: DeliveryId) -> Result<Option<Canceled>> {
    let mut transaction = connection.begin().await?;
    let head: Option<(Uuid, String)> =
        sqlx::query_as(CANCEL_HEAD).bind(id.uuid()).bind(CANCELED_REASON).fetch_optional(&mut *transaction).await?;
    if let Some((endpoint, key)) = head {
        let due = pass_on(&mut transaction, &BTreeMap::from([((endpoint, key.as_str()), None)])).await?;
        transaction.commit().await?;
        return Ok(Some(Canceled { endpoint, was_outstanding: true, due }));
    }
    let blocking: Option<(Uuid, String)> =
        sqlx::query_as(CANCEL_BLOCKING).bind(id.uuid()).bind(CANCELED_REASON).fetch_optional(&mut *transaction).await?;
    let Some((endpoint, key)) = blocking else {
        transaction.rollback().await?;
        return Ok(None);
    };
    let (endpoints, keys) = ([endpoint], [key.as_str()]);
    lock(&mut transaction, &endpoints, &keys).await?;
    sqlx::query(UNBLOCK).bind(endpoint).bind(&key).bind(id.uuid()).execute(&mut *transaction).await?;
    let due = advance(&mut transaction, &endpoints, &keys).await?;
    transaction.commit().await?;
    Ok(Some(Canceled { endpoint, was_outstanding: false, due }))
}
