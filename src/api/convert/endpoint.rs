//! Endpoints between the contract's form and ours: what a caller decides, checked, and what everybody is shown. The file is
//! long because both ways of the largest message stand side by side.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::mask::Mask;
use super::time::{from_duration, to_duration, to_timestamp};
use super::tls::{self, ClientPatch};
use super::{Violations, gates, retry, undefined};
use crate::api::auth::Caller;
use crate::api::proto;
use crate::domain::Problem;
use crate::domain::address::EgressRules;
use crate::domain::circuit::{CircuitPolicy, DisablePolicy};
use crate::domain::endpoint::{
    DESCRIPTION_BYTES_MAX, EVENT_TYPES_MAX, Endpoint, EndpointSpec, OnFailure, Ordering, PayloadFormat, SecretInfo,
    SignatureScheme, TIMEOUT_DEFAULT, parse_max_in_flight, parse_timeout,
};
use crate::domain::fields::{parse_key, parse_map, parse_text};
use crate::domain::filter::Filter;
use crate::domain::headers::OwnHeaders;
use crate::domain::pattern::EventPattern;
use crate::domain::rate::RateLimit;
use crate::domain::retry::{EventRetryPolicy, RetryPolicy};
use crate::domain::tls::{TlsOptions, TrustedCertificates};
use crate::domain::url::EndpointUrl;

const RETRY_POLICY: &str = "endpoint.retry_policy";

/// The checked new values of an endpoint; `None` where a field is not to be changed, or is bad.
#[derive(Debug)]
pub(in crate::api) struct Patch {
    url: Option<EndpointUrl>,
    description: Option<String>,
    event_types: Option<Vec<EventPattern>>,
    filter: Option<Option<Filter>>,
    signature_scheme: Option<SignatureScheme>,
    payload_format: Option<PayloadFormat>,
    headers: Option<OwnHeaders>,
    trusted: Option<Option<TrustedCertificates>>,
    client: Option<ClientPatch>,
    retry_policy: Option<Option<RetryPolicy>>,
    event_retry_policies: Option<Vec<EventRetryPolicy>>,
    /// Parts of the policy to change, and the policy they are taken from.
    retry_parts: Option<(Vec<&'static str>, proto::RetryPolicy)>,
    timeout: Option<Duration>,
    max_in_flight: Option<u32>,
    rate_limit: Option<Option<RateLimit>>,
    circuit_breaker: Option<CircuitPolicy>,
    disable_policy: Option<DisablePolicy>,
    labels: Option<BTreeMap<String, String>>,
    external_id: Option<Option<String>>,
    ordering: Option<Ordering>,
    on_failure: Option<OnFailure>,
}

impl Patch {
    /// Checks the fields that `mask` names. The patch is complete only where `violations` stays empty.
    pub(in crate::api) fn parse(
        given: &proto::Endpoint,
        mask: &Mask,
        rules: &EgressRules,
        violations: &mut Violations,
    ) -> Self {
        let v = violations;
        let parts = mask.retry_parts();
        Self {
            url: masked(mask, "url", || v.take("endpoint.url", EndpointUrl::parse(&given.url, rules))),
            description: masked(mask, "description", || {
                v.take("endpoint.description", parse_text(given.description.clone(), DESCRIPTION_BYTES_MAX))
            }),
            event_types: masked(mask, "event_types", || {
                v.take_all("endpoint.event_types", &given.event_types, EVENT_TYPES_MAX, EventPattern::parse)
            }),
            filter: masked(mask, "filter", || match given.filter.as_str() {
                "" => Some(None),
                text => v.take("endpoint.filter", Filter::parse(text)).map(Some),
            }),
            signature_scheme: masked(mask, "signature_scheme", || signature_scheme(given.signature_scheme, v)),
            payload_format: masked(mask, "payload_format", || payload_format(given.payload_format, v)),
            headers: masked(mask, "headers", || v.take("endpoint.headers", OwnHeaders::parse(given.headers.clone()))),
            trusted: masked(mask, "ca_pem", || tls::trusted(&given.ca_pem, v)),
            client: ClientPatch::parse(given, mask, v),
            retry_policy: masked(mask, "retry_policy", || match &given.retry_policy {
                None => Some(None),
                Some(policy) => retry::from_proto(policy, RETRY_POLICY, v).map(Some),
            }),
            event_retry_policies: masked(mask, "event_retry_policies", || {
                retry::events_from_proto(&given.event_retry_policies, "endpoint.event_retry_policies", v)
            }),
            retry_parts: (!parts.is_empty()).then(|| (parts.to_vec(), given.retry_policy.clone().unwrap_or_default())),
            timeout: masked(mask, "timeout", || {
                let asked = given.timeout.as_ref().map_or(Ok(TIMEOUT_DEFAULT), from_duration);
                v.take("endpoint.timeout", asked.and_then(parse_timeout))
            }),
            max_in_flight: masked(mask, "max_in_flight", || {
                v.take("endpoint.max_in_flight", parse_max_in_flight(given.max_in_flight))
            }),
            rate_limit: masked(mask, "rate_limit", || gates::rate_limit(given.rate_limit.as_ref(), v)),
            circuit_breaker: masked(mask, "circuit_breaker", || {
                gates::circuit_breaker(given.circuit_breaker.as_ref(), v)
            }),
            disable_policy: masked(mask, "disable_policy", || gates::disable_policy(given.disable_policy.as_ref(), v)),
            labels: masked(mask, "labels", || v.take("endpoint.labels", parse_map(given.labels.clone()))),
            external_id: masked(mask, "external_id", || v.take("endpoint.external_id", parse_key(&given.external_id))),
            ordering: masked(mask, "ordering", || ordering(given.ordering, v)),
            on_failure: masked(mask, "ordering_on_failure", || on_failure(given.ordering_on_failure, v)),
        }
    }

    /// The scheme it sets.
    pub(in crate::api) const fn signature_scheme(&self) -> Option<SignatureScheme> {
        self.signature_scheme
    }

    /// A new endpoint's values: those of a patch of every field; `None` where anything was bad.
    pub(in crate::api) fn into_spec(self, violations: &mut Violations) -> Option<EndpointSpec> {
        let client = self.client.as_ref().map(|client| client.apply(None, violations));
        let spec = EndpointSpec {
            tls: TlsOptions { trusted: self.trusted?, client: client? },
            url: self.url?,
            description: self.description?,
            event_types: self.event_types?,
            filter: self.filter?,
            signature_scheme: self.signature_scheme?,
            payload_format: self.payload_format?,
            headers: self.headers?,
            retry_policy: self.retry_policy?,
            event_retry_policies: self.event_retry_policies?,
            timeout: self.timeout?,
            max_in_flight: self.max_in_flight?,
            rate_limit: self.rate_limit?,
            circuit_breaker: self.circuit_breaker?,
            disable_policy: self.disable_policy?,
            labels: self.labels?,
            external_id: self.external_id?,
            ordering: self.ordering?,
            on_failure: self.on_failure?,
        };
        // A certificate and its key may be well formed and not belong together.
        violations.is_empty().then_some(spec)
    }

    /// `base` with the patch's values. Merging parts of a policy may show that they do not fit together.
    pub(in crate::api) fn apply(&self, base: &EndpointSpec, violations: &mut Violations) -> EndpointSpec {
        let mut spec = base.clone();
        replace(&mut spec.url, &self.url);
        replace(&mut spec.description, &self.description);
        replace(&mut spec.event_types, &self.event_types);
        replace(&mut spec.filter, &self.filter);
        replace(&mut spec.signature_scheme, &self.signature_scheme);
        replace(&mut spec.payload_format, &self.payload_format);
        replace(&mut spec.headers, &self.headers);
        replace(&mut spec.tls.trusted, &self.trusted);
        if let Some(client) = &self.client {
            spec.tls.client = client.apply(base.tls.client.as_ref(), violations);
        }
        replace(&mut spec.retry_policy, &self.retry_policy);
        replace(&mut spec.event_retry_policies, &self.event_retry_policies);
        replace(&mut spec.timeout, &self.timeout);
        replace(&mut spec.max_in_flight, &self.max_in_flight);
        replace(&mut spec.rate_limit, &self.rate_limit);
        replace(&mut spec.circuit_breaker, &self.circuit_breaker);
        replace(&mut spec.disable_policy, &self.disable_policy);
        replace(&mut spec.labels, &self.labels);
        replace(&mut spec.external_id, &self.external_id);
        replace(&mut spec.ordering, &self.ordering);
        replace(&mut spec.on_failure, &self.on_failure);
        if let Some((parts, given)) = &self.retry_parts {
            let merged = retry::merge(base.retry_policy.as_ref(), given, parts);
            spec.retry_policy = retry::from_proto(&merged, RETRY_POLICY, violations);
        }
        spec
    }
}

fn masked<T>(mask: &Mask, field: &str, parse: impl FnOnce() -> Option<T>) -> Option<T> {
    if mask.has(field) { parse() } else { None }
}

fn replace<T: Clone>(value: &mut T, new: &Option<T>) {
    if let Some(new) = new {
        value.clone_from(new);
    }
}

fn ordering(number: i32, violations: &mut Violations) -> Option<Ordering> {
    let ordering = match proto::Ordering::try_from(number) {
        Ok(proto::Ordering::Unspecified | proto::Ordering::Unordered) => Ok(Ordering::Unordered),
        Ok(proto::Ordering::ByKey) => Ok(Ordering::ByKey),
        Ok(proto::Ordering::Fifo) => Ok(Ordering::Fifo),
        Err(_) => Err(undefined(number)),
    };
    violations.take("endpoint.ordering", ordering)
}

fn on_failure(number: i32, violations: &mut Violations) -> Option<OnFailure> {
    let on_failure = match proto::OrderingOnFailure::try_from(number) {
        Ok(proto::OrderingOnFailure::Unspecified | proto::OrderingOnFailure::Block) => Ok(OnFailure::Block),
        Ok(proto::OrderingOnFailure::Skip) => Ok(OnFailure::Skip),
        Err(_) => Err(undefined(number)),
    };
    violations.take("endpoint.ordering_on_failure", on_failure)
}

fn signature_scheme(number: i32, violations: &mut Violations) -> Option<SignatureScheme> {
    use proto::SignatureScheme as Asked;
    match Asked::try_from(number) {
        Ok(Asked::Unspecified | Asked::Timestamped) => Some(SignatureScheme::Timestamped),
        Ok(Asked::StandardWebhooks) => Some(SignatureScheme::StandardWebhooks),
        Ok(Asked::StandardWebhooksEd25519) => Some(SignatureScheme::StandardWebhooksEd25519),
        Ok(Asked::BodySha256) => Some(SignatureScheme::BodySha256),
        Ok(Asked::BodyHex) => Some(SignatureScheme::BodyHex),
        Err(_) => {
            violations.invalid("endpoint.signature_scheme", undefined(number));
            None
        }
    }
}

/// The scheme that a rotation asks for; `None` where it asks for none.
pub(in crate::api) fn rotated_scheme(number: i32, violations: &mut Violations) -> Option<SignatureScheme> {
    match i16::try_from(number).ok().map(|number| (number, SignatureScheme::from_number(number))) {
        Some((0, _)) => None,
        Some((_, Some(scheme))) => Some(scheme),
        _ => {
            violations.invalid("signature_scheme", undefined(number));
            None
        }
    }
}

fn payload_format(number: i32, violations: &mut Violations) -> Option<PayloadFormat> {
    use proto::PayloadFormat as Asked;
    match Asked::try_from(number) {
        Ok(Asked::Unspecified | Asked::Envelope) => Some(PayloadFormat::Envelope),
        Ok(Asked::Raw) => Some(PayloadFormat::Raw),
        Ok(Asked::CloudeventsStructured) => Some(PayloadFormat::CloudEventsStructured),
        Ok(Asked::CloudeventsBinary) => Some(PayloadFormat::CloudEventsBinary),
        Ok(Asked::StandardWebhooks) => Some(PayloadFormat::StandardWebhooks),
        Err(_) => {
            violations.invalid("endpoint.payload_format", undefined(number));
            None
        }
    }
}

/// The version that an etag names. One that is none of ours is the current version of nothing.
pub(in crate::api) fn version_of(etag: &str) -> Option<i64> {
    const NO_VERSION: i64 = -1;
    (!etag.is_empty()).then(|| etag.parse().unwrap_or(NO_VERSION))
}

/// The problem of a scheme that the endpoint's secret cannot sign by.
pub(in crate::api) fn secret_does_not_fit(former: SignatureScheme, wanted: SignatureScheme) -> Problem {
    Problem::new(match former.is_ed25519() != wanted.is_ed25519() {
        true => "cannot be changed between HMAC and Ed25519 without another secret; RotateSecret changes both",
        false => {
            "cannot be changed to this scheme: the endpoint's secret is not of the form whsec_ and base64 of 24 to 64 \
             bytes; RotateSecret gives it one"
        }
    })
}

/// What stands in place of a value that is a secret to the caller.
pub(in crate::api) const REDACTED: &str = "[redacted]";

/// An endpoint as a caller sees it, with the values that are in effect. Its headers' values and the credentials and
/// query of its URL are for admins.
pub(in crate::api) fn to_proto(endpoint: Endpoint, caller: &Caller) -> proto::Endpoint {
    let sees_secrets = caller.sees_secrets();
    let Endpoint { id, tenant, spec, state, version, create_time, update_time, health, .. } = endpoint;
    proto::Endpoint {
        id: id.to_string(),
        tenant: tenant.to_string(),
        url: if sees_secrets { spec.url.as_str().to_owned() } else { spec.url.redacted() },
        description: spec.description,
        event_types: spec.event_types.iter().map(EventPattern::to_string).collect(),
        filter: spec.filter.as_ref().map(|filter| filter.as_str().to_owned()).unwrap_or_default(),
        signature_scheme: i32::from(spec.signature_scheme.number()),
        payload_format: i32::from(spec.payload_format.number()),
        headers: headers(&spec.headers, sees_secrets),
        retry_policy: spec.retry_policy.as_ref().map(retry::to_proto),
        event_retry_policies: spec.event_retry_policies.iter().map(retry::event_to_proto).collect(),
        timeout: Some(to_duration(spec.timeout)),
        max_in_flight: spec.max_in_flight,
        rate_limit: spec.rate_limit.map(gates::rate_limit_to_proto),
        circuit_breaker: Some(gates::circuit_breaker_to_proto(spec.circuit_breaker)),
        disable_policy: Some(gates::disable_policy_to_proto(spec.disable_policy)),
        ordering: i32::from(spec.ordering.number()),
        ordering_on_failure: i32::from(spec.on_failure.number()),
        labels: spec.labels.into_iter().collect(),
        external_id: spec.external_id.unwrap_or_default(),
        ca_pem: spec.tls.trusted.as_ref().map(|trusted| trusted.as_str().to_owned()).unwrap_or_default(),
        client_certificate_pem: spec.tls.client.as_ref().map(|it| it.chain().to_owned()).unwrap_or_default(),
        // Never shown.
        client_key_pem: String::new(),
        state: i32::from(state.number()),
        disabled_reason: endpoint.disabled_reason.unwrap_or_default(),
        circuit_state: i32::from(endpoint.circuit.number()),
        health_score: health.score,
        consecutive_failures: health.consecutive_failures,
        last_success_time: health.last_success_time.map(to_timestamp),
        last_failure_time: health.last_failure_time.map(to_timestamp),
        secrets: endpoint.secrets.into_iter().map(secret_info).collect(),
        public_key: endpoint.public_key.unwrap_or_default(),
        filter_error_count: endpoint.filter_error_count,
        create_time: Some(to_timestamp(create_time)),
        update_time: Some(to_timestamp(update_time)),
        etag: version.to_string(),
    }
}

fn headers(own: &OwnHeaders, sees_secrets: bool) -> HashMap<String, String> {
    let shown = |value: &String| if sees_secrets { value.clone() } else { REDACTED.to_owned() };
    own.entries().iter().map(|(name, value)| (name.clone(), shown(value))).collect()
}

fn secret_info(info: SecretInfo) -> proto::SecretInfo {
    proto::SecretInfo {
        version: info.version,
        create_time: Some(to_timestamp(info.create_time)),
        expire_time: info.expire_time.map(to_timestamp),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::super::tests::refused;
    use super::*;

    fn given() -> proto::Endpoint {
        proto::Endpoint { url: "https://example.com/hooks".to_owned(), ..proto::Endpoint::default() }
    }

    fn register(given: &proto::Endpoint) -> Result<EndpointSpec, (Code, Vec<String>)> {
        let mut violations = Violations::new();
        let patch = Patch::parse(given, &Mask::all(), &EgressRules::default(), &mut violations);
        match patch.into_spec(&mut violations) {
            Some(spec) if violations.is_empty() => Ok(spec),
            _ => Err(refused(&violations.into_status())),
        }
    }

    #[test]
    fn what_is_left_out_has_the_documented_default() {
        let spec = register(&given()).expect("valid");
        assert_eq!(spec.timeout, Duration::from_secs(30));
        assert_eq!(spec.max_in_flight, 64);
        assert_eq!(spec.signature_scheme, SignatureScheme::Timestamped);
        assert_eq!(spec.payload_format, PayloadFormat::Envelope);
        assert_eq!((spec.retry_policy, spec.external_id), (None, None));
        assert_eq!((spec.ordering, spec.on_failure), (Ordering::Unordered, OnFailure::Block));
    }

    #[test]
    fn every_bad_field_is_named() {
        let bad = proto::Endpoint {
            url: "http://10.0.0.1".to_owned(),
            description: "x".repeat(2_000),
            event_types: vec!["ok".to_owned(), "a b".to_owned(), "c*".to_owned()],
            signature_scheme: 99,
            timeout: Some(prost_types::Duration { seconds: 301, nanos: 0 }),
            max_in_flight: 2_000,
            ordering: -1,
            ordering_on_failure: 3,
            ca_pem: "nonsense".to_owned(),
            client_certificate_pem: "nonsense".to_owned(),
            client_key_pem: "nonsense".to_owned(),
            ..given()
        };
        let (code, mut paths) = register(&bad).expect_err("bad");
        paths.sort();
        assert_eq!(code, Code::InvalidArgument);
        let names = [
            "ca_pem",
            "client_certificate_pem",
            "description",
            "event_types[1]",
            "event_types[2]",
            "max_in_flight",
            "ordering",
            "ordering_on_failure",
        ];
        let expected: Vec<String> = names
            .iter()
            .chain(&["signature_scheme", "timeout", "url"])
            .map(|name| format!("endpoint.{name}"))
            .collect();
        assert_eq!(paths, expected);
    }

    #[test]
    fn an_update_changes_what_its_mask_names() {
        let base = register(&given()).expect("valid");
        let update =
            proto::Endpoint { description: "new".to_owned(), max_in_flight: 7, filter: "x".to_owned(), ..given() };
        let mut violations = Violations::new();
        let mask = Mask::parse(&["max_in_flight".to_owned()], &update, &mut violations);
        let patch = Patch::parse(&update, &mask, &EgressRules::default(), &mut violations);
        let changed = patch.apply(&base, &mut violations);
        assert!(violations.is_empty());
        assert_eq!(changed, EndpointSpec { max_in_flight: 7, ..base });
    }

    #[test]
    fn a_foreign_etag_is_no_version() {
        assert_eq!([version_of(""), version_of("12"), version_of("x")], [None, Some(12), Some(-1)]);
    }
}
