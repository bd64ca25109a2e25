//! The main path: register, publish, arrive signed, and the history of it.

use std::time::Duration;

use hooklane::api::proto::{
    AttemptOutcome, AttemptTrigger, DeliveryState, Endpoint, EndpointState, GetEventRequest, ListDeliveriesRequest,
    PayloadFormat, PublishRequest, RegisterEndpointRequest, SignatureScheme, UpdateEndpointRequest,
};
use hooklane::cli::listen::{Behaviour, Received, Verdict};
use hooklane::domain::id::{EndpointId, EventId};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::{KEY, SECRET, endpoint, event_of, receiver, service, service_with};
use crate::support;

/// Every header of a request but those whose value the receiver's own verdict covers.
fn headers(received: &Received) -> Vec<(String, String)> {
    let mut headers: Vec<_> = received
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().expect("text").to_owned()))
        .filter(|(name, _)| !["x-webhook-signature", "webhook-signature", "traceparent"].contains(&name.as_str()))
        .collect();
    headers.sort_unstable();
    headers
}

/// What `payload`, published as `application/vnd.shop+json`, looks like in a format: its body and content type.
fn rendered(format: PayloadFormat, event_id: EventId, payload: &str) -> (String, &'static str) {
    let time = event_id.time();
    match format {
        PayloadFormat::Raw | PayloadFormat::CloudeventsBinary => (payload.to_owned(), "application/vnd.shop+json"),
        PayloadFormat::StandardWebhooks => {
            (format!("{{\"type\":\"order.created\",\"timestamp\":\"{time}\",\"data\":{payload}}}"), "application/json")
        }
        PayloadFormat::CloudeventsStructured => {
            let attributes = format!(
                "\"specversion\":\"1.0\",\"id\":\"{event_id}\",\"source\":\"/hooklane/default\",\"type\":\"order.created\",\
                 \"time\":\"{time}\",\"datacontenttype\":\"application/vnd.shop+json\""
            );
            (format!("{{{attributes},\"data\":{payload}}}"), "application/cloudevents+json")
        }
        _ => {
            let id = format!("\"id\":\"{event_id}\",\"event\":\"order.created\"");
            (format!("{{{id},\"timestamp\":\"{time}\",\"data\":{payload}}}"), "application/json")
        }
    }
}

#[tokio::test]
async fn an_event_arrives_signed_by_each_scheme_in_each_format() {
    let service = service().await;
    let receiver = receiver(Behaviour::default()).await;
    let payload = "{ \"id\" : 1.0,\n \"name\":\"Zoë \\u00e9\" }";
    let schemes = [
        SignatureScheme::Timestamped,
        SignatureScheme::StandardWebhooks,
        SignatureScheme::StandardWebhooksEd25519,
        SignatureScheme::BodySha256,
        SignatureScheme::BodyHex,
    ];
    let formats = [
        PayloadFormat::Envelope,
        PayloadFormat::Raw,
        PayloadFormat::CloudeventsStructured,
        PayloadFormat::CloudeventsBinary,
        PayloadFormat::StandardWebhooks,
    ];
    for (scheme, format) in schemes.into_iter().flat_map(|scheme| formats.map(|format| (scheme, format))) {
        let mut wanted = endpoint(&format!("{}/hook?a=1", receiver.url()));
        wanted.set_signature_scheme(scheme);
        wanted.set_payload_format(format);
        let is_ed25519 = scheme == SignatureScheme::StandardWebhooksEd25519;
        let endpoint = service.register_with(wanted, if is_ed25519 { KEY } else { SECRET }).await;
        assert_eq!((endpoint.signature_scheme(), endpoint.payload_format()), (scheme, format));
        let request = PublishRequest {
            idempotency_key: format!("key-{scheme:?}-{format:?}"),
            content_type: "application/vnd.shop+json".to_owned(),
            endpoint_ids: vec![endpoint.id.clone()],
            ..event_of(payload)
        };
        let published = service.publish(request.clone()).await;
        let received = receiver.next().await.expect("a request");
        assert_eq!(received.verdict, Verdict::Good);
        assert_eq!((received.method.as_str(), received.path.as_str()), ("POST", "/hook?a=1"));

        let event_id: EventId = published.event_id.parse().expect("an event id");
        let (body, content_type) = rendered(format, event_id, payload);
        assert_eq!(received.body, body);
        let delivery = published.deliveries[0].delivery_id.clone();
        let timestamp = received.headers["x-webhook-timestamp"].to_str().expect("text").to_owned();
        let host = receiver.addr().to_string();
        let (length, time) = (body.len().to_string(), event_id.time().to_string());
        let mut expected = vec![
            ("content-length", length.as_str()),
            ("content-type", content_type),
            ("host", &host),
            ("idempotency-key", &request.idempotency_key),
            ("user-agent", concat!("hooklane/", env!("CARGO_PKG_VERSION"))),
            ("x-webhook-attempt", "1"),
            ("x-webhook-delivery", &delivery),
            ("x-webhook-event", "order.created"),
            ("x-webhook-id", &delivery),
            ("x-webhook-timestamp", &timestamp),
        ];
        if format == PayloadFormat::CloudeventsBinary {
            expected.extend([("ce-id", published.event_id.as_str()), ("ce-source", "/hooklane/default")]);
            expected.extend([("ce-specversion", "1.0"), ("ce-time", &time), ("ce-type", "order.created")]);
        }
        let (header, form) = match scheme {
            SignatureScheme::StandardWebhooks => ("webhook-signature", "v1,".to_owned()),
            SignatureScheme::StandardWebhooksEd25519 => ("webhook-signature", "v1a,".to_owned()),
            SignatureScheme::BodySha256 => ("x-webhook-signature", "sha256=".to_owned()),
            SignatureScheme::BodyHex => ("x-webhook-signature", String::new()),
            _ => ("x-webhook-signature", format!("t={timestamp},v1=")),
        };
        let signature = received.headers[header].to_str().expect("text");
        assert!(signature.starts_with(&form), "{signature}");
        if header == "webhook-signature" {
            expected.extend([("webhook-id", published.event_id.as_str()), ("webhook-timestamp", &timestamp)]);
        }
        let others = ["webhook-signature", "x-webhook-signature"].into_iter().filter(|other| *other != header);
        assert!(others.into_iter().all(|other| !received.headers.contains_key(other)));
        expected.sort_unstable();
        let arrived = headers(&received);
        let arrived: Vec<_> = arrived.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(arrived, expected);
        let trace = received.headers["traceparent"].to_str().expect("text");
        assert!(trace.starts_with("00-") && trace.len() == 55, "{trace}");
        service.in_state(&delivery, DeliveryState::Succeeded).await;
    }
}

#[tokio::test]
async fn content_that_is_not_json_arrives_in_each_format_and_alike_on_every_attempt() {
    let service = service().await;
    let receiver = receiver(Behaviour { fail_first: 2, ..Behaviour::default() }).await;
    let payload = b"\x00\xff \"text\"\r\n";
    let data = "\"data_base64\":\"AP8gInRleHQiDQo=\"";
    let content_type = "application/vnd.shop; v=\"1 2\"";
    for format in [
        PayloadFormat::Envelope,
        PayloadFormat::StandardWebhooks,
        PayloadFormat::Raw,
        PayloadFormat::CloudeventsStructured,
        PayloadFormat::CloudeventsBinary,
    ] {
        let mut wanted = endpoint(&receiver.url());
        wanted.set_payload_format(format);
        let endpoint_ids = vec![service.register(wanted).await.id];
        let idempotency_key = format!("\"bare\",;={format:?}");
        let request = PublishRequest {
            content_type: content_type.to_owned(),
            idempotency_key: idempotency_key.clone(),
            endpoint_ids,
            ..event_of(&payload[..])
        };
        let published = service.publish(request).await;
        let event_id: EventId = published.event_id.parse().expect("an event id");
        let time = event_id.time();
        let (body, sent_as) = match format {
            PayloadFormat::Envelope => {
                let id = format!("\"id\":\"{event_id}\",\"event\":\"order.created\",\"timestamp\":\"{time}\"");
                (format!("{{{id},{data}}}").into_bytes(), "application/json")
            }
            PayloadFormat::StandardWebhooks => {
                let head = format!("\"type\":\"order.created\",\"timestamp\":\"{time}\"");
                (format!("{{{head},{data}}}").into_bytes(), "application/json")
            }
            PayloadFormat::CloudeventsStructured => {
                let attributes = format!(
                    "\"specversion\":\"1.0\",\"id\":\"{event_id}\",\"source\":\"/hooklane/default\",\
                     \"type\":\"order.created\",\"time\":\"{time}\",\
                     \"datacontenttype\":\"application/vnd.shop; v=\\\"1 2\\\"\""
                );
                (format!("{{{attributes},{data}}}").into_bytes(), "application/cloudevents+json")
            }
            _ => (payload.to_vec(), content_type),
        };
        let mut spans = Vec::new();
        for attempt in 1..=3 {
            let received = receiver.next().await.expect("a request");
            assert_eq!((received.attempt, received.verdict), (Some(attempt), Verdict::Good));
            assert_eq!(received.body, body, "{format:?}");
            assert_eq!(received.headers["content-type"], sent_as);
            assert_eq!(received.headers["idempotency-key"], idempotency_key, "bare");
            for name in ["x-webhook-id", "x-webhook-delivery"] {
                assert_eq!(received.headers[name], published.deliveries[0].delivery_id);
            }
            let trace = received.headers["traceparent"].to_str().expect("text").to_owned();
            let parts: Vec<_> = trace.split('-').map(str::to_owned).collect();
            assert_eq!(parts.iter().map(String::len).collect::<Vec<_>>(), [2, 32, 16, 2], "{trace}");
            spans.push((parts[1].clone(), parts[2].clone()));
        }
        assert!(spans.iter().all(|(trace, _)| *trace == spans[0].0), "one trace for each event: {spans:?}");
        assert!(spans[0].1 != spans[1].1 && spans[1].1 != spans[2].1 && spans[0].1 != spans[2].1, "{spans:?}");
    }
}

#[tokio::test]
async fn a_format_and_a_source_are_those_of_the_publish_on_every_attempt() {
    let url = crate::support::database().await;
    let named = [("HOOKLANE_CLOUDEVENTS_SOURCE", "https://shop.example/{tenant}"), ("HOOKLANE_ROLES", "api")];
    let publishing = service_with(url.clone(), &named).await;
    let receiver = receiver(Behaviour { fail_first: 2, ..Behaviour::default() }).await;
    let mut wanted = endpoint(&receiver.url());
    wanted.set_payload_format(PayloadFormat::CloudeventsStructured);
    let id = publishing.register(wanted).await.id;
    publishing.publish(event_of("{}")).await;
    let mut changed = Endpoint { id, ..Endpoint::default() };
    changed.set_payload_format(PayloadFormat::Raw);
    let request = UpdateEndpointRequest { endpoint: Some(changed), update_mask: None };
    publishing.client.clone().update_endpoint(request).await.expect("updated");
    publishing.app.stop().await;

    // Another replica, whose setting is another, delivers.
    let delivering = service_with(url, &[]).await;
    for _ in 1..=3 {
        let received = receiver.next().await.expect("a request");
        let body: serde_json::Value = serde_json::from_slice(&received.body).expect("JSON");
        assert_eq!(body["source"], "https://shop.example/default");
    }
    delivering.publish(event_of("[7]")).await;
    assert_eq!(receiver.next().await.expect("a request").body, "[7]");
}

#[tokio::test]
async fn without_a_key_the_event_is_the_idempotency_key_and_each_attempt_is_numbered() {
    let service = service().await;
    let receiver = receiver(Behaviour { fail_first: 2, ..Behaviour::default() }).await;
    service.register(endpoint(&receiver.url())).await;
    let published = service.publish(event_of("[1]")).await;
    let mut bodies = Vec::new();
    for attempt in 1..=3 {
        let received = receiver.next().await.expect("a request");
        assert_eq!(received.headers["idempotency-key"], published.event_id);
        assert_eq!((received.attempt, received.verdict), (Some(attempt), Verdict::Good));
        bodies.push(received.body);
    }
    assert!(bodies.iter().all(|body| *body == bodies[0]), "byte-identical on every attempt");
}

#[tokio::test]
async fn the_history_shows_every_attempt_with_what_was_answered() {
    let service = service().await;
    let headers = HeaderMap::from_iter([(http::header::SERVER, HeaderValue::from_static("shop/1"))]);
    let body = bytes::Bytes::from_static(b"thank\0s \xff");
    let receiver = receiver(Behaviour { fail_first: 1, headers, body: body.clone(), ..Behaviour::default() }).await;
    let endpoint = service.register(endpoint(&format!("{}/a?token=secret", receiver.url()))).await;
    let request = PublishRequest {
        metadata: [("order".to_owned(), "17".to_owned())].into(),
        idempotency_key: "k-1".to_owned(),
        ..event_of("{\"a\":1}")
    };
    let published = service.publish(request).await;
    let id = &published.deliveries[0].delivery_id;
    let delivery = service.in_state(id, DeliveryState::Succeeded).await;
    assert_eq!((delivery.attempt_count, delivery.last_status_code, delivery.last_error.as_str()), (2, 200, ""));
    assert_eq!((&delivery.event_id, &delivery.endpoint_id), (&published.event_id, &endpoint.id));
    assert_eq!((delivery.tenant.as_str(), delivery.event_type.as_str()), ("default", "order.created"));
    assert_eq!(delivery.idempotency_key, "k-1");
    assert!(delivery.create_time.is_some() && delivery.settle_time.is_some() && delivery.next_attempt_time.is_none());

    let [first, second] = &delivery.attempts[..] else { panic!("{:?}", delivery.attempts) };
    assert_eq!((first.number, first.outcome(), first.status_code), (1, AttemptOutcome::HttpError, 503));
    assert_eq!(first.error, "HTTP 503: Service Unavailable");
    assert!(first.next_attempt_time.is_some());
    assert_eq!((second.number, second.outcome(), second.status_code), (2, AttemptOutcome::Succeeded, 200));
    assert!(second.next_attempt_time.is_none() && second.error.is_empty());
    for attempt in [first, second] {
        assert_eq!(attempt.trigger(), AttemptTrigger::Schedule);
        assert!(attempt.start_time.is_some() && attempt.duration.is_some() && !attempt.replica_id.is_empty());
        assert_eq!(attempt.url, format!("{}/a", receiver.url()), "query values are secrets");
        assert_eq!((&attempt.response_body, attempt.response_truncated), (&body, false));
        let server = attempt.response_headers.iter().find(|header| header.name == "server").expect("kept");
        assert_eq!(server.value, "shop/1");
    }

    let event = delivery.event.expect("the event");
    let mut client = service.client.clone();
    let answer = client.get_event(GetEventRequest { event_id: event.id.clone() }).await.expect("read").into_inner();
    assert_eq!(answer.event.as_ref(), Some(&event));
    assert_eq!((event.payload.as_ref(), event.content_type.as_str()), (b"{\"a\":1}".as_slice(), "application/json"));
    assert_eq!(event.metadata["order"], "17");
    let [of_event] = &answer.deliveries[..] else { panic!("{:?}", answer.deliveries) };
    assert_eq!((&of_event.id, of_event.state()), (id, DeliveryState::Succeeded));

    let list = client.list_deliveries(ListDeliveriesRequest::default()).await.expect("read").into_inner();
    assert_eq!((list.deliveries.len(), list.next_page_token.as_str()), (1, ""));
    assert!(list.deliveries[0].attempts.is_empty() && list.deliveries[0].event.is_none(), "a list is brief");
    assert_eq!(list.deliveries[0], *of_event);
}

#[tokio::test]
async fn a_client_error_fails_with_its_words_as_the_reason() {
    let service = service().await;
    let receiver = receiver(Behaviour { status: Some(StatusCode::UNPROCESSABLE_ENTITY), ..Behaviour::default() }).await;
    service.register(endpoint(&receiver.url())).await;
    let id = service.publish_one("a").await;
    let delivery = service.in_state(&id, DeliveryState::Failed).await;
    assert_eq!(delivery.reason, "HTTP 422: Unprocessable Entity");
    assert_eq!((delivery.attempts.len(), delivery.attempts[0].outcome()), (1, AttemptOutcome::HttpError));
}

#[tokio::test]
async fn registering_shows_the_secret_once_and_the_values_in_effect() {
    let service = service().await;
    let mut client = service.client.clone();
    let given = hooklane::api::proto::Endpoint {
        url: "http://127.0.0.1:9/".to_owned(),
        ..hooklane::api::proto::Endpoint::default()
    };
    let request = RegisterEndpointRequest { endpoint: Some(given), secret: String::new() };
    let answer = client.register_endpoint(request).await.expect("registered").into_inner();
    let endpoint = answer.endpoint.expect("an endpoint");
    assert!(answer.secret.starts_with("whsec_") && answer.secret != SECRET);
    assert!(endpoint.id.starts_with("ep_") && !endpoint.etag.is_empty());
    assert_eq!((endpoint.tenant.as_str(), endpoint.state()), ("default", EndpointState::Active));
    assert_eq!(endpoint.signature_scheme(), SignatureScheme::Timestamped);
    assert_eq!(endpoint.payload_format(), PayloadFormat::Envelope);
    assert_eq!((endpoint.max_in_flight, endpoint.timeout.map(|span| span.seconds)), (64, Some(30)));
    assert!((endpoint.health_score - 1.0).abs() < f64::EPSILON);
    assert_eq!((endpoint.secrets.len(), endpoint.secrets[0].version), (1, 1));
    let request = hooklane::api::proto::GetEndpointRequest { endpoint_id: endpoint.id.clone() };
    let read = client.get_endpoint(request).await.expect("read").into_inner().endpoint.expect("an endpoint");
    assert_eq!(read, endpoint);
    assert!(!format!("{read:?}").contains(&answer.secret));
}

#[tokio::test]
async fn results_of_one_endpoint_that_are_stuck_hold_up_no_others() {
    let url = support::database().await;
    let service = service_with(url.clone(), &[]).await;
    let receiver = receiver(Behaviour::default()).await;
    let stuck = service.register(endpoint(&format!("{}/stuck", receiver.url()))).await;
    let other = service.register(endpoint(&format!("{}/other", receiver.url()))).await;
    let publish = async |to: &Endpoint| {
        let request = PublishRequest { endpoint_ids: vec![to.id.clone()], ..event_of("{}") };
        service.publish(request).await.deliveries[0].delivery_id.clone()
    };
    // Somebody looks at its health and does not go away.
    let mut lock = support::connection(&url).await;
    let id: EndpointId = stuck.id.parse().expect("an id");
    sqlx::raw_sql("begin").execute(&mut lock).await.expect("begun");
    let locked = sqlx::query("select from endpoint_health where endpoint_id = $1 for update").bind(id.uuid());
    locked.execute(&mut lock).await.expect("locked");
    let waiting = publish(&stuck).await;
    let mut tries = 0;
    loop {
        let delivery = publish(&other).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        if service.delivery(&delivery).await.state() == DeliveryState::Succeeded {
            break;
        }
        tries += 1;
        assert!(tries < 50, "the others wait for it");
    }
    assert_eq!(service.delivery(&waiting).await.state(), DeliveryState::InFlight, "its result waits for the lock");
    sqlx::raw_sql("rollback").execute(&mut lock).await.expect("let go");
    service.in_state(&waiting, DeliveryState::Succeeded).await;
}
