//! Endpoints, their secrets and health. Every change of an endpoint moves its tenant's configuration version,
//! by which publishes know that what they matched against is current.

pub(super) mod rows;

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::Row as _;
use sqlx::postgres::PgRow;
use sqlx::types::{Json, Uuid};

use super::Store;
use super::error::{Error, Result};
use crate::domain::circuit::{CircuitPolicy, DisablePolicy};
use crate::domain::endpoint::{Endpoint, EndpointSpec, EndpointState};
use crate::domain::fields::Tenant;
use crate::domain::headers::OwnHeaders;
use crate::domain::id::EndpointId;
use crate::domain::keyring::Place;
use crate::domain::pattern::any_matches;
use crate::domain::rate::RateLimit;
use crate::domain::retry::{EventRetryPolicy, RetryPolicy};
use crate::domain::secret::{Secret, SigningSecret};
use crate::domain::tls::TlsOptions;
use crate::domain::url::EndpointUrl;

/// An endpoint to register.
#[derive(Debug)]
pub struct NewEndpoint {
    /// Who will own it.
    pub tenant: Tenant,
    /// What its owner decided.
    pub spec: EndpointSpec,
    /// Signs its requests.
    pub secret: Secret,
}

/// Why an endpoint was not registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// Another endpoint of the tenant has the external id.
    #[error("the external id is taken")]
    ExternalIdTaken,
    /// The statement failed.
    #[error(transparent)]
    Store(#[from] Error),
}

/// Why an endpoint was not updated.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// There is no such endpoint.
    #[error("there is no such endpoint")]
    NotFound,
    /// It is at another version by now.
    #[error("the endpoint has changed")]
    VersionMoved,
    /// Another endpoint of the tenant has the external id.
    #[error("the external id is taken")]
    ExternalIdTaken,
    /// The statement failed.
    #[error(transparent)]
    Store(#[from] Error),
}

/// What became of a DeleteEndpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeleteOutcome {
    /// It is a tombstone now.
    Deleted,
    /// There is no such endpoint.
    NotFound,
    /// It is at another version.
    VersionMoved,
}

/// Which endpoints to list, newest first.
#[derive(Debug, Default)]
pub struct EndpointFilter {
    /// One tenant's; `None` for all.
    pub tenant: Option<Tenant>,
    /// In one of these states; empty for any.
    pub states: Vec<EndpointState>,
    /// That want this event type.
    pub event_type: Option<String>,
    /// With all of these labels.
    pub labels: BTreeMap<String, String>,
    /// Only ids below this one: where the page before ended.
    pub before: Option<EndpointId>,
}

/// What the engine needs to deliver to an endpoint.
#[derive(Debug, Clone)]
pub struct LaneEndpoint {
    /// Its id.
    pub id: EndpointId,
    /// The version these values are of.
    pub version: i64,
    /// Where requests go.
    pub url: EndpointUrl,
    /// What is sent beside our own headers.
    pub headers: OwnHeaders,
    /// What connections are secured with beside the system's certificates.
    pub tls: TlsOptions,
    /// What signs them, newest first.
    pub secrets: Vec<SigningSecret>,
    /// When failures are retried; `None` means the server's default.
    pub retry_policy: Option<RetryPolicy>,
    /// The same for certain event types, which goes before it.
    pub event_retry_policies: Vec<EventRetryPolicy>,
    /// One deadline over a request.
    pub timeout: Duration,
    /// How many requests at once.
    pub max_in_flight: u32,
    /// How many requests a second.
    pub rate_limit: Option<RateLimit>,
    /// When sending stops for a while.
    pub circuit_breaker: CircuitPolicy,
    /// When it is disabled for failing.
    pub disable_policy: DisablePolicy,
}

/// The version that a new endpoint and its first secret have.
const FIRST_VERSION: i64 = 1;

/// Takes row locks on the new rows and, unless it is unlisted, on one `tenants` row; `endpoints_external_id` refuses a
/// taken external id. Nothing is made where there is an unlisted endpoint with the same digest. A tenant's version begins
/// with the time, so that it never comes back to one that a replica remembers of an erased tenant of the same name.
const REGISTER: &str = "
with made as (
  insert into endpoints (id, tenant, url, shown_url, description, event_types, signature_scheme, payload_format,
                         retry_policy, timeout_ms, max_in_flight, labels, external_id, headers,
                         event_retry_policies, filter, rate_per_second, rate_burst, circuit_threshold,
                         circuit_open_ms, circuit_open_max_ms, disable_failures, disable_failing_ms, ordering,
                         ordering_on_failure, sealed, sealed_key_id, sealed_version, ca_pem, client_certificate_pem,
                         client_key_pem, inline_digest, state, version, create_time, update_time)
  values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24,
          $25, $26, $27, $28, $29, $30, $31, $32, 1, 1, now(), now())
  on conflict (inline_digest) where inline_digest is not null and delete_time is null do nothing
  returning id
), moved as (
  insert into tenants as t (tenant, config_version)
  select $2, (extract(epoch from clock_timestamp()) * 1000000)::bigint where $32::bytea is null
  on conflict (tenant) do update set config_version = t.config_version + 1
), secret as (
  insert into endpoint_secrets (endpoint_id, version, secret, key_id, create_time, public_key)
  select id, 1, $33, $34, now(), $35 from made
), health as (
  insert into endpoint_health (endpoint_id) select id from made
)
select id from made";

/// One endpoint's row with its health and secrets. Reads by `endpoints_pkey`, or `endpoints_tenant` descending.
macro_rules! select {
    ($condition:literal $(,)?) => {
        concat!(
            "
select e.*, e.circuit_until <= now() as circuit_probed, h.score, h.consecutive_failures, h.last_success_time, h.last_failure_time,
       h.filter_error_count, s.versions, s.create_times, s.expire_times, s.public_key
from endpoints e
left join endpoint_health h on h.endpoint_id = e.id
cross join lateral (
  select array_agg(version order by version desc) as versions,
         array_agg(create_time order by version desc) as create_times,
         array_agg(expire_time order by version desc) as expire_times,
         (array_agg(public_key order by version desc))[1] as public_key
  from endpoint_secrets where endpoint_id = e.id and (expire_time is null or expire_time > now())
) s
where e.delete_time is null ",
            $condition
        )
    };
}

/// The etag is compared here, in the statement's own condition: two updates at once cannot both win.
/// A changed breaker holds at once: an open circuit stays open for as long as it would have by the new policy, counted
/// from when it opened (`CircuitPolicy::wait`), and without a threshold it is closed.
const UPDATE: &str = "
with changed as (
  update endpoints set url = $3, shown_url = $4, description = $5, event_types = $6, signature_scheme = $7,
         payload_format = $8, retry_policy = $9, timeout_ms = $10, max_in_flight = $11, labels = $12,
         external_id = $13, headers = $14, event_retry_policies = $15, filter = $16, rate_per_second = $17,
         rate_burst = $18, circuit_threshold = $19, circuit_open_ms = $20, circuit_open_max_ms = $21,
         disable_failures = $22, disable_failing_ms = $23, ordering = $24, ordering_on_failure = $25, sealed = $26,
         sealed_key_id = $27, sealed_version = $28, ca_pem = $29, client_certificate_pem = $30, client_key_pem = $31, version = version + 1, update_time = now(),
         circuit_until = case
           when $19 = 0 then null
           when circuit_open_ms = $20 and circuit_open_max_ms = $21 then circuit_until
           else circuit_opened_at + least($20 * 2.0 ^ (least(circuit_openings, 31) - 1), $21) * interval '1 millisecond'
         end,
         circuit_opened_at = case when $19 = 0 then null else circuit_opened_at end,
         circuit_openings = case when $19 = 0 then 0 else circuit_openings end
  where id = $1 and version = $2 and delete_time is null
  returning tenant, inline_digest
), moved as (
  update tenants t set config_version = config_version + 1
  from changed c where t.tenant = c.tenant and c.inline_digest is null
)
select count(*) from changed";

const DELETE: &str = "
with gone as (
  update endpoints set delete_time = now(), update_time = now(), version = version + 1
  where id = $1 and delete_time is null and ($2::bigint is null or version = $2)
  returning tenant, inline_digest
), moved as (
  update tenants t set config_version = config_version + 1
  from gone g where t.tenant = g.tenant and g.inline_digest is null
)
select count(*) from gone";

const LANE_ENDPOINTS: &str = "
select e.id, e.tenant, e.version, e.url, e.headers, e.ca_pem, e.client_certificate_pem, e.client_key_pem, e.sealed,
       e.sealed_key_id, e.sealed_version, e.retry_policy, e.event_retry_policies, e.timeout_ms, e.max_in_flight,
       e.rate_per_second, e.rate_burst, e.circuit_threshold, e.circuit_open_ms, e.circuit_open_max_ms,
       e.disable_failures, e.disable_failing_ms, e.ordering, s.secrets, s.versions, s.key_ids, s.schemes,
       s.expire_times
from endpoints e
cross join lateral (
  select array_agg(secret order by version desc) as secrets,
         array_agg(version order by version desc) as versions,
         array_agg(key_id order by version desc) as key_ids,
         array_agg(coalesce(signature_scheme, e.signature_scheme) order by version desc) as schemes,
         array_agg(expire_time order by version desc) as expire_times
  from endpoint_secrets where endpoint_id = e.id and (expire_time is null or expire_time > now())
) s
where e.id = any($1)";

impl Store {
    /// Registers an endpoint; once this answers, every publish on any replica sees it.
    pub async fn register_endpoint(&self, new: &NewEndpoint) -> std::result::Result<Endpoint, RegisterError> {
        let made = self.insert_endpoint(&new.tenant, &new.spec, &new.secret, None).await;
        let id = made.map_err(|error| match error {
            taken if is_external_id_taken(&taken) => RegisterError::ExternalIdTaken,
            other => other.into(),
        })?;
        let registered = match id {
            Some(id) => self.endpoint(id).await?,
            None => None,
        };
        registered.ok_or_else(|| Error::Unreadable("no endpoint just registered".to_owned()).into())
    }

    /// Makes an endpoint, unlisted where there is a digest; `None` where another one has that.
    pub(super) async fn insert_endpoint(
        &self,
        tenant: &Tenant,
        spec: &EndpointSpec,
        secret: &Secret,
        inline_digest: Option<&[u8]>,
    ) -> Result<Option<EndpointId>> {
        let id = self.clock.new_uuid();
        let endpoint = EndpointId::from_uuid(id);
        let private = self.vault.keep_settings(tenant, endpoint, FIRST_VERSION, spec)?;
        let kept = self.vault.keep(Place::Secret(tenant, endpoint, 1), secret.expose().as_bytes())?;
        let query = sqlx::query_scalar(REGISTER).bind(id).bind(tenant.as_str().to_owned());
        let query = rows::bind_spec(query, spec, private)
            .bind(inline_digest)
            .bind(kept.bytes)
            .bind(kept.key_id)
            .bind(secret.public_key().map(|key| key.to_string()));
        let made: Option<Uuid> = query.fetch_optional(&self.reader).await?;
        Ok(made.map(EndpointId::from_uuid))
    }

    /// Replaces what an owner decides, if the endpoint still is at `version`; answers whether it was.
    pub(super) async fn replace_spec(
        &self,
        tenant: &Tenant,
        id: EndpointId,
        version: i64,
        spec: &EndpointSpec,
    ) -> Result<bool> {
        let private = self.vault.keep_settings(tenant, id, version + 1, spec)?;
        let query = sqlx::query_scalar(UPDATE).bind(id.uuid()).bind(version);
        let changed: i64 = rows::bind_spec(query, spec, private).fetch_one(&self.reader).await?;
        if changed > 0 {
            self.hint_changed(id);
        }
        Ok(changed > 0)
    }

    /// One endpoint; `None` where there is none or a tombstone.
    pub async fn endpoint(&self, id: EndpointId) -> Result<Option<Endpoint>> {
        const BY_ID: &str = select!("and e.id = $1");
        let row = sqlx::query(BY_ID).bind(id.uuid()).fetch_optional(&self.reader).await?;
        row.as_ref().map(|row| rows::read_endpoint(row, &self.vault)).transpose()
    }

    /// Endpoints, newest first, `limit` at most; and whether there may be more.
    ///
    /// The event type is matched here, not in SQL, so a page may be short.
    pub async fn list_endpoints(
        &self,
        filter: &EndpointFilter,
        limit: u32,
    ) -> Result<(Vec<Endpoint>, Option<EndpointId>)> {
        const PAGE: &str = select!(
            "and ($1::text is null or e.tenant = $1) and (cardinality($2::smallint[]) = 0 or e.state = any($2))
             and e.labels @> $3 and e.inline_digest is null and ($4::uuid is null or e.id < $4)
             order by e.id desc limit $5",
        );
        let rows = sqlx::query(PAGE)
            .bind(filter.tenant.as_ref().map(Tenant::as_str))
            .bind(filter.states.iter().map(|state| state.number()).collect::<Vec<_>>())
            .bind(Json(&filter.labels))
            .bind(filter.before.map(EndpointId::uuid))
            .bind(i64::from(limit))
            .fetch_all(&self.reader)
            .await?;
        let mut endpoints = rows.iter().map(|row| rows::read_endpoint(row, &self.vault)).collect::<Result<Vec<_>>>()?;
        let full = u32::try_from(endpoints.len()).is_ok_and(|read| read == limit);
        let end = if full { endpoints.last().map(|endpoint| endpoint.id) } else { None };
        if let Some(wanted) = &filter.event_type {
            endpoints.retain(|endpoint| any_matches(&endpoint.spec.event_types, wanted));
        }
        Ok((endpoints, end))
    }

    /// Replaces what an owner decides, if the endpoint still is at `version`.
    pub async fn update_endpoint(
        &self,
        tenant: &Tenant,
        id: EndpointId,
        version: i64,
        spec: &EndpointSpec,
    ) -> std::result::Result<Endpoint, UpdateError> {
        let changed = self.replace_spec(tenant, id, version, spec).await.map_err(|error| match error {
            taken if is_external_id_taken(&taken) => UpdateError::ExternalIdTaken,
            other => other.into(),
        })?;
        let now = self.endpoint(id).await?.ok_or(UpdateError::NotFound)?;
        if !changed {
            return Err(UpdateError::VersionMoved);
        }
        Ok(now)
    }

    /// Makes the endpoint a tombstone: nothing is matched or claimed for it any more. What is outstanding is canceled
    /// by [`Store::cancel_deleted`].
    pub async fn delete_endpoint(&self, id: EndpointId, version: Option<i64>) -> Result<DeleteOutcome> {
        let gone: i64 = sqlx::query_scalar(DELETE).bind(id.uuid()).bind(version).fetch_one(&self.reader).await?;
        if gone > 0 {
            self.hint_changed(id);
            return Ok(DeleteOutcome::Deleted);
        }
        let exists = self.endpoint(id).await?.is_some();
        Ok(if exists { DeleteOutcome::VersionMoved } else { DeleteOutcome::NotFound })
    }

    /// What the engine needs of these endpoints, each with why it cannot be read where it cannot: one that is sealed with
    /// a key that is not here holds up no other. A missing one has been erased.
    pub async fn lane_endpoints(&self, ids: &[EndpointId]) -> Result<Vec<(EndpointId, Result<LaneEndpoint>)>> {
        let uuids: Vec<Uuid> = ids.iter().map(|id| id.uuid()).collect();
        let rows = sqlx::query(LANE_ENDPOINTS).bind(uuids).fetch_all(&self.engine).await?;
        let read =
            |row: &PgRow| Ok((EndpointId::from_uuid(row.try_get("id")?), rows::read_lane_endpoint(row, &self.vault)));
        rows.iter().map(read).collect()
    }
}

fn is_external_id_taken(error: &Error) -> bool {
    error.constraint() == Some("endpoints_external_id")
}
