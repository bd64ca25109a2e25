//! The other conditions: disabled, failing too often, too much waiting, dead letters, filters.

use hooklane::api::proto::*;
use hooklane::cli::listen::Behaviour;
use http::StatusCode;

use super::super::{Service, endpoint, event, event_of, receiver, service_with};
use super::{alert_where, deliver, failing, impatient, listener, next_told, operational};
use crate::support;

/// A service with these settings of alerts, and its database.
async fn service_of(settings: &[(&str, &str)]) -> (Service, String) {
    let database = support::database().await;
    let settings: Vec<(String, &str)> =
        settings.iter().map(|(name, value)| (format!("HOOKLANE_ALERTS_{name}"), *value)).collect();
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    (service_with(database.clone(), &settings).await, database)
}

/// Moves everything that was counted out of the window, as an hour would.
async fn forget_the_window(database: &str) {
    let mut connection = support::connection(database).await;
    sqlx::query("update endpoint_minutes set minute = minute - interval '90 minutes'")
        .execute(&mut connection)
        .await
        .expect("moved");
}

#[tokio::test]
async fn a_disabled_endpoint_is_told_and_so_is_its_resumption() {
    let (service, _) = service_of(&[]).await;
    let (listener, to) = listener(&service, "hooklane.endpoint.*").await;
    let shop = receiver(Behaviour { status: Some(StatusCode::GONE), ..Behaviour::default() }).await;
    let registered = service.register(impatient(&shop.url())).await;
    deliver(&service, DeliveryState::Failed).await;
    let alert =
        alert_where(&service, &registered, AlertKind::EndpointDisabled, |alert| alert.close_time.is_none()).await;
    let (event_type, data) = next_told(&listener).await;
    assert_eq!((event_type.as_str(), data["alert_id"].as_str()), ("hooklane.endpoint.disabled", Some(&*alert.id)));
    assert_eq!(data["endpoint_id"].as_str(), Some(&*registered.id));
    let shown = GetEndpointRequest { endpoint_id: registered.id.clone() };
    let shown = service.client.clone().get_endpoint(shown).await.expect("read").into_inner().endpoint.expect("it");
    assert!(!shown.disabled_reason.is_empty());
    assert_eq!(data["reason"].as_str(), Some(&*shown.disabled_reason));

    let request = ResumeEndpointRequest { endpoint_id: registered.id.clone() };
    service.client.clone().resume_endpoint(request).await.expect("resumed");
    alert_where(&service, &registered, AlertKind::EndpointDisabled, |alert| alert.close_time.is_some()).await;
    let (event_type, data) = next_told(&listener).await;
    assert_eq!((event_type.as_str(), data["alert_id"].as_str()), ("hooklane.endpoint.recovered", Some(&*alert.id)));
    assert_eq!(data["alert_kind"], "ENDPOINT_DISABLED");
    let of_this = async || {
        let told = operational(&service, &to).await;
        told.iter().filter(|delivery| delivery.event_type == "hooklane.endpoint.disabled").count()
    };
    assert_eq!(of_this().await, 1);
}

#[tokio::test]
async fn a_high_share_of_failures_is_told_and_over_when_the_window_is() {
    let (service, database) = service_of(&[("FAILURE_RATE_ATTEMPTS", "4"), ("FAILURE_RATE", "0.5")]).await;
    let (listener, _) = listener(&service, "hooklane.failure_rate.high").await;
    let shop = receiver(Behaviour::default()).await;
    let registered = service.register(impatient(&shop.url())).await;
    for _ in 0..2 {
        deliver(&service, DeliveryState::Succeeded).await;
        shop.set_behaviour(failing());
        deliver(&service, DeliveryState::Failed).await;
        shop.set_behaviour(Behaviour::default());
    }
    let alert = alert_where(&service, &registered, AlertKind::FailureRateHigh, |_| true).await;
    assert_eq!((alert.details["attempts"].as_str(), alert.details["failed_attempts"].as_str()), ("4", "2"));
    assert_eq!(alert.message, "2 of 4 attempts in 600 s failed");
    let (_, data) = next_told(&listener).await;
    assert_eq!((&data["failure_rate"], &data["window_seconds"]), (&0.5.into(), &600.into()));
    assert_eq!((data["alert_id"].as_str(), data["attempts"].as_u64()), (Some(&*alert.id), Some(4)));
    forget_the_window(&database).await;
    alert_where(&service, &registered, AlertKind::FailureRateHigh, |alert| alert.close_time.is_some()).await;
}

#[tokio::test]
async fn a_long_queue_is_told_and_over_when_it_is_half() {
    let (service, _) = service_of(&[("BACKLOG_OUTSTANDING", "4")]).await;
    let (listener, _) = listener(&service, "hooklane.queue.backlog").await;
    let shop = receiver(Behaviour::default()).await;
    let registered = service.register(impatient(&shop.url())).await;
    let request = PauseEndpointRequest { endpoint_id: registered.id.clone() };
    service.client.clone().pause_endpoint(request).await.expect("paused");
    for _ in 0..4 {
        service.publish(event("order.created")).await;
    }
    let alert = alert_where(&service, &registered, AlertKind::QueueBacklog, |_| true).await;
    assert_eq!(alert.details["outstanding"], "4");
    let (event_type, data) = next_told(&listener).await;
    assert_eq!((event_type.as_str(), &data["outstanding"]), ("hooklane.queue.backlog", &4.into()));
    let request = ResumeEndpointRequest { endpoint_id: registered.id.clone() };
    service.client.clone().resume_endpoint(request).await.expect("resumed");
    alert_where(&service, &registered, AlertKind::QueueBacklog, |alert| alert.close_time.is_some()).await;
}

#[tokio::test]
async fn a_delivery_that_waits_for_too_long_is_told() {
    let (service, _) = service_of(&[("BACKLOG_AGE", "2s")]).await;
    let (listener, _) = listener(&service, "hooklane.queue.backlog").await;
    let shop = receiver(Behaviour::default()).await;
    let registered = service.register(impatient(&shop.url())).await;
    let request = PauseEndpointRequest { endpoint_id: registered.id.clone() };
    service.client.clone().pause_endpoint(request).await.expect("paused");
    service.publish(event("order.created")).await;
    let alert = alert_where(&service, &registered, AlertKind::QueueBacklog, |_| true).await;
    assert_eq!(alert.details["outstanding"], "1");
    let (_, data) = next_told(&listener).await;
    assert!(data["oldest_due_age_seconds"].as_u64().is_some_and(|age| age >= 2), "{data}");
    let request = ResumeEndpointRequest { endpoint_id: registered.id.clone() };
    service.client.clone().resume_endpoint(request).await.expect("resumed");
    alert_where(&service, &registered, AlertKind::QueueBacklog, |alert| alert.close_time.is_some()).await;
}

#[tokio::test]
async fn dead_letters_that_grow_are_shown_until_they_grow_no_more() {
    let (service, database) = service_of(&[("DEAD_LETTERS", "3")]).await;
    let shop = receiver(failing()).await;
    let registered = service.register(impatient(&shop.url())).await;
    for _ in 0..3 {
        deliver(&service, DeliveryState::Failed).await;
    }
    let alert = alert_where(&service, &registered, AlertKind::DeadLettersGrowing, |_| true).await;
    assert_eq!(alert.details["failed_deliveries"], "3");
    forget_the_window(&database).await;
    alert_where(&service, &registered, AlertKind::DeadLettersGrowing, |alert| alert.close_time.is_some()).await;
}

#[tokio::test]
async fn a_filter_that_fails_is_shown_until_it_fails_no_more() {
    let (service, database) = service_of(&[]).await;
    let filter = "event.data.a.b == 1".to_owned();
    let registered = service.register(Endpoint { filter, ..endpoint("http://127.0.0.1:9/") }).await;
    assert!(service.publish(event_of("{}")).await.deliveries.is_empty());
    let alert = alert_where(&service, &registered, AlertKind::FilterError, |_| true).await;
    assert_eq!(alert.details["filter_errors"], "1");
    forget_the_window(&database).await;
    alert_where(&service, &registered, AlertKind::FilterError, |alert| alert.close_time.is_some()).await;
}
