//! Pausing, disabling and resuming endpoints, and what is recorded while nothing is claimed for one.

use sqlx::types::Uuid;

use super::Store;
use super::error::Result;
use super::types::PgTime;
use crate::domain::attempt::AttemptOutcome;
use crate::domain::id::{DeliveryId, EndpointId};

/// A disabled endpoint stays disabled: nothing is sent to it either.
const PAUSE: &str = "
update endpoints set state = 2, version = version + 1, update_time = now()
where id = $1 and state = 1 and delete_time is null";

/// Closes the circuit and begins to count failures anew; the etag moves only where the state does.
const RESUME: &str = "
with resumed as (
  update endpoints
  set state = 1, disabled_reason = null, circuit_until = null, circuit_opened_at = null, circuit_openings = 0,
      version = version + (state <> 1)::int, update_time = case when state <> 1 then now() else update_time end
  where id = $1 and (state <> 1 or circuit_until is not null) and delete_time is null
  returning id
)
update endpoint_health h set consecutive_failures = 0, failing_since = null
from resumed r where h.endpoint_id = r.id";

/// One that was changed since the attempt is judged by its next one.
const DISABLE: &str = "
update endpoints set state = 3, disabled_reason = $3, version = version + 1, update_time = now()
where id = $1 and version = $2 and state = 1 and delete_time is null";

/// Records attempts as LOST whose worker died, of endpoints for which no claim would: the delivery waits again, and no
/// retry is spent. What was in flight is at the front of its lane, so the rest of a backlog is not read (`$1` rows a
/// priority). Reads by `endpoints_stopped`, `endpoints_tripped` and `outstanding_due`, locks by `outstanding_pkey`.
const LOSE_LAPSED: &str = "
with lapsed as materialized (
  select f.id, f.attempt_started_at, f.lease_until, f.replica, f.trigger, f.shown_url
  from (
    select id, shown_url from endpoints where state <> 1 and delete_time is null
    union all
    select id, shown_url from endpoints where state = 1 and circuit_until is not null and delete_time is null
  ) e cross join unnest(array[1, 2, 3]::smallint[]) as p (priority) cross join lateral (
    select o.id, o.state, o.attempt_started_at, o.lease_until, o.replica, o.trigger, e.shown_url
    from outstanding o where o.endpoint_id = e.id and o.priority = p.priority
    order by o.endpoint_id, o.priority, o.due_at limit $1
  ) f
  where f.state = 2 and f.lease_until <= now()
), lost as (
  update outstanding o
  set state = 3, lease_until = null, attempt_started_at = null, lost_count = o.lost_count + 1,
      claim_gen = o.claim_gen + 1
  where o.id = any(array(select id from lapsed)) and o.state = 2 and o.lease_until <= now() and not o.cancel_requested
  returning o.id, o.endpoint_id, o.event_id, o.priority, o.attempt_count, o.tenant, o.event_type
), told as (
  insert into timeline (time, delivery_id, endpoint_id, event_id, kind, state, priority, attempt_count, number,
                        started_at, duration_us, next_attempt_at, trigger, outcome, tenant, event_type, url, error,
                        replica)
  select now(), o.id, o.endpoint_id, o.event_id, 3, 3, o.priority, o.attempt_count, o.attempt_count,
         l.attempt_started_at, (extract(epoch from l.lease_until - l.attempt_started_at) * 1000000)::bigint, now(),
         l.trigger, 9, o.tenant, o.event_type, l.shown_url, 'the worker was lost before the result was on record',
         l.replica
  from lost o join lapsed l on l.id = o.id
)
select id, now() from lost";

/// Rows of a lane that are looked at: as many as it may have in flight, twice.
const LANE_FRONT: i64 = 2_048;

impl Store {
    /// Pauses an endpoint that is active: from now on nothing is claimed for it. Whether there is one is not told.
    pub async fn pause_endpoint(&self, id: EndpointId) -> Result<()> {
        sqlx::query(PAUSE).bind(id.uuid()).execute(&self.reader).await?;
        self.hint_changed(id);
        Ok(())
    }

    /// Makes an endpoint active again and closes its circuit: what waits for it is due.
    pub async fn resume_endpoint(&self, id: EndpointId) -> Result<()> {
        sqlx::query(RESUME).bind(id.uuid()).execute(&self.reader).await?;
        self.hint_changed(id);
        Ok(())
    }

    /// Disables an endpoint that is active and still at `version`: from now on nothing is claimed for it. Answers whether
    /// it was.
    pub async fn disable_endpoint(&self, id: EndpointId, version: i64, reason: &str) -> Result<bool> {
        let query = sqlx::query(DISABLE).bind(id.uuid()).bind(version).bind(reason);
        let is_disabled = query.execute(&self.engine).await?.rows_affected() > 0;
        if is_disabled {
            self.hint_changed(id);
        }
        Ok(is_disabled)
    }

    /// Records lost attempts of endpoints that are not active, or whose circuit is not closed; answers how many.
    pub async fn lose_lapsed(&self) -> Result<u64> {
        let rows: Vec<(Uuid, PgTime)> = sqlx::query_as(LOSE_LAPSED).bind(LANE_FRONT).fetch_all(&self.engine).await?;
        let Some((_, at)) = rows.first().copied() else { return Ok(0) };
        let lost: Vec<_> = rows.into_iter().map(|(id, _)| DeliveryId::from_uuid(id)).collect();
        self.metrics.attempts(AttemptOutcome::Lost).inc_by(lost.len() as u64);
        self.hint(Vec::new());
        self.tell_of_lost(&lost, at.0).await;
        Ok(lost.len() as u64)
    }
}
