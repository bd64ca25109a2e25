//! The statement that publishes a batch: events, deliveries and their first timeline rows in one commit.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Instant;

use sqlx::types::{Json, Uuid};
use sqlx::{Connection as _, PgConnection, Row};

use super::columns::{DeliveryColumns, sparse};
use super::plan::{Plan, PlannedDelivery};
use crate::domain::cloudevents::Source;
use crate::domain::schedule::Priority;
use crate::domain::time::Timestamp;
use crate::domain::trace::TraceContext;
use crate::store::error::Result;
use crate::store::offers::Taking;
use crate::store::order::OrderKey;
use crate::store::queue::LEASE;
use crate::store::stats::Event;
use crate::store::types::PgTime;
use crate::store::{Store, idempotency, inbox, order};

/// What came of writing a batch.
pub(super) enum Written<'s> {
    /// It is committed, but for the plans at `lost`, ascending: somebody took their keys first. The deliveries that still
    /// have an offer are claimed.
    All { at: Timestamp, lost: Vec<usize>, taking: Taking<'s> },
    /// Nothing is committed: a tenant's endpoints have changed since, and are known anew by now.
    NothingMatchedAnew,
    /// Nothing is committed: another replica has published the plans at these places, ascending, from the inbox.
    TakenElsewhere { places: Vec<usize> },
}

/// One statement and one commit for all callers in flight. It proves that what was matched is current: an endpoint
/// whose registration was acknowledged before the publish began is visible to this statement's snapshot.
/// Arrays are unnested side by side in a select list: in a from clause each would first be copied row by row. `offset 0`
/// keeps a row's claim from being judged anew wherever it is asked for.
/// Takes no lock on rows that others write; reads `tenants_pkey`. Arrays of what few events have are empty where none has
/// it, and unnest to nulls. Places in an order are drawn in the arrays' order, under the locks of their keys.
/// What is queued of one event from the same moment on is one row of the timeline, from place `$33` to place `$34` of the
/// deliveries.
/// What takes a lane's offer is claimed here, as a claim would a moment later: for endpoints that are as their lanes know
/// them, by `endpoints_pkey`, and only by a replica that the others have not given up.
pub(in crate::store) const PUBLISH: &str = "
with offered as materialized (
  select array_agg(
    exists (
      select from endpoints e
      where e.id = o.endpoint_id and e.version = o.version and e.state = 1 and e.circuit_until is null
        and e.delete_time is null
    ) and ($30::uuid is null or exists (select from replicas r where r.id = $30)) order by o.place) as stands
  from unnest($28::uuid[], $29::bigint[]) with ordinality as o (endpoint_id, version, place)
), stale as materialized (
  select m.tenant
  from unnest($1::text[], $2::bigint[]) as m (tenant, version)
  where m.version <> coalesce((select t.config_version from tenants t where t.tenant = m.tenant), 0)
), new_events as (
  insert into events (id, tenant, event_type, payload, content_type, idempotency_key, metadata, cloudevents_source,
                      priority, ordering_key, deliver_time, expire_time, trace)
  select e.id, e.tenant, e.event_type, e.payload, e.content_type, e.idempotency_key, e.metadata, e.cloudevents_source,
         coalesce(e.priority, 2), e.ordering_key, e.deliver_time, e.expire_time, e.trace
  from (
    select unnest($3::uuid[]) as id, unnest($4::text[]) as tenant, unnest($5::text[]) as event_type,
           unnest($6::bytea[]) as payload, unnest($7::text[]) as content_type, unnest($8::text[]) as idempotency_key,
           unnest($9::jsonb[]) as metadata, unnest($16::text[]) as cloudevents_source,
           unnest($17::smallint[]) as priority, unnest($18::text[]) as ordering_key,
           unnest($19::timestamptz[]) as deliver_time, unnest($20::timestamptz[]) as expire_time,
           unnest($26::bytea[]) as trace
  ) e
  where not exists (select from stale)
), queued as (
  insert into outstanding (id, endpoint_id, event_id, due_at, priority, payload_format, tenant, event_type, expire_at,
                           order_key, seq, state, attempt_count, claim_gen, lease_until, attempt_started_at, replica)
  select d.id, d.endpoint_id, d.event_id, case when d.is_parked then 'infinity' else greatest(d.deliver_at, now()) end,
         coalesce(d.priority, 2), d.payload_format, d.tenant, d.event_type, d.expire_at, d.order_key,
         case when d.order_key is not null then nextval('order_seq') end,
         case when d.is_claimed then 2 else 1 end, d.is_claimed::int, d.is_claimed::int,
         case when d.is_claimed then now() + make_interval(secs => $31) end, case when d.is_claimed then now() end,
         case when d.is_claimed then $32 end
  from (
    select u.*, coalesce((select stands from offered)[u.offer], false) as is_claimed
    from (
      select unnest($10::uuid[]) as id, unnest($11::uuid[]) as endpoint_id, unnest($12::uuid[]) as event_id,
             unnest($13::smallint[]) as payload_format, unnest($14::text[]) as tenant, unnest($15::text[]) as event_type,
             unnest($21::smallint[]) as priority, unnest($22::timestamptz[]) as deliver_at,
             unnest($23::timestamptz[]) as expire_at, unnest($24::text[]) as order_key,
             unnest($25::boolean[]) as is_parked, unnest($27::int[]) as offer
    ) u
    offset 0
  ) d
  where not exists (select from stale)
), told as (
  insert into timeline (time, delivery_id, endpoint_id, event_id, kind, state, priority, attempt_count,
                        next_attempt_at, tenant, event_type, more_deliveries, more_endpoints)
  select now(), ($10::uuid[])[g.first], ($11::uuid[])[g.first], ($12::uuid[])[g.first], 1, 1,
         coalesce(($21::smallint[])[g.first], 2), 0,
         case when ($25::boolean[])[g.first] then null else greatest(($22::timestamptz[])[g.first], now()) end,
         ($14::text[])[g.first], ($15::text[])[g.first],
         case when g.first < g.last then ($10::uuid[])[g.first + 1:g.last] end,
         case when g.first < g.last then ($11::uuid[])[g.first + 1:g.last] end
  from (select unnest($33::int[]) as first, unnest($34::int[]) as last) g
  where not exists (select from stale)
)
select now() as at, array(select tenant from stale) as stale, (select stands from offered) as stands";

/// Deliveries whose endpoint has as many outstanding as it may: on record as failed, to be retried when there is room.
/// They have no place in an order and block nothing; retried, they join its end.
const QUEUE_FULL: &str = "
with refused as (
  insert into settled_failed (id, endpoint_id, event_id, settle_time, claim_gen, attempt_count, last_status, state,
                              priority, payload_format, tenant, event_type, reason, expire_at, order_key, seq)
  select d.id, d.endpoint_id, d.event_id, now(), 0, 0, 0, 5, coalesce(d.priority, 2), d.payload_format, d.tenant,
         d.event_type, $7, d.expire_at, d.order_key, case when d.order_key is not null then 0 end
  from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::smallint[], $5::text[], $6::text[],
              $8::smallint[], $9::timestamptz[], $10::text[])
    as d (id, endpoint_id, event_id, payload_format, tenant, event_type, priority, expire_at, order_key)
  returning id, endpoint_id, event_id, priority, tenant, event_type
)
insert into timeline (time, delivery_id, endpoint_id, event_id, kind, state, priority, attempt_count, reason, tenant,
                      event_type)
select now(), id, endpoint_id, event_id, 5, 5, priority, 0, $7, tenant, event_type from refused";

/// Why a delivery failed that never waited.
const QUEUE_FULL_REASON: &str = "QUEUE_FULL: the endpoint has as many outstanding deliveries as it may";

/// Deliveries that a repeat adds to the first event; their ids do not tell whose they are.
const APART: &str = "
insert into deliveries_apart (delivery_id, event_id, tenant)
select d.id, d.event_id, d.tenant from unnest($1::uuid[], $2::uuid[], $3::text[]) as d (id, event_id, tenant)";

/// Writes a batch in one commit.
pub(super) async fn write<'s>(store: &'s Store, batch: &mut [Plan]) -> Result<Written<'s>> {
    let began = Instant::now();
    let mut connection = store.engine.lend().await?;
    // Not before: a claim lasts from its statement on.
    let mut taking = store.offers.begin(store.clock.now());
    for delivery in batch.iter_mut().flat_map(Plan::claimable) {
        delivery.offer = taking.take(delivery.to.id);
    }
    let written = store.engine.bounded(write_on(store, &mut connection, batch, &taking)).await?;
    connection.give_back_after(&written);
    let (published, lost) = match written? {
        Wrote::Batch(published, lost) => (published, lost),
        Wrote::TakenElsewhere(places) => return Ok(Written::TakenElsewhere { places }),
    };
    if published.stale.is_empty() {
        store.metrics.publishes.observe(began.elapsed(), batch.len() - lost.len());
        let failed = Event { is_failed: true, ..Event::default() };
        let refused = winners(batch, &lost).flat_map(Plan::refused).map(|delivery| (delivery.to.id, failed));
        store.stats.count(published.at, refused);
    }
    for delivery in batch.iter_mut().flat_map(Plan::claimable) {
        delivery.offer = delivery.offer.filter(|place| published.stands.get(*place).is_some_and(|stands| *stands));
    }
    settle(store, published, lost, taking).await
}

enum Wrote {
    /// What became of a batch, and which plans lost their keys.
    Batch(PublishedBatch, Vec<usize>),
    TakenElsewhere(Vec<usize>),
}

async fn write_on(store: &Store, connection: &mut PgConnection, batch: &[Plan], taking: &Taking<'_>) -> Result<Wrote> {
    let is_plain = batch.iter().all(|plan| {
        plan.fingerprint.is_none()
            && plan.waiting.taken_from.is_none()
            && plan.deliveries.iter().all(PlannedDelivery::is_unordered_and_queued)
    });
    if is_plain {
        // A single statement is its own transaction: no further round trips.
        return Ok(Wrote::Batch(publish(store, connection, batch, &[], HashSet::new(), taking).await?, Vec::new()));
    }
    let mut transaction = connection.begin().await?;
    let from_inbox: Vec<i64> = batch.iter().filter_map(Plan::taken_from).collect();
    if !from_inbox.is_empty() {
        let gone = inbox::take(&mut transaction, from_inbox).await?;
        if !gone.is_empty() {
            transaction.rollback().await?;
            let is_gone = |plan: &Plan| plan.taken_from().is_some_and(|seq| gone.contains(&seq));
            let places = batch.iter().enumerate().filter(|(_, plan)| is_gone(plan)).map(|(place, _)| place);
            return Ok(Wrote::TakenElsewhere(places.collect()));
        }
    }
    let lost = idempotency::claim(&mut transaction, batch).await?;
    let keys: BTreeSet<OrderKey<'_>> = queued(batch, &lost).filter_map(|(plan, to)| plan.order_key(to)).collect();
    let free = if keys.is_empty() { HashSet::new() } else { order::join(&mut transaction, &keys).await? };
    let published = publish(store, &mut transaction, batch, &lost, free, taking).await?;
    if published.stale.is_empty() {
        record_refused(&mut transaction, batch, &lost).await?;
        record_apart(&mut transaction, batch, &lost).await?;
        transaction.commit().await?;
    } else {
        transaction.rollback().await?;
    }
    Ok(Wrote::Batch(published, lost))
}

struct PublishedBatch {
    at: Timestamp,
    stale: Vec<String>,
    /// Whether the offers taken are still those of their endpoints, by their places.
    stands: Vec<bool>,
}

async fn settle<'s>(
    store: &'s Store,
    published: PublishedBatch,
    lost: Vec<usize>,
    taking: Taking<'s>,
) -> Result<Written<'s>> {
    if published.stale.is_empty() {
        return Ok(Written::All { at: published.at, lost, taking });
    }
    for tenant in published.stale {
        store.directory.load(&store.engine, &crate::domain::fields::Tenant::from_stored(tenant)).await?;
    }
    Ok(Written::NothingMatchedAnew)
}

/// `free` are the keys that have nothing before this batch.
async fn publish<'b>(
    store: &Store,
    connection: &mut PgConnection,
    batch: &'b [Plan],
    lost: &'b [usize],
    free: HashSet<OrderKey<'b>>,
    taking: &Taking<'_>,
) -> Result<PublishedBatch> {
    let plans = || winners(batch, lost);
    let matched: HashMap<&str, i64> =
        plans().map(|plan| (plan.waiting.event.tenant.as_str(), plan.config_version)).collect();
    let (tenants, versions): (Vec<&str>, Vec<i64>) = matched.into_iter().unzip();
    let events: Vec<&Plan> = plans().filter(|plan| plan.is_new_event).collect();
    let column = |of: fn(&Plan) -> &str| events.iter().map(|plan| of(plan)).collect::<Vec<&str>>();
    let metadata =
        |plan: &Plan| Some(&plan.waiting.event.metadata).filter(|map| !map.is_empty()).map(|map| Json(map.clone()));
    let rows = DeliveryColumns::of(queued(batch, lost), free);
    let (offering, versions_offering): (Vec<Uuid>, Vec<i64>) =
        taking.endpoints().map(|(endpoint, version)| (endpoint.uuid(), version)).unzip();
    let schedules = || events.iter().map(|plan| &plan.waiting.event.schedule);
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
        .bind(sparse(schedules().map(|one| Some(one.priority.number()).filter(|_| one.priority != Priority::Normal))))
        .bind(sparse(schedules().map(|one| one.ordering_key.as_deref())))
        .bind(sparse(schedules().map(|one| one.deliver_time.map(PgTime))))
        .bind(sparse(schedules().map(|one| one.expire_time.map(PgTime))))
        .bind(sparse(rows.priorities))
        .bind(sparse(rows.deliver_at))
        .bind(sparse(rows.expire_at))
        .bind(sparse(rows.order_keys))
        .bind(sparse(rows.parked))
        .bind(sparse(events.iter().map(|plan| plan.waiting.event.trace.as_ref().map(TraceContext::to_bytes))))
        .bind(sparse(rows.offers))
        .bind(offering)
        .bind(versions_offering)
        .bind(store.claims_as())
        .bind(LEASE.as_secs_f64())
        .bind(store.replica())
        .bind(rows.told.firsts)
        .bind(rows.told.lasts)
        .fetch_one(connection)
        .await?;
    Ok(PublishedBatch {
        at: row.try_get::<PgTime, _>("at")?.0,
        stale: row.try_get("stale")?,
        stands: row.try_get::<Option<_>, _>("stands")?.unwrap_or_default(),
    })
}

async fn record_refused(connection: &mut PgConnection, batch: &[Plan], lost: &[usize]) -> Result<()> {
    let refused = winners(batch, lost).flat_map(|plan| plan.refused().map(move |delivery| (plan, delivery)));
    let rows = DeliveryColumns::of(refused, HashSet::new());
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
        .bind(sparse(rows.priorities))
        .bind(sparse(rows.expire_at))
        .bind(sparse(rows.order_keys))
        .execute(connection)
        .await?;
    Ok(())
}

async fn record_apart(connection: &mut PgConnection, batch: &[Plan], lost: &[usize]) -> Result<()> {
    let added = winners(batch, lost).filter(|plan| !plan.is_new_event);
    let rows = added.flat_map(|plan| {
        let tenant = plan.event().tenant.as_str();
        plan.fresh().map(move |delivery| ((delivery.id.uuid(), plan.event_id.uuid()), tenant))
    });
    let ((ids, events), tenants): ((Vec<Uuid>, Vec<Uuid>), Vec<&str>) = rows.unzip();
    if !ids.is_empty() {
        sqlx::query(APART).bind(ids).bind(events).bind(tenants).execute(connection).await?;
    }
    Ok(())
}

/// The plans whose keys nobody took; `lost` is ascending.
fn winners<'b>(batch: &'b [Plan], lost: &'b [usize]) -> impl Iterator<Item = &'b Plan> {
    batch.iter().enumerate().filter(|(place, _)| lost.binary_search(place).is_err()).map(|(_, plan)| plan)
}

/// The deliveries that are queued of them, in publish order.
fn queued<'b>(batch: &'b [Plan], lost: &'b [usize]) -> impl Iterator<Item = (&'b Plan, &'b PlannedDelivery)> {
    winners(batch, lost).flat_map(|plan| plan.queued().map(move |delivery| (plan, delivery)))
}
