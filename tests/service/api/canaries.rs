//! Known secrets on every way that leads to a span: none of them is in what a collector is sent.
//!
//! What is logged, measured, answered and kept is looked through in `tests/process/sealing.rs`.

use hooklane::api::proto::*;
use hooklane::cli::listen::{Behaviour, Receiver, ReceiverOptions};
use hooklane::domain::access::{Role, Scope};
use http::StatusCode;
use tonic::Code;

use super::keys::{Holder, bearer, guarded, holder, key_of};
use super::tracing::{Sink, borrowed, settings};
use super::{app_with, endpoint, event, event_of, retries, soon};
use crate::support::eventually;

/// What is looked for. Each is of a path of its own, so that what is found tells where it came from. Keys are beside it.
const CANARIES: [&str; 12] = [
    "canary-secret-registered",
    "canary-secret-rotated",
    "canary-secret-inline",
    "canary-secret-refused bad",
    "canary-url-password",
    "canary-url-query",
    "canary-url-inline",
    "canary-header-value",
    "canary-payload",
    "canary-payload-refused",
    "canary-metadata",
    "canary-credential",
];

/// One that checks no signature: there are several secrets here.
async fn receiver(behaviour: Behaviour) -> Receiver {
    Receiver::start(ReceiverOptions { behaviour, ..ReceiverOptions::default() }).await.expect("a receiver")
}

/// An address with credentials and a query.
fn secret(url: &str, query: &str) -> String {
    format!("{}/hooks?token={query}", url.replace("://", "://shop:canary-url-password@"))
}

fn guarded_endpoint(url: &str) -> Endpoint {
    let headers = [("Authorization".to_owned(), "Bearer canary-header-value".to_owned())].into();
    Endpoint { url: secret(url, "canary-url-query"), headers, retry_policy: Some(retries(1)), ..endpoint(url) }
}

fn secret_event() -> PublishRequest {
    PublishRequest {
        metadata: [("note".to_owned(), "canary-metadata".to_owned())].into(),
        ..event_of(r#"{"card":"canary-payload"}"#)
    }
}

async fn register(client: &mut Holder, endpoint: Endpoint) -> String {
    let request = RegisterEndpointRequest { endpoint: Some(endpoint), secret: "canary-secret-registered".to_owned() };
    client.register_endpoint(request).await.expect("registered").into_inner().endpoint.expect("an endpoint").id
}

async fn in_state(client: &Holder, id: &str, state: DeliveryState) {
    eventually(&format!("{id} is {state:?}"), || async {
        let request = GetDeliveryRequest { delivery_id: id.to_owned() };
        let delivery = client.clone().get_delivery(request).await.expect("read").into_inner().delivery;
        delivery.filter(|delivery| delivery.state() == state).map(drop)
    })
    .await;
}

#[tokio::test]
async fn known_secrets_are_in_no_span() {
    let (sink, collector) = Sink::grpc().await;
    let collecting = settings(&collector, "grpc");
    let settings = borrowed(&collecting, &[("HOOKLANE_SHUTDOWN_GRACE", "0s")]);
    let (service, database) = guarded(&settings).await;
    let key = key_of(&database, Role::Admin, Scope::All).await;
    let mut client = holder(&service, &key).await;
    let failing = receiver(Behaviour { status: Some(StatusCode::SERVICE_UNAVAILABLE), ..Behaviour::default() }).await;
    let silent = receiver(Behaviour { silent: true, ..Behaviour::default() }).await;
    let receiver = receiver(Behaviour::default()).await;

    // A key in PEM, of which each line is looked for.
    let made = rcgen::generate_simple_self_signed(["hooklane".to_owned()]).expect("made");
    let pem = made.signing_key.serialize_pem();
    let with_certificate = |url: &str| Endpoint {
        client_certificate_pem: made.cert.pem(),
        client_key_pem: pem.clone(),
        ..guarded_endpoint(url)
    };

    // Delivered, refused by the receiver, by its port, and for its lack of TLS.
    let id = register(&mut client, guarded_endpoint(&receiver.url())).await;
    let no_tls = receiver.url().replace("http:", "https:");
    for url in [failing.url(), "http://127.0.0.1:1".to_owned(), no_tls] {
        register(&mut client, with_certificate(&url)).await;
    }
    let published = client.publish(secret_event()).await.expect("published").into_inner();
    assert_eq!(published.deliveries.len(), 4);
    for delivery in &published.deliveries {
        let is_good = delivery.endpoint_id == id;
        let state = if is_good { DeliveryState::Succeeded } else { DeliveryState::Failed };
        in_state(&client, &delivery.delivery_id, state).await;
    }
    let received = soon("a request", receiver.next()).await.expect("a request");
    assert_eq!(received.headers["authorization"], "Bearer canary-header-value");
    assert_eq!(received.path, "/hooks?token=canary-url-query");

    // By hand, with another secret, and to an endpoint that comes along.
    for delivery in published.deliveries.iter().filter(|delivery| delivery.endpoint_id != id) {
        let request = RetryDeliveryRequest { delivery_id: delivery.delivery_id.clone() };
        client.retry_delivery(request).await.expect("retried");
    }
    let request = RotateSecretRequest {
        endpoint_id: id.clone(),
        secret: "canary-secret-rotated".to_owned(),
        ..RotateSecretRequest::default()
    };
    client.rotate_secret(request).await.expect("rotated");
    let request = TestEndpointRequest { endpoint_id: id.clone(), ..TestEndpointRequest::default() };
    client.test_endpoint(request).await.expect("tried");
    let inline = InlineEndpoint {
        endpoint: Some(Endpoint { url: secret(&receiver.url(), "canary-url-inline"), ..guarded_endpoint("x") }),
        secret: "canary-secret-inline".to_owned(),
    };
    let request = PublishRequest { inline_endpoint: Some(Box::new(inline)), ..secret_event() };
    let published = client.publish(request).await.expect("published").into_inner();
    in_state(&client, &published.deliveries[0].delivery_id, DeliveryState::Succeeded).await;

    // Refused.
    let request = RegisterEndpointRequest {
        endpoint: Some(guarded_endpoint(&receiver.url())),
        secret: "canary-secret-refused bad".to_owned(),
    };
    let refusal = client.register_endpoint(request).await.expect_err("no secret");
    assert_eq!(refusal.code(), Code::InvalidArgument);
    let refusal = client.publish(event_of("canary-payload-refused")).await.expect_err("no JSON");
    assert_eq!(refusal.code(), Code::InvalidArgument);
    let mut request = tonic::Request::new(event("order.created"));
    request.metadata_mut().insert("authorization", bearer("canary-credential"));
    let refusal = service.client.clone().publish(request).await.expect_err("no key");
    assert_eq!(refusal.code(), Code::Unauthenticated);

    // Lost with its replica, and found by another.
    let lane = register(&mut client, guarded_endpoint(&silent.url())).await;
    let request = PublishRequest { endpoint_ids: vec![lane], ..secret_event() };
    client.publish(request).await.expect("published");
    soon("a request", silent.next()).await.expect("a request");
    drop(client);
    service.app.stop().await;
    crate::queue::lapse(&database).await;
    let other = app_with(database, &settings).await;
    soon("another request", silent.next()).await.expect("a request");
    eventually("the lost attempt is recorded", || async {
        let is_lost =
            |spans: &[super::tracing::Seen]| spans.iter().any(|seen| seen.value("webhook.attempt.outcome") == "lost");
        is_lost(&sink.spans()).then_some(())
    })
    .await;
    other.stop().await;

    // All of it is recorded, and says where requests went.
    let spans = sink.spans();
    for name in ["Publish", "commit", "claim", "POST", "complete", "RegisterEndpoint", "RotateSecret", "TestEndpoint"] {
        assert!(spans.iter().any(|seen| seen.span.name == name), "{name}");
    }
    let shown = format!("{}/hooks", receiver.url());
    assert!(spans.iter().any(|seen| seen.value("url.full") == shown), "{shown}");
    let told: Vec<_> = sink.sent().iter().map(prost::Message::encode_to_vec).collect();
    assert!(before(&told, "order.created").is_some(), "what is sent is found");
    let lines = pem.lines().filter(|line| !line.starts_with("---"));
    for canary in CANARIES.into_iter().chain(lines).chain([key.as_str()]) {
        for form in forms(canary) {
            assert_eq!(before(&told, &form), None, "{canary} was sent, after this");
        }
    }
}

/// What stands before `text` where it was sent.
fn before(told: &[Vec<u8>], text: &str) -> Option<String> {
    told.iter().find_map(|bytes| {
        let at = bytes.windows(text.len()).position(|window| window == text.as_bytes())?;
        Some(String::from_utf8_lossy(&bytes[at.saturating_sub(200)..at]).into_owned())
    })
}

/// As it is, and as hex and base64 have it, without what its neighbours would change.
fn forms(canary: &str) -> [String; 3] {
    use base64::Engine as _;
    let hex = canary.bytes().map(|byte| format!("{byte:02x}")).collect();
    let encoded = base64::engine::general_purpose::STANDARD_NO_PAD.encode(&canary.as_bytes()[..12]);
    [canary.to_owned(), hex, encoded]
}
