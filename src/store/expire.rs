//! Expiring what waits past its expire_time where no claim comes by: for a retry that is due later, at an endpoint that
//! is paused, or behind others.

use std::collections::BTreeMap;

use sqlx::types::Uuid;
use sqlx::{Connection as _, PgConnection};

use super::error::Result;
use super::operate::end_waiting;
use super::queue::EXPIRED_REASON;
use super::{Due, Store, order};
use crate::domain::id::EndpointId;

/// A batch that has no place in an order, or one behind others. One in flight ends its attempt first, and one whose
/// worker died is taken over or recorded as lost first. By `outstanding_expire`, the oldest first; what others hold is
/// left out.
pub(super) const EXPIRE: &str = end_waiting!(
    "o.id = any(array(
    select w.id from outstanding w
    where w.expire_at <= now() and w.state <> 2 and (w.order_key is null or w.due_at = 'infinity')
    order by w.expire_at limit $1 for update skip locked))",
    "7",
    "$2::text",
);

/// A batch of heads of their keys, in the same way; those behind them go on.
const EXPIRE_HEADS: &str = end_waiting!(
    "o.id = any(array(
    select w.id from outstanding w
    where w.expire_at <= now() and w.state <> 2 and w.order_key is not null and w.due_at < 'infinity'
    order by w.expire_at limit $1 for update skip locked))",
    "7",
    "$2::text",
);

/// Deliveries of one statement.
const BATCH_MAX: i64 = 500;

impl Store {
    /// Expires a batch of what waits past its time; answers how many, fewer than a batch when none is left.
    pub async fn expire(&self) -> Result<(usize, bool)> {
        let rows: Vec<(Uuid, Option<String>)> =
            sqlx::query_as(EXPIRE).bind(BATCH_MAX).bind(EXPIRED_REASON).fetch_all(&self.engine).await?;
        let mut lent = self.engine.lend().await?;
        let heads = self.engine.bounded(expire_heads(&mut lent)).await?;
        lent.give_back_after(&heads);
        let (heads, due) = heads?;
        let full = i64::try_from(rows.len().max(heads.len())).is_ok_and(|count| count >= BATCH_MAX);
        let expired = rows.len() + heads.len();
        self.backlog.change(rows.iter().map(|(id, _)| *id).chain(heads).map(|id| (EndpointId::from_uuid(id), -1)));
        if expired > 0 {
            self.metrics.deliveries.expired.inc_by(expired as u64);
            self.hint(due);
        }
        Ok((expired, full))
    }
}

async fn expire_heads(connection: &mut PgConnection) -> Result<(Vec<Uuid>, Vec<Due>)> {
    let mut transaction = connection.begin().await?;
    let rows: Vec<(Uuid, String)> =
        sqlx::query_as(EXPIRE_HEADS).bind(BATCH_MAX).bind(EXPIRED_REASON).fetch_all(&mut *transaction).await?;
    let ended = rows.iter().map(|(endpoint, key)| ((*endpoint, key.as_str()), None)).collect::<BTreeMap<_, _>>();
    let due = order::pass_on(&mut transaction, &ended).await?;
    transaction.commit().await?;
    Ok((rows.into_iter().map(|(endpoint, _)| endpoint).collect(), due))
}
