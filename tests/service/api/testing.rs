//! TestEndpoint: sent at once, told in full, and kept nowhere.

use hooklane::api::proto::*;
use hooklane::cli::listen::{Behaviour, Verdict};
use http::{HeaderMap, HeaderValue, StatusCode};
use tonic::{Code, Status};

use super::{KEY, Service, endpoint, event, fields, reason, receiver, retries, service, service_with, soon, told};
use crate::support::{self, eventually};

async fn test(service: &Service, request: TestEndpointRequest) -> Result<Attempt, Status> {
    service.client.clone().test_endpoint(request).await.map(|answer| answer.into_inner().attempt.expect("an attempt"))
}

fn of(endpoint: &Endpoint) -> TestEndpointRequest {
    TestEndpointRequest { endpoint_id: endpoint.id.clone(), ..TestEndpointRequest::default() }
}

async fn read(service: &Service, id: &str) -> Endpoint {
    let request = GetEndpointRequest { endpoint_id: id.to_owned() };
    service.client.clone().get_endpoint(request).await.expect("read").into_inner().endpoint.expect("it")
}

#[tokio::test]
async fn a_test_request_has_all_that_the_endpoints_own_have_and_is_told_in_full() {
    // No worker: what is sent, the api sends.
    let service = service_with(support::database().await, &[("HOOKLANE_ROLES", "api")]).await;
    let headers = HeaderMap::from_iter([(http::header::SERVER, HeaderValue::from_static("shop/1"))]);
    let answer = Behaviour { headers, body: "thanks".into(), ..Behaviour::default() };
    let receiver = receiver(answer).await;
    let mut given = Endpoint {
        headers: [("X-Own".to_owned(), "own".to_owned())].into(),
        event_types: vec!["never".to_owned()],
        filter: "false".to_owned(),
        ..endpoint(&format!("{}/hook?token=secret", receiver.url()))
    };
    given.set_signature_scheme(SignatureScheme::StandardWebhooksEd25519);
    given.set_payload_format(PayloadFormat::StandardWebhooks);
    let registered = service.register_with(given, KEY).await;
    // Whatever its state.
    let pause = PauseEndpointRequest { endpoint_id: registered.id.clone() };
    service.client.clone().pause_endpoint(pause).await.expect("paused");
    let before = read(&service, &registered.id).await;

    let attempt = test(&service, of(&registered)).await.expect("sent");
    let received = receiver.next().await.expect("a request");
    assert_eq!((received.verdict, received.event_type.as_deref()), (Verdict::Good, Some("hooklane.test")));
    assert!(received.body.starts_with(b"{\"type\":\"hooklane.test\"") && received.body.ends_with(b"\"data\":{}}"));
    assert_eq!(received.headers["x-own"], "own");

    assert_eq!(
        (attempt.number, attempt.trigger(), attempt.outcome()),
        (1, AttemptTrigger::Test, AttemptOutcome::Succeeded)
    );
    assert_eq!(
        (attempt.status_code, &attempt.response_body[..], attempt.response_truncated),
        (200, &b"thanks"[..], false)
    );
    assert!(attempt.response_headers.contains(&Header { name: "server".to_owned(), value: "shop/1".to_owned() }));
    assert_eq!((attempt.url, attempt.error.as_str()), (format!("{}/hook", receiver.url()), ""));
    assert!(attempt.start_time.is_some() && attempt.duration.is_some() && !attempt.replica_id.is_empty());
    let mut shown: Vec<_> = attempt.request_headers.into_iter().map(|header| (header.name, header.value)).collect();
    shown.sort_unstable();
    let mut arrived: Vec<_> = received
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().expect("text").to_owned()))
        .filter(|(name, _)| name != "content-length")
        .collect();
    arrived.sort_unstable();
    assert_eq!(shown, arrived);

    let named =
        TestEndpointRequest { event_type: "order.created".to_owned(), payload: "{\"a\":1}".into(), ..of(&registered) };
    test(&service, named).await.expect("sent");
    let received = receiver.next().await.expect("a request");
    assert_eq!(received.event_type.as_deref(), Some("order.created"));
    assert!(received.body.ends_with(b"\"data\":{\"a\":1}}"));

    let listed = service.client.clone().list_deliveries(ListDeliveriesRequest::default()).await.expect("listed");
    assert!(listed.into_inner().deliveries.is_empty());
    assert_eq!(read(&service, &registered.id).await, before);
}

#[tokio::test]
async fn a_test_that_fails_is_answered_like_any_and_does_not_count() {
    let service = service().await;
    let failing = receiver(Behaviour {
        status: Some(StatusCode::SERVICE_UNAVAILABLE),
        retry_after: Some(3_600),
        ..Behaviour::default()
    })
    .await;
    let registered = service.register(Endpoint { retry_policy: Some(retries(0)), ..endpoint(&failing.url()) }).await;
    let attempt = test(&service, of(&registered)).await.expect("answered");
    assert_eq!((attempt.outcome(), attempt.status_code), (AttemptOutcome::HttpError, 503));
    assert_eq!((attempt.error.as_str(), attempt.next_attempt_time), ("HTTP 503: Service Unavailable", None));
    let health = read(&service, &registered.id).await;
    assert_eq!((health.consecutive_failures, health.health_score, health.last_failure_time), (0, 1.0, None));
    // Its Retry-After holds nothing up.
    let request = PublishRequest { endpoint_ids: vec![registered.id.clone()], ..event("a") };
    let id = service.publish(request).await.deliveries[0].delivery_id.clone();
    service.in_state(&id, DeliveryState::Failed).await;

    let silent = receiver(Behaviour { silent: true, ..Behaviour::default() }).await;
    let timeout = Some(super::seconds(1));
    let registered = service.register(Endpoint { timeout, ..endpoint(&silent.url()) }).await;
    assert_eq!(test(&service, of(&registered)).await.expect("answered").outcome(), AttemptOutcome::Timeout);
}

#[tokio::test]
async fn a_test_goes_past_no_guard() {
    let url = support::database().await;
    let lenient = service_with(url.clone(), &[]).await;
    let receiver = receiver(Behaviour::default()).await;
    let registered = lenient.register(endpoint(&receiver.url())).await;
    let strict = service_with(url, &[("HOOKLANE_EGRESS_ALLOW_CIDRS", "10.0.0.0/8")]).await;
    let attempt = test(&strict, of(&registered)).await.expect("answered");
    assert_eq!((attempt.outcome(), receiver.count()), (AttemptOutcome::Blocked, 0));
}

#[tokio::test]
async fn bad_tests_are_refused() {
    let service = service().await;
    let registered = service.register(endpoint("http://127.0.0.1:9/")).await;
    let bad = TestEndpointRequest { event_type: "a b".to_owned(), payload: "{".into(), ..of(&registered) };
    let refusal = test(&service, bad).await.expect_err("bad");
    assert_eq!(
        (reason(&refusal), fields(&refusal)),
        (told(Code::InvalidArgument, "INVALID_FIELD"), vec!["event_type".to_owned(), "payload".to_owned()])
    );
    let large = TestEndpointRequest { payload: vec![b'1'; 262_145].into(), ..of(&registered) };
    assert_eq!(
        reason(&test(&service, large).await.expect_err("large")),
        told(Code::ResourceExhausted, "PAYLOAD_TOO_LARGE")
    );
}

#[tokio::test]
async fn only_so_many_tests_are_under_way_at_once() {
    let service = service().await;
    let silent = receiver(Behaviour { silent: true, ..Behaviour::default() }).await;
    let registered = service.register(Endpoint { timeout: Some(super::seconds(300)), ..endpoint(&silent.url()) }).await;
    let waiting: Vec<_> = (0..64)
        .map(|_| {
            let (mut client, request) = (service.client.clone(), of(&registered));
            tokio::spawn(async move { client.test_endpoint(request).await })
        })
        .collect();
    eventually("all are under way", || async { (silent.count() == 64).then_some(()) }).await;
    let refusal = soon("a refusal", test(&service, of(&registered))).await.expect_err("one too many");
    assert_eq!(reason(&refusal), told(Code::ResourceExhausted, "QUOTA"));
    // Callers who go away make room.
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    let quick = receiver(Behaviour::default()).await;
    let other = service.register(endpoint(&quick.url())).await;
    eventually("there is room again", || async { test(&service, of(&other)).await.ok() }).await;
}
