//! What lets a lane's requests through, as the database has it, and the transitions of circuits.
//!
//! A transition stands on the endpoint's row before anything goes by it, and every claim looks at that row: an open
//! circuit is known to whoever drives the lane next, after any crash.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Uuid;

use super::Store;
use super::endpoints::rows::{read_count, read_rate_limit};
use super::error::Result;
use super::history::DeliveryRow;
use super::types::{PgTime, count, micros, stored};
use crate::domain::delivery::DeliveryState;
use crate::domain::endpoint::EndpointState;
use crate::domain::fields::Tenant;
use crate::domain::id::EndpointId;
use crate::domain::rate::RateLimit;
use crate::domain::time::Timestamp;

/// What a lane has to know of its endpoint before anything is claimed for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Gates {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Whose it is.
    pub tenant: Tenant,
    /// The version these values are of.
    pub version: i64,
    /// Whether it is neither paused nor disabled.
    pub is_active: bool,
    /// How many requests at once.
    pub max_in_flight: u32,
    /// How many a second.
    pub rate_limit: Option<RateLimit>,
    /// Failures in a row that open its circuit; 0 means never.
    pub failure_threshold: u32,
    /// Set while its circuit is not closed: when it may be probed.
    pub circuit_until: Option<Timestamp>,
}

/// An endpoint that failed, after a batch of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failing {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Failures since its last success, of every replica.
    pub consecutive_failures: u32,
    /// When the first of them was put on record.
    pub since: Timestamp,
}

/// What a waiting delivery waits for beside its time.
#[derive(Debug, Clone, PartialEq)]
pub enum HeldUp {
    /// The endpoint is paused.
    Paused,
    /// The endpoint is disabled, for this reason.
    Disabled(String),
    /// The endpoint's circuit is open until then.
    CircuitOpen(Timestamp),
    /// A probe shows whether the endpoint is back.
    Probe,
    /// The endpoint takes no more requests a second than this.
    RateLimit(f64),
}

/// Reads by `endpoints_pkey`, endpoint by endpoint: with an array, an empty table's statistics make it a scan of another
/// index. A FIFO endpoint has one request at a time, whatever its cap.
pub(super) const GATES: &str = "
select e.*
from unnest($1::uuid[]) as q (id) cross join lateral (
  select e.id, e.tenant, e.version, e.state, case e.ordering when 3 then 1 else e.max_in_flight end as max_in_flight,
         e.rate_per_second, e.rate_burst, e.circuit_threshold, e.circuit_until
  from endpoints e where e.id = q.id and e.delete_time is null
  limit 1
) e";

/// What holds up what waits for endpoints. Reads by `endpoints_pkey`.
const HELD_UP: &str = "
select e.id, e.state, e.disabled_reason, e.circuit_until, e.circuit_until <= now(), e.rate_per_second, now()
from endpoints e where e.id = any($1) and (e.state <> 1 or e.circuit_until is not null or e.rate_per_second is not null)";

/// The count is looked at again: ResumeEndpoint may have begun it anew.
const OPEN: &str = "
update endpoints e
set circuit_until = now() + $3 * interval '1 microsecond', circuit_opened_at = now(), circuit_openings = 1
where e.id = $1 and e.version = $2 and e.circuit_until is null and e.delete_time is null
  and exists (select from endpoint_health h where h.endpoint_id = e.id and h.consecutive_failures >= $4)";

/// `$4` tells how often it had opened when the probe left: of one that was closed since, this changes nothing.
const REOPEN: &str = "
update endpoints e
set circuit_until = now() + $3 * interval '1 microsecond', circuit_opened_at = now(), circuit_openings = $4 + 1
where e.id = $1 and e.version = $2 and e.circuit_openings = $4 and e.delete_time is null";

const CLOSE: &str = "
update endpoints e set circuit_until = null, circuit_opened_at = null, circuit_openings = 0
where e.id = $1 and e.circuit_openings = $2 and e.delete_time is null";

impl Store {
    /// What lets these endpoints' requests through; a deleted one is missing.
    pub async fn gates(&self, endpoints: &[EndpointId]) -> Result<Vec<Gates>> {
        let ids: Vec<Uuid> = endpoints.iter().map(|id| id.uuid()).collect();
        let rows = sqlx::query(GATES).bind(ids).fetch_all(&self.engine).await?;
        rows.iter().map(read_gates).collect()
    }

    /// Tells of waiting deliveries what holds them up at their endpoints. One more statement, where any waits.
    pub(super) async fn tell_held_up(&self, rows: &mut [DeliveryRow]) -> Result<()> {
        let waits = |row: &&mut DeliveryRow| matches!(row.state, DeliveryState::Pending | DeliveryState::Retrying);
        let mut ids: Vec<Uuid> = rows.iter_mut().filter(waits).map(|row| row.endpoint.uuid()).collect();
        ids.sort_unstable();
        ids.dedup();
        if ids.is_empty() {
            return Ok(());
        }
        let found = sqlx::query(HELD_UP).bind(ids).fetch_all(&self.reader).await?;
        let by_endpoint: HashMap<Uuid, &PgRow> =
            found.iter().map(|row| Ok((row.try_get(0)?, row))).collect::<Result<_>>()?;
        for row in rows.iter_mut().filter(waits) {
            if let Some(gates) = by_endpoint.get(&row.endpoint.uuid()) {
                row.held_up = read_held_up(gates, row.due_at)?;
            }
        }
        Ok(())
    }

    /// Opens the closed circuit of an endpoint that is still at `version` and has failed `threshold` times in a row, for
    /// `wait`. Answers whether it did.
    pub async fn open_circuit(&self, id: EndpointId, version: i64, wait: Duration, threshold: u32) -> Result<bool> {
        self.change_circuit(OPEN, id, version, wait, i64::from(threshold)).await
    }

    /// Opens the circuit again, which had opened `openings` times when a probe left that has failed.
    pub async fn reopen_circuit(&self, id: EndpointId, version: i64, wait: Duration, openings: u32) -> Result<bool> {
        self.change_circuit(REOPEN, id, version, wait, i64::from(openings)).await
    }

    /// Closes the circuit, which had opened `openings` times when a probe left that has succeeded.
    pub async fn close_circuit(&self, id: EndpointId, openings: u32) -> Result<bool> {
        let query = sqlx::query(CLOSE).bind(id.uuid()).bind(openings.cast_signed());
        let is_changed = query.execute(&self.engine).await?.rows_affected() > 0;
        self.hint_changed(id);
        Ok(is_changed)
    }

    async fn change_circuit(
        &self,
        statement: &'static str,
        id: EndpointId,
        version: i64,
        wait: Duration,
        count: i64,
    ) -> Result<bool> {
        let query = sqlx::query(statement).bind(id.uuid()).bind(version).bind(micros(wait)).bind(count);
        let is_changed = query.execute(&self.engine).await?.rows_affected() > 0;
        // Also where it did not: whoever waits for the verdict should look.
        self.hint_changed(id);
        Ok(is_changed)
    }
}

fn read_gates(row: &PgRow) -> Result<Gates> {
    Ok(Gates {
        endpoint: EndpointId::from_uuid(row.try_get("id")?),
        tenant: Tenant::from_stored(row.try_get("tenant")?),
        version: row.try_get("version")?,
        is_active: row.try_get::<i16, _>("state")? == 1,
        max_in_flight: count(row.try_get("max_in_flight")?),
        rate_limit: read_rate_limit(row)?,
        failure_threshold: read_count(row, "circuit_threshold")?,
        circuit_until: row.try_get::<Option<PgTime>, _>("circuit_until")?.map(|time| time.0),
    })
}

/// Of a delivery that is due then: a rate limit holds up only what is.
fn read_held_up(row: &PgRow, due_at: Option<Timestamp>) -> Result<Option<HeldUp>> {
    let circuit_until: Option<PgTime> = row.try_get(3)?;
    let now: PgTime = row.try_get(6)?;
    Ok(match stored("endpoint state", row.try_get(1)?, EndpointState::from_number)? {
        EndpointState::Paused => Some(HeldUp::Paused),
        EndpointState::Disabled => Some(HeldUp::Disabled(row.try_get::<Option<_>, _>(2)?.unwrap_or_default())),
        EndpointState::Active => match (circuit_until, row.try_get(4)?) {
            (Some(_), Some(true)) => Some(HeldUp::Probe),
            (Some(until), _) => Some(HeldUp::CircuitOpen(until.0)),
            (None, _) if due_at.is_some_and(|at| at > now.0) => None,
            (None, _) => row.try_get::<Option<f64>, _>(5)?.map(HeldUp::RateLimit),
        },
    })
}
