//! The contract's table of errors: code, reason and details of each row that can be met today.

use hooklane::api::proto::*;
use hooklane::cli::listen::Behaviour;
use hooklane::cli::postgres::{DataDir, Durability, Options, Postgres};
use http::StatusCode;
use tonic::Code;
use tonic_types::StatusExt;

use super::{endpoint, event, event_of, fields, reason, receiver, seconds, service, service_with, told};
use crate::support;

const UNKNOWN: &str = "01h455vb4pex5vsknk084sn02q";

#[tokio::test]
async fn every_bad_field_of_an_endpoint_is_named_at_once() {
    let service = service().await;
    let backoff = ExponentialBackoff {
        initial_delay: Some(seconds(-1)),
        multiplier: Some(0.5),
        max_delay: Some(seconds(700_000)),
    };
    let bad = Endpoint {
        tenant: "a b".to_owned(),
        url: "ftp://example.com".to_owned(),
        description: "x".repeat(1_025),
        event_types: vec!["ok.*".to_owned(), "*bad".to_owned()],
        signature_scheme: 99,
        payload_format: -1,
        retry_policy: Some(RetryPolicy {
            backoff: Some(retry_policy::Backoff::Exponential(backoff)),
            jitter: Some(2.0),
            max_retries: Some(101),
        }),
        timeout: Some(seconds(301)),
        max_in_flight: 1_025,
        rate_limit: Some(RateLimit { per_second: f64::NAN, burst: 1 }),
        circuit_breaker: Some(CircuitBreaker { open_duration: Some(seconds(0)), ..CircuitBreaker::default() }),
        disable_policy: Some(DisablePolicy { failing_for: Some(seconds(-1)), ..DisablePolicy::default() }),
        labels: [(String::new(), "x".to_owned())].into(),
        external_id: "with space".to_owned(),
        ..Endpoint::default()
    };
    let request = RegisterEndpointRequest { endpoint: Some(bad), secret: String::new() };
    let refusal = service.client.clone().register_endpoint(request).await.expect_err("bad");
    assert_eq!(reason(&refusal), told(Code::InvalidArgument, "INVALID_FIELD"));
    let expected = [
        "circuit_breaker.open_duration",
        "description",
        "disable_policy.failing_for",
        "event_types[1]",
        "external_id",
        "labels",
        "max_in_flight",
        "payload_format",
        "rate_limit.per_second",
        "retry_policy.exponential.initial_delay",
        "retry_policy.exponential.max_delay",
        "retry_policy.exponential.multiplier",
        "retry_policy.jitter",
        "retry_policy.max_retries",
        "signature_scheme",
        "tenant",
        "timeout",
        "url",
    ];
    assert_eq!(fields(&refusal), expected.map(|field| format!("endpoint.{field}")));
    for path in ["endpoint.url", "endpoint.timeout"] {
        assert!(refusal.message().contains(path), "{}", refusal.message());
    }
}

#[tokio::test]
async fn every_bad_field_of_an_event_is_named_at_once() {
    let service = service().await;
    let bad = PublishRequest {
        tenant: "x".repeat(65),
        event_type: "hooklane.mine".to_owned(),
        body: Some(publish_request::Body::PayloadText("{".to_owned())),
        content_type: String::new(),
        idempotency_key: "x".repeat(256),
        endpoint_ids: vec![format!("ep_{UNKNOWN}"), "dlv_x".to_owned()],
        priority: 17,
        metadata: [("k".to_owned(), "v".repeat(5_000))].into(),
        ..PublishRequest::default()
    };
    let mut client = service.client.clone();
    let refusal = client.publish(bad.clone()).await.expect_err("bad");
    assert_eq!(reason(&refusal), told(Code::InvalidArgument, "INVALID_FIELD"));
    let expected =
        ["endpoint_ids[1]", "event_type", "idempotency_key", "metadata", "payload_text", "priority", "tenant"];
    assert_eq!(fields(&refusal), expected);
    let not_a_type = PublishRequest { content_type: "nothing".to_owned(), ..event("a") };
    assert_eq!(fields(&client.publish(not_a_type).await.expect_err("bad")), ["content_type"]);
}

#[tokio::test]
async fn payloads_that_claim_to_be_json_are_checked() {
    let service = service().await;
    let mut client = service.client.clone();
    let too_deep = "[".repeat(129) + &"]".repeat(129);
    for bad in ["", "{", "{} x", "nul", "'a'", &too_deep] {
        let refusal = client.publish(event_of(bad.to_owned())).await.expect_err(bad);
        assert_eq!(
            (reason(&refusal), fields(&refusal)),
            (told(Code::InvalidArgument, "INVALID_FIELD"), vec!["payload".to_owned()])
        );
    }
    let invalid_utf8 = client.publish(event_of(&b"\"\xff\""[..])).await.expect_err("not UTF-8");
    assert_eq!(fields(&invalid_utf8), ["payload"]);
    for (good, content_type) in
        [("null", ""), (" [1, 2] ", "application/json; charset=utf-8"), ("{", "text/plain"), ("", "text/plain")]
    {
        let request = PublishRequest { content_type: content_type.to_owned(), ..event_of(good) };
        client.publish(request).await.expect(good);
    }
}

#[tokio::test]
async fn addresses_that_may_not_be_dialled_are_refused_at_once() {
    let service = service().await;
    for url in ["http://10.0.0.1/", "http://169.254.169.254/latest", "http://[::ffff:10.0.0.1]/", "http://", "x"] {
        let request = RegisterEndpointRequest { endpoint: Some(endpoint(url)), secret: String::new() };
        let refusal = service.client.clone().register_endpoint(request).await.expect_err(url);
        assert_eq!(
            (reason(&refusal), fields(&refusal)),
            (told(Code::InvalidArgument, "INVALID_FIELD"), vec!["endpoint.url".to_owned()])
        );
    }
}

#[tokio::test]
async fn headers_that_are_not_the_owners_to_set_are_refused() {
    let service = service().await;
    let names = [
        // Of the connection, hop by hop.
        "Connection Expect HTTP2-Settings Keep-Alive Proxy-Authenticate Proxy-Authorization Proxy-Connection TE Trailer",
        "Transfer-Encoding Upgrade Host Content-Length",
        // Ours.
        "Content-Type Idempotency-Key Traceparent User-Agent X-Webhook-ID X-Webhook-Delivery X-Webhook-Event",
        "X-Webhook-Timestamp X-Webhook-Attempt X-Webhook-Signature X-Webhook-Anything",
        "Webhook-Id Webhook-Timestamp Webhook-Signature Ce-Id Ce-Anything",
    ];
    let names: Vec<_> = names.iter().flat_map(|line| line.split(' ')).collect();
    let cases = names.iter().flat_map(|name| [name.to_string(), name.to_lowercase(), name.to_uppercase()]);
    let values = ["a\r\nX-Bad: y", "a\0b", "a\tb", "a\u{7f}b", "kéy", " key-1", "key-1 "];
    let cases = cases.map(|name| (name, "a value")).chain(values.map(|value| ("X-Good".to_owned(), value)));
    for (name, value) in cases.chain(["", "a b", "a:", "a\n", "ä"].map(|name| (name.to_owned(), "a value"))) {
        let headers = [(name.clone(), value.to_owned())].into();
        let given = Endpoint { headers, ..endpoint("http://127.0.0.1:9/") };
        let request = RegisterEndpointRequest { endpoint: Some(given), secret: String::new() };
        let refusal = service.client.clone().register_endpoint(request).await.expect_err(&name);
        assert_eq!(
            (reason(&refusal), fields(&refusal)),
            (told(Code::InvalidArgument, "INVALID_FIELD"), vec!["endpoint.headers".to_owned()])
        );
        let words = refusal.message();
        assert!(words.contains(name.trim_ascii()) || !name.is_ascii(), "{name:?}: {words}");
        assert!(!words.contains(value), "values are secrets: {words}");
    }
}

#[tokio::test]
async fn secrets_must_fit_the_scheme() {
    let service = service().await;
    let mut client = service.client.clone();
    for (secret, scheme, is_good) in [
        ("short", SignatureScheme::Timestamped, false),
        ("0123456789abcdef", SignatureScheme::Timestamped, true),
        ("0123456789abcdef", SignatureScheme::StandardWebhooks, false),
        ("whsec_AAAA", SignatureScheme::StandardWebhooks, false),
        (super::SECRET, SignatureScheme::StandardWebhooks, true),
        (super::SECRET, SignatureScheme::StandardWebhooksEd25519, false),
        (super::KEY, SignatureScheme::StandardWebhooksEd25519, true),
        (super::KEY, SignatureScheme::BodyHex, false),
        ("0123456789abcdef", SignatureScheme::BodySha256, true),
    ] {
        let mut given = endpoint("http://127.0.0.1:9/");
        given.set_signature_scheme(scheme);
        let request = RegisterEndpointRequest { endpoint: Some(given), secret: secret.to_owned() };
        match client.register_endpoint(request).await {
            Ok(answer) => assert!(is_good && answer.into_inner().secret == secret, "{secret} {scheme:?}"),
            Err(refusal) => {
                assert!(!is_good, "{refusal:?}");
                assert_eq!(fields(&refusal), ["secret"]);
                assert!(!refusal.message().contains(secret), "secrets are not repeated");
            }
        }
    }
}

#[tokio::test]
async fn malformed_ids_are_bad_fields_and_unknown_ones_are_not_found() {
    let service = service().await;
    let client = || service.client.clone();
    // A call by id, the field that holds it, the prefix, and the reason when there is none.
    let call = async |what: &str, id: String| match what {
        "GetEndpoint" => client().get_endpoint(GetEndpointRequest { endpoint_id: id }).await.map(drop),
        "UpdateEndpoint" => {
            let endpoint = Some(Endpoint { id, description: "x".to_owned(), ..Endpoint::default() });
            client().update_endpoint(UpdateEndpointRequest { endpoint, update_mask: None }).await.map(drop)
        }
        "DeleteEndpoint" => {
            client().delete_endpoint(DeleteEndpointRequest { endpoint_id: id, etag: String::new() }).await.map(drop)
        }
        "RotateSecret" => {
            let request = RotateSecretRequest { endpoint_id: id, ..RotateSecretRequest::default() };
            client().rotate_secret(request).await.map(drop)
        }
        "TestEndpoint" => {
            let request = TestEndpointRequest { endpoint_id: id, ..TestEndpointRequest::default() };
            client().test_endpoint(request).await.map(drop)
        }
        "Publish" => client().publish(PublishRequest { endpoint_ids: vec![id], ..event("a") }).await.map(drop),
        "GetEvent" => client().get_event(GetEventRequest { event_id: id }).await.map(drop),
        "GetDelivery" => client().get_delivery(GetDeliveryRequest { delivery_id: id }).await.map(drop),
        "RetryDelivery" => client().retry_delivery(RetryDeliveryRequest { delivery_id: id }).await.map(drop),
        _ => client().cancel_delivery(CancelDeliveryRequest { delivery_id: id }).await.map(drop),
    };
    for (what, field, prefix, not_found) in [
        ("GetEndpoint", "endpoint_id", "ep", "ENDPOINT_NOT_FOUND"),
        ("UpdateEndpoint", "endpoint.id", "ep", "ENDPOINT_NOT_FOUND"),
        ("DeleteEndpoint", "endpoint_id", "ep", "ENDPOINT_NOT_FOUND"),
        ("RotateSecret", "endpoint_id", "ep", "ENDPOINT_NOT_FOUND"),
        ("TestEndpoint", "endpoint_id", "ep", "ENDPOINT_NOT_FOUND"),
        ("Publish", "endpoint_ids[0]", "ep", "ENDPOINT_NOT_FOUND"),
        ("GetEvent", "event_id", "evt", "EVENT_NOT_FOUND"),
        ("GetDelivery", "delivery_id", "dlv", "DELIVERY_NOT_FOUND"),
        ("RetryDelivery", "delivery_id", "dlv", "DELIVERY_NOT_FOUND"),
        ("CancelDelivery", "delivery_id", "dlv", "DELIVERY_NOT_FOUND"),
    ] {
        let overflowing = format!("{prefix}_{}", "z".repeat(26));
        for bad in [String::new(), "x".to_owned(), UNKNOWN.to_owned(), format!("key_{UNKNOWN}"), overflowing] {
            // An empty entry of a list is as bad as any other.
            let refusal = call(what, bad.clone()).await.expect_err(what);
            assert_eq!(reason(&refusal), told(Code::InvalidArgument, "INVALID_FIELD"), "{what} {bad}");
            assert_eq!(fields(&refusal), [field], "{what} {bad}");
        }
        let unknown = format!("{prefix}_{UNKNOWN}");
        let refusal = call(what, unknown.clone()).await.expect_err(what);
        assert_eq!(reason(&refusal), told(Code::NotFound, not_found), "{what}");
        let resource = refusal.get_details_resource_info().expect("ResourceInfo");
        assert_eq!(resource.resource_name, unknown, "{what}");
    }
}

#[tokio::test]
async fn what_is_required_is_named_when_it_is_missing() {
    let service = service().await;
    let mut client = service.client.clone();
    let refusal = client.register_endpoint(RegisterEndpointRequest::default()).await.expect_err("empty");
    assert_eq!(
        (reason(&refusal), fields(&refusal)),
        (told(Code::InvalidArgument, "INVALID_FIELD"), vec!["endpoint".to_owned()])
    );
    let refusal = client.update_endpoint(UpdateEndpointRequest::default()).await.expect_err("empty");
    assert_eq!(fields(&refusal), ["endpoint"]);
    let refusal = client.publish(PublishRequest::default()).await.expect_err("empty");
    assert_eq!(fields(&refusal), ["event_type", "payload"]);
    let refusal = client.publish_batch(PublishBatchRequest::default()).await.expect_err("empty");
    assert_eq!(fields(&refusal), ["requests"]);
    let requests = vec![event("a"); 1_001];
    let refusal = client.publish_batch(PublishBatchRequest { requests }).await.expect_err("too many");
    assert_eq!(fields(&refusal), ["requests"]);
}

#[tokio::test]
async fn retries_and_cancels_at_the_wrong_time_are_refused() {
    let service = service().await;
    let mut client = service.client.clone();
    let healthy = receiver(Behaviour::default()).await;
    let silent = receiver(Behaviour { silent: true, ..Behaviour::default() }).await;
    let refusing = receiver(Behaviour { status: Some(StatusCode::GONE), ..Behaviour::default() }).await;
    let mut ids = Vec::new();
    for (receiver, state) in
        [(&healthy, DeliveryState::Succeeded), (&silent, DeliveryState::InFlight), (&refusing, DeliveryState::Failed)]
    {
        let endpoint = service.register(endpoint(&receiver.url())).await;
        let request = PublishRequest { endpoint_ids: vec![endpoint.id.clone()], ..event("a") };
        let id = service.publish(request).await.deliveries[0].delivery_id.clone();
        service.in_state(&id, state).await;
        ids.push((id, endpoint.id));
    }
    let [succeeded, in_flight, failed] = &ids[..] else { unreachable!() };

    let retry = |id: &str| RetryDeliveryRequest { delivery_id: id.to_owned() };
    let refusal = client.retry_delivery(retry(&succeeded.0)).await.expect_err("succeeded");
    assert_eq!(reason(&refusal), told(Code::FailedPrecondition, "DELIVERY_SUCCEEDED"));
    assert_eq!(refusal.message(), "Cannot retry successful delivery");
    let violations = refusal.get_details_precondition_failure().expect("PreconditionFailure").violations;
    assert_eq!((violations[0].r#type.as_str(), &violations[0].subject), ("DELIVERY_SUCCEEDED", &succeeded.0));

    let refusal = client.retry_delivery(retry(&in_flight.0)).await.expect_err("in flight");
    assert_eq!(reason(&refusal), told(Code::FailedPrecondition, "DELIVERY_NOT_SETTLED"));
    assert!(refusal.get_details_precondition_failure().is_some());

    for settled in [succeeded, failed] {
        let request = CancelDeliveryRequest { delivery_id: settled.0.clone() };
        let refusal = client.cancel_delivery(request).await.expect_err("settled");
        assert_eq!(reason(&refusal), told(Code::FailedPrecondition, "DELIVERY_SETTLED"));
        assert!(refusal.get_details_precondition_failure().is_some());
    }

    let request = DeleteEndpointRequest { endpoint_id: failed.1.clone(), etag: String::new() };
    client.delete_endpoint(request).await.expect("deleted");
    let refusal = client.retry_delivery(retry(&failed.0)).await.expect_err("its endpoint is gone");
    assert_eq!(reason(&refusal), told(Code::FailedPrecondition, "ENDPOINT_DELETED"));
    assert!(refusal.get_details_precondition_failure().is_some());
}

#[tokio::test]
async fn beyond_the_queues_bound_a_publish_is_told_when_to_come_back() {
    let service = service_with(support::database().await, &[("HOOKLANE_QUEUE_MAX_OUTSTANDING", "3")]).await;
    let silent = receiver(Behaviour { silent: true, ..Behaviour::default() }).await;
    service.register(Endpoint { timeout: Some(seconds(300)), ..endpoint(&silent.url()) }).await;
    for _ in 0..3 {
        service.publish_one("a").await;
    }
    let refusal = service.client.clone().publish(event("a")).await.expect_err("full");
    assert_eq!(reason(&refusal), told(Code::ResourceExhausted, "QUEUE_FULL"));
    assert!(refusal.get_details_retry_info().and_then(|info| info.retry_delay).is_some());
    assert_eq!(refusal.get_details_quota_failure().expect("QuotaFailure").violations.len(), 1);
}

#[tokio::test]
async fn without_the_database_every_call_says_so_and_when_to_come_back() {
    let options = Options {
        data_dir: DataDir::Ephemeral,
        bin_dir: None,
        durability: Durability::Off,
        extra_settings: Vec::new(),
    };
    let postgres = Postgres::start(options).await.expect("PostgreSQL starts");
    postgres.create_database("lost").await.expect("created");
    let service = service_with(postgres.url("lost"), &[]).await;
    let endpoint = service.register(endpoint("http://127.0.0.1:9/")).await;
    postgres.stop().await.expect("stopped");
    let mut client = service.client.clone();
    let get_event = GetEventRequest { event_id: format!("evt_{UNKNOWN}") };
    let get_endpoint = GetEndpointRequest { endpoint_id: endpoint.id.clone() };
    let register =
        RegisterEndpointRequest { endpoint: Some(super::endpoint("http://127.0.0.1:9/")), ..Default::default() };
    let delete = DeleteEndpointRequest { endpoint_id: endpoint.id, etag: String::new() };
    let retry = RetryDeliveryRequest { delivery_id: format!("dlv_{UNKNOWN}") };
    for (what, refusal) in [
        ("Publish", client.publish(event("a")).await.map(drop)),
        ("GetEvent", client.get_event(get_event).await.map(drop)),
        ("GetEndpoint", client.get_endpoint(get_endpoint).await.map(drop)),
        ("RegisterEndpoint", client.register_endpoint(register).await.map(drop)),
        ("DeleteEndpoint", client.delete_endpoint(delete).await.map(drop)),
        ("RetryDelivery", client.retry_delivery(retry).await.map(drop)),
        ("ListDeliveries", client.list_deliveries(ListDeliveriesRequest::default()).await.map(drop)),
    ] {
        let refusal = refusal.expect_err(what);
        assert_eq!(reason(&refusal), told(Code::Unavailable, "STORE_UNAVAILABLE"), "{what}");
        assert!(refusal.get_details_retry_info().and_then(|info| info.retry_delay).is_some(), "{what}");
    }
}
