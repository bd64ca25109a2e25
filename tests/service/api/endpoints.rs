//! UpdateEndpoint, DeleteEndpoint, and what an operator does to a delivery.

use hooklane::api::proto::*;
use hooklane::cli::listen::Behaviour;
use http::StatusCode;
use prost_types::FieldMask;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::{Service, endpoint, event, fields, reason, receiver, retries, seconds, service, told};

async fn update(service: &Service, endpoint: Endpoint, paths: &[&str]) -> Result<Endpoint, Status> {
    let update_mask =
        (!paths.is_empty()).then(|| FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() });
    let request = UpdateEndpointRequest { endpoint: Some(endpoint), update_mask };
    service.client.clone().update_endpoint(request).await.map(|answer| answer.into_inner().endpoint.expect("it"))
}

async fn read(service: &Service, id: &str) -> Endpoint {
    let request = GetEndpointRequest { endpoint_id: id.to_owned() };
    service.client.clone().get_endpoint(request).await.expect("read").into_inner().endpoint.expect("it")
}

/// Retries after an hour: none comes by itself while a test runs.
fn patient() -> RetryPolicy {
    let hour = Some(seconds(3_600));
    let backoff = ExponentialBackoff { initial_delay: hour, max_delay: hour, multiplier: None };
    RetryPolicy { backoff: Some(retry_policy::Backoff::Exponential(backoff)), ..RetryPolicy::default() }
}

/// What a caller decides of an endpoint: all but the fields that any change moves.
fn decided(endpoint: &Endpoint) -> Endpoint {
    Endpoint { etag: String::new(), update_time: None, ..endpoint.clone() }
}

#[tokio::test]
async fn an_update_changes_what_its_mask_names_and_nothing_else() {
    let service = service().await;
    let original = service
        .register(Endpoint {
            description: "first".to_owned(),
            event_types: vec!["a".to_owned()],
            labels: [("k".to_owned(), "v".to_owned())].into(),
            external_id: "ext".to_owned(),
            ..endpoint("http://127.0.0.1:9/")
        })
        .await;
    let id = original.id.clone();
    let patch = Endpoint { id: id.clone(), description: "second".to_owned(), max_in_flight: 3, ..Endpoint::default() };

    // No mask: the populated fields.
    let updated = update(&service, patch.clone(), &[]).await.expect("updated");
    let expected = Endpoint { description: "second".to_owned(), max_in_flight: 3, ..decided(&original) };
    assert_eq!(decided(&updated), expected);
    assert_ne!(updated.etag, original.etag);
    assert_eq!(read(&service, &id).await, updated);

    // A mask: the named ones, populated or not; output-only ones are ignored.
    let updated = update(&service, patch.clone(), &["labels", "state", "create_time", "etag"]).await.expect("updated");
    assert_eq!(decided(&updated), Endpoint { labels: Default::default(), ..expected.clone() });

    // A part of the policy.
    let policy = Endpoint { id: id.clone(), retry_policy: Some(retries(2)), ..Endpoint::default() };
    let updated = update(&service, policy, &["retry_policy.max_retries"]).await.expect("updated");
    let policy = updated.retry_policy.clone().expect("a policy");
    assert_eq!(policy.max_retries, Some(2));
    assert_eq!(policy.backoff, original.retry_policy.clone().and_then(|policy| policy.backoff));

    // All: what is not populated goes back to its default.
    let all = Endpoint { id: id.clone(), url: "http://127.0.0.1:10/".to_owned(), ..Endpoint::default() };
    let updated = update(&service, all, &["*"]).await.expect("updated");
    assert_eq!((updated.url.as_str(), updated.description.as_str()), ("http://127.0.0.1:10/", ""));
    assert_eq!((updated.max_in_flight, updated.timeout, updated.external_id.as_str()), (64, Some(seconds(30)), ""));
    assert!(updated.event_types.is_empty() && updated.retry_policy.is_none());
    assert_eq!((&updated.id, &updated.tenant, updated.create_time), (&id, &original.tenant, original.create_time));

    // Nothing to change changes nothing, the etag included.
    let same = update(&service, Endpoint { id, ..Endpoint::default() }, &[]).await.expect("nothing");
    assert_eq!(same, updated);
}

#[tokio::test]
async fn headers_of_ones_own_are_sent_from_the_next_attempt_on() {
    let service = service().await;
    let receiver = receiver(Behaviour::default()).await;
    let with = |value: &str| [("X-Api-Key".to_owned(), value.to_owned())].into();
    let original = service.register(Endpoint { headers: with("first"), ..endpoint(&receiver.url()) }).await;
    assert_eq!(original.headers, with("first"));
    service.publish(event("a")).await;
    assert_eq!(receiver.next().await.expect("a request").headers["x-api-key"], "first");

    receiver.set_behaviour(Behaviour { fail_first: 3, ..Behaviour::default() });
    service.publish(event("a")).await;
    assert_eq!(receiver.next().await.expect("a request").headers["x-api-key"], "first");
    let patch = Endpoint { id: original.id.clone(), headers: with("second"), ..Endpoint::default() };
    assert_eq!(update(&service, patch, &[]).await.expect("updated").headers, with("second"));
    loop {
        let received = receiver.next().await.expect("a request");
        let is_second = received.headers["x-api-key"] == "second";
        // One may have been under way already.
        assert!(is_second || received.attempt <= Some(3), "{received:?}");
        if is_second {
            break;
        }
    }
    let cleared = update(&service, Endpoint { id: original.id, ..Endpoint::default() }, &["headers"]).await;
    assert!(cleared.expect("updated").headers.is_empty());
}

#[tokio::test]
async fn bad_updates_are_refused_whole_with_every_bad_field() {
    let service = service().await;
    let original = service.register(endpoint("http://127.0.0.1:9/")).await;
    let bad = Endpoint {
        id: original.id.clone(),
        description: "fine".to_owned(),
        url: "x".to_owned(),
        timeout: Some(seconds(0)),
        ..Endpoint::default()
    };
    let refusal = update(&service, bad.clone(), &[]).await.expect_err("bad");
    assert_eq!(reason(&refusal), told(Code::InvalidArgument, "INVALID_FIELD"));
    assert_eq!(fields(&refusal), ["endpoint.timeout", "endpoint.url"]);
    for (paths, expected) in [
        (vec!["nonsense"], vec!["update_mask"]),
        (vec!["url.host", "timeout"], vec!["endpoint.timeout", "update_mask"]),
        (vec!["*"], vec!["endpoint.timeout", "endpoint.url"]),
    ] {
        let refusal = update(&service, bad.clone(), &paths).await.expect_err("bad");
        assert_eq!(fields(&refusal), expected, "{paths:?}");
    }
    let moved = Endpoint { id: original.id.clone(), tenant: "acme".to_owned(), ..Endpoint::default() };
    let refusal = update(&service, moved, &[]).await.expect_err("another tenant");
    assert_eq!(fields(&refusal), ["endpoint.tenant"]);
    assert_eq!(read(&service, &original.id).await, original);
}

#[tokio::test]
async fn of_two_updates_with_one_etag_one_is_aborted() {
    let service = service().await;
    let original = service.register(endpoint("http://127.0.0.1:9/")).await;
    let mut etag = original.etag.clone();
    for round in 0..10 {
        let patch = |who: &str| Endpoint {
            id: original.id.clone(),
            etag: etag.clone(),
            description: format!("{who} {round}"),
            ..Endpoint::default()
        };
        let (one, other) = tokio::join!(update(&service, patch("one"), &[]), update(&service, patch("other"), &[]));
        let (won, lost) = match (one, other) {
            (Ok(won), Err(lost)) | (Err(lost), Ok(won)) => (won, lost),
            both => panic!("not one of each: {both:?}"),
        };
        assert_eq!(reason(&lost), told(Code::Aborted, "ETAG_MISMATCH"));
        assert_eq!(read(&service, &original.id).await, won);
        etag.clone_from(&won.etag);
    }
    for bad in ["nonsense", "-1", "0", &original.etag] {
        let patch = Endpoint {
            id: original.id.clone(),
            etag: bad.to_owned(),
            description: "x".to_owned(),
            ..Endpoint::default()
        };
        let refusal = update(&service, patch, &[]).await.expect_err("another version");
        assert_eq!(reason(&refusal), told(Code::Aborted, "ETAG_MISMATCH"), "{bad}");
    }
    let request = DeleteEndpointRequest { endpoint_id: original.id.clone(), etag: original.etag };
    let refusal = service.client.clone().delete_endpoint(request).await.expect_err("another version");
    assert_eq!(reason(&refusal), told(Code::Aborted, "ETAG_MISMATCH"));
    let request = DeleteEndpointRequest { endpoint_id: original.id, etag };
    service.client.clone().delete_endpoint(request).await.expect("the current one");
}

#[tokio::test]
async fn updates_without_an_etag_all_succeed() {
    let service = service().await;
    let original = service.register(endpoint("http://127.0.0.1:9/")).await;
    let patch = |n: u32| Endpoint { id: original.id.clone(), max_in_flight: n, ..Endpoint::default() };
    let label = Endpoint { id: original.id.clone(), description: "kept".to_owned(), ..Endpoint::default() };
    let (one, two, three) =
        tokio::join!(update(&service, patch(1), &[]), update(&service, patch(2), &[]), update(&service, label, &[]));
    for answer in [one, two, three] {
        answer.expect("updated");
    }
    let last = read(&service, &original.id).await;
    assert!(last.description == "kept" && last.max_in_flight <= 2, "no update undoes another");
}

#[tokio::test]
async fn an_external_id_belongs_to_one_endpoint_of_a_tenant() {
    let service = service().await;
    let mut client = service.client.clone();
    let with = |external_id: &str| Endpoint { external_id: external_id.to_owned(), ..endpoint("http://127.0.0.1:9/") };
    let first = service.register(with("a")).await;
    let second = service.register(with("b")).await;
    let request = RegisterEndpointRequest { endpoint: Some(with("a")), secret: String::new() };
    let taken = client.register_endpoint(request).await.expect_err("taken");
    let patch = Endpoint { id: second.id, external_id: "a".to_owned(), ..Endpoint::default() };
    let updated = update(&service, patch, &[]).await.expect_err("taken");
    for refusal in [taken, updated] {
        assert_eq!(reason(&refusal), told(Code::AlreadyExists, "EXTERNAL_ID_TAKEN"));
        assert_eq!(refusal.get_details_resource_info().expect("ResourceInfo").resource_name, "a");
    }
    client
        .delete_endpoint(DeleteEndpointRequest { endpoint_id: first.id, etag: String::new() })
        .await
        .expect("deleted");
    service.register(with("a")).await;
}

#[tokio::test]
async fn deleting_an_endpoint_cancels_what_is_outstanding_for_it_alone() {
    let service = service().await;
    let mut client = service.client.clone();
    // Refused, and tried again only much later.
    let broken = receiver(Behaviour {
        retry_after: Some(3_600),
        status: Some(StatusCode::SERVICE_UNAVAILABLE),
        ..Behaviour::default()
    })
    .await;
    let doomed = service.register(Endpoint { max_in_flight: 1, ..endpoint(&broken.url()) }).await;
    let other = service.register(endpoint(&broken.url())).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        let published = service.publish(event("a")).await;
        ids.push(published.deliveries);
    }
    // The first attempt has failed and holds the lane: nothing is in flight.
    let held = ids[0].iter().find(|one| one.endpoint_id == doomed.id).expect("it");
    service.in_state(&held.delivery_id, DeliveryState::Retrying).await;
    let request = DeleteEndpointRequest { endpoint_id: doomed.id.clone(), etag: String::new() };
    let answer = client.delete_endpoint(request.clone()).await.expect("deleted").into_inner();
    assert_eq!(answer.canceled_deliveries, 5);
    for delivery in ids.iter().flatten() {
        let read = service.delivery(&delivery.delivery_id).await;
        assert_eq!(read.state() == DeliveryState::Canceled, delivery.endpoint_id == doomed.id, "{read:?}");
    }
    let refusal = client.delete_endpoint(request).await.expect_err("gone");
    assert_eq!(reason(&refusal), told(Code::NotFound, "ENDPOINT_NOT_FOUND"));
    let published = service.publish(event("a")).await;
    let targets: Vec<_> = published.deliveries.iter().map(|delivery| &delivery.endpoint_id).collect();
    assert_eq!(targets, [&other.id]);
    let listed = client.list_endpoints(ListEndpointsRequest::default()).await.expect("listed").into_inner().endpoints;
    assert_eq!(listed.len(), 1);
}

#[tokio::test]
async fn a_failed_delivery_is_retried_with_numbers_that_go_on() {
    let service = service().await;
    let receiver = receiver(Behaviour { status: Some(StatusCode::BAD_GATEWAY), ..Behaviour::default() }).await;
    service.register(Endpoint { retry_policy: Some(retries(1)), ..endpoint(&receiver.url()) }).await;
    let id = service.publish_one("a").await;
    service.in_state(&id, DeliveryState::Failed).await;
    receiver.set_behaviour(Behaviour::default());
    let request = RetryDeliveryRequest { delivery_id: id.clone() };
    let answer = service.client.clone().retry_delivery(request).await.expect("retried").into_inner();
    assert_eq!(answer.delivery.expect("it").id, id);
    let delivery = service.in_state(&id, DeliveryState::Succeeded).await;
    let attempts: Vec<_> = delivery.attempts.iter().map(|attempt| (attempt.number, attempt.trigger())).collect();
    use AttemptTrigger::{Manual, Schedule};
    assert_eq!(attempts, [(1, Schedule), (2, Schedule), (3, Manual)]);
}

#[tokio::test]
async fn a_waiting_retry_is_sent_now_when_asked_for() {
    let service = service().await;
    let receiver = receiver(Behaviour { fail_first: 1, ..Behaviour::default() }).await;
    service.register(Endpoint { retry_policy: Some(patient()), ..endpoint(&receiver.url()) }).await;
    let id = service.publish_one("a").await;
    let waiting = service.in_state(&id, DeliveryState::Retrying).await;
    assert!(waiting.next_attempt_time.is_some());
    let request = RetryDeliveryRequest { delivery_id: id.clone() };
    service.client.clone().retry_delivery(request).await.expect("retried");
    service.in_state(&id, DeliveryState::Succeeded).await;
}

#[tokio::test]
async fn a_canceled_delivery_is_not_sent_until_it_is_retried() {
    let service = service().await;
    let mut client = service.client.clone();
    let receiver = receiver(Behaviour { fail_first: 1, ..Behaviour::default() }).await;
    service.register(Endpoint { retry_policy: Some(patient()), ..endpoint(&receiver.url()) }).await;
    let id = service.publish_one("a").await;
    service.in_state(&id, DeliveryState::Retrying).await;
    let request = CancelDeliveryRequest { delivery_id: id.clone() };
    let canceled = client.cancel_delivery(request).await.expect("canceled").into_inner().delivery.expect("it");
    assert_eq!(canceled.state(), DeliveryState::Canceled);
    assert!(canceled.settle_time.is_some() && canceled.next_attempt_time.is_none() && !canceled.reason.is_empty());
    client.retry_delivery(RetryDeliveryRequest { delivery_id: id.clone() }).await.expect("retried");
    let delivery = service.in_state(&id, DeliveryState::Succeeded).await;
    assert_eq!((delivery.attempts.len(), receiver.count()), (2, 2));
}

#[tokio::test]
async fn a_cancel_in_flight_lets_the_attempt_end_first() {
    let service = service().await;
    let mut client = service.client.clone();
    for (status, state) in
        [(StatusCode::OK, DeliveryState::Succeeded), (StatusCode::INTERNAL_SERVER_ERROR, DeliveryState::Canceled)]
    {
        let (server, address) = super::receivers::held().await;
        let endpoint = service.register(endpoint(&address)).await;
        let request = PublishRequest { endpoint_ids: vec![endpoint.id], ..event("a") };
        let id = service.publish(request).await.deliveries[0].delivery_id.clone();
        let request = server.request().await;
        let canceled = client.cancel_delivery(CancelDeliveryRequest { delivery_id: id.clone() }).await;
        let canceled = canceled.expect("accepted").into_inner().delivery.expect("it");
        assert_eq!(canceled.state(), DeliveryState::InFlight);
        request.answer(status).await;
        let delivery = service.in_state(&id, state).await;
        assert_eq!(delivery.attempts.len(), 1, "{status}");
    }
}
