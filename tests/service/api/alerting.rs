//! Being told: alerts as rows, and as events that any endpoint can subscribe to.
//!
//! An endpoint's receiver fails or answers as a test says; another one, the listener, gets the operational events.

mod conditions;
mod crashes;
mod failures;

use hooklane::api::proto::*;
use hooklane::cli::listen::{Behaviour, Receiver};
use http::StatusCode;
use serde_json::Value;
use tonic::Code;

use super::{Service, endpoint, event, fields, reason, receiver, retries, service, soon, told};
use crate::support::eventually;

/// A receiver that fails whatever it gets.
fn failing() -> Behaviour {
    Behaviour { status: Some(StatusCode::SERVICE_UNAVAILABLE), ..Behaviour::default() }
}

/// An endpoint whose deliveries fail at once where its receiver does, however often.
fn impatient(url: &str) -> Endpoint {
    let no_breaker = CircuitBreaker { failure_threshold: Some(0), ..CircuitBreaker::default() };
    Endpoint {
        retry_policy: Some(retries(0)),
        event_types: vec!["order.*".to_owned()],
        circuit_breaker: Some(no_breaker),
        ..endpoint(url)
    }
}

/// A receiver that gets these operational events.
async fn listener(service: &Service, pattern: &str) -> (Receiver, Endpoint) {
    let listener = receiver(Behaviour::default()).await;
    let wanted = Endpoint { event_types: vec![pattern.to_owned()], ..endpoint(&listener.url()) };
    let registered = service.register(wanted).await;
    (listener, registered)
}

/// The next operational event: its type and data.
async fn next_told(listener: &Receiver) -> (String, Value) {
    let request = soon("an operational event", listener.next()).await.expect("a request");
    let body: Value = serde_json::from_slice(&request.body).expect("JSON");
    assert_eq!(body["event"].as_str(), request.event_type.as_deref());
    (request.event_type.expect("a type"), body["data"].clone())
}

async fn list(service: &Service, request: ListAlertsRequest) -> Vec<Alert> {
    service.client.clone().list_alerts(request).await.expect("listed").into_inner().alerts
}

async fn alerts_of(service: &Service, endpoint: &Endpoint) -> Vec<Alert> {
    list(service, ListAlertsRequest { endpoint_id: endpoint.id.clone(), ..ListAlertsRequest::default() }).await
}

/// The endpoint's one alert of a kind, once it is as it should be.
async fn alert_where(service: &Service, of: &Endpoint, kind: AlertKind, is_so: impl Fn(&Alert) -> bool) -> Alert {
    eventually(&format!("the alert {kind:?}"), || async {
        let mut found = alerts_of(service, of).await;
        found.retain(|alert| alert.kind() == kind);
        assert!(found.len() <= 1, "{found:?}");
        found.pop().filter(&is_so)
    })
    .await
}

/// Publishes one event and waits until its one delivery is settled.
async fn deliver(service: &Service, state: DeliveryState) -> Delivery {
    let id = service.publish_one("order.created").await;
    service.in_state(&id, state).await
}

/// Every delivery of operational events to an endpoint, oldest first.
async fn operational(service: &Service, to: &Endpoint) -> Vec<Delivery> {
    let request = ListDeliveriesRequest {
        endpoint_id: to.id.clone(),
        event_types: vec!["hooklane.*".to_owned()],
        page_size: 500,
        ..ListDeliveriesRequest::default()
    };
    let mut all = service.client.clone().list_deliveries(request).await.expect("listed").into_inner().deliveries;
    all.reverse();
    all
}

#[tokio::test]
async fn three_five_and_ten_failures_in_a_row_are_told_and_so_is_the_recovery() {
    let service = service().await;
    let shop = receiver(failing()).await;
    let (listener, to) = listener(&service, "hooklane.endpoint.*").await;
    let registered = service.register(impatient(&shop.url())).await;
    for failures in 1..=10_u32 {
        deliver(&service, DeliveryState::Failed).await;
        let level = match failures {
            3 | 5 | 10 => failures,
            _ => continue,
        };
        let is_so = |alert: &Alert| alert.details["threshold"] == level.to_string();
        let alert = alert_where(&service, &registered, AlertKind::EndpointFailing, is_so).await;
        assert_eq!((alert.tenant.as_str(), alert.close_time, alert.acknowledge_time), ("default", None, None));
        assert_eq!(alert.details["consecutive_failures"], failures.to_string());
        let (event_type, data) = next_told(&listener).await;
        assert_eq!(event_type, "hooklane.endpoint.failing");
        assert_eq!(data["consecutive_failures"], level);
        assert_eq!(
            (data["alert_id"].as_str(), data["endpoint_id"].as_str()),
            (Some(&*alert.id), Some(&*alert.endpoint_id))
        );
    }
    shop.set_behaviour(Behaviour::default());
    deliver(&service, DeliveryState::Succeeded).await;
    let closed =
        alert_where(&service, &registered, AlertKind::EndpointFailing, |alert| alert.close_time.is_some()).await;
    let (event_type, data) = next_told(&listener).await;
    assert_eq!((event_type.as_str(), data["alert_id"].as_str()), ("hooklane.endpoint.recovered", Some(&*closed.id)));
    assert_eq!(data["alert_kind"], "ENDPOINT_FAILING");

    // It fails and recovers again: another alert, told from its first level on.
    for round in 2..=3 {
        shop.set_behaviour(failing());
        for _ in 0..3 {
            deliver(&service, DeliveryState::Failed).await;
        }
        let (event_type, data) = next_told(&listener).await;
        assert_eq!((event_type.as_str(), &data["consecutive_failures"]), ("hooklane.endpoint.failing", &3.into()));
        shop.set_behaviour(Behaviour::default());
        deliver(&service, DeliveryState::Succeeded).await;
        assert_eq!(next_told(&listener).await.0, "hooklane.endpoint.recovered");
        let alerts = alerts_of(&service, &registered).await;
        let failing = alerts.iter().filter(|alert| alert.kind() == AlertKind::EndpointFailing);
        assert_eq!(failing.clone().count(), round, "{alerts:?}");
        assert!(failing.clone().all(|alert| alert.close_time.is_some()));
    }
    assert_eq!(operational(&service, &to).await.len(), 4 + 2 * 2);
}

#[tokio::test]
async fn failures_in_a_row_that_a_success_ended_at_once_are_told_all_the_same() {
    let service = service().await;
    let (listener, _) = listener(&service, "hooklane.endpoint.failing").await;
    let shop = receiver(Behaviour { fail_first: 4, ..Behaviour::default() }).await;
    // Four failures and a success, within a second.
    let registered = service.register(Endpoint { retry_policy: Some(retries(10)), ..impatient(&shop.url()) }).await;
    deliver(&service, DeliveryState::Succeeded).await;
    alert_where(&service, &registered, AlertKind::EndpointFailing, |alert| alert.close_time.is_some()).await;
    assert_eq!(next_told(&listener).await.1["consecutive_failures"], 3);
}

#[tokio::test]
async fn a_subscriber_to_everything_gets_no_operational_events() {
    let service = service().await;
    let shop = receiver(failing()).await;
    let registered = service.register(impatient(&shop.url())).await;
    let (everything, all) = listener(&service, "*").await;
    let (listener, wanted) = listener(&service, "hooklane.*").await;
    for _ in 0..3 {
        let published = service.publish(event("order.created")).await;
        let failed = published.deliveries.iter().find(|delivery| delivery.endpoint_id == registered.id).expect("one");
        service.in_state(&failed.delivery_id, DeliveryState::Failed).await;
    }
    // Three failed deliveries and a failing endpoint.
    let mut types: Vec<String> = Vec::new();
    for _ in 0..4 {
        types.push(next_told(&listener).await.0);
    }
    types.sort_unstable();
    assert_eq!(types[..3], ["hooklane.delivery.failed"; 3]);
    assert_eq!(types[3], "hooklane.endpoint.failing");
    assert_eq!((operational(&service, &all).await.len(), operational(&service, &wanted).await.len()), (0, 4));
    for _ in 0..3 {
        let request = soon("an ordinary event", everything.next()).await.expect("a request");
        assert_eq!(request.event_type.as_deref(), Some("order.created"));
    }
}

#[tokio::test]
async fn an_alert_is_acknowledged_once_and_stays_open() {
    let service = service().await;
    let shop = receiver(failing()).await;
    let registered = service.register(impatient(&shop.url())).await;
    for _ in 0..3 {
        deliver(&service, DeliveryState::Failed).await;
    }
    let alert = alert_where(&service, &registered, AlertKind::EndpointFailing, |_| true).await;
    let acknowledge = async |id: &str| {
        let request = AcknowledgeAlertRequest { alert_id: id.to_owned() };
        service.client.clone().acknowledge_alert(request).await.map(|answer| answer.into_inner().alert.expect("it"))
    };
    let first = acknowledge(&alert.id).await.expect("acknowledged");
    assert!(first.acknowledge_time.is_some() && first.close_time.is_none());
    // Nobody is asked who they are.
    assert_eq!(first.acknowledged_by, "");
    assert_eq!(acknowledge(&alert.id).await.expect("again"), first);
    assert_eq!(alerts_of(&service, &registered).await, [first]);

    let refusal = acknowledge("alr_01h455vb4pex5vsknk084sn02q").await.expect_err("unknown");
    assert_eq!(reason(&refusal), told(Code::NotFound, "ALERT_NOT_FOUND"));
    let refusal = acknowledge(&registered.id).await.expect_err("another kind of id");
    assert_eq!(
        (reason(&refusal), fields(&refusal)),
        (told(Code::InvalidArgument, "INVALID_FIELD"), vec!["alert_id".to_owned()])
    );
}

#[tokio::test]
async fn alerts_are_listed_newest_first_by_page_and_by_filter() {
    let service = service().await;
    let shop = receiver(failing()).await;
    let mut endpoints = Vec::new();
    for tenant in ["a", "a", "a", "b"] {
        let registered = service.register(Endpoint { tenant: tenant.to_owned(), ..impatient(&shop.url()) }).await;
        for _ in 0..3 {
            let request = PublishRequest {
                tenant: tenant.to_owned(),
                endpoint_ids: vec![registered.id.clone()],
                ..event("order.created")
            };
            let published = service.publish(request).await;
            service.in_state(&published.deliveries[0].delivery_id, DeliveryState::Failed).await;
        }
        alert_where_of(&service, tenant, &registered).await;
        endpoints.push(registered);
    }
    let of =
        |tenant: &str| ListAlertsRequest { tenant: tenant.to_owned(), page_size: 2, ..ListAlertsRequest::default() };
    let page = async |request| service.client.clone().list_alerts(request).await.expect("listed").into_inner();
    let ids = |alerts: &[Alert]| alerts.iter().map(|alert| alert.endpoint_id.clone()).collect::<Vec<_>>();
    let first = page(of("a")).await;
    assert_eq!(ids(&first.alerts), [endpoints[2].id.clone(), endpoints[1].id.clone()]);
    let next = ListAlertsRequest { page_token: first.next_page_token.clone(), ..of("a") };
    let second = page(next.clone()).await;
    assert_eq!((ids(&second.alerts), second.next_page_token.as_str()), (vec![endpoints[0].id.clone()], ""));
    let refusal = service
        .client
        .clone()
        .list_alerts(ListAlertsRequest { open_only: true, ..next })
        .await
        .expect_err("of another list");
    assert_eq!(fields(&refusal), ["page_token"]);

    assert_eq!(ids(&page(of("b")).await.alerts), [endpoints[3].id.clone()]);
    assert!(page(of("")).await.alerts.is_empty());
    let everybody = page(ListAlertsRequest { page_size: 0, ..of("*") }).await;
    assert_eq!(everybody.alerts.len(), 4);
    let kinds = |kind: AlertKind| ListAlertsRequest { kinds: vec![kind.into()], page_size: 0, ..of("*") };
    assert_eq!(page(kinds(AlertKind::EndpointFailing)).await.alerts.len(), 4);
    assert!(page(kinds(AlertKind::EndpointDisabled)).await.alerts.is_empty());

    // What belonged to a deleted endpoint is closed, and nobody calls that a recovery.
    let request = DeleteEndpointRequest { endpoint_id: endpoints[0].id.clone(), ..DeleteEndpointRequest::default() };
    service.client.clone().delete_endpoint(request).await.expect("deleted");
    let open = ListAlertsRequest { open_only: true, page_size: 0, ..of("a") };
    let left = eventually("the alert is closed", || async {
        let left = page(open.clone()).await.alerts;
        (left.len() == 2).then_some(left)
    })
    .await;
    assert_eq!(ids(&left), [endpoints[2].id.clone(), endpoints[1].id.clone()]);
}

async fn alert_where_of(service: &Service, tenant: &str, of: &Endpoint) {
    let request = ListAlertsRequest {
        tenant: tenant.to_owned(),
        endpoint_id: of.id.clone(),
        open_only: true,
        ..ListAlertsRequest::default()
    };
    eventually("an open alert", || async { (!list(service, request.clone()).await.is_empty()).then_some(()) }).await;
}
