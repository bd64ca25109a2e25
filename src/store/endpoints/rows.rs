//! Endpoints' rows to domain values and back.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Json;

use super::LaneEndpoint;
use crate::domain::circuit::{CircuitPolicy, DisablePolicy};
use crate::domain::endpoint::{
    CircuitState, Endpoint, EndpointSpec, EndpointState, Health, OnFailure, Ordering, PayloadFormat, SecretInfo,
    SignatureScheme,
};
use crate::domain::fields::Tenant;
use crate::domain::filter::Filter;
use crate::domain::headers::OwnHeaders;
use crate::domain::id::EndpointId;
use crate::domain::pattern::EventPattern;
use crate::domain::rate::RateLimit;
use crate::domain::retry::RetryPolicy;
use crate::domain::tls::{ClientCertificate, TlsOptions, TrustedCertificates};
use crate::domain::url::EndpointUrl;
use crate::store::error::{Error, Result};
use crate::store::secrets;
use crate::store::types::{PgTime, count, stored};
use crate::store::vault::{Private, PrivateColumns, Vault};

/// A query that answers one column.
type Query<'q, T> = sqlx::query::QueryScalar<'q, sqlx::Postgres, T, sqlx::postgres::PgArguments>;

/// Binds the columns of a spec in the order that the statements which write one share.
pub(in crate::store) fn bind_spec<'q, T>(
    query: Query<'q, T>,
    spec: &EndpointSpec,
    private: PrivateColumns,
) -> Query<'q, T> {
    query
        .bind(private.url)
        .bind(spec.url.redacted())
        .bind(spec.description.clone())
        .bind(spec.event_types.iter().map(EventPattern::to_string).collect::<Vec<_>>())
        .bind(spec.signature_scheme.number())
        .bind(spec.payload_format.number())
        .bind(spec.retry_policy.clone().map(Json))
        .bind(i32::try_from(spec.timeout.as_millis()).unwrap_or(i32::MAX))
        .bind(spec.max_in_flight.cast_signed())
        .bind(Json(spec.labels.clone()))
        .bind(spec.external_id.clone())
        .bind(Json(private.headers))
        .bind(Json(spec.event_retry_policies.clone()))
        .bind(spec.filter.as_ref().map(|filter| filter.as_str().to_owned()))
        .bind(spec.rate_limit.map(|limit| limit.per_second))
        .bind(i64::from(spec.rate_limit.map_or(0, |limit| limit.burst)))
        .bind(i64::from(spec.circuit_breaker.failure_threshold))
        .bind(millis(spec.circuit_breaker.open_duration))
        .bind(millis(spec.circuit_breaker.max_open_duration))
        .bind(i64::from(spec.disable_policy.consecutive_failures))
        .bind(millis(spec.disable_policy.failing_for))
        .bind(spec.ordering.number())
        .bind(spec.on_failure.number())
        .bind(private.sealed)
        .bind(private.sealed_key_id)
        .bind(private.sealed_version)
        .bind(spec.tls.trusted.as_ref().map(|trusted| trusted.as_str().to_owned()))
        .bind(spec.tls.client.as_ref().map(|client| client.chain().to_owned()))
        .bind(private.client_key_pem)
}

pub(in crate::store) fn read_endpoint(row: &PgRow, vault: &Vault) -> Result<Endpoint> {
    let versions: Option<Vec<i32>> = row.try_get("versions")?;
    let create_times: Option<Vec<PgTime>> = row.try_get("create_times")?;
    let expire_times: Option<Vec<Option<PgTime>>> = row.try_get("expire_times")?;
    let secrets = versions
        .unwrap_or_default()
        .into_iter()
        .zip(create_times.unwrap_or_default())
        .zip(expire_times.unwrap_or_default())
        .map(|((version, created), expires)| SecretInfo {
            version: count(version),
            create_time: created.0,
            expire_time: expires.map(|time| time.0),
        })
        .collect();
    let time = |column: &str| -> Result<_> { Ok(row.try_get::<Option<PgTime>, _>(column)?.map(|time| time.0)) };
    Ok(Endpoint {
        id: EndpointId::from_uuid(row.try_get("id")?),
        tenant: Tenant::from_stored(row.try_get("tenant")?),
        spec: read_spec(row, vault)?,
        is_inline: row.try_get::<Option<&[u8]>, _>("inline_digest")?.is_some(),
        state: stored("endpoint state", row.try_get("state")?, EndpointState::from_number)?,
        disabled_reason: row.try_get("disabled_reason")?,
        circuit: match row.try_get("circuit_probed")? {
            None => CircuitState::Closed,
            Some(false) => CircuitState::Open,
            Some(true) => CircuitState::HalfOpen,
        },
        version: row.try_get("version")?,
        create_time: row.try_get::<PgTime, _>("create_time")?.0,
        update_time: row.try_get::<PgTime, _>("update_time")?.0,
        health: Health {
            score: row.try_get::<Option<f64>, _>("score")?.unwrap_or(1.0),
            consecutive_failures: count(row.try_get::<Option<i32>, _>("consecutive_failures")?.unwrap_or_default()),
            last_success_time: time("last_success_time")?,
            last_failure_time: time("last_failure_time")?,
        },
        filter_error_count: u64::try_from(row.try_get::<Option<i64>, _>("filter_error_count")?.unwrap_or_default())
            .unwrap_or_default(),
        secrets,
        public_key: row.try_get("public_key")?,
    })
}

pub(in crate::store) fn read_spec(row: &PgRow, vault: &Vault) -> Result<EndpointSpec> {
    let patterns: Vec<String> = row.try_get("event_types")?;
    let private = vault.open_settings(row)?;
    Ok(EndpointSpec {
        url: read_url(&private.url)?,
        description: row.try_get("description")?,
        event_types: read_patterns(&patterns)?,
        signature_scheme: stored("signature scheme", row.try_get("signature_scheme")?, SignatureScheme::from_number)?,
        payload_format: stored("payload format", row.try_get("payload_format")?, PayloadFormat::from_number)?,
        retry_policy: row.try_get::<Option<Json<RetryPolicy>>, _>("retry_policy")?.map(|policy| policy.0),
        event_retry_policies: row.try_get::<Json<_>, _>("event_retry_policies")?.0,
        timeout: Duration::from_millis(u64::from(count(row.try_get("timeout_ms")?))),
        max_in_flight: count(row.try_get("max_in_flight")?),
        rate_limit: read_rate_limit(row)?,
        circuit_breaker: read_circuit_policy(row)?,
        disable_policy: read_disable_policy(row)?,
        labels: row.try_get::<Json<BTreeMap<String, String>>, _>("labels")?.0,
        external_id: row.try_get("external_id")?,
        headers: OwnHeaders::from_stored(private.headers.clone()),
        tls: read_tls(row, &private)?,
        filter: row.try_get::<Option<&str>, _>("filter")?.map(Filter::from_stored),
        ordering: read_ordering(row)?,
        on_failure: stored("ordering_on_failure", row.try_get("ordering_on_failure")?, OnFailure::from_number)?,
    })
}

pub(in crate::store) fn read_lane_endpoint(row: &PgRow, vault: &Vault) -> Result<LaneEndpoint> {
    let private = vault.open_settings(row)?;
    Ok(LaneEndpoint {
        id: EndpointId::from_uuid(row.try_get("id")?),
        version: row.try_get("version")?,
        url: read_url(&private.url)?,
        headers: OwnHeaders::from_stored(private.headers.clone()),
        tls: read_tls(row, &private)?,
        secrets: secrets::read(row, vault)?,
        retry_policy: row.try_get::<Option<Json<RetryPolicy>>, _>("retry_policy")?.map(|policy| policy.0),
        event_retry_policies: row.try_get::<Json<_>, _>("event_retry_policies")?.0,
        timeout: Duration::from_millis(u64::from(count(row.try_get("timeout_ms")?))),
        // One at a time, whatever was published under another ordering.
        max_in_flight: match read_ordering(row)? {
            Ordering::Fifo => 1,
            Ordering::Unordered | Ordering::ByKey => count(row.try_get("max_in_flight")?),
        },
        rate_limit: read_rate_limit(row)?,
        circuit_breaker: read_circuit_policy(row)?,
        disable_policy: read_disable_policy(row)?,
    })
}

pub(in crate::store) fn read_rate_limit(row: &PgRow) -> Result<Option<RateLimit>> {
    let per_second: Option<f64> = row.try_get("rate_per_second")?;
    let burst = read_count(row, "rate_burst")?;
    Ok(per_second.map(|per_second| RateLimit { per_second, burst }))
}

fn read_circuit_policy(row: &PgRow) -> Result<CircuitPolicy> {
    Ok(CircuitPolicy {
        failure_threshold: read_count(row, "circuit_threshold")?,
        open_duration: read_millis(row, "circuit_open_ms")?,
        max_open_duration: read_millis(row, "circuit_open_max_ms")?,
    })
}

fn read_disable_policy(row: &PgRow) -> Result<DisablePolicy> {
    Ok(DisablePolicy {
        consecutive_failures: read_count(row, "disable_failures")?,
        failing_for: read_millis(row, "disable_failing_ms")?,
    })
}

/// A count that may be any `u32`.
pub(in crate::store) fn read_count(row: &PgRow, column: &str) -> Result<u32> {
    Ok(u32::try_from(row.try_get::<i64, _>(column)?).unwrap_or(u32::MAX))
}

fn read_millis(row: &PgRow, column: &str) -> Result<Duration> {
    Ok(Duration::from_millis(u64::try_from(row.try_get::<i64, _>(column)?).unwrap_or_default()))
}

/// Whole milliseconds, at least one for any span: what is positive stays so.
fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX)
}

fn read_ordering(row: &PgRow) -> Result<Ordering> {
    stored("ordering", row.try_get("ordering")?, Ordering::from_number)
}

fn read_tls(row: &PgRow, private: &Private) -> Result<TlsOptions> {
    let chain: Option<String> = row.try_get("client_certificate_pem")?;
    let client = chain.zip(private.client_key_pem.clone());
    Ok(TlsOptions {
        trusted: row.try_get::<Option<String>, _>("ca_pem")?.map(TrustedCertificates::from_stored),
        client: client.map(|(chain, key)| ClientCertificate::from_stored(chain, key)),
    })
}

fn read_url(text: &str) -> Result<EndpointUrl> {
    EndpointUrl::from_stored(text).ok_or_else(|| Error::Unreadable("an endpoint URL".to_owned()))
}

pub(in crate::store) fn read_patterns(texts: &[String]) -> Result<Vec<EventPattern>> {
    let parse = |text: &String| EventPattern::parse(text).map_err(|_| Error::Unreadable(format!("the pattern {text}")));
    texts.iter().map(parse).collect()
}
