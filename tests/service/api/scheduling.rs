//! When deliveries go, and which of them first: priorities, deliver_time and expire_time.

use hooklane::api::proto::*;
use hooklane::cli::listen::{Behaviour, Receiver};
use http::StatusCode;
use tonic::Code;

use super::{Service, app_with, endpoint, event, fields, reason, receiver, service, service_with, soon, told};
use crate::support;

/// In so many milliseconds by the machine's clock, which is the database's too.
fn in_millis(millis: i64) -> Option<prost_types::Timestamp> {
    let time = jiff::Timestamp::now() + jiff::SignedDuration::from_millis(millis);
    Some(prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() })
}

fn nanos(time: Option<prost_types::Timestamp>) -> i128 {
    let time = time.expect("a time");
    i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos)
}

/// The endpoint, paused: what is published waits until it is resumed.
async fn paused(service: &Service, given: Endpoint) -> String {
    let id = service.register(given).await.id;
    let request = PauseEndpointRequest { endpoint_id: id.clone() };
    service.client.clone().pause_endpoint(request).await.expect("paused");
    id
}

async fn resume(service: &Service, id: &str) {
    let request = ResumeEndpointRequest { endpoint_id: id.to_owned() };
    service.client.clone().resume_endpoint(request).await.expect("resumed");
}

async fn retry(service: &Service, id: &str) -> Delivery {
    let request = RetryDeliveryRequest { delivery_id: id.to_owned() };
    service.client.clone().retry_delivery(request).await.expect("retried").into_inner().delivery.expect("it")
}

async fn next_id(receiver: &Receiver) -> String {
    soon("a request", receiver.next()).await.expect("a request").delivery_id.expect("an id")
}

#[tokio::test]
async fn high_goes_first_and_low_is_never_starved() {
    let service = service().await;
    let receiver = receiver(Behaviour::default()).await;
    let id = paused(&service, Endpoint { max_in_flight: 1, ..endpoint(&receiver.url()) }).await;
    let mut priorities = std::collections::HashMap::new();
    for priority in [Priority::Low, Priority::Normal, Priority::High] {
        for _ in 0..24 {
            let published = service.publish(PublishRequest { priority: priority.into(), ..event("a") }).await;
            priorities.insert(published.deliveries[0].delivery_id.clone(), priority);
        }
    }
    for (delivery, priority) in &priorities {
        assert_eq!(service.delivery(delivery).await.priority(), *priority);
    }
    resume(&service, &id).await;
    let mut arrived = Vec::new();
    for _ in 0..priorities.len() {
        arrived.push(priorities[&next_id(&receiver).await]);
    }
    let among = |count: usize, priority| arrived[..count].iter().filter(|one| **one == priority).count();
    assert!(among(24, Priority::High) >= 12, "{arrived:?}");
    assert!(among(24, Priority::Normal) >= 3 && among(24, Priority::Low) >= 1, "{arrived:?}");
    let last = |priority| arrived.iter().rposition(|one| *one == priority).expect("there");
    assert!(
        last(Priority::High) < last(Priority::Normal) && last(Priority::Normal) < last(Priority::Low),
        "{arrived:?}"
    );
}

#[tokio::test]
async fn a_priority_that_is_exhausted_leaves_its_room_to_the_others() {
    let service = service().await;
    let receiver = receiver(Behaviour { silent: true, ..Behaviour::default() }).await;
    service
        .register(Endpoint { max_in_flight: 12, timeout: Some(super::seconds(300)), ..endpoint(&receiver.url()) })
        .await;
    service.publish(PublishRequest { priority: Priority::High.into(), ..event("a") }).await;
    for _ in 0..20 {
        service.publish(PublishRequest { priority: Priority::Low.into(), ..event("a") }).await;
    }
    for _ in 0..12 {
        next_id(&receiver).await;
    }
}

#[tokio::test]
async fn a_delivery_waits_for_its_deliver_time() {
    let service = service().await;
    let receiver = receiver(Behaviour::default()).await;
    service.register(endpoint(&receiver.url())).await;
    let deliver_time = in_millis(2_000);
    let published = service.publish(PublishRequest { deliver_time, ..event("a") }).await;
    let id = &published.deliveries[0].delivery_id;
    let waiting = service.delivery(id).await;
    assert_eq!((waiting.state(), waiting.reason.as_str()), (DeliveryState::Pending, "waits for its deliver_time"));
    // The database keeps microseconds.
    assert_eq!(nanos(waiting.next_attempt_time) / 1_000, nanos(deliver_time) / 1_000);
    assert_eq!(
        waiting.event.expect("kept").deliver_time.map(|time| time.seconds),
        deliver_time.map(|time| time.seconds)
    );
    let earlier = service.publish_one("a").await;
    assert_eq!(next_id(&receiver).await, earlier, "it holds nobody up");
    assert_eq!(next_id(&receiver).await, *id);
    let delivered = service.in_state(id, DeliveryState::Succeeded).await;
    assert!(nanos(delivered.attempts[0].start_time) / 1_000 >= nanos(deliver_time) / 1_000);
    let past = PublishRequest { deliver_time: in_millis(-60_000), ..event("a") };
    let past = service.publish(past).await.deliveries[0].delivery_id.clone();
    assert_eq!(next_id(&receiver).await, past, "a time that has passed means at once");
}

#[tokio::test]
async fn deliveries_that_are_put_off_are_found_after_a_restart_one_after_the_other() {
    let url = support::database().await;
    let receiver = receiver(Behaviour::default()).await;
    // Nobody delivers here: what is put off is known to nobody when the worker starts.
    let publishing = service_with(url.clone(), &[("HOOKLANE_ROLES", "api")]).await;
    publishing.register(endpoint(&receiver.url())).await;
    let mut ids = Vec::new();
    for place in 0..100 {
        let deliver_time = in_millis(5_000 + place * 40);
        ids.push(
            publishing.publish(PublishRequest { deliver_time, ..event("a") }).await.deliveries[0].delivery_id.clone(),
        );
    }
    let _delivering = app_with(url, &[("HOOKLANE_ROLES", "worker")]).await;
    let mut arrived = Vec::new();
    for _ in &ids {
        arrived.push(next_id(&receiver).await);
    }
    arrived.sort_unstable();
    ids.sort_unstable();
    assert_eq!(arrived, ids);
    for id in &ids {
        let delivery = publishing.in_state(id, DeliveryState::Succeeded).await;
        let deliver_time = delivery.event.expect("kept").deliver_time;
        assert!(nanos(delivery.attempts[0].start_time) >= nanos(deliver_time), "{id}");
    }
}

#[tokio::test]
async fn what_waits_past_its_expire_time_expires_wherever_it_waits() {
    let service = service().await;
    let receiver = receiver(Behaviour::default()).await;
    let id = paused(&service, endpoint(&receiver.url())).await;
    let asked = PublishRequest { expire_time: in_millis(1_500), ..event("a") };
    let delivery = service.publish(asked).await.deliveries[0].delivery_id.clone();
    let expired = service.in_state(&delivery, DeliveryState::Expired).await;
    assert_eq!((expired.reason.as_str(), expired.attempt_count), ("its expire_time passed", 0));
    assert!(expired.settle_time.is_some() && expired.next_attempt_time.is_none());
    // A retry by hand wants it in spite of that.
    let retried = retry(&service, &delivery).await;
    assert_eq!(retried.state(), DeliveryState::Pending);
    resume(&service, &id).await;
    assert_eq!(next_id(&receiver).await, delivery);
    service.in_state(&delivery, DeliveryState::Succeeded).await;
}

#[tokio::test]
async fn a_retry_that_would_come_too_late_expires_at_the_expire_time() {
    let service = service().await;
    let receiver = receiver(Behaviour { status: Some(StatusCode::BAD_GATEWAY), ..Behaviour::default() }).await;
    let hour = retry_policy::Backoff::Schedule(BackoffSchedule { delays: vec![super::seconds(3_600)] });
    let policy = RetryPolicy { backoff: Some(hour), ..RetryPolicy::default() };
    service.register(Endpoint { retry_policy: Some(policy), ..endpoint(&receiver.url()) }).await;
    let asked = PublishRequest { expire_time: in_millis(6_000), ..event("a") };
    let id = service.publish(asked).await.deliveries[0].delivery_id.clone();
    let retrying = service.in_state(&id, DeliveryState::Retrying).await;
    assert_eq!(retrying.reason, "HTTP 502: Bad Gateway; expires before another attempt would be due");
    assert_eq!(retrying.next_attempt_time, None);
    let expired = service.in_state(&id, DeliveryState::Expired).await;
    assert_eq!((expired.attempts.len(), expired.last_status_code), (1, 502));
}

#[tokio::test]
async fn bad_times_and_priorities_are_named() {
    let service = service().await;
    let mut client = service.client.clone();
    let bad = PublishRequest {
        priority: 7,
        ordering_key: "a b".to_owned(),
        deliver_time: in_millis(400 * 24 * 3_600_000),
        expire_time: in_millis(-1_000),
        ..event("a")
    };
    let refusal = client.publish(bad.clone()).await.expect_err("bad");
    assert_eq!(reason(&refusal), told(Code::InvalidArgument, "INVALID_FIELD"));
    assert_eq!(fields(&refusal), ["deliver_time", "expire_time", "ordering_key", "priority"]);
    let early = PublishRequest { deliver_time: in_millis(60_000), expire_time: in_millis(30_000), ..event("a") };
    let batch = PublishBatchRequest { requests: vec![event("a"), early] };
    let results = client.publish_batch(batch).await.expect("answered").into_inner().results;
    let Some(publish_batch_result::Result::Error(refusal)) = &results[1].result else { panic!("{results:?}") };
    assert!(refusal.message.contains("requests[1].expire_time"), "{}", refusal.message);
}
