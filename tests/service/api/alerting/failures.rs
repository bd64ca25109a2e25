//! `hooklane.delivery.failed`: one for each time that a delivery fails for good, and none of operational events' own.

use hooklane::api::proto::*;
use hooklane::cli::listen::Behaviour;

use super::super::{receiver, retries, service, service_with};
use super::{deliver, failing, impatient, listener, next_told, operational};
use crate::support::{self, eventually};

#[tokio::test]
async fn each_failed_delivery_is_told_with_its_figures_and_again_when_it_fails_again() {
    let service = service().await;
    let shop = receiver(failing()).await;
    let registered = service.register(Endpoint { retry_policy: Some(retries(1)), ..impatient(&shop.url()) }).await;
    let (listener, to) = listener(&service, "hooklane.delivery.failed").await;
    let failed = deliver(&service, DeliveryState::Failed).await;
    let (event_type, data) = next_told(&listener).await;
    assert_eq!(event_type, "hooklane.delivery.failed");
    let text = |name: &str| data[name].as_str().unwrap_or_default().to_owned();
    assert_eq!((text("delivery_id"), text("event_id")), (failed.id.clone(), failed.event_id.clone()));
    assert_eq!((text("endpoint_id"), text("event_type")), (registered.id.clone(), "order.created".to_owned()));
    assert_eq!((text("reason"), &data["attempts"]), ("HTTP 503: Service Unavailable".to_owned(), &2.into()));
    assert_eq!((&data["last_status"], data["fail_time"].is_string()), (&503.into(), true));

    let request = RetryDeliveryRequest { delivery_id: failed.id.clone() };
    service.client.clone().retry_delivery(request).await.expect("retried");
    let (_, data) = next_told(&listener).await;
    assert_eq!((data["delivery_id"].as_str(), &data["attempts"]), (Some(&*failed.id), &4.into()));
    // A success is none.
    shop.set_behaviour(Behaviour::default());
    deliver(&service, DeliveryState::Succeeded).await;
    shop.set_behaviour(failing());
    let other = deliver(&service, DeliveryState::Failed).await;
    assert_eq!(next_told(&listener).await.1["delivery_id"].as_str(), Some(&*other.id));
    assert_eq!(operational(&service, &to).await.len(), 3);
}

#[tokio::test]
async fn a_delivery_that_failed_for_want_of_room_is_told_too() {
    let settings = [("HOOKLANE_QUEUE_MAX_OUTSTANDING_PER_ENDPOINT", "1")];
    let service = service_with(support::database().await, &settings).await;
    let registered = service.register(impatient("http://127.0.0.1:9/")).await;
    let request = PauseEndpointRequest { endpoint_id: registered.id.clone() };
    service.client.clone().pause_endpoint(request).await.expect("paused");
    let (listener, _) = listener(&service, "hooklane.delivery.*").await;
    service.publish_one("order.created").await;
    let refused = service.publish_one("order.created").await;
    let (_, data) = next_told(&listener).await;
    assert_eq!((data["delivery_id"].as_str(), &data["attempts"]), (Some(&*refused), &0.into()));
    assert!(data["reason"].as_str().is_some_and(|reason| reason.starts_with("QUEUE_FULL")), "{data}");
}

#[tokio::test]
async fn what_failed_before_anybody_wanted_to_know_is_not_told() {
    let database = support::database().await;
    let service = service_with(database.clone(), &[]).await;
    let shop = receiver(failing()).await;
    service.register(impatient(&shop.url())).await;
    let before = deliver(&service, DeliveryState::Failed).await;
    eventually(&format!("{} is passed over", before.id), || async {
        let is_past = "select coalesce(bool_and(pg_visible_in_snapshot(t.xid, f.since)), false)
                       from timeline t, failures_told f where t.kind = 5 and f.until is null";
        let mut connection = support::connection(&database).await;
        let is_past: bool = sqlx::query_scalar(is_past).fetch_one(&mut connection).await.expect("read");
        is_past.then_some(())
    })
    .await;
    let (listener, _) = listener(&service, "hooklane.delivery.failed").await;
    let after = deliver(&service, DeliveryState::Failed).await;
    assert_eq!(next_told(&listener).await.1["delivery_id"].as_str(), Some(&*after.id));
}

#[tokio::test]
async fn operational_events_that_fail_raise_no_operational_events() {
    let service = service().await;
    let shop = receiver(failing()).await;
    service.register(impatient(&shop.url())).await;
    // One that is told and fails, and one that is told of whatever there is.
    let broken = receiver(failing()).await;
    let told = Endpoint { event_types: vec!["hooklane.*".to_owned()], ..impatient(&broken.url()) };
    let broken_endpoint = service.register(Endpoint { retry_policy: Some(retries(4)), ..told }).await;
    let (listener, to) = listener(&service, "hooklane.*").await;
    let first = deliver(&service, DeliveryState::Failed).await;
    assert_eq!(next_told(&listener).await.1["delivery_id"].as_str(), Some(&*first.id));
    // Its delivery to the broken one fails five times and for good: an alert, of which no event tells.
    eventually("the operational delivery fails", || async {
        let told = operational(&service, &broken_endpoint).await;
        told.iter().any(|delivery| delivery.state() == DeliveryState::Failed).then_some(())
    })
    .await;
    let is_failing = |alert: &Alert| alert.details["threshold"] == "5";
    super::alert_where(&service, &broken_endpoint, AlertKind::EndpointFailing, is_failing).await;
    // A further failure is told after all that came before it.
    let last = deliver(&service, DeliveryState::Failed).await;
    assert_eq!(next_told(&listener).await.1["delivery_id"].as_str(), Some(&*last.id));
    assert_eq!(operational(&service, &to).await.len(), 2);
}
