//! What is told of attempts that were lost with their workers, by whoever finds them: in the log, and in their traces the
//! spans that the workers did not send. It is read from the timeline, so that finding them costs nothing where none is.

use std::time::Duration;

use sqlx::FromRow;
use sqlx::types::Uuid;

use super::Store;
use super::error::Result;
use super::types::{PgTime, count};
use crate::domain::attempt::AttemptOutcome;
use crate::domain::id::{DeliveryId, EndpointId, EventId};
use crate::domain::time::Timestamp;
use crate::domain::trace::{TraceContext, TraceId};
use crate::telemetry::log::{DELIVERY, few};
use crate::telemetry::traces::Kind;

/// Reads `timeline_attempts` of one day, `events_pkey`, and `events_kept_pkey` for those without a trace.
const LOST: &str = "
select t.delivery_id, t.endpoint_id, t.event_id, t.tenant, t.event_type, t.number, t.started_at, t.duration_us, t.url,
       t.replica, t.error,
       coalesce((select e.trace from events e where e.id = t.event_id),
                (select k.trace from events_kept k where k.id = t.event_id)) as trace
from timeline t
where t.delivery_id = any($1) and t.time = $2 and t.number is not null and t.outcome = 9";

/// An attempt whose worker was lost, as it is on record.
#[derive(Debug, FromRow)]
struct Lost {
    delivery_id: Uuid,
    endpoint_id: Uuid,
    event_id: Uuid,
    tenant: String,
    event_type: String,
    number: i32,
    started_at: PgTime,
    duration_us: i64,
    url: Option<String>,
    replica: Option<String>,
    error: String,
    trace: Option<Vec<u8>>,
}

impl Store {
    /// Tells of the attempts of these deliveries that went on record as lost at that time. The line for all of them names
    /// the first few, and at `debug` each has its own.
    pub async fn tell_of_lost(&self, deliveries: &[DeliveryId], at: Timestamp) {
        if deliveries.is_empty() {
            return;
        }
        let told = self.lost(deliveries, at).await;
        let (read, error) = match &told {
            Ok(lost) => (lost.as_slice(), None),
            Err(error) => (&[][..], Some(tracing::field::display(error))),
        };
        tracing::info!(
            target: DELIVERY,
            attempts = deliveries.len(),
            deliveries = %few(deliveries),
            trace_ids = %few(read.iter().map(Lost::trace_id)),
            // Why no more is known of them.
            error,
            "attempts were lost with their workers"
        );
        for one in read {
            one.log();
            self.trace_lost(one);
        }
    }

    async fn lost(&self, deliveries: &[DeliveryId], at: Timestamp) -> Result<Vec<Lost>> {
        let ids: Vec<Uuid> = deliveries.iter().map(|id| id.uuid()).collect();
        Ok(sqlx::query_as(LOST).bind(ids).bind(PgTime(at)).fetch_all(&self.reader).await?)
    }

    /// Records the span that the worker did not, with the id that its receiver was told.
    fn trace_lost(&self, lost: &Lost) {
        let Some(traces) = self.traces() else { return };
        if let Some(span) = traces.begin(Kind::Client, "POST", lost.trace().as_ref(), lost.started_at.0) {
            let url = lost.url.as_deref();
            let span = span
                .of_delivery(lost.event(), lost.delivery(), lost.endpoint())
                .of_attempt(lost.delivery(), count(lost.number), &lost.event_type, url)
                .with("webhook.attempt.outcome", AttemptOutcome::Lost.as_str())
                .failed(lost.error.clone());
            let span = match &lost.replica {
                Some(replica) => span.with("webhook.attempt.replica", replica.clone()),
                None => span,
            };
            // Its lease held until then.
            let micros = u64::try_from(lost.duration_us).unwrap_or_default();
            traces.end(span, lost.started_at.0.plus(Duration::from_micros(micros)));
        }
    }
}

impl Lost {
    const fn delivery(&self) -> DeliveryId {
        DeliveryId::from_uuid(self.delivery_id)
    }

    const fn endpoint(&self) -> EndpointId {
        EndpointId::from_uuid(self.endpoint_id)
    }

    const fn event(&self) -> EventId {
        EventId::from_uuid(self.event_id)
    }

    fn trace(&self) -> Option<TraceContext> {
        self.trace.as_deref().and_then(TraceContext::from_bytes)
    }

    fn trace_id(&self) -> TraceId {
        self.trace().map_or(TraceId::of_event(self.event()), |trace| trace.trace_id())
    }

    fn log(&self) {
        tracing::debug!(
            target: DELIVERY,
            delivery = %self.delivery(),
            event = %self.event(),
            endpoint = %self.endpoint(),
            trace_id = %self.trace_id(),
            tenant = self.tenant,
            event_type = self.event_type,
            attempt = self.number,
            outcome = AttemptOutcome::Lost.as_str(),
            error = self.error,
            replica = self.replica,
            "an attempt was lost with its worker"
        );
    }
}
