//! `/metrics`: what is done over the API is what is counted, refused calls and other replicas' work among it.

use std::collections::BTreeMap;

use hooklane::api::proto::*;
use hooklane::app::App;
use hooklane::cli::listen::Behaviour;
use http::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;

use super::{app_with, endpoint, event, receiver, retries, seconds, service, service_with, soon};
use crate::support::{self, eventually};

/// A path of the operations port: status, head and body.
pub(super) async fn ops(app: &App, method: &str, path: &str, more: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(app.ops_addr()).await.expect("connects");
    let request = format!("{method} {path} HTTP/1.1\r\nHost: ops\r\nConnection: close\r\n{more}");
    let request = if more.contains("\r\n\r\n") { request } else { request + "\r\n" };
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut answer = String::new();
    soon("an answer", stream.read_to_string(&mut answer)).await.expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, head.to_owned(), body.to_owned())
}

/// Every series and its value.
struct Seen(BTreeMap<String, f64>);

impl Seen {
    async fn of(app: &App) -> Self {
        let (status, head, text) = ops(app, "GET", "/metrics", "").await;
        assert_eq!(status, 200);
        assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let series = lines.map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no series: {line}"));
            (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("no value: {line}")))
        });
        Self(series.collect())
    }

    fn get(&self, series: &str) -> f64 {
        self.0.get(series).copied().unwrap_or_else(|| panic!("no {series} among {:#?}", self.0.keys()))
    }

    fn has(&self, series: &[(&str, f64)]) -> bool {
        series.iter().all(|(name, value)| self.0.get(*name) == Some(value))
    }
}

/// Waits until the series are as they should be.
async fn come_to(app: &App, series: &[(&str, f64)]) -> Seen {
    let began = std::time::Instant::now();
    loop {
        let seen = Seen::of(app).await;
        if seen.has(series) {
            return seen;
        }
        let found: Vec<_> = series.iter().map(|(name, _)| (name, seen.0.get(*name))).collect();
        assert!(began.elapsed() < super::PATIENCE, "{found:?} are not {series:?}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn events_deliveries_and_attempts_are_counted_by_what_came_of_them() {
    let settings = [("HOOKLANE_METRICS_EVENT_TYPES_MAX", "2")];
    let service = service_with(support::database().await, &settings).await;
    let (good, bad) = (receiver(Behaviour::default()).await, receiver(failing()).await);
    let wanting = |url: String, event_type: &str, max_retries| Endpoint {
        event_types: vec![event_type.to_owned()],
        retry_policy: Some(retries(max_retries)),
        ..endpoint(&url)
    };
    service.register(wanting(good.url(), "good", 0)).await;
    service.register(wanting(bad.url(), "bad", 2)).await;
    let paused = service.register(wanting(good.url(), "late", 0)).await;
    let pause = PauseEndpointRequest { endpoint_id: paused.id.clone() };
    service.client.clone().pause_endpoint(pause).await.expect("paused");

    let good_id = service.publish_one("good").await;
    service.publish_one("good").await;
    let bad_id = service.publish_one("bad").await;
    let waiting = service.publish_one("late").await;
    let soon_over = service.delivery(&waiting).await.create_time.expect("a time");
    let expiring = PublishRequest {
        expire_time: Some(prost_types::Timestamp { seconds: soon_over.seconds + 2, ..soon_over }),
        ..event("late")
    };
    service.publish(expiring).await;
    let cancel = CancelDeliveryRequest { delivery_id: waiting };
    service.client.clone().cancel_delivery(cancel).await.expect("canceled");
    service.in_state(&good_id, DeliveryState::Succeeded).await;
    service.in_state(&bad_id, DeliveryState::Failed).await;
    let unknown = GetDeliveryRequest { delivery_id: "dlv_01h455vb4pex5vsknk084sn02q".to_owned() };
    let refusal = service.client.clone().get_delivery(unknown).await.expect_err("unknown");
    assert_eq!(refusal.code(), Code::NotFound);

    let seen = come_to(
        &service.app,
        &[
            // Two types have a series of their own.
            ("webhook_events_total{event_type=\"good\"}", 2.0),
            ("webhook_events_total{event_type=\"bad\"}", 1.0),
            // The two late ones, and ours that tells of the failed delivery.
            ("webhook_events_total{event_type=\"other\"}", 3.0),
            ("webhook_deliveries_total{status=\"succeeded\"}", 2.0),
            ("webhook_deliveries_total{status=\"failed\"}", 1.0),
            ("webhook_deliveries_total{status=\"canceled\"}", 1.0),
            ("webhook_deliveries_total{status=\"expired\"}", 1.0),
            ("webhook_attempts_total{outcome=\"succeeded\"}", 2.0),
            ("webhook_attempts_total{outcome=\"http_error\"}", 3.0),
            ("webhook_attempts_total{outcome=\"timeout\"}", 0.0),
            ("webhook_attempts_total{outcome=\"lost\"}", 0.0),
            ("webhook_delivery_duration_seconds_count", 5.0),
            ("webhook_end_to_end_seconds_count", 2.0),
            ("webhook_queue_size", 0.0),
            ("webhook_requests_in_flight", 0.0),
            ("webhook_commit_batch_size_sum{kind=\"publish\"}", 6.0),
            // What waited was canceled and expired past it.
            ("webhook_commit_batch_size_sum{kind=\"complete\"}", 5.0),
            ("webhook_grpc_requests_total{code=\"OK\",method=\"Publish\"}", 5.0),
            ("webhook_grpc_requests_total{code=\"NOT_FOUND\",method=\"GetDelivery\"}", 1.0),
            ("webhook_grpc_request_duration_seconds_count{method=\"Publish\"}", 5.0),
            ("webhook_dead_letters", 1.0),
            ("webhook_endpoints{state=\"active\"}", 2.0),
            ("webhook_endpoints{state=\"paused\"}", 1.0),
            ("webhook_endpoints{state=\"disabled\"}", 0.0),
            ("webhook_replicas", 1.0),
            ("webhook_database_up", 1.0),
        ],
    )
    .await;
    assert!(!seen.0.keys().any(|series| series.contains("ep_") || series.contains(&paused.id)), "no ids as labels");
    let claimed = seen.get("webhook_claim_batch_size_sum") + seen.get("webhook_claims_with_publish_total");
    assert_eq!(claimed, 5.0, "by a claim, or as they were published");
    assert!(seen.get("webhook_database_connections{pool=\"engine\",state=\"idle\"}") >= 1.0);
    assert!(seen.get("webhook_commit_duration_seconds_sum{kind=\"publish\"}") > 0.0);
    assert!(seen.get("process_resident_memory_bytes") > 1e6);
}

fn failing() -> Behaviour {
    Behaviour { status: Some(StatusCode::INTERNAL_SERVER_ERROR), ..Behaviour::default() }
}

#[tokio::test]
async fn a_backlog_shows_in_size_and_age_until_it_is_delivered() {
    let service = service().await;
    let silent = receiver(Behaviour { silent: true, ..Behaviour::default() }).await;
    let slow = service.register(Endpoint { max_in_flight: 1, timeout: Some(seconds(300)), ..endpoint(&silent.url()) });
    let slow = slow.await;
    for _ in 0..3 {
        service.publish_one("a").await;
    }
    eventually("the first to wait is old enough to be seen", || async {
        let seen = Seen::of(&service.app).await;
        (seen.get("webhook_queue_oldest_seconds") > 0.5).then_some(())
    })
    .await;
    let seen = [("webhook_queue_size", 3.0), ("webhook_requests_in_flight", 1.0), ("webhook_lanes", 1.0)];
    come_to(&service.app, &seen).await;
    let pause = PauseEndpointRequest { endpoint_id: slow.id };
    service.client.clone().pause_endpoint(pause).await.expect("paused");
    // What waits by somebody's wish is no backlog of ours.
    come_to(&service.app, &[("webhook_queue_oldest_seconds", 0.0), ("webhook_queue_size", 3.0)]).await;
}

#[tokio::test]
async fn each_replica_counts_its_own_work_and_both_know_of_each_other() {
    let url = support::database().await;
    let front = service_with(url.clone(), &[("HOOKLANE_ROLES", "api")]).await;
    let receiver = receiver(Behaviour::default()).await;
    front.register(Endpoint { retry_policy: Some(retries(0)), ..endpoint(&receiver.url()) }).await;
    // One that may not go where the other let the endpoint be registered.
    let settings = [("HOOKLANE_ROLES", "worker"), ("HOOKLANE_EGRESS_ALLOW_HTTP", "false")];
    let back = app_with(url, &settings).await;
    let id = front.publish_one("a").await;
    front.in_state(&id, DeliveryState::Failed).await;
    let refused = [
        ("webhook_guard_refusals_total", 1.0),
        ("webhook_attempts_total{outcome=\"blocked\"}", 1.0),
        ("webhook_deliveries_total{status=\"failed\"}", 1.0),
        ("webhook_replicas", 2.0),
    ];
    let seen = come_to(&back, &refused).await;
    assert!(!seen.0.contains_key("webhook_events_total{event_type=\"a\"}"), "it took no event");
    let published = [
        ("webhook_events_total{event_type=\"a\"}", 1.0),
        ("webhook_attempts_total{outcome=\"blocked\"}", 0.0),
        ("webhook_replicas", 2.0),
    ];
    come_to(&front.app, &published).await;
}

#[tokio::test]
async fn open_streams_are_counted_and_not_late() {
    let service = service().await;
    let mut client = service.client.clone();
    let mut one = client.stream_delivery_events(StreamDeliveryEventsRequest::default()).await.expect("opened");
    let other = client.stream_delivery_events(StreamDeliveryEventsRequest::default()).await.expect("opened");
    soon("the heartbeat", one.get_mut().message()).await.expect("a message");
    come_to(&service.app, &[("webhook_stream_subscribers", 2.0)]).await;
    eventually("the stream has all there is", || async {
        (Seen::of(&service.app).await.get("webhook_stream_lag_seconds") < 1.0).then_some(())
    })
    .await;
    drop((one, other));
    let gone = [
        ("webhook_stream_subscribers", 0.0),
        ("webhook_stream_lag_seconds", 0.0),
        ("webhook_grpc_requests_total{code=\"CANCELLED\",method=\"StreamDeliveryEvents\"}", 2.0),
    ];
    let seen = come_to(&service.app, &gone).await;
    let timed = "webhook_grpc_request_duration_seconds_count{method=\"StreamDeliveryEvents\"}";
    assert!(!seen.0.contains_key(timed), "how long a stream is open says nothing");
}

#[tokio::test]
async fn what_is_published_while_its_lane_keeps_up_needs_no_claim() {
    let service = service().await;
    let before = receiver(Behaviour::default()).await;
    let registered = service.register(endpoint(&before.url())).await;
    for _ in 0..20 {
        let id = service.publish_one("a").await;
        service.in_state(&id, DeliveryState::Succeeded).await;
    }
    let seen = Seen::of(&service.app).await;
    let [by_claim, by_publish] =
        ["webhook_claim_batch_size_sum", "webhook_claims_with_publish_total"].map(|series| seen.get(series));
    // The first one found no lane; a machine that stands still for seconds would close the offers for a while.
    assert_eq!(by_claim + by_publish, 20.0);
    assert!(by_publish >= 10.0, "{by_publish} of 20 were claimed as they were published");

    // What the lane knows of the endpoint is old: the next claim learns better, and nothing goes the old way.
    let after = receiver(Behaviour::default()).await;
    let update = UpdateEndpointRequest {
        endpoint: Some(Endpoint { url: after.url(), ..registered }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["url".to_owned()] }),
    };
    service.client.clone().update_endpoint(update).await.expect("updated");
    for _ in 0..5 {
        let id = service.publish_one("a").await;
        service.in_state(&id, DeliveryState::Succeeded).await;
    }
    assert_eq!((before.count(), after.count()), (20, 5));
}
