//! How messages that hold secrets are printed, by whomever and wherever: without them. `build.rs` derives it for all others.

use std::fmt::{Debug, Formatter, Result, from_fn};

use super::proto::{
    Endpoint, InlineEndpoint, RegisterEndpointRequest, RegisterEndpointResponse, RotateSecretRequest,
    RotateSecretResponse,
};
use crate::domain::url::EndpointUrl;

/// Whether there is one.
fn secret(text: &str) -> impl Debug {
    from_fn(move |f| f.write_str(if text.is_empty() { "none" } else { "…" }))
}

/// Without credentials and query; one that cannot be parsed may have them anywhere.
fn url(text: &str) -> impl Debug {
    let shown = EndpointUrl::from_stored(text).map(|url| url.redacted());
    from_fn(move |f| f.write_str(shown.as_deref().unwrap_or("…")))
}

impl Debug for Endpoint {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        // By their names, so that a new field is not forgotten.
        let Self {
            id,
            tenant,
            url: address,
            description,
            event_types,
            filter,
            signature_scheme: _,
            payload_format: _,
            headers,
            retry_policy,
            event_retry_policies,
            timeout,
            rate_limit,
            max_in_flight,
            ordering: _,
            ordering_on_failure: _,
            circuit_breaker,
            disable_policy,
            labels,
            external_id,
            ca_pem,
            client_certificate_pem,
            client_key_pem,
            state: _,
            disabled_reason,
            circuit_state: _,
            health_score,
            consecutive_failures,
            secrets,
            public_key,
            last_success_time,
            last_failure_time,
            create_time,
            update_time,
            etag,
            filter_error_count,
        } = self;
        f.debug_struct("Endpoint")
            .field("id", id)
            .field("tenant", tenant)
            .field("url", &url(address))
            .field("description", description)
            .field("event_types", event_types)
            .field("filter", filter)
            .field("signature_scheme", &self.signature_scheme())
            .field("payload_format", &self.payload_format())
            .field("headers", &headers.keys())
            .field("retry_policy", retry_policy)
            .field("event_retry_policies", event_retry_policies)
            .field("timeout", timeout)
            .field("rate_limit", rate_limit)
            .field("max_in_flight", max_in_flight)
            .field("ordering", &self.ordering())
            .field("ordering_on_failure", &self.ordering_on_failure())
            .field("circuit_breaker", circuit_breaker)
            .field("disable_policy", disable_policy)
            .field("labels", labels)
            .field("external_id", external_id)
            .field("ca_pem", ca_pem)
            .field("client_certificate_pem", client_certificate_pem)
            .field("client_key_pem", &secret(client_key_pem))
            .field("state", &self.state())
            .field("disabled_reason", disabled_reason)
            .field("circuit_state", &self.circuit_state())
            .field("health_score", health_score)
            .field("consecutive_failures", consecutive_failures)
            .field("secrets", secrets)
            .field("public_key", public_key)
            .field("last_success_time", last_success_time)
            .field("last_failure_time", last_failure_time)
            .field("create_time", create_time)
            .field("update_time", update_time)
            .field("etag", etag)
            .field("filter_error_count", filter_error_count)
            .finish()
    }
}

impl Debug for InlineEndpoint {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self { endpoint, secret: text } = self;
        f.debug_struct("InlineEndpoint").field("endpoint", endpoint).field("secret", &secret(text)).finish()
    }
}

impl Debug for RegisterEndpointRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self { endpoint, secret: text } = self;
        f.debug_struct("RegisterEndpointRequest").field("endpoint", endpoint).field("secret", &secret(text)).finish()
    }
}

impl Debug for RegisterEndpointResponse {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self { endpoint, secret: text } = self;
        f.debug_struct("RegisterEndpointResponse").field("endpoint", endpoint).field("secret", &secret(text)).finish()
    }
}

impl Debug for RotateSecretRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self { endpoint_id, secret: text, overlap, signature_scheme: _ } = self;
        f.debug_struct("RotateSecretRequest")
            .field("endpoint_id", endpoint_id)
            .field("secret", &secret(text))
            .field("overlap", overlap)
            .field("signature_scheme", &self.signature_scheme())
            .finish()
    }
}

impl Debug for RotateSecretResponse {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self { secret: text, previous_expire_time, endpoint } = self;
        f.debug_struct("RotateSecretResponse")
            .field("secret", &secret(text))
            .field("previous_expire_time", previous_expire_time)
            .field("endpoint", endpoint)
            .finish()
    }
}
