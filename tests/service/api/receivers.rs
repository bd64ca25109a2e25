//! Receivers that misbehave below HTTP: each ends in the outcome that fits, seen in the history.

use std::net::Ipv4Addr;
use std::time::Duration;

use hooklane::api::proto::{AttemptOutcome, Delivery, DeliveryState, Endpoint};
use http::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc};

use super::{Service, endpoint, retries, seconds, service, soon};

/// What a server does with a connection once it has read a request.
type Answer = fn(TcpStream) -> futures::future::BoxFuture<'static, ()>;

/// A server that reads each connection's request and then does as told; answers its address.
async fn server(answer: Answer) -> String {
    let (held, url) = held().await;
    tokio::spawn(async move {
        loop {
            tokio::spawn(answer(held.request().await.0));
        }
    });
    url
}

/// A server whose requests a test takes one by one.
pub(super) struct Held(Mutex<mpsc::Receiver<TcpStream>>);

/// A connection whose request has been read.
pub(super) struct HeldRequest(TcpStream);

/// A server that waits for the test; answers its address too.
pub(super) async fn held() -> (Held, String) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let (sender, requests) = mpsc::channel(100);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let sender = sender.clone();
            tokio::spawn(async move {
                // A request of these tests is one segment, and its body `{}` ends with its envelope's brace.
                let (mut bytes, mut chunk) = (Vec::new(), [0; 4_096]);
                while !bytes.ends_with(b"}}") {
                    match stream.read(&mut chunk).await {
                        Ok(count) if count > 0 => bytes.extend_from_slice(&chunk[..count]),
                        _ => return,
                    }
                }
                let _ = sender.send(stream).await;
            });
        }
    });
    (Held(Mutex::new(requests)), url)
}

impl Held {
    /// The next request.
    pub(super) async fn request(&self) -> HeldRequest {
        HeldRequest(self.0.lock().await.recv().await.expect("the server runs"))
    }
}

impl HeldRequest {
    /// Answers it, and closes the connection.
    pub(super) async fn answer(mut self, status: StatusCode) {
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        self.0.write_all(answer.as_bytes()).await.expect("answers");
    }
}

/// What becomes of an event for `url`, whose endpoint has a second and one retry.
async fn outcome(service: &Service, url: &str, state: DeliveryState) -> Delivery {
    let given = Endpoint {
        timeout: Some(seconds(1)),
        retry_policy: Some(retries(1)),
        event_types: vec!["only".to_owned()],
        ..endpoint(url)
    };
    let endpoint = service.register(given).await;
    let id = service.publish_one("only").await;
    let delivery = service.in_state(&id, state).await;
    let request = hooklane::api::proto::DeleteEndpointRequest { endpoint_id: endpoint.id, etag: String::new() };
    service.client.clone().delete_endpoint(request).await.expect("deleted");
    delivery
}

/// Asserts that both attempts ended alike.
fn failed_twice(delivery: &Delivery, outcome: AttemptOutcome, status: u32) {
    let outcomes: Vec<_> =
        delivery.attempts.iter().map(|attempt| (attempt.number, attempt.outcome(), attempt.status_code)).collect();
    assert_eq!(outcomes, [(1, outcome, status), (2, outcome, status)]);
    assert!(delivery.attempts.iter().all(|attempt| !attempt.error.is_empty()), "{delivery:?}");
    assert_eq!((delivery.reason.as_str(), delivery.last_status_code), (delivery.attempts[1].error.as_str(), status));
}

/// Writes `bytes` one a second, for as long as the other end takes them.
async fn drip(mut stream: TcpStream, bytes: &'static [u8]) {
    for byte in bytes.iter().cycle() {
        if stream.write_all(&[*byte]).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Writes for as long as the other end takes it.
async fn pour(mut stream: TcpStream, head: &'static str) {
    let mut written = stream.write_all(head.as_bytes()).await;
    while written.is_ok() {
        written = stream.write_all(&[b'x'; 8_192]).await;
    }
}

/// Writes `part` of an answer, and resets the connection.
async fn reset_after(mut stream: TcpStream, part: &'static str) {
    let _ = stream.write_all(part.as_bytes()).await;
    let _ = stream.set_zero_linger();
}

#[tokio::test]
async fn a_head_that_comes_byte_by_byte_is_a_timeout() {
    let service = service().await;
    let url = server(|stream| Box::pin(drip(stream, b"HTTP/1.1 200 OK\r\n"))).await;
    let delivery = outcome(&service, &url, DeliveryState::Failed).await;
    failed_twice(&delivery, AttemptOutcome::Timeout, 0);
}

#[tokio::test]
async fn an_answer_that_never_comes_is_a_timeout() {
    let service = service().await;
    let url = server(|stream| {
        Box::pin(async move {
            let _open = stream;
            std::future::pending().await
        })
    })
    .await;
    let delivery = outcome(&service, &url, DeliveryState::Failed).await;
    failed_twice(&delivery, AttemptOutcome::Timeout, 0);
}

#[tokio::test]
async fn a_status_counts_whatever_its_body_does_after() {
    let service = service().await;
    let dripping = server(|mut stream| {
        Box::pin(async move {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n").await;
            drip(stream, b"body").await;
        })
    })
    .await;
    let endless = server(|stream| Box::pin(pour(stream, "HTTP/1.1 202 Accepted\r\n\r\n"))).await;
    let broken =
        server(|stream| Box::pin(reset_after(stream, "HTTP/1.1 201 Created\r\nContent-Length: 1000\r\n\r\npart")))
            .await;
    for (url, status) in [(dripping, 200), (endless, 202), (broken, 201)] {
        let delivery = outcome(&service, &url, DeliveryState::Succeeded).await;
        let [attempt] = &delivery.attempts[..] else { panic!("{delivery:?}") };
        assert_eq!((attempt.outcome(), attempt.status_code), (AttemptOutcome::Succeeded, status));
        assert!(attempt.response_truncated && attempt.response_body.len() <= 10 * 1024, "{status}");
    }
}

#[tokio::test]
async fn an_endless_error_is_kept_to_its_bound() {
    let service = service().await;
    let url = server(|stream| Box::pin(pour(stream, "HTTP/1.1 500 Oops\r\n\r\n"))).await;
    let delivery = outcome(&service, &url, DeliveryState::Failed).await;
    failed_twice(&delivery, AttemptOutcome::HttpError, 500);
    for attempt in &delivery.attempts {
        assert_eq!((attempt.response_body.len(), attempt.response_truncated), (10 * 1024, true));
    }
    assert_eq!(delivery.reason, "HTTP 500: Internal Server Error", "the registered words, not the receiver's");
}

#[tokio::test]
async fn an_endless_head_is_no_answer() {
    let service = service().await;
    let url = server(|stream| Box::pin(pour(stream, "HTTP/1.1 200 OK\r\nX-Long: "))).await;
    let delivery = outcome(&service, &url, DeliveryState::Failed).await;
    failed_twice(&delivery, AttemptOutcome::ProtocolError, 0);
}

#[tokio::test]
async fn a_reset_before_the_status_is_a_protocol_error() {
    let service = service().await;
    for part in [
        (|stream| Box::pin(reset_after(stream, ""))) as Answer,
        |stream| Box::pin(reset_after(stream, "HTTP/1.1 200 OK\r\nContent-Le")),
        |stream| Box::pin(reset_after(stream, "SSH-2.0-OpenSSH\r\n\r\n")),
    ] {
        let delivery = outcome(&service, &server(part).await, DeliveryState::Failed).await;
        failed_twice(&delivery, AttemptOutcome::ProtocolError, 0);
    }
}

#[tokio::test]
async fn a_dead_port_is_a_failed_connect() {
    let service = service().await;
    // Bound but never listened on: nobody else can take it, and every connect is refused.
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).expect("binds");
    let url = format!("http://{}", socket.local_addr().expect("bound"));
    let delivery = outcome(&service, &url, DeliveryState::Failed).await;
    failed_twice(&delivery, AttemptOutcome::ConnectFailed, 0);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let service = service().await;
    let (target, target_url) = held().await;
    let listener = super::receiver(hooklane::cli::listen::Behaviour {
        status: Some(StatusCode::TEMPORARY_REDIRECT),
        headers: [(http::header::LOCATION, target_url.parse().expect("a value"))].into_iter().collect(),
        ..hooklane::cli::listen::Behaviour::default()
    })
    .await;
    let delivery = outcome(&service, &listener.url(), DeliveryState::Failed).await;
    failed_twice(&delivery, AttemptOutcome::HttpError, 307);
    let url = listener.url();
    let delivery = tokio::select! {
        _ = target.request() => panic!("followed"),
        delivery = soon("a later delivery", outcome(&service, &url, DeliveryState::Failed)) => delivery,
    };
    assert_eq!(listener.count(), 4, "{delivery:?}");
}
