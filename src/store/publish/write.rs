//! The statement that publishes a batch: events, deliveries and their first timeline rows in one commit.

use std::collections::HashMap;

use sqlx::types::{Json, Uuid};
use sqlx::{Connection as _, PgConnection, Row};

use super::plan::Plan;
use crate::domain::cloudevents::Source;
use crate::domain::time::Timestamp;
use crate::store::Store;
use crate::store::error::Result;
use crate::store::idempotency;
use crate::store::types::PgTime;

/// What came of writing a batch.
pub(super) enum Written {
    /// It is committed, but for the plans at `lost`, ascending: somebody took their keys first.
    All { at: Timestamp, lost: Vec<usize> },
    /// Nothing is committed: a tenant's endpoints have changed since, and are known anew by now.
    NothingMatchedAnew,
}

/// One statement and one commit for all callers in flight. It proves that what was matched is current: an endpoint
/// whose registration was acknowledged before the publish began is visible to this statement's snapshot.
/// Takes no lock on rows that others write; reads `tenants_pkey`.
const PUBLISH: &str = "
with stale as materialized (
  select m.tenant
  from unnest($1::text[], $2::bigint[]) as m (tenant, version)
  where m.version <> coalesce((select t.config_version from tenants t where t.tenant = m.tenant), 0)
), new_events as (
  insert into events (id, tenant, event_type, payload, content_type, idempotency_key, metadata, cloudevents_source)
  select e.id, e.tenant, e.event_type, e.payload, e.content_type, e.idempotency_key, e.metadata, e.cloudevents_source
  from unnest($3::uuid[], $4::text[], $5::text[], $6::bytea[], $7::text[], $8::text[], $9::jsonb[], $16::text[])
    as e (id, tenant, event_type, payload, content_type, idempotency_key, metadata, cloudevents_source)
  where not exists (select from stale)
), queued as (
  insert into outstanding (id, endpoint_id, event_id, due_at, state, priority, payload_format, tenant, event_type)
  select d.id, d.endpoint_id, d.event_id, now(), 1, 2, d.payload_format, d.tenant, d.event_type
  from unnest($10::uuid[], $11::uuid[], $12::uuid[], $13::smallint[], $14::text[], $15::text[])
    as d (id, endpoint_id, event_id, payload_format, tenant, event_type)
  where not exists (select from stale)
), told as (
  insert into timeline (time, delivery_id, endpoint_id, event_id, kind, state, priority, attempt_count,
                        next_attempt_at, tenant, event_type)
  select now(), d.id, d.endpoint_id, d.event_id, 1, 1, 2, 0, now(), d.tenant, d.event_type
  from unnest($10::uuid[], $11::uuid[], $12::uuid[], $13::smallint[], $14::text[], $15::text[])
    as d (id, endpoint_id, event_id, payload_format, tenant, event_type)
  where not exists (select from stale)
)
select now() as at, array(select tenant from stale) as stale";

/// Deliveries whose endpoint has as many outstanding as it may: on record as failed, to be retried when there is room.
const QUEUE_FULL: &str = "
with refused as (
  insert into settled_failed (id, endpoint_id, event_id, settle_time, claim_gen, attempt_count, last_status, state,
                              priority, payload_format, tenant, event_type, reason)
  select d.id, d.endpoint_id, d.event_id, now(), 0, 0, 0, 5, 2, d.payload_format, d.tenant, d.event_type, $7
  from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::smallint[], $5::text[], $6::text[])
    as d (id, endpoint_id, event_id, payload_format, tenant, event_type)
  returning id, endpoint_id, event_id, tenant, event_type
)
insert into timeline (time, delivery_id, endpoint_id, event_id, kind, state, priority, attempt_count, reason, tenant,
                      event_type)
select now(), id, endpoint_id, event_id, 5, 5, 2, 0, $7, tenant, event_type from refused";

/// Why a delivery failed that never waited.
const QUEUE_FULL_REASON: &str = "QUEUE_FULL: the endpoint has as many outstanding deliveries as it may";

/// Writes a batch in one commit.
pub(super) async fn write(store: &Store, batch: &[Plan]) -> Result<Written> {
    let mut connection = store.engine.lend().await?;
    let written = store.engine.bounded(write_on(&mut connection, batch)).await?;
    connection.give_back();
    let (published, lost) = written?;
    settle(store, published, lost).await
}

async fn write_on(connection: &mut PgConnection, batch: &[Plan]) -> Result<(PublishedBatch, Vec<usize>)> {
    let is_plain = batch.iter().all(|plan| plan.fingerprint.is_none() && plan.refused().next().is_none());
    if is_plain {
        // A single statement is its own transaction: no further round trips.
        return Ok((publish(connection, batch, &[]).await?, Vec::new()));
    }
    let mut transaction = connection.begin().await?;
    let lost = idempotency::claim(&mut transaction, batch).await?;
    let published = publish(&mut transaction, batch, &lost).await?;
    if published.stale.is_empty() {
        record_refused(&mut transaction, batch, &lost).await?;
        transaction.commit().await?;
    } else {
        transaction.rollback().await?;
    }
    Ok((published, lost))
}

struct PublishedBatch {
    at: Timestamp,
    stale: Vec<String>,
}

async fn settle(store: &Store, published: PublishedBatch, lost: Vec<usize>) -> Result<Written> {
    if published.stale.is_empty() {
        return Ok(Written::All { at: published.at, lost });
    }
    for tenant in published.stale {
        store.directory.load(&store.engine, &crate::domain::fields::Tenant::from_stored(tenant)).await?;
    }
    Ok(Written::NothingMatchedAnew)
}

async fn publish(connection: &mut PgConnection, batch: &[Plan], lost: &[usize]) -> Result<PublishedBatch> {
    let plans = || winners(batch, lost);
    let matched: HashMap<&str, i64> =
        plans().map(|plan| (plan.waiting.event.tenant.as_str(), plan.config_version)).collect();
    let (tenants, versions): (Vec<&str>, Vec<i64>) = matched.into_iter().unzip();
    let events: Vec<&Plan> = plans().filter(|plan| plan.is_new_event).collect();
    let column = |of: fn(&Plan) -> &str| events.iter().map(|plan| of(plan)).collect::<Vec<&str>>();
    let metadata =
        |plan: &Plan| Some(&plan.waiting.event.metadata).filter(|map| !map.is_empty()).map(|map| Json(map.clone()));
    let rows = DeliveryColumns::of(plans().flat_map(|plan| plan.queued().map(move |delivery| (plan, delivery))));
    let row = sqlx::query(PUBLISH)
        .bind(tenants)
        .bind(versions)
        .bind(events.iter().map(|plan| plan.event_id.uuid()).collect::<Vec<_>>())
        .bind(column(|plan| plan.waiting.event.tenant.as_str()))
        .bind(column(|plan| plan.waiting.event.event_type.as_str()))
        .bind(events.iter().map(|plan| plan.waiting.event.payload.as_ref()).collect::<Vec<&[u8]>>())
        .bind(column(|plan| plan.waiting.event.content_type.as_str()))
        .bind(events.iter().map(|plan| plan.waiting.event.idempotency_key.as_deref()).collect::<Vec<_>>())
        .bind(events.iter().map(|plan| metadata(plan)).collect::<Vec<_>>())
        .bind(rows.ids)
        .bind(rows.endpoints)
        .bind(rows.events)
        .bind(rows.formats)
        .bind(rows.tenants)
        .bind(rows.types)
        .bind(events.iter().map(|plan| plan.waiting.event.source.as_ref().map(Source::as_str)).collect::<Vec<_>>())
        .fetch_one(connection)
        .await?;
    Ok(PublishedBatch { at: row.try_get::<PgTime, _>("at")?.0, stale: row.try_get("stale")? })
}

async fn record_refused(connection: &mut PgConnection, batch: &[Plan], lost: &[usize]) -> Result<()> {
    let refused = winners(batch, lost).flat_map(|plan| plan.refused().map(move |delivery| (plan, delivery)));
    let rows = DeliveryColumns::of(refused);
    if rows.ids.is_empty() {
        return Ok(());
    }
    sqlx::query(QUEUE_FULL)
        .bind(rows.ids)
        .bind(rows.endpoints)
        .bind(rows.events)
        .bind(rows.formats)
        .bind(rows.tenants)
        .bind(rows.types)
        .bind(QUEUE_FULL_REASON)
        .execute(connection)
        .await?;
    Ok(())
}

/// The plans whose keys nobody took; `lost` is ascending.
fn winners<'b>(batch: &'b [Plan], lost: &'b [usize]) -> impl Iterator<Item = &'b Plan> {
    batch.iter().enumerate().filter(|(place, _)| lost.binary_search(place).is_err()).map(|(_, plan)| plan)
}

/// Deliveries as the columns that both statements unnest.
#[derive(Default)]
struct DeliveryColumns<'p> {
    ids: Vec<Uuid>,
    endpoints: Vec<Uuid>,
    events: Vec<Uuid>,
    formats: Vec<i16>,
    tenants: Vec<&'p str>,
    types: Vec<&'p str>,
}

impl<'p> DeliveryColumns<'p> {
    fn of(deliveries: impl Iterator<Item = (&'p Plan, &'p super::plan::PlannedDelivery)>) -> Self {
        let mut columns = Self::default();
        for (plan, delivery) in deliveries {
            columns.ids.push(delivery.id.uuid());
            columns.endpoints.push(delivery.to.id.uuid());
            columns.events.push(plan.event_id.uuid());
            columns.formats.push(delivery.to.format.number());
            columns.tenants.push(plan.waiting.event.tenant.as_str());
            columns.types.push(plan.waiting.event.event_type.as_str());
        }
        columns
    }
}
