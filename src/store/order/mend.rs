//! Sees that no key stands still: lets those go on that nothing blocks any more, because their endpoint no longer wants
//! that or the failed delivery is gone, and those whose head was ended by a version that knows no order.

use std::collections::BTreeMap;

use sqlx::types::Uuid;
use sqlx::{Connection as _, PgConnection};

use super::{OrderKey, advance, lock};
use crate::store::error::Result;
use crate::store::{Due, Store};

/// What still blocks a key: its endpoint wants that, and the delivery has failed and is kept as a dead letter that
/// nobody has deleted. By `endpoints_pkey` and
/// `settled_failed_pkey`, of one partition.
macro_rules! still_blocks {
    () => {
        "(coalesce((select e.ordering <> 1 and e.ordering_on_failure = 1 and e.delete_time is null
             from endpoints e where e.id = k.endpoint_id limit 1), false)
   and exists (select from settled_failed s
               where s.id = k.blocked_by and s.settle_time = k.blocked_time and s.state = 5
                 and s.dismiss_time is null))"
    };
}

/// A page of keys in their index's order, and whether each stands still: the first delivery of a key that nothing blocks
/// is not parked. Takes no lock.
macro_rules! page {
    ($condition:literal) => {
        concat!(
            "
select k.endpoint_id, k.key,
       case when k.blocked_by is not null then not ",
            still_blocks!(),
            "
            else coalesce((select o.due_at = 'infinity' from outstanding o
                           where o.endpoint_id = k.endpoint_id and o.order_key = k.key
                           order by o.endpoint_id, o.order_key, o.seq limit 1), true)
       end
from order_keys k
where (k.endpoint_id, k.key) > ($1, $2) and ",
            $condition,
            "
order by k.endpoint_id, k.key
limit $3"
        )
    };
}

/// By `order_keys_pkey`.
const ANY: &str = page!("true");
/// By `order_keys_blocked`.
const BLOCKED: &str = page!("k.blocked_by is not null");

/// Looked at again under the keys' locks.
const UNBLOCK: &str = concat!(
    "
update order_keys k set blocked_by = null, blocked_time = null
from unnest($1::uuid[], $2::text[]) as q (endpoint_id, key)
where k.endpoint_id = q.endpoint_id and k.key = q.key and k.blocked_by is not null and not ",
    still_blocks!()
);

/// Which keys a look goes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Walk {
    /// All of them.
    Any,
    /// Those that are blocked.
    Blocked,
}

/// Where a look over the keys has come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place(Option<(Uuid, String)>);

impl Store {
    /// Looks at the next `limit` keys behind `place` and lets those go on that stand still; answers how many did, and
    /// where to go on: at the beginning, once all were looked at.
    pub async fn mend_order(&self, walk: Walk, place: &Place, limit: u32) -> Result<(usize, Place)> {
        let statement = match walk {
            Walk::Any => ANY,
            Walk::Blocked => BLOCKED,
        };
        let (endpoint, key) = place.0.clone().unwrap_or_default();
        let page: Vec<(Uuid, String, bool)> =
            sqlx::query_as(statement).bind(endpoint).bind(key).bind(i64::from(limit)).fetch_all(&self.engine).await?;
        let is_last = u32::try_from(page.len()).is_ok_and(|read| read < limit);
        let next = page.last().filter(|_| !is_last).map(|(endpoint, key, _)| (*endpoint, key.clone()));
        let stalled: BTreeMap<OrderKey<'_>, ()> = page
            .iter()
            .filter(|(.., is_stalled)| *is_stalled)
            .map(|(endpoint, key, _)| ((*endpoint, key.as_str()), ()))
            .collect();
        if !stalled.is_empty() {
            let (endpoints, keys): (Vec<Uuid>, Vec<&str>) = stalled.keys().copied().unzip();
            let mut lent = self.engine.lend().await?;
            let due = self.engine.bounded(release(&mut lent, &endpoints, &keys)).await?;
            lent.give_back_after(&due);
            self.hint(due?);
        }
        Ok((stalled.len(), Place(next)))
    }
}

async fn release(connection: &mut PgConnection, endpoints: &[Uuid], keys: &[&str]) -> Result<Vec<Due>> {
    let mut transaction = connection.begin().await?;
    lock(&mut transaction, endpoints, keys).await?;
    sqlx::query(UNBLOCK).bind(endpoints).bind(keys).execute(&mut *transaction).await?;
    let due = advance(&mut transaction, endpoints, keys).await?;
    transaction.commit().await?;
    Ok(due)
}
