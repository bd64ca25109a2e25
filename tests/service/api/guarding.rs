//! The guard through the API: whatever way leads to a request, none opens a connection to a forbidden address, and the
//! attempt says why in words that tell nothing of the network.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hooklane::api::proto::*;
use tokio::net::TcpListener;
use tonic::Code;

use super::{Service, endpoint, event, fields, reason, service_with, told};
use crate::support;

/// What `serve` allows of its own accord, and plain http and any port, so that nothing but the address is in the way.
pub(super) const STRICT: [(&str, &str); 3] = [
    ("HOOKLANE_EGRESS_ALLOW_CIDRS", ""),
    ("HOOKLANE_EGRESS_ALLOW_HTTP", "true"),
    ("HOOKLANE_EGRESS_ALLOW_PORTS", "any"),
];

/// A port of loopback at which connections are counted.
async fn counted() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("bound").port();
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    (port, count)
}

fn is_blocked(attempt: &Attempt) {
    assert_eq!(attempt.outcome(), AttemptOutcome::Blocked, "{attempt:?}");
    assert_eq!(attempt.error, "blocked: the address is not public");
    assert!(attempt.response_headers.is_empty() && attempt.status_code == 0);
}

/// A delivery that was blocked: it fails at once, and speaks against nobody.
async fn fails(service: &Service, id: &str) -> Delivery {
    let failed = service.in_state(id, DeliveryState::Failed).await;
    failed.attempts.iter().for_each(is_blocked);
    failed
}

#[tokio::test]
async fn no_way_out_leads_to_a_forbidden_address() {
    let url = support::database().await;
    let (port, connections) = counted().await;
    // Registered while it was allowed, and by names, which are judged when they are dialled.
    let lenient = service_with(url.clone(), &[]).await;
    let stored = lenient.register(endpoint(&format!("http://127.0.0.1:{port}/"))).await;
    lenient.app.stop().await;
    let service = service_with(url, &STRICT).await;
    let mut client = service.client.clone();
    let mut ids = vec![stored.id];
    for host in ["localhost", "LOCALHOST", "user:pass@localhost"] {
        ids.push(service.register(endpoint(&format!("http://{host}:{port}/x?y"))).await.id);
    }
    ids.push(service.register(endpoint(&format!("https://localhost:{port}/"))).await.id);

    for id in &ids {
        let request = TestEndpointRequest { endpoint_id: id.clone(), ..TestEndpointRequest::default() };
        let attempt = client.test_endpoint(request).await.expect("tried").into_inner().attempt.expect("an attempt");
        is_blocked(&attempt);
    }
    let published = service.publish(event("order.created")).await;
    assert_eq!(published.deliveries.len(), ids.len());
    let inline = InlineEndpoint {
        endpoint: Some(endpoint(&format!("http://localhost:{port}/inline"))),
        secret: super::SECRET.to_owned(),
    };
    let request = PublishRequest { inline_endpoint: Some(Box::new(inline)), ..event("order.created") };
    let published = [published.deliveries, service.publish(request).await.deliveries].concat();
    for delivery in &published {
        let failed = fails(&service, &delivery.delivery_id).await;
        assert_eq!((failed.attempts.len(), &*failed.reason), (1, "blocked: the address is not public"));
        // Again by hand.
        let request = RetryDeliveryRequest { delivery_id: delivery.delivery_id.clone() };
        client.retry_delivery(request).await.expect("retried");
        assert_eq!(fails(&service, &delivery.delivery_id).await.attempts.len(), 2);
    }
    // And as a replay.
    let filter = ReplayFilter { endpoint_ids: vec![ids[0].clone()], ..ReplayFilter::default() };
    let request = StartReplayRequest { filter: Some(filter), ..StartReplayRequest::default() };
    client.start_replay(request).await.expect("started");
    let of_first = published.iter().find(|delivery| delivery.endpoint_id == ids[0]);
    let first = &of_first.expect("a delivery").delivery_id;
    support::eventually("it is replayed", || async {
        let delivery = service.delivery(first).await;
        (delivery.attempts.len() == 3 && delivery.state() == DeliveryState::Failed).then_some(())
    })
    .await;
    fails(&service, first).await;
    for id in &ids {
        let request = GetEndpointRequest { endpoint_id: id.clone() };
        let endpoint = client.get_endpoint(request).await.expect("read").into_inner().endpoint.expect("one");
        assert_eq!((endpoint.consecutive_failures, endpoint.health_score), (0, 1.0));
    }
    assert_eq!(connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_port_that_is_not_allowed_is_refused_when_it_is_registered() {
    let settings = [("HOOKLANE_EGRESS_ALLOW_CIDRS", ""), ("HOOKLANE_EGRESS_ALLOW_PORTS", "443,8443")];
    let service = service_with(support::database().await, &settings).await;
    for (url, is_allowed) in [
        ("https://example.com/", true),
        ("https://example.com:8443/", true),
        ("https://example.com:22/", false),
        ("http://example.com/", false),
        ("https://8.8.8.8:6379/", false),
    ] {
        let request = RegisterEndpointRequest { endpoint: Some(endpoint(url)), secret: String::new() };
        match service.client.clone().register_endpoint(request).await {
            Ok(_) => assert!(is_allowed, "{url}"),
            Err(refusal) => {
                assert_eq!(reason(&refusal), told(Code::InvalidArgument, "INVALID_FIELD"), "{url}");
                assert_eq!(fields(&refusal), ["endpoint.url"]);
                assert!(refusal.message().contains("egress.allow_ports") && !is_allowed, "{url} {refusal:?}");
            }
        }
    }
}
