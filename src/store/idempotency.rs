//! Idempotency keys: a key names its event in the tenant and one delivery at each endpoint, for a window.
//!
//! Fan-out answers for the event's own key and every matched endpoint; a publish that names endpoints is compared with
//! those endpoints alone. Keys are claimed in one order everywhere, so that batches cannot deadlock; who loses a race
//! reads what the winner committed in its next statement, because one statement cannot see it.

use std::collections::{BTreeMap, HashMap, HashSet};

use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use sqlx::types::Uuid;

use super::Store;
use super::error::Result;
use super::publish::Plan;
use crate::domain::event::NewEvent;
use crate::domain::fields::Tenant;
use crate::domain::id::{DeliveryId, EndpointId, EventId};

/// How long a key is remembered.
const WINDOW_SECONDS: f64 = 24.0 * 3600.0;

/// SHA-256 over what a repeat must have in common: event type, content type, payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint([u8; 32]);

impl Fingerprint {
    pub(super) fn of(event: &NewEvent) -> Self {
        // Neither of the first two can hold a NUL.
        let mut hash = Sha256::new();
        hash.update(event.event_type.as_str());
        hash.update([0]);
        hash.update(event.content_type.as_str());
        hash.update([0]);
        hash.update(&event.payload);
        Self(hash.finalize().into())
    }
}

/// The key was used for other content.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OtherContent;

/// What earlier publishes with one key made, as far as it concerns this one.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// The first event.
    pub(super) event_id: Option<EventId>,
    /// The first deliveries, by endpoint.
    pub(super) deliveries: HashMap<EndpointId, DeliveryId>,
    /// Whether nobody has the event's own key.
    pub(super) is_event_key_free: bool,
}

/// The rows of the keys of a batch.
#[derive(Debug, Default)]
pub(super) struct KnownKeys(HashMap<(String, String), Vec<KeyRow>>);

#[derive(Debug)]
struct KeyRow {
    /// Nil for the event's own.
    endpoint: Uuid,
    event: EventId,
    delivery: Option<DeliveryId>,
    fingerprint: Vec<u8>,
}

/// The rows of one key.
pub(super) struct RowsOfKey<'k>(&'k [KeyRow]);

impl KnownKeys {
    pub(super) fn of(&self, tenant: &Tenant, key: &str) -> RowsOfKey<'_> {
        RowsOfKey(self.0.get(&(tenant.as_str().to_owned(), key.to_owned())).map_or(&[], Vec::as_slice))
    }
}

impl RowsOfKey<'_> {
    /// Compares a publish to `targets` with what its key was used for.
    pub(super) fn check(
        &self,
        fingerprint: &Fingerprint,
        targets: impl Iterator<Item = EndpointId>,
        is_fan_out: bool,
    ) -> std::result::Result<Known, OtherContent> {
        let targets: HashSet<Uuid> = targets.map(EndpointId::uuid).collect();
        let mut known = Known { is_event_key_free: true, ..Known::default() };
        for row in self.0 {
            let is_own = row.endpoint.is_nil();
            let is_same = row.fingerprint == fingerprint.0;
            if !is_same && (targets.contains(&row.endpoint) || is_own && is_fan_out) {
                return Err(OtherContent);
            }
            known.is_event_key_free &= !is_own;
            if !is_same {
                continue;
            }
            // All rows of the same content name the same event, but for a window that ended in between.
            known.event_id = known.event_id.max(Some(row.event));
            if let Some(delivery) = row.delivery.filter(|_| targets.contains(&row.endpoint)) {
                known.deliveries.insert(EndpointId::from_uuid(row.endpoint), delivery);
            }
        }
        Ok(known)
    }
}

/// Reads by `idempotency_keys_pkey`.
const KNOWN: &str = "
select k.tenant, k.key, k.endpoint_id, k.event_id, k.delivery_id, k.fingerprint
from unnest($1::text[], $2::text[]) as q (tenant, key)
join idempotency_keys k on k.tenant = q.tenant and k.key = q.key
where k.expire_time > now()";

/// Waits for whoever holds one of the keys uncommitted; takes over those whose window has ended.
const CLAIM: &str = "
insert into idempotency_keys as k (tenant, key, endpoint_id, event_id, delivery_id, fingerprint, expire_time)
select q.tenant, q.key, q.endpoint_id, q.event_id, q.delivery_id, q.fingerprint, now() + make_interval(secs => $7)
from unnest($1::text[], $2::text[], $3::uuid[], $4::uuid[], $5::uuid[], $6::bytea[])
  as q (tenant, key, endpoint_id, event_id, delivery_id, fingerprint)
on conflict (tenant, key, endpoint_id) do update
  set event_id = excluded.event_id, delivery_id = excluded.delivery_id, fingerprint = excluded.fingerprint,
      expire_time = excluded.expire_time
  where k.expire_time <= now()
returning k.tenant, k.key, k.endpoint_id";

const GIVE_BACK: &str = "
delete from idempotency_keys k
using unnest($1::text[], $2::text[], $3::uuid[]) as q (tenant, key, endpoint_id)
where k.tenant = q.tenant and k.key = q.key and k.endpoint_id = q.endpoint_id";

/// Removes a batch of keys whose window has ended, oldest first by `idempotency_keys_expire`.
const PRUNE: &str = "
delete from idempotency_keys where ctid = any(array(
  select ctid from idempotency_keys where expire_time <= now() order by expire_time limit $1 for update skip locked))";

/// What is known of the keys of these events.
pub(super) async fn known<'e>(store: &Store, events: impl Iterator<Item = &'e NewEvent>) -> Result<KnownKeys> {
    let keys: HashSet<(&str, &str)> =
        events.filter_map(|event| Some((event.tenant.as_str(), event.idempotency_key.as_deref()?))).collect();
    let (tenants, keys): (Vec<&str>, Vec<&str>) = keys.into_iter().unzip();
    type Columns = (String, String, Uuid, Uuid, Option<Uuid>, Vec<u8>);
    let rows: Vec<Columns> = sqlx::query_as(KNOWN).bind(tenants).bind(keys).fetch_all(&store.engine).await?;
    let mut known = KnownKeys::default();
    for (tenant, key, endpoint, event, delivery, fingerprint) in rows {
        known.0.entry((tenant, key)).or_default().push(KeyRow {
            endpoint,
            event: EventId::from_uuid(event),
            delivery: delivery.map(DeliveryId::from_uuid),
            fingerprint,
        });
    }
    Ok(known)
}

/// Claims the keys of a batch in the caller's transaction. Answers the places of those that lost a race, ascending;
/// they hold no key then.
pub(super) async fn claim(connection: &mut PgConnection, batch: &[Plan]) -> Result<Vec<usize>> {
    type Key<'b> = (&'b str, &'b str, Uuid);
    type Row<'b> = (usize, Uuid, Option<Uuid>, &'b [u8]);
    // Ordered by what the table's key is ordered by: every batch locks in this order.
    let mut wanted: BTreeMap<Key<'_>, Row<'_>> = BTreeMap::new();
    for (place, plan) in batch.iter().enumerate() {
        let event = plan.event();
        let (Some(key), Some(fingerprint)) = (&event.idempotency_key, &plan.fingerprint) else { continue };
        let mut want = |endpoint: Uuid, delivery: Option<Uuid>| {
            let row = (place, plan.event_id.uuid(), delivery, fingerprint.0.as_slice());
            wanted.insert((event.tenant.as_str(), key.as_str(), endpoint), row);
        };
        if plan.claims_event_key {
            want(Uuid::nil(), None);
        }
        for delivery in plan.fresh() {
            want(delivery.to.id.uuid(), Some(delivery.id.uuid()));
        }
    }
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let won: HashSet<(String, String, Uuid)> = sqlx::query_as(CLAIM)
        .bind(wanted.keys().map(|(tenant, ..)| *tenant).collect::<Vec<_>>())
        .bind(wanted.keys().map(|(_, key, _)| *key).collect::<Vec<_>>())
        .bind(wanted.keys().map(|(.., endpoint)| *endpoint).collect::<Vec<_>>())
        .bind(wanted.values().map(|(_, event, ..)| *event).collect::<Vec<_>>())
        .bind(wanted.values().map(|(_, _, delivery, _)| *delivery).collect::<Vec<_>>())
        .bind(wanted.values().map(|(.., fingerprint)| *fingerprint).collect::<Vec<_>>())
        .bind(WINDOW_SECONDS)
        .fetch_all(&mut *connection)
        .await?
        .into_iter()
        .collect();
    if won.len() == wanted.len() {
        return Ok(Vec::new());
    }
    let is_won =
        |(tenant, key, endpoint): &Key<'_>| won.contains(&((*tenant).to_owned(), (*key).to_owned(), *endpoint));
    let mut lost: Vec<usize> = wanted.iter().filter(|(key, _)| !is_won(key)).map(|(_, (place, ..))| *place).collect();
    lost.sort_unstable();
    lost.dedup();
    let given_back: Vec<_> =
        wanted.iter().filter(|(key, row)| is_won(key) && lost.contains(&row.0)).map(|(key, _)| *key).collect();
    if !given_back.is_empty() {
        sqlx::query(GIVE_BACK)
            .bind(given_back.iter().map(|(tenant, ..)| *tenant).collect::<Vec<_>>())
            .bind(given_back.iter().map(|(_, key, _)| *key).collect::<Vec<_>>())
            .bind(given_back.iter().map(|(.., endpoint)| *endpoint).collect::<Vec<_>>())
            .execute(connection)
            .await?;
    }
    Ok(lost)
}

impl Store {
    /// Forgets at most `limit` keys whose window has ended; answers how many.
    pub async fn prune_idempotency_keys(&self, limit: u32) -> Result<u64> {
        Ok(sqlx::query(PRUNE).bind(i64::from(limit)).execute(&self.reader).await?.rows_affected())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAME: Fingerprint = Fingerprint([1; 32]);

    fn id(number: u128) -> EndpointId {
        EndpointId::from_uuid(Uuid::from_u128(number))
    }

    /// The event's own row and one for endpoint 7, both of event 1.
    fn rows(own: u8, at_seven: u8) -> Vec<KeyRow> {
        let row = |endpoint: u128, fingerprint: u8| KeyRow {
            endpoint: Uuid::from_u128(endpoint),
            event: EventId::from_uuid(Uuid::from_u128(1)),
            delivery: (endpoint != 0).then(|| DeliveryId::from_uuid(Uuid::from_u128(endpoint))),
            fingerprint: vec![fingerprint; 32],
        };
        vec![row(0, own), row(7, at_seven)]
    }

    #[test]
    fn a_repeat_finds_the_first_delivery_and_adds_to_the_first_event() {
        let rows = rows(1, 1);
        let known = RowsOfKey(&rows).check(&SAME, [id(7), id(8)].into_iter(), true).expect("same content");
        assert_eq!(known.event_id, Some(EventId::from_uuid(Uuid::from_u128(1))));
        assert_eq!(known.deliveries.keys().collect::<Vec<_>>(), [&id(7)]);
        assert!(!known.is_event_key_free);
    }

    #[test]
    fn other_content_conflicts_at_any_target() {
        let rows = rows(9, 9);
        assert_eq!(RowsOfKey(&rows).check(&SAME, [id(7)].into_iter(), false), Err(OtherContent));
        assert_eq!(RowsOfKey(&rows).check(&SAME, [].into_iter(), true), Err(OtherContent));
        let elsewhere = RowsOfKey(&rows).check(&SAME, [id(8)].into_iter(), false).expect("another endpoint");
        assert_eq!((elsewhere.event_id, elsewhere.is_event_key_free), (None, false));
    }
}
