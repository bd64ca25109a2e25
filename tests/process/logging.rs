//! What a replica logs: a failure once, with its ids; by a filter that can be changed while it runs.

use hooklane::api::proto::*;
use hooklane::cli::listen::{Behaviour, Receiver, ReceiverOptions};
use http::StatusCode;

use crate::program::{Replica, run};
use crate::support::{database, eventually};

/// The log lines of a delivery, as objects.
fn lines(replica: &Replica, delivery: &str) -> Vec<serde_json::Value> {
    let lines = replica.log().lines().map(str::to_owned).collect::<Vec<_>>();
    let objects = lines.iter().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")));
    objects.filter(|line: &serde_json::Value| line["delivery"] == delivery).collect()
}

async fn failing_delivery(replica: &Replica, url: &str) -> (String, String) {
    let mut client =
        webhook_service_client::WebhookServiceClient::connect(replica.grpc.clone()).await.expect("connects");
    let backoff = ExponentialBackoff {
        initial_delay: Some(prost_types::Duration { seconds: 0, nanos: 10_000_000 }),
        ..ExponentialBackoff::default()
    };
    let policy = RetryPolicy {
        backoff: Some(retry_policy::Backoff::Exponential(backoff)),
        max_retries: Some(1),
        ..RetryPolicy::default()
    };
    let endpoint = Endpoint { url: url.to_owned(), retry_policy: Some(policy), ..Endpoint::default() };
    let register = RegisterEndpointRequest { endpoint: Some(endpoint), secret: String::new() };
    let id = client.register_endpoint(register).await.expect("registered").into_inner().endpoint.expect("one").id;
    let event = PublishRequest {
        event_type: "order.created".to_owned(),
        endpoint_ids: vec![id],
        body: Some(publish_request::Body::Payload("{}".into())),
        ..PublishRequest::default()
    };
    let published = client.publish(event).await.expect("published").into_inner();
    let delivery = published.deliveries[0].delivery_id.clone();
    eventually("it has failed", || async {
        let request = GetDeliveryRequest { delivery_id: delivery.clone() };
        let found = client.clone().get_delivery(request).await.expect("read").into_inner().delivery.expect("one");
        (found.state() == DeliveryState::Failed).then_some(())
    })
    .await;
    (delivery, published.event_id)
}

#[tokio::test]
async fn a_failed_delivery_is_logged_once_with_its_ids_and_its_attempts_when_asked_for() {
    let failing = Behaviour { status: Some(StatusCode::INTERNAL_SERVER_ERROR), ..Behaviour::default() };
    let receiver = Receiver::start(ReceiverOptions { behaviour: failing, ..ReceiverOptions::default() });
    let receiver = receiver.await.expect("a receiver");
    let replica = Replica::start(&database().await, &[("HOOKLANE_LOG_FORMAT", "json")]).await;
    let ops = replica.ops.to_string();
    let log_level = async |arguments: &[&str]| {
        let arguments = [&["log-level", "--ops-addr", &ops], arguments].concat();
        run(&arguments, &[]).await
    };
    let (code, said, _) = log_level(&[]).await;
    assert_eq!((code, said.as_str()), (Some(0), "info,sqlx=warn\n"));

    let (delivery, event) = failing_delivery(&replica, &receiver.url()).await;
    let told = eventually("it is logged", || async { lines(&replica, &delivery).pop() }).await;
    assert_eq!(lines(&replica, &delivery).len(), 1, "once");
    let received = receiver.next().await.expect("a request");
    let trace_id = received.headers["traceparent"].to_str().expect("text")[3..35].to_owned();
    for (field, expected) in [
        ("level", "INFO"),
        ("target", "hooklane::delivery"),
        ("message", "a delivery failed for good"),
        ("event", event.as_str()),
        ("event_type", "order.created"),
        ("tenant", "default"),
        ("trace_id", trace_id.as_str()),
        ("reason", "HTTP 500: Internal Server Error"),
    ] {
        assert_eq!(told[field], expected, "{field} of {told}");
    }
    assert_eq!(told["attempt"], 2);
    assert!(told["endpoint"].as_str().is_some_and(|id| id.starts_with("ep_")), "{told}");

    let (code, said, _) = log_level(&["info,hooklane::delivery=debug"]).await;
    assert_eq!((code, said.as_str()), (Some(0), "info,hooklane::delivery=debug\n"));
    let (delivery, _) = failing_delivery(&replica, &receiver.url()).await;
    let attempts = eventually("each attempt is logged", || async {
        Some(lines(&replica, &delivery)).filter(|lines| lines.len() == 2)
    })
    .await;
    assert_eq!((&attempts[0]["level"], &attempts[0]["attempt"]), (&"DEBUG".into(), &1.into()));
    assert_eq!((&attempts[1]["level"], &attempts[1]["attempt"]), (&"INFO".into(), &2.into()));

    let (code, _, problem) = log_level(&["debg"]).await;
    assert!(code == Some(64) && problem.contains("\"debg\"") && problem.contains("hooklane=debug"), "{problem}");
    let (code, said, _) = log_level(&["--reset"]).await;
    assert_eq!((code, said.as_str()), (Some(0), "info,sqlx=warn\n"));
    let (delivery, _) = failing_delivery(&replica, &receiver.url()).await;
    eventually("it is logged", || async { lines(&replica, &delivery).pop() }).await;
    assert_eq!(lines(&replica, &delivery).len(), 1);
    // Whoever may not change it learns so, and it stays.
    let page = replica.send("PUT", "/log/filter", "Origin: http://localhost\r\nContent-Length: 3\r\n\r\noff").await;
    assert!(page.expect("an answer").starts_with("HTTP/1.1 403 "));
    assert_eq!(log_level(&[]).await.1, "info,sqlx=warn\n");
}
