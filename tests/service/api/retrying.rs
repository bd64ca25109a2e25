//! When a failed delivery is tried again: which policy holds, and that it holds to its delays.

use hooklane::api::proto::*;
use hooklane::cli::listen::Behaviour;
use http::StatusCode;

use super::{Service, endpoint, event, receiver, service, service_with};
use crate::support;

/// A schedule without jitter.
fn schedule(delays_ms: &[i32]) -> RetryPolicy {
    let delay = |ms: &i32| prost_types::Duration { seconds: (ms / 1_000).into(), nanos: ms % 1_000 * 1_000_000 };
    RetryPolicy {
        backoff: Some(retry_policy::Backoff::Schedule(BackoffSchedule {
            delays: delays_ms.iter().map(delay).collect(),
        })),
        jitter: Some(0.0),
        max_retries: None,
    }
}

fn millis(time: &Option<prost_types::Timestamp>) -> i64 {
    let time = time.as_ref().expect("a time");
    time.seconds * 1_000 + i64::from(time.nanos / 1_000_000)
}

fn broken() -> Behaviour {
    Behaviour { status: Some(StatusCode::BAD_GATEWAY), ..Behaviour::default() }
}

#[tokio::test]
async fn a_schedule_is_followed_delay_by_delay_and_then_the_delivery_fails() {
    let service = service().await;
    let receiver = receiver(broken()).await;
    let policy = schedule(&[300, 100]);
    let registered =
        service.register(Endpoint { retry_policy: Some(policy.clone()), ..endpoint(&receiver.url()) }).await;
    let shown = RetryPolicy { max_retries: Some(2), ..policy };
    assert_eq!(registered.retry_policy, Some(shown));
    let id = service.publish_one("a").await;
    let delivery = service.in_state(&id, DeliveryState::Failed).await;
    assert_eq!(delivery.attempts.len(), 3);
    for (pair, delay) in delivery.attempts.windows(2).zip([300, 100]) {
        // From the commit of the result, which comes after the attempt's end.
        let ended =
            millis(&pair[0].start_time) + i64::from(pair[0].duration.as_ref().expect("it ended").nanos / 1_000_000);
        assert!(millis(&pair[0].next_attempt_time) - ended >= delay, "{pair:?}");
        assert!(millis(&pair[1].start_time) >= millis(&pair[0].next_attempt_time), "{pair:?}");
    }
}

/// In how many hours, to the nearest, the retry of such an event is due.
async fn hours_to_retry(service: &Service, endpoint: &Endpoint, event_type: &str) -> i64 {
    let request = PublishRequest { endpoint_ids: vec![endpoint.id.clone()], ..event(event_type) };
    let id = service.publish(request).await.deliveries[0].delivery_id.clone();
    let delivery = service.in_state(&id, DeliveryState::Retrying).await;
    let wait = millis(&delivery.next_attempt_time) - millis(&delivery.attempts[0].start_time);
    (wait + 1_800_000) / 3_600_000
}

#[tokio::test]
async fn the_endpoint_goes_before_the_server_and_the_event_type_before_the_rest() {
    let settings = [
        ("HOOKLANE_RETRY_POLICY", "4h jitter=0"),
        ("HOOKLANE_RETRY_EVENT_POLICIES", "order.paid order.sent: 3h jitter=0, order.*: 5h jitter=0"),
    ];
    let service = service_with(support::database().await, &settings).await;
    let receiver = receiver(broken()).await;
    let hours = |hours: i32| Some(schedule(&[hours * 3_600_000]));
    let bare = Endpoint { retry_policy: None, ..endpoint(&receiver.url()) };
    let of_event = |patterns: &[&str], retry_policy| EventRetryPolicy {
        event_types: patterns.iter().map(|pattern| (*pattern).to_owned()).collect(),
        retry_policy,
    };
    let event_retry_policies = vec![of_event(&["order.paid"], hours(1)), of_event(&["order.*"], hours(6))];
    let both = Endpoint { retry_policy: hours(2), event_retry_policies, ..bare.clone() };
    let own = Endpoint { retry_policy: hours(2), ..bare.clone() };
    for (given, event_type, expected) in [
        (&both, "order.paid", 1),
        (&both, "order.sent", 6),
        (&both, "user.left", 2),
        (&own, "order.paid", 2),
        (&bare, "order.sent", 3),
        (&bare, "order.lost", 5),
        (&bare, "user.left", 4),
    ] {
        let registered = service.register(given.clone()).await;
        assert_eq!(hours_to_retry(&service, &registered, event_type).await, expected, "{event_type}");
    }
}

#[tokio::test]
async fn a_changed_policy_for_an_event_type_holds_from_the_next_attempt_on() {
    let service = service().await;
    let receiver = receiver(broken()).await;
    let registered =
        service.register(Endpoint { retry_policy: Some(schedule(&[7_200_000])), ..endpoint(&receiver.url()) }).await;
    assert_eq!(hours_to_retry(&service, &registered, "a").await, 2);
    let policy = EventRetryPolicy { event_types: vec!["*".to_owned()], retry_policy: Some(schedule(&[3_600_000])) };
    let patch =
        Endpoint { id: registered.id.clone(), event_retry_policies: vec![policy.clone()], ..Endpoint::default() };
    let request = UpdateEndpointRequest { endpoint: Some(patch), update_mask: None };
    let updated = service.client.clone().update_endpoint(request).await.expect("updated").into_inner();
    let shown = updated.endpoint.expect("it").event_retry_policies;
    assert_eq!((shown.len(), &shown[0].event_types), (1, &policy.event_types));
    assert_eq!(hours_to_retry(&service, &registered, "a").await, 1);
}
