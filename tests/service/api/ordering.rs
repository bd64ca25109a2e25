//! Deliveries one after the other: by key, first in first out, and what follows when one fails for good.

use std::collections::HashMap;

use hooklane::api::proto::*;
use hooklane::cli::listen::{Behaviour, Receiver};
use http::StatusCode;
use tonic::{Code, Status};

use super::{Service, endpoint, event, event_of, fields, reason, receiver, service, service_with, soon, told};
use crate::support::{self, eventually};

pub(super) fn ordered(url: &str, ordering: Ordering, on_failure: OrderingOnFailure) -> Endpoint {
    Endpoint { ordering: ordering.into(), ordering_on_failure: on_failure.into(), ..endpoint(url) }
}

fn by_key(url: &str) -> Endpoint {
    ordered(url, Ordering::ByKey, OrderingOnFailure::Block)
}

/// The n-th event of a key.
pub(super) fn nth(key: &str, n: usize) -> PublishRequest {
    PublishRequest { ordering_key: key.to_owned(), ..event_of(format!("{{\"key\":\"{key}\",\"n\":{n}}}")) }
}

async fn publish(service: &Service, key: &str, n: usize) -> String {
    let published = service.publish(nth(key, n)).await;
    assert_eq!(published.deliveries.len(), 1, "{published:?}");
    published.deliveries[0].delivery_id.clone()
}

/// Key, number and status of the next request.
pub(super) async fn next(receiver: &Receiver) -> (String, u64, u16) {
    let request = soon("a request", receiver.next()).await.expect("a request");
    let body: serde_json::Value = serde_json::from_slice(&request.body).expect("JSON");
    let data = &body["data"];
    let key = data["key"].as_str().expect("a key").to_owned();
    (key, data["n"].as_u64().expect("a number"), request.status.map_or(0, |status| status.as_u16()))
}

pub(super) fn failing(status: StatusCode) -> Behaviour {
    Behaviour { status: Some(status), ..Behaviour::default() }
}

async fn retry(service: &Service, id: &str) -> Delivery {
    let request = RetryDeliveryRequest { delivery_id: id.to_owned() };
    service.client.clone().retry_delivery(request).await.expect("retried").into_inner().delivery.expect("it")
}

async fn cancel(service: &Service, id: &str) -> Result<Delivery, Status> {
    let request = CancelDeliveryRequest { delivery_id: id.to_owned() };
    let answer = service.client.clone().cancel_delivery(request).await?;
    Ok(answer.into_inner().delivery.expect("it"))
}

async fn update(service: &Service, endpoint: Endpoint) -> Endpoint {
    let request = UpdateEndpointRequest { endpoint: Some(endpoint), update_mask: None };
    service.client.clone().update_endpoint(request).await.expect("updated").into_inner().endpoint.expect("it")
}

fn behind(first: &str) -> String {
    format!("waits behind {first}, which failed; retry or cancel it")
}

#[tokio::test]
async fn a_keys_deliveries_arrive_in_publish_order_through_retries() {
    let service = service().await;
    let receiver = receiver(Behaviour { fail_rate: 0.3, ..Behaviour::default() }).await;
    let registered = service.register(by_key(&receiver.url())).await;
    assert_eq!((registered.ordering(), registered.ordering_on_failure()), (Ordering::ByKey, OrderingOnFailure::Block));
    for n in 0..15 {
        let requests = (0..5).map(|key| nth(&format!("k{key}"), n)).collect();
        let results = service.client.clone().publish_batch(PublishBatchRequest { requests }).await.expect("published");
        assert_eq!(results.into_inner().results.len(), 5);
    }
    let mut expected: HashMap<String, u64> = HashMap::new();
    let mut succeeded = 0;
    while succeeded < 75 {
        let (key, n, status) = next(&receiver).await;
        let next = expected.entry(key.clone()).or_default();
        assert_eq!(n, *next, "of {key}, which was answered with {status}");
        if status == 200 {
            *next += 1;
            succeeded += 1;
        }
    }
}

#[tokio::test]
async fn a_batch_of_one_key_keeps_its_order() {
    let service = service().await;
    let receiver = receiver(Behaviour::default()).await;
    service.register(ordered(&receiver.url(), Ordering::Fifo, OrderingOnFailure::Block)).await;
    let requests = (0..30).map(|n| nth("any", n)).collect();
    service.client.clone().publish_batch(PublishBatchRequest { requests }).await.expect("published");
    for n in 0..30 {
        assert_eq!(next(&receiver).await, ("any".to_owned(), n, 200));
    }
}

#[tokio::test]
async fn first_in_first_out_is_one_at_a_time_whatever_the_keys() {
    let service = service().await;
    let receiver = receiver(Behaviour { silent: true, ..Behaviour::default() }).await;
    let fifo = ordered(&receiver.url(), Ordering::Fifo, OrderingOnFailure::Block);
    service.register(Endpoint { timeout: Some(super::seconds(300)), max_in_flight: 64, ..fifo }).await;
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(publish(&service, &format!("k{n}"), n).await);
    }
    assert_eq!(next(&receiver).await.1, 0);
    // Of another endpoint, so that a second request here had every occasion.
    let other = super::receiver(Behaviour::default()).await;
    let other_id = service.register(endpoint(&other.url())).await.id;
    service.publish(PublishRequest { endpoint_ids: vec![other_id], ..event("other") }).await;
    soon("a request", other.next()).await.expect("a request");
    assert_eq!(receiver.count(), 1);
    let waiting = service.delivery(&ids[2]).await;
    assert_eq!((waiting.state(), waiting.reason), (DeliveryState::Pending, format!("waits behind {}", ids[0])));
    assert_eq!((waiting.next_attempt_time, waiting.ordering_key.as_str()), (None, "k2"));
}

#[tokio::test]
async fn a_failed_head_blocks_its_key_until_it_is_retried() {
    let service = service().await;
    let receiver = receiver(failing(StatusCode::NOT_FOUND)).await;
    service.register(by_key(&receiver.url())).await;
    let first = publish(&service, "k", 0).await;
    let second = publish(&service, "k", 1).await;
    service.in_state(&first, DeliveryState::Failed).await;
    assert_eq!(next(&receiver).await, ("k".to_owned(), 0, 404));
    let waiting = service.delivery(&second).await;
    assert_eq!((waiting.state(), waiting.reason), (DeliveryState::Pending, behind(&first)));
    // What comes later waits as well, and other keys go on.
    receiver.set_behaviour(Behaviour::default());
    let third = publish(&service, "k", 2).await;
    publish(&service, "other", 0).await;
    assert_eq!(next(&receiver).await, ("other".to_owned(), 0, 200));
    assert_eq!(service.delivery(&third).await.reason, behind(&first));
    retry(&service, &first).await;
    for n in 0..3 {
        assert_eq!(next(&receiver).await, ("k".to_owned(), n, 200));
    }
    for id in [first, second, third] {
        service.in_state(&id, DeliveryState::Succeeded).await;
    }
}

#[tokio::test]
async fn a_failed_head_makes_room_when_it_is_canceled() {
    let service = service().await;
    let receiver = receiver(failing(StatusCode::NOT_FOUND)).await;
    service.register(by_key(&receiver.url())).await;
    let (first, second) = (publish(&service, "k", 0).await, publish(&service, "k", 1).await);
    service.in_state(&first, DeliveryState::Failed).await;
    receiver.set_behaviour(Behaviour::default());
    assert_eq!(next(&receiver).await.2, 404);
    let canceled = cancel(&service, &first).await.expect("it blocks others");
    assert_eq!((canceled.state(), canceled.reason.as_str()), (DeliveryState::Canceled, "canceled by CancelDelivery"));
    assert_eq!(next(&receiver).await, ("k".to_owned(), 1, 200));
    service.in_state(&second, DeliveryState::Succeeded).await;
    for id in [&first, &second] {
        let refusal = cancel(&service, id).await.expect_err("settled");
        assert_eq!(reason(&refusal), told(Code::FailedPrecondition, "DELIVERY_SETTLED"));
    }
    // Retried after all, it joins the end.
    retry(&service, &first).await;
    assert_eq!(next(&receiver).await, ("k".to_owned(), 0, 200));
}

#[tokio::test]
async fn a_failed_head_that_blocks_nothing_is_settled_like_any_other() {
    let service = service().await;
    let receiver = receiver(failing(StatusCode::NOT_FOUND)).await;
    service.register(endpoint(&receiver.url())).await;
    let id = publish(&service, "k", 0).await;
    service.in_state(&id, DeliveryState::Failed).await;
    let refusal = cancel(&service, &id).await.expect_err("settled");
    assert_eq!(reason(&refusal), told(Code::FailedPrecondition, "DELIVERY_SETTLED"));
}

#[tokio::test]
async fn skip_goes_on_and_a_retried_one_joins_the_end() {
    let service = service().await;
    let broken = Behaviour { fail_first: 1, fail_status: StatusCode::NOT_FOUND, ..Behaviour::default() };
    let receiver = receiver(broken).await;
    service.register(ordered(&receiver.url(), Ordering::ByKey, OrderingOnFailure::Skip)).await;
    let mut ids = Vec::new();
    for n in 0..3 {
        ids.push(publish(&service, "k", n).await);
    }
    for n in 0..3 {
        assert_eq!(next(&receiver).await, ("k".to_owned(), n, 404));
    }
    for id in &ids {
        service.in_state(id, DeliveryState::Failed).await;
    }
    receiver.set_behaviour(Behaviour { silent: true, ..Behaviour::default() });
    publish(&service, "k", 3).await;
    assert_eq!(next(&receiver).await.1, 3);
    let retried = retry(&service, &ids[0]).await;
    assert_eq!(retried.state(), DeliveryState::Retrying);
    assert!(retried.reason.starts_with("waits behind dlv_"), "{}", retried.reason);
    // Asked for once more, it stays where it is.
    assert!(retry(&service, &ids[0]).await.reason.starts_with("waits behind dlv_"));
    publish(&service, "k", 4).await;
    receiver.set_behaviour(Behaviour::default());
    for (n, status) in [(3, 200), (0, 200), (4, 200)] {
        assert_eq!(next(&receiver).await, ("k".to_owned(), n, status));
    }
}

#[tokio::test]
async fn another_policy_lets_blocked_keys_go_on() {
    let service = service().await;
    let receiver = receiver(failing(StatusCode::NOT_FOUND)).await;
    let registered = service.register(by_key(&receiver.url())).await;
    let (first, second) = (publish(&service, "k", 0).await, publish(&service, "k", 1).await);
    service.in_state(&first, DeliveryState::Failed).await;
    assert_eq!(next(&receiver).await.2, 404);
    receiver.set_behaviour(Behaviour::default());
    let skipping =
        Endpoint { id: registered.id, ordering_on_failure: OrderingOnFailure::Skip.into(), ..Endpoint::default() };
    assert_eq!(update(&service, skipping).await.ordering(), Ordering::ByKey);
    assert_eq!(next(&receiver).await, ("k".to_owned(), 1, 200));
    service.in_state(&second, DeliveryState::Succeeded).await;
    assert_eq!(service.delivery(&first).await.state(), DeliveryState::Failed);
}

#[tokio::test]
async fn what_was_published_in_order_stays_so_and_what_comes_follows_the_new_ordering() {
    let service = service().await;
    let receiver = receiver(Behaviour { silent: true, ..Behaviour::default() }).await;
    let slow = Endpoint { timeout: Some(super::seconds(300)), ..by_key(&receiver.url()) };
    let id = service.register(slow).await.id;
    publish(&service, "k", 0).await;
    let parked = publish(&service, "k", 1).await;
    assert_eq!(next(&receiver).await.1, 0);
    update(&service, Endpoint { id, ordering: Ordering::Unordered.into(), ..Endpoint::default() }).await;
    publish(&service, "k", 2).await;
    assert_eq!(next(&receiver).await.1, 2, "no longer behind the first");
    assert!(service.delivery(&parked).await.reason.starts_with("waits behind"));
}

fn in_seconds(seconds: i64) -> Option<prost_types::Timestamp> {
    let time = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
    Some(prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() })
}

#[tokio::test]
async fn those_that_wait_can_be_canceled_and_expire_and_the_others_go_on() {
    let service = service().await;
    let receiver = receiver(Behaviour::default()).await;
    let endpoint = service.register(by_key(&receiver.url())).await;
    let pause = PauseEndpointRequest { endpoint_id: endpoint.id.clone() };
    service.client.clone().pause_endpoint(pause).await.expect("paused");
    let mut ids = Vec::new();
    for n in 0..5 {
        let expire_time = if n == 0 || n == 3 { in_seconds(2) } else { None };
        let published = service.publish(PublishRequest { expire_time, ..nth("k", n) }).await;
        ids.push(published.deliveries[0].delivery_id.clone());
    }
    assert_eq!(cancel(&service, &ids[1]).await.expect("it waits").state(), DeliveryState::Canceled);
    for expired in [&ids[0], &ids[3]] {
        service.in_state(expired, DeliveryState::Expired).await;
    }
    assert_eq!(service.delivery(&ids[4]).await.reason, format!("waits behind {}", ids[2]));
    assert_eq!(cancel(&service, &ids[2]).await.expect("the first now").state(), DeliveryState::Canceled);
    let resume = ResumeEndpointRequest { endpoint_id: endpoint.id };
    service.client.clone().resume_endpoint(resume).await.expect("resumed");
    assert_eq!(next(&receiver).await, ("k".to_owned(), 4, 200));
    // Those that were left out join the end, in the order of the asking.
    for id in [&ids[3], &ids[0]] {
        retry(&service, id).await;
    }
    assert_eq!([next(&receiver).await.1, next(&receiver).await.1], [3, 0]);
}

#[tokio::test]
async fn a_head_that_is_canceled_in_flight_or_between_retries_makes_room() {
    let service = service().await;
    let receiver = receiver(Behaviour { silent: true, ..Behaviour::default() }).await;
    service.register(Endpoint { timeout: Some(super::seconds(2)), ..by_key(&receiver.url()) }).await;
    let mut ids = Vec::new();
    for n in 0..3 {
        ids.push(publish(&service, "k", n).await);
    }
    assert_eq!(next(&receiver).await.1, 0);
    cancel(&service, &ids[0]).await.expect("its attempt ends first");
    service.in_state(&ids[0], DeliveryState::Canceled).await;
    assert_eq!(next(&receiver).await.1, 1);
    receiver.set_behaviour(failing(StatusCode::BAD_GATEWAY));
    service.in_state(&ids[1], DeliveryState::Retrying).await;
    eventually("it is canceled", || async {
        cancel(&service, &ids[1]).await.ok();
        (service.delivery(&ids[1]).await.state() == DeliveryState::Canceled).then_some(())
    })
    .await;
    receiver.set_behaviour(Behaviour::default());
    eventually("the last one is delivered", || async { (next(&receiver).await.1 == 2).then_some(()) }).await;
    service.in_state(&ids[2], DeliveryState::Succeeded).await;
}

#[tokio::test]
async fn a_deleted_endpoints_deliveries_end_whatever_blocked_them() {
    let url = support::database().await;
    let service = service_with(url.clone(), &[]).await;
    let receiver = receiver(failing(StatusCode::NOT_FOUND)).await;
    let id = service.register(by_key(&receiver.url())).await.id;
    let mut ids = Vec::new();
    for n in 0..3 {
        ids.push(publish(&service, "k", n).await);
    }
    service.in_state(&ids[0], DeliveryState::Failed).await;
    let request = DeleteEndpointRequest { endpoint_id: id, etag: String::new() };
    service.client.clone().delete_endpoint(request).await.expect("deleted");
    for id in &ids[1..] {
        service.in_state(id, DeliveryState::Canceled).await;
    }
    eventually("no key is left", || async {
        let count: i64 = sqlx::query_scalar("select count(*) from order_keys")
            .fetch_one(&mut support::connection(&url).await)
            .await
            .expect("counted");
        (count == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_event_without_its_place_is_refused_where_its_publisher_named_the_endpoint() {
    let service = service().await;
    let receiver = receiver(Behaviour { silent: true, ..Behaviour::default() }).await;
    let mut client = service.client.clone();
    let keyed = service.register(by_key(&receiver.url())).await.id;
    let fifo = service.register(ordered(&receiver.url(), Ordering::Fifo, OrderingOnFailure::Skip)).await.id;
    let named = |id: &String, given: PublishRequest| PublishRequest { endpoint_ids: vec![id.clone()], ..given };
    let later = in_seconds(3_600);
    for (given, field) in [
        (named(&keyed, event("a")), "ordering_key"),
        (named(&keyed, PublishRequest { deliver_time: later, ..nth("k", 0) }), "deliver_time"),
        (named(&fifo, PublishRequest { deliver_time: later, ..event("a") }), "deliver_time"),
    ] {
        let refusal = client.publish(given.clone()).await.expect_err("no place");
        assert_eq!(reason(&refusal), told(Code::InvalidArgument, "INVALID_FIELD"));
        assert_eq!(fields(&refusal), [field]);
        let batch = PublishBatchRequest { requests: vec![named(&fifo, event("a")), given] };
        let results = client.publish_batch(batch).await.expect("answered").into_inner().results;
        let Some(publish_batch_result::Result::Error(refusal)) = &results[1].result else { panic!("{results:?}") };
        assert!(refusal.message.contains(&format!("requests[1].{field}")), "{}", refusal.message);
    }
    // Matched by itself, an event without a key has nothing before or behind it, and one that is put off waits for its
    // time alone.
    let matched = service.publish(PublishRequest { deliver_time: later, ..event("a") }).await;
    assert_eq!(matched.deliveries.len(), 2);
    for delivery in matched.deliveries {
        assert_eq!(service.delivery(&delivery.delivery_id).await.reason, "waits for its deliver_time");
    }
}

#[tokio::test]
async fn a_repeat_takes_no_second_place_and_a_refused_one_none() {
    let settings = [("HOOKLANE_QUEUE_MAX_OUTSTANDING_PER_ENDPOINT", "2")];
    let service = service_with(support::database().await, &settings).await;
    let receiver = receiver(Behaviour { silent: true, ..Behaviour::default() }).await;
    service.register(Endpoint { timeout: Some(super::seconds(300)), ..by_key(&receiver.url()) }).await;
    let keyed = |n| PublishRequest { idempotency_key: format!("i{n}"), ..nth("k", n) };
    let mut ids = Vec::new();
    for n in [0, 0, 1, 1, 2] {
        ids.push(service.publish(keyed(n)).await.deliveries[0].delivery_id.clone());
    }
    assert!(ids[0] == ids[1] && ids[2] == ids[3] && ids[0] != ids[2]);
    let refused = service.delivery(&ids[4]).await;
    assert!(refused.reason.starts_with("QUEUE_FULL") && refused.state() == DeliveryState::Failed, "{refused:?}");
    assert_eq!(service.delivery(&ids[2]).await.reason, format!("waits behind {}", ids[0]));
    let refusal = cancel(&service, &ids[4]).await.expect_err("it blocks nothing");
    assert_eq!(reason(&refusal), told(Code::FailedPrecondition, "DELIVERY_SETTLED"));
    assert_eq!(retry(&service, &ids[4]).await.reason, format!("waits behind {}", ids[0]));
}
