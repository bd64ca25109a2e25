//! Receivers that mean harm, many at once, to a whole replica: it ends every attempt, keeps its memory, and lives.

use std::time::Duration;

use hooklane::api::proto::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::load::{Client, delivery, settled};
use crate::program::Replica;
use crate::support::database;

/// Deliveries to each receiver, all at once: what an endpoint may have in flight by default.
const EACH: usize = 64;
/// By how much the memory of a replica may grow meanwhile, in KiB. What is promised.
const GROWTH_KIB_MAX: u64 = 64 << 10;

/// What a receiver does with a connection once it has read something.
#[derive(Clone, Copy)]
struct Manner {
    name: &'static str,
    head: &'static str,
    /// Written again and again.
    step: &'static [u8],
    /// Between two of those.
    pause: Option<Duration>,
}

const fn flood(name: &'static str, head: &'static str, step: &'static [u8]) -> Manner {
    Manner { name, head, step, pause: None }
}

const MANNERS: [Manner; 12] = [
    flood("endless headers", "HTTP/1.1 200 OK\r\n", &[b'h'; 8_192]),
    flood("endless body", "HTTP/1.1 200 OK\r\n\r\n", &[b'x'; 65_536]),
    flood("bomb", "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n", &[0; 65_536]),
    flood("endless chunks", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"400\r\n"),
    flood("interim answers", "", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"),
    flood("nonsense", "", &[0xff; 65_536]),
    Manner { name: "silence", head: "", step: b"", pause: Some(Duration::from_secs(3_600)) },
    Manner { name: "slow headers", head: "HTTP/1.1 200 OK\r\n", step: b"a: b\r\n", pause: Some(PACE) },
    Manner { name: "slow body", head: "HTTP/1.1 500 X\r\n\r\n", step: b"x", pause: Some(PACE) },
    Manner {
        name: "a silly wait",
        head: "HTTP/1.1 503 X\r\nretry-after: 1e300\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        step: b"",
        pause: None,
    },
    Manner { name: "close", head: "HTTP/1.1 200 O", step: b"", pause: None },
    Manner { name: "reset", head: "\0", step: b"", pause: None },
];
const PACE: Duration = Duration::from_millis(100);

async fn treat(mut stream: TcpStream, manner: Manner) {
    let mut some = [0; 512];
    if manner.name == "reset" {
        let _ = stream.set_zero_linger();
        return;
    }
    let _ = stream.read(&mut some).await;
    if stream.write_all(manner.head.as_bytes()).await.is_err() || manner.step.is_empty() && manner.pause.is_none() {
        return;
    }
    while stream.write_all(manner.step).await.is_ok() {
        if let Some(pause) = manner.pause {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // Whoever closes is let go.
                read = stream.read(&mut some) => if matches!(read, Ok(0) | Err(_)) { return },
            }
        }
    }
}

async fn start(manner: Manner) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let url = format!("http://{}/", listener.local_addr().expect("bound"));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(treat(stream, manner));
        }
    });
    url
}

/// A value of the process's status, in KiB.
fn memory(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find(|line| line.starts_with(name)).expect("the value");
    line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn receivers_that_mean_harm_cost_no_memory_and_no_replica() {
    let url = database().await;
    let mut replica = Replica::start(&url, &[]).await;
    let mut client = Client::connect(replica.grpc.clone()).await.expect("connects");
    let mut endpoints = Vec::new();
    for manner in MANNERS {
        let endpoint = Endpoint {
            url: start(manner).await,
            event_types: vec!["never".to_owned()],
            timeout: Some(prost_types::Duration { seconds: 2, nanos: 0 }),
            retry_policy: Some(RetryPolicy { max_retries: Some(0), ..RetryPolicy::default() }),
            circuit_breaker: Some(CircuitBreaker { failure_threshold: Some(0), ..CircuitBreaker::default() }),
            ..Endpoint::default()
        };
        let request = RegisterEndpointRequest { endpoint: Some(endpoint), secret: String::new() };
        endpoints
            .push(client.register_endpoint(request).await.expect("registered").into_inner().endpoint.expect("one").id);
    }
    let publish = |endpoint_ids: Vec<String>, count: usize| {
        let request = PublishRequest {
            event_type: "order.created".to_owned(),
            body: Some(publish_request::Body::Payload("{}".into())),
            endpoint_ids,
            ..PublishRequest::default()
        };
        let mut client = client.clone();
        async move {
            let batch = PublishBatchRequest { requests: vec![request; count] };
            let results = client.publish_batch(batch).await.expect("published").into_inner().results;
            let ids = results.into_iter().map(|result| match result.result {
                Some(publish_batch_result::Result::Response(published)) => published.deliveries,
                other => panic!("{other:?}"),
            });
            ids.flatten().map(|delivery| delivery.delivery_id).collect::<Vec<_>>()
        }
    };
    // What a replica takes in any case: caches, pools, the first connections.
    publish(vec![endpoints[9].clone()], EACH).await;
    settled(&client).await;
    let before = memory(replica.pid(), "VmRSS");

    let ids = publish(endpoints.clone(), EACH).await;
    assert_eq!(ids.len(), EACH * MANNERS.len());
    settled(&client).await;
    let grown = memory(replica.pid(), "VmHWM").saturating_sub(before);
    assert!(grown < GROWTH_KIB_MAX, "it grew by {grown} KiB from {before}");
    for id in ids.iter().step_by(7) {
        let delivery = delivery(&client, id).await;
        let is_settled = matches!(delivery.state(), DeliveryState::Succeeded | DeliveryState::Failed);
        assert!(is_settled && delivery.attempts.len() == 1, "{delivery:?}");
    }
    assert_eq!(replica.look("/readyz").await, Some(200));
    replica.signal("TERM").await;
    assert_eq!(replica.ended().await.code(), Some(0));
    let log = replica.log();
    assert!(!log.contains("panicked") && !log.contains("ERROR"), "{log}");
}
