//! Published events between the contract's form and ours. On the hot path: the payload is never copied.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use serde::de::IgnoredAny;
use tonic::Status;

use super::endpoint::Patch;
use super::mask::Mask;
use super::time::to_timestamp;
use super::{Violations, schedule};
use crate::api::auth::Caller;
use crate::api::proto::publish_request::Body;
use crate::api::server::Config;
use crate::api::{proto, status};
use crate::domain::Problem;
use crate::domain::event::{Event, InlineEndpoint, NewEvent};
use crate::domain::fields::{ContentType, parse_key, parse_map};
use crate::domain::id::EndpointId;
use crate::domain::pattern::EventType;
use crate::domain::secret::Secret;
use crate::domain::time::Timestamp;

/// How many endpoints one event may name.
const ENDPOINT_IDS_MAX: usize = 1_000;
/// How deep JSON may be nested: what common parsers of receivers take.
const JSON_DEPTH_MAX: usize = 128;

/// Checks an event that a caller wants published at `now`, by the database's clock.
pub(in crate::api) fn from_proto(
    caller: &Caller,
    request: proto::PublishRequest,
    config: &Config,
    now: Timestamp,
    mut v: Violations,
) -> Result<NewEvent, Status> {
    let schedule = schedule::from_proto(&request, now, &mut v);
    let inline_endpoint = match &request.inline_endpoint {
        None => Some(None),
        Some(given) => inline_endpoint(caller, given, &request, config, &mut v).map(|inline| Some(Arc::new(inline))),
    };
    let tenant = caller.tenant("tenant", &request.tenant, &mut v);
    let event_type = v.take("event_type", EventType::parse(&request.event_type));
    let content_type = v.take("content_type", ContentType::parse(&request.content_type));
    let idempotency_key = v.take("idempotency_key", parse_key(&request.idempotency_key));
    let metadata = v.take("metadata", parse_map(request.metadata));
    let endpoint_ids = if request.endpoint_ids.is_empty() {
        Some(Vec::new())
    } else {
        v.take_all("endpoint_ids", &request.endpoint_ids, ENDPOINT_IDS_MAX, str::parse::<EndpointId>)
    };
    let (path, payload) = match request.body {
        Some(Body::Payload(bytes)) => ("payload", bytes),
        Some(Body::PayloadText(text)) => ("payload_text", Bytes::from(text)),
        None => ("payload", Bytes::new()),
    };
    if payload.len() > config.payload_bytes_max {
        return Err(status::payload_too_large(payload.len(), config.payload_bytes_max));
    }
    if content_type.as_ref().is_some_and(ContentType::is_json) {
        v.take(path, check_json(&payload));
    }
    match (tenant, event_type, content_type, idempotency_key, metadata, endpoint_ids, inline_endpoint, schedule) {
        (
            Some(tenant),
            Some(event_type),
            Some(content_type),
            Some(idempotency_key),
            Some(metadata),
            Some(mut endpoint_ids),
            Some(inline_endpoint),
            Some(schedule),
        ) if v.is_empty() => {
            drop_duplicates(&mut endpoint_ids);
            Ok(NewEvent {
                source: config.cloudevents_source.source(&tenant),
                tenant,
                event_type,
                payload,
                content_type,
                idempotency_key,
                metadata,
                endpoint_ids,
                inline_endpoint,
                schedule,
                trace: None,
            })
        }
        _ => Err(v.into_status()),
    }
}

/// Checks the endpoint that comes with an event: all that an endpoint may have, but for what chooses among events, and
/// what would name it.
fn inline_endpoint(
    caller: &Caller,
    given: &proto::InlineEndpoint,
    request: &proto::PublishRequest,
    config: &Config,
    v: &mut Violations,
) -> Option<InlineEndpoint> {
    const NONE: &str = "is set; an endpoint that comes with its event has none";
    if !request.endpoint_ids.is_empty() {
        v.invalid("inline_endpoint", Problem::new("stands beside endpoint_ids; allowed is one of the two"));
    }
    v.inside("inline_endpoint", |v| {
        let Some(endpoint) = &given.endpoint else {
            v.invalid("endpoint", Problem::new("is unset; it is required"));
            return None;
        };
        if caller.meant(&endpoint.tenant) != caller.meant(&request.tenant) && !endpoint.tenant.is_empty() {
            v.invalid("endpoint.tenant", Problem::new("is another tenant than the event's; leave it unset"));
        }
        for (path, is_set) in [
            ("endpoint.event_types", !endpoint.event_types.is_empty()),
            ("endpoint.filter", !endpoint.filter.is_empty()),
            ("endpoint.external_id", !endpoint.external_id.is_empty()),
        ] {
            if is_set {
                v.invalid(path, Problem::new(NONE));
            }
        }
        let chosen = proto::Endpoint {
            event_types: Vec::new(),
            filter: String::new(),
            external_id: String::new(),
            ..endpoint.clone()
        };
        let patch = Patch::parse(&chosen, &Mask::all(), &config.egress_rules, v);
        let secret = match (patch.signature_scheme(), given.secret.is_empty()) {
            (_, true) => v.take("secret", Err(Problem::new("is unset; it is required"))),
            (Some(scheme), false) => v.take("secret", Secret::parse(&given.secret, scheme)),
            // What the secret must look like depends on a scheme that is refused already.
            (None, false) => None,
        };
        Some(InlineEndpoint { spec: patch.into_spec(v)?, secret: secret? })
    })
}

/// Drops repeated endpoints, in the order they were named.
fn drop_duplicates(ids: &mut Vec<EndpointId>) {
    if ids.len() > 1 {
        let mut seen = HashSet::with_capacity(ids.len());
        ids.retain(|id| seen.insert(*id));
    }
}

/// Checks that the bytes are one JSON text in UTF-8 (RFC 8259), nested no deeper than receivers can be expected to read.
pub(in crate::api) fn check_json(payload: &[u8]) -> Result<(), Problem> {
    if payload.is_empty() {
        return Err(Problem::new("is empty, which is not JSON; allowed is a JSON text, or another content_type"));
    }
    // The parser skips strings without looking at their encoding.
    let text = std::str::from_utf8(payload)
        .map_err(|error| Problem::new(format!("is not JSON: byte {} is not UTF-8", error.valid_up_to())))?;
    serde_json::from_str::<IgnoredAny>(text).map_err(|error| Problem::new(format!("is not JSON: {error}")))?;
    if is_deeper_than(JSON_DEPTH_MAX, payload) {
        return Err(Problem::new(format!(
            "is nested deeper than {JSON_DEPTH_MAX} levels, which receivers cannot read"
        )));
    }
    Ok(())
}

/// Whether well-formed JSON has more than `max` arrays and objects around a value.
fn is_deeper_than(max: usize, json: &[u8]) -> bool {
    // Nearly every payload has fewer brackets than levels are allowed; counting them is a fraction of reading strings.
    if json.iter().filter(|byte| matches!(byte, b'[' | b'{')).count() <= max {
        return false;
    }
    let (mut depth, mut is_in_string, mut is_escaped) = (0_usize, false, false);
    for byte in json {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_in_string => is_escaped = true,
            b'"' => is_in_string = !is_in_string,
            _ if is_in_string => {}
            b'[' | b'{' => {
                depth += 1;
                if depth > max {
                    return true;
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// An event as callers see it, payload included.
pub(in crate::api) fn to_proto(event: Event) -> proto::Event {
    proto::Event {
        id: event.id.to_string(),
        tenant: event.tenant.to_string(),
        event_type: event.event_type.to_string(),
        payload: event.payload,
        content_type: event.content_type.as_str().to_owned(),
        idempotency_key: event.idempotency_key.unwrap_or_default(),
        priority: i32::from(event.schedule.priority.number()),
        ordering_key: event.schedule.ordering_key.unwrap_or_default(),
        deliver_time: event.schedule.deliver_time.map(to_timestamp),
        expire_time: event.schedule.expire_time.map(to_timestamp),
        metadata: event.metadata.into_iter().collect(),
        create_time: Some(to_timestamp(event.id.time())),
        routing_note: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;
    use tonic_types::StatusExt;

    use super::super::tests::refused;
    use super::*;
    use crate::domain::address::EgressRules;
    use crate::domain::cloudevents::SourceTemplate;

    fn request(payload: &'static str) -> proto::PublishRequest {
        proto::PublishRequest {
            event_type: "order.created".to_owned(),
            body: Some(Body::Payload(Bytes::from_static(payload.as_bytes()))),
            ..proto::PublishRequest::default()
        }
    }

    const NOW: Timestamp = Timestamp::from_micros(1_000_000_000);

    fn parse(request: proto::PublishRequest) -> Result<NewEvent, Status> {
        let config = Config {
            grpc_addr: ([127, 0, 0, 1], 0).into(),
            payload_bytes_max: 1_000,
            egress_rules: EgressRules::default(),
            cloudevents_source: SourceTemplate::default(),
            reflection: false,
            edge: crate::api::Edge::default(),
        };
        from_proto(&crate::api::auth::admin(), request, &config, NOW, Violations::new())
    }

    #[test]
    fn a_plain_event_has_the_documented_defaults_and_its_own_bytes() {
        let payload = Bytes::from_static(b"{}");
        let body = Some(Body::Payload(payload.clone()));
        let event = parse(proto::PublishRequest { body, ..request("") }).expect("valid");
        assert_eq!(event.payload.as_ptr(), payload.as_ptr());
        assert_eq!((event.tenant.as_str(), event.content_type.as_str()), ("default", "application/json"));
        let text = parse(proto::PublishRequest { body: Some(Body::PayloadText("{}".to_owned())), ..request("") });
        assert_eq!(text.expect("valid").payload, payload);
    }

    #[test]
    fn every_bad_field_is_named() {
        let bad = proto::PublishRequest {
            tenant: "a b".to_owned(),
            event_type: "hooklane.mine".to_owned(),
            content_type: "json".to_owned(),
            idempotency_key: "ä".to_owned(),
            endpoint_ids: vec!["ep_01h455vb4pex5vsknk084sn02q".to_owned(), "x".to_owned()],
            priority: 9,
            ordering_key: "a b".to_owned(),
            deliver_time: Some(prost_types::Timestamp { seconds: 1_000_000_000, nanos: 0 }),
            expire_time: Some(to_timestamp(NOW)),
            metadata: [(String::new(), String::new())].into(),
            ..request("{}")
        };
        let (code, mut paths) = refused(&parse(bad).expect_err("bad"));
        paths.sort();
        assert_eq!(code, Code::InvalidArgument);
        let expected = [
            "content_type",
            "deliver_time",
            "endpoint_ids[1]",
            "event_type",
            "expire_time",
            "idempotency_key",
            "metadata",
            "ordering_key",
            "priority",
            "tenant",
        ];
        assert_eq!(paths, expected);
    }

    #[test]
    fn an_endpoint_that_comes_with_its_event_is_checked_like_any_other() {
        let url = "https://example.com/hooks".to_owned();
        let good = proto::InlineEndpoint {
            endpoint: Some(proto::Endpoint { url: url.clone(), max_in_flight: 3, ..proto::Endpoint::default() }),
            secret: "a-secret-of-our-own".to_owned(),
        };
        let asked = |inline: proto::InlineEndpoint| proto::PublishRequest {
            tenant: "acme".to_owned(),
            inline_endpoint: Some(Box::new(inline)),
            ..request("{}")
        };
        let event = parse(asked(good.clone())).expect("valid");
        let inline = event.inline_endpoint.as_ref().expect("it");
        assert_eq!((inline.spec.max_in_flight, inline.secret.expose()), (3, "a-secret-of-our-own"));
        assert!(!event.is_fan_out());

        let bad = proto::InlineEndpoint {
            endpoint: Some(proto::Endpoint {
                tenant: "globex".to_owned(),
                url: "x".to_owned(),
                event_types: vec!["a".to_owned()],
                filter: "not looked at".to_owned(),
                external_id: "e".to_owned(),
                ..proto::Endpoint::default()
            }),
            secret: String::new(),
        };
        let named = vec!["ep_01h455vb4pex5vsknk084sn02q".to_owned()];
        let bad = proto::PublishRequest { endpoint_ids: named, ..asked(bad) };
        let (code, mut paths) = refused(&parse(bad).expect_err("bad"));
        paths.sort();
        assert_eq!(code, Code::InvalidArgument);
        let inside = [
            "endpoint.event_types",
            "endpoint.external_id",
            "endpoint.filter",
            "endpoint.tenant",
            "endpoint.url",
            "secret",
        ];
        let mut expected: Vec<_> = inside.iter().map(|path| format!("inline_endpoint.{path}")).collect();
        expected.insert(0, "inline_endpoint".to_owned());
        assert_eq!(paths, expected);
        let nothing = parse(asked(proto::InlineEndpoint::default())).expect_err("no endpoint");
        assert_eq!(refused(&nothing).1, ["inline_endpoint.endpoint"]);
        let bad = proto::Endpoint { url, ca_pem: "x".to_owned(), ..proto::Endpoint::default() };
        let bad = parse(asked(proto::InlineEndpoint { endpoint: Some(bad), ..good })).expect_err("no PEM");
        assert_eq!(refused(&bad), (Code::InvalidArgument, vec!["inline_endpoint.endpoint.ca_pem".to_owned()]));
    }

    #[test]
    fn json_is_checked_where_the_content_type_says_so() {
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        let brackets_in_a_string = format!("[\"\\\"{}\"]", "[".repeat(500));
        for good in ["1", "null", r#"{"a":"\ud800"}"#, " [1.5e3] ", &deep(128), &brackets_in_a_string] {
            assert_eq!(check_json(good.as_bytes()), Ok(()), "{good}");
        }
        for bad in ["", " ", "{", "{}x", "{} {}", "NaN", "{'a':1}", "\u{feff}{}", "\"a\nb\"", &deep(129), &deep(5_000)]
        {
            assert!(check_json(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(check_json(b"\"\xff\"").is_err());
        let text = |payload| proto::PublishRequest { content_type: "text/plain".to_owned(), ..request(payload) };
        assert!(parse(text("{")).is_ok());
        assert!(parse(proto::PublishRequest { body: None, ..text("") }).is_ok_and(|event| event.payload.is_empty()));
        let unset = parse(proto::PublishRequest { body: None, ..request("") }).expect_err("no JSON");
        assert_eq!(refused(&unset).1, ["payload"]);
    }

    #[test]
    fn a_payload_over_the_limit_is_refused_with_its_own_code() {
        let large = Body::Payload(Bytes::from(vec![b'1'; 1_001]));
        let status = parse(proto::PublishRequest { body: Some(large), ..request("") }).expect_err("too large");
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.get_details_error_info().map(|info| info.reason).as_deref(), Some("PAYLOAD_TOO_LARGE"));
    }

    #[test]
    fn repeated_endpoints_count_once() {
        let ids = ["ep_01h455vb4pex5vsknk084sn02q", "ep_01h455vb4pex5vsknk084sn02r", "ep_01h455vb4pex5vsknk084sn02q"];
        let named = proto::PublishRequest { endpoint_ids: ids.map(str::to_owned).to_vec(), ..request("1") };
        let event = parse(named).expect("valid");
        assert_eq!(event.endpoint_ids.iter().map(EndpointId::to_string).collect::<Vec<_>>(), ids[..2]);
    }
}
