//! What other replicas have in flight at endpoints whose lanes have just come here: their leases count towards the
//! endpoints' caps until they end.

use std::collections::BTreeMap;

use sqlx::types::Uuid;

use crate::domain::id::{DeliveryId, EndpointId};
use crate::domain::schedule::Priority;
use crate::domain::time::Timestamp;
use crate::store::Store;
use crate::store::error::Result;
use crate::store::types::{PgTime, count};

/// An endpoint with what others have in flight at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elsewhere {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Its cap.
    pub max_in_flight: u32,
    /// The deliveries, each with the claim it is held by.
    pub held: Vec<(DeliveryId, i32)>,
}

/// An outstanding delivery that was followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Followed {
    /// The delivery.
    pub id: DeliveryId,
    /// The fence by now.
    pub claim_gen: i32,
    /// When it was or is due.
    pub due_at: Timestamp,
    /// Whether a lease holds it.
    pub is_held: bool,
    /// Which lane's part it is in.
    pub priority: Option<Priority>,
}

/// Looks where claims are made, at the head of each lane in due order by `outstanding_due`. What is in flight was the
/// first that was due when it was claimed; before it can stand what committed late, was handed back or is retried by
/// hand, so some more than the cap is looked through, and never a backlog, nor what is parked behind others.
pub(in crate::store) const ELSEWHERE: &str = "
select e.id, case e.ordering when 3 then 1 else e.max_in_flight end, held.id, held.claim_gen
from endpoints e left join lateral (
  select head.id, head.claim_gen
  from unnest('{1,2,3}'::smallint[]) as p (priority) cross join lateral (
    select o.id, o.claim_gen, o.lease_until, o.replica from outstanding o
    where o.endpoint_id = e.id and o.priority = p.priority and o.due_at < 'infinity'
    order by o.priority, o.due_at
    limit e.max_in_flight * 4 + 1024
  ) head
  where head.lease_until > now() and head.replica <> $2
) held on true
where e.id = any($1)";

/// Reads by `outstanding_pkey`.
pub(in crate::store) const FOLLOW: &str = "
select id, claim_gen, due_at, coalesce(lease_until > now(), false), priority from outstanding where id = any($1)";

impl Store {
    /// What others have in flight at these endpoints; a deleted one may be missing.
    pub async fn in_flight_elsewhere(&self, endpoints: &[EndpointId]) -> Result<Vec<Elsewhere>> {
        if endpoints.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<(Uuid, i32, Option<Uuid>, Option<i32>)> = sqlx::query_as(ELSEWHERE)
            .bind(endpoints.iter().map(|id| id.uuid()).collect::<Vec<_>>())
            .bind(&self.replica)
            .fetch_all(&self.engine)
            .await?;
        let mut found: BTreeMap<Uuid, Elsewhere> = BTreeMap::new();
        for (endpoint, max_in_flight, id, claim_gen) in rows {
            let elsewhere = found.entry(endpoint).or_insert_with(|| Elsewhere {
                endpoint: EndpointId::from_uuid(endpoint),
                max_in_flight: count(max_in_flight),
                held: Vec::new(),
            });
            elsewhere.held.extend(id.map(DeliveryId::from_uuid).zip(claim_gen));
        }
        Ok(found.into_values().collect())
    }

    /// What these deliveries have come to; a settled one is missing.
    pub async fn follow(&self, ids: &[DeliveryId]) -> Result<Vec<Followed>> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.uuid()).collect();
        let rows: Vec<(Uuid, i32, PgTime, bool, i16)> =
            sqlx::query_as(FOLLOW).bind(ids).fetch_all(&self.engine).await?;
        let followed = |(id, claim_gen, due_at, is_held, priority): (_, _, PgTime, _, _)| Followed {
            id: DeliveryId::from_uuid(id),
            claim_gen,
            due_at: due_at.0,
            is_held,
            priority: Priority::from_number(priority),
        };
        Ok(rows.into_iter().map(followed).collect())
    }
}
