//! What an endpoint receives, to the last header.

use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::receiver::{Received, Receiver, read_request};
use super::*;
use crate::domain::headers::OwnHeaders;
use crate::domain::verification::{Verifier, verify};

/// A receiver that passes on what it received and answers 204.
async fn recorder() -> (Receiver, UnboundedReceiver<Received>) {
    let (sender, received) = unbounded_channel();
    let receiver = Receiver::start(move |mut stream| {
        let sender = sender.clone();
        async move {
            while let Some(request) = read_request(&mut stream).await {
                let _ = sender.send(request);
                let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
            }
        }
    })
    .await;
    (receiver, received)
}

const ENVELOPE: &str = concat!(
    r#"{"id":"evt_01h455vb4pex5vsknk084sn02q","event":"order.created","#,
    r#""timestamp":"2023-06-30T03:34:18.518Z","data":{"a":1}}"#
);

const STANDARD_WEBHOOKS: &str = r#"{"type":"order.created","timestamp":"2023-06-30T03:34:18.518Z","data":{"a":1}}"#;

const STRUCTURED: &str = concat!(
    r#"{"specversion":"1.0","id":"evt_01h455vb4pex5vsknk084sn02q","source":"/hooklane/default","#,
    r#""type":"order.created","time":"2023-06-30T03:34:18.518Z","#,
    r#""datacontenttype":"application/json; charset=utf-8","data":{"a":1}}"#
);

const ATTRIBUTES: [(&str, &str); 5] = [
    ("ce-specversion", "1.0"),
    ("ce-id", "evt_01h455vb4pex5vsknk084sn02q"),
    ("ce-source", "/hooklane/default"),
    ("ce-type", "order.created"),
    ("ce-time", "2023-06-30T03:34:18.518Z"),
];

#[tokio::test]
async fn a_request_has_exactly_the_contracts_headers_in_every_scheme_and_format() {
    let (receiver, mut received) = recorder().await;
    let egress = egress();
    for scheme in (1..=5).filter_map(SignatureScheme::from_number) {
        let secret = if scheme.is_ed25519() { Secret::from_seed(&[7; 32]) } else { secret() };
        let verifier = Verifier::from(secret.clone());
        for (format, body, content_type) in [
            (PayloadFormat::Envelope, ENVELOPE, "application/json"),
            (PayloadFormat::Raw, r#"{"a":1}"#, "application/json; charset=utf-8"),
            (PayloadFormat::StandardWebhooks, STANDARD_WEBHOOKS, "application/json"),
            (PayloadFormat::CloudEventsStructured, STRUCTURED, "application/cloudevents+json"),
            (PayloadFormat::CloudEventsBinary, r#"{"a":1}"#, "application/json; charset=utf-8"),
        ] {
            let url = EndpointUrl::from_stored(&receiver.url("/hooks?k=v%20w")).unwrap();
            let target = Target::new(&url, Signer::new(scheme, [&secret]), PATIENT).unwrap();
            let event = event(r#"{"a":1}"#);
            let result = egress.send(Outgoing { format, ..outgoing(&target, &event) }).await;
            check(&result, AttemptOutcome::Succeeded, 204, "");

            let request = received.recv().await.unwrap();
            assert_eq!(request.line, "POST /hooks?k=v%20w HTTP/1.1");
            assert_eq!(request.body, body.as_bytes());
            let (host, length) = (receiver.address.to_string(), body.len().to_string());
            let mut expected = vec![
                ("host", host.as_str()),
                ("user-agent", "hooklane/1.2.3"),
                ("content-type", content_type),
                ("x-webhook-id", "dlv_01h455vb4pex5vsknk084sn02q"),
                ("x-webhook-delivery", "dlv_01h455vb4pex5vsknk084sn02q"),
                ("x-webhook-event", "order.created"),
                ("x-webhook-timestamp", "1768996800"),
                ("x-webhook-attempt", "3"),
                ("idempotency-key", "evt_01h455vb4pex5vsknk084sn02q"),
                ("traceparent", "00-01890a5dac96774bbcceb302099a8057-bcceb302099a8054-00"),
            ];
            if format == PayloadFormat::CloudEventsBinary {
                expected.extend(ATTRIBUTES);
            }
            let signature = Signer::new(scheme, [&secret]).sign(&event.id.to_string(), NOW, &request.body);
            expected.extend(signature.iter().map(|(name, value)| (*name, value.as_str())));
            expected.push(("content-length", &length));
            let headers: Vec<_> = request.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            assert_eq!(headers, expected);
            assert_eq!(verify(scheme, &verifier, |name| request.header(name), &request.body, NOW.seconds()), Ok(()));
        }
    }
}

#[tokio::test]
async fn the_publishers_idempotency_key_goes_before_the_event_id() {
    let (receiver, mut received) = recorder().await;
    let target = target(&receiver.url("/"), PATIENT);
    let keyed = Event { idempotency_key: Some("order-17;v=\"2\"".to_owned()), ..event("{}") };
    egress().send(outgoing(&target, &keyed)).await;
    assert_eq!(received.recv().await.unwrap().header("idempotency-key"), Some("order-17;v=\"2\""));
}

#[tokio::test]
async fn user_information_becomes_basic_authorization_and_is_shown_nowhere() {
    let (receiver, mut received) = recorder().await;
    let url = format!("http://user:p%40ss%3A@{}/hooks?token=t", receiver.address);
    let target = target(&url, PATIENT);
    assert_eq!(target.shown_url(), receiver.url("/hooks"));
    egress().send(outgoing(&target, &event("{}"))).await;
    let request = received.recv().await.unwrap();
    // user:p@ss:
    assert_eq!(request.header("authorization"), Some("Basic dXNlcjpwQHNzOg=="));
    assert_eq!(request.header("host"), Some(receiver.address.to_string().as_str()));
    assert_eq!(request.line, "POST /hooks?token=t HTTP/1.1");
}

#[tokio::test]
async fn headers_of_the_endpoints_own_are_sent_beside_ours() {
    let (receiver, mut received) = recorder().await;
    let parse = |entries: &[(&str, &str)]| {
        let entries = entries.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        OwnHeaders::parse(entries).unwrap()
    };
    let target = target(&format!("http://user:pass@{}/", receiver.address), PATIENT);
    let target = target.with_headers(&parse(&[("X-Api-Key", "k, \"1\""), ("Authorization", "Bearer t")]));
    check(&egress().send(outgoing(&target, &event("{}"))).await, AttemptOutcome::Succeeded, 204, "");
    let request = received.recv().await.unwrap();
    let values = |wanted: &str| {
        let named = request.headers.iter().filter(|(name, _)| name == wanted);
        named.map(|(_, value)| value.as_str()).collect::<Vec<_>>()
    };
    assert_eq!(values("x-api-key"), ["k, \"1\""]);
    assert_eq!(values("authorization"), ["Bearer t"], "the endpoint's own goes before its address's");
    assert_eq!(values("content-type"), ["application/json"]);
}

#[tokio::test]
async fn stored_values_that_no_header_can_carry_do_not_stop_an_event() {
    let (receiver, mut received) = recorder().await;
    let target = target(&receiver.url("/"), PATIENT);
    let odd = Event { idempotency_key: Some("a\r\nb: c".to_owned()), ..event("{}") };
    check(&egress().send(outgoing(&target, &odd)).await, AttemptOutcome::Succeeded, 204, "");
    let request = received.recv().await.unwrap();
    assert_eq!((request.header("idempotency-key"), request.header("b")), (None, None));
}

#[tokio::test]
async fn requests_in_sequence_share_one_connection() {
    let receiver = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let egress = egress();
    for _ in 0..20 {
        check(&send(&egress, &receiver.url("/"), PATIENT).await, AttemptOutcome::Succeeded, 200, "");
    }
    assert_eq!(receiver.connections(), 1);
}

#[tokio::test]
async fn requests_at_once_do_not_wait_for_each_other() {
    // Nobody is answered before all are there.
    let all_there = Arc::new(tokio::sync::Barrier::new(50));
    let receiver = Receiver::start(move |mut stream| {
        let all_there = Arc::clone(&all_there);
        async move {
            read_request(&mut stream).await;
            all_there.wait().await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        }
    })
    .await;
    let (egress, url) = (egress(), receiver.url("/"));
    let results = futures::future::join_all((0..50).map(|_| send(&egress, &url, PATIENT))).await;
    assert!(results.iter().all(|result| result.outcome == AttemptOutcome::Succeeded));
}

#[tokio::test]
async fn a_connection_that_the_receiver_closed_meanwhile_fails_no_request() {
    let receiver = Receiver::closing("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let egress = egress();
    for number in 1..=3 {
        check(&send(&egress, &receiver.url("/"), PATIENT).await, AttemptOutcome::Succeeded, 200, "");
        assert_eq!(receiver.connections(), number);
    }
}

#[tokio::test]
async fn a_connection_that_is_asked_to_close_is_closed() {
    let receiver = Receiver::answering("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
    let egress = egress();
    for number in 1..=2 {
        check(&send(&egress, &receiver.url("/"), PATIENT).await, AttemptOutcome::Succeeded, 200, "");
        assert_eq!(receiver.connections(), number);
    }
}
