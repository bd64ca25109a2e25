//! Callers that do the port harm, and whoever calls beside them: what is done is bounded, and the others are served.
//!
//! How many are bounded is counted here; how fast the others are served, and at which size, is for `hooklane bench`.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use hooklane::api::proto;
use hooklane::domain::access::{Role, Scope};
use http::Request;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use super::keys::{guarded, holder, key_of};
use super::{Service, event, soon};
use crate::support::eventually;

fn address(service: &Service) -> SocketAddr {
    service.app.grpc_addr().expect("it serves gRPC")
}

/// A connection of HTTP/2 with nothing between it and us.
async fn http2(service: &Service) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(address(service)).await.expect("connects");
    let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    sender
}

fn request(method: &str, key: Option<&str>) -> Request<()> {
    let mut request = Request::post(format!("http://localhost/hooklane.v1.WebhookService/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    request.body(()).expect("a request")
}

/// Others are served, now.
async fn is_served(service: &Service, key: &str) {
    let mut client = holder(service, key).await;
    for _ in 0..20 {
        soon("an answer", client.publish(event("order.created"))).await.expect("published");
    }
}

#[tokio::test]
async fn calls_that_never_send_their_message_are_bounded_for_each_key() {
    let (service, database) = guarded(&[("HOOKLANE_LIMITS_CALLS_PER_KEY", "500")]).await;
    let [bad, good] =
        [key_of(&database, Role::Admin, Scope::All).await, key_of(&database, Role::Admin, Scope::All).await];
    // Both keys are known from here on: more calls with an unknown one than may wait for it would be refused for that.
    is_served(&service, &bad).await;
    let (mut open, mut connections) = (Vec::new(), Vec::new());
    let (mut refused, mut given_up) = (0, 0);
    for _ in 0..4 {
        let mut sender = http2(&service).await;
        for _ in 0..250 {
            sender = sender.ready().await.expect("open");
            open.push(sender.send_request(request("Publish", Some(&bad)), false).expect("begun"));
        }
        connections.push(sender);
    }
    is_served(&service, &good).await;
    // Who is over the bound is told at once; who is within it waits for a message that does not come.
    let mut waiting = Vec::new();
    for (answer, body) in open {
        waiting.push((Box::pin(answer), body));
    }
    eventually("half of them are refused", || {
        waiting.retain_mut(|(answer, _)| match futures::FutureExt::now_or_never(answer.as_mut()) {
            Some(answer) => {
                let status = answer.expect("answered").headers()["grpc-status"].clone();
                match status.as_bytes() {
                    b"8" => refused += 1,
                    // A machine that is slow enough lets those within the bound reach their deadline.
                    b"4" => given_up += 1,
                    other => panic!("status {other:?}"),
                }
                false
            }
            None => true,
        });
        std::future::ready((refused == 500).then_some(()))
    })
    .await;
    assert_eq!(waiting.len() + given_up, 500);
    drop((waiting, connections));
    eventually("the places are given back", || async {
        holder(&service, &bad).await.publish(event("order.created")).await.ok()
    })
    .await;
}

#[tokio::test]
async fn streams_that_are_reset_as_soon_as_they_are_opened_hinder_nobody() {
    let (service, database) = guarded(&[]).await;
    let [bad, good] =
        [key_of(&database, Role::Admin, Scope::All).await, key_of(&database, Role::Admin, Scope::All).await];
    let address = address(&service);
    let flood = tokio::spawn(async move {
        let mut resets = 0_u32;
        while resets < 20_000 {
            let Ok(stream) = TcpStream::connect(address).await else { break };
            let Ok((mut sender, connection)) = h2::client::handshake(stream).await else { continue };
            let connection = tokio::spawn(connection);
            while resets < 20_000 {
                let Ok(ready) = sender.ready().await else { break };
                sender = ready;
                let key = resets.is_multiple_of(2).then_some(bad.as_str());
                let Ok((_, mut body)) = sender.send_request(request("ListDeliveries", key), false) else { break };
                body.send_reset(h2::Reason::CANCEL);
                resets += 1;
            }
            connection.abort();
        }
        resets
    });
    while !flood.is_finished() {
        is_served(&service, &good).await;
    }
    assert_eq!(soon("the flood's end", flood).await.expect("ended"), 20_000);
    is_served(&service, &good).await;
}

#[tokio::test]
async fn a_flood_of_pings_hinders_nobody() {
    let (service, database) = guarded(&[]).await;
    let good = key_of(&database, Role::Admin, Scope::All).await;
    let mut stream = TcpStream::connect(address(&service)).await.expect("connects");
    let flood = tokio::spawn(async move {
        // Preface and empty SETTINGS; then PING (type 6) of 8 bytes. Source: RFC 9113, sections 3.4, 6.5 and 6.7.
        let mut sent = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.is_ok();
        let pings = b"\0\0\x08\x06\0\0\0\0\0hooklane".repeat(1_000);
        // Answers are never read: what waits to be sent must stay bounded.
        for _ in 0..1_000 {
            let writing = tokio::time::timeout(Duration::from_secs(2), stream.write_all(&pings));
            sent = sent && matches!(writing.await, Ok(Ok(())));
            if !sent {
                break;
            }
        }
        sent
    });
    while !flood.is_finished() {
        is_served(&service, &good).await;
    }
    let was_all_taken = soon("the flood's end", flood).await.expect("ended");
    assert!(!was_all_taken, "a million answers were kept for somebody who does not read");
    is_served(&service, &good).await;
}

#[tokio::test]
async fn messages_that_announce_gigabytes_are_refused_from_their_prefix() {
    let (service, database) = guarded(&[]).await;
    let key = key_of(&database, Role::Admin, Scope::All).await;
    let mut sender = http2(&service).await;
    for (key, status) in [(Some(key.as_str()), "8"), (None, "16")] {
        for method in ["Publish", "PublishBatch", "GetStats", "Nonsense"] {
            // A call that does not exist is refused for that.
            let status = if key.is_some() && method == "Nonsense" { "12" } else { status };
            sender = sender.ready().await.expect("open");
            let (answer, mut body) = sender.send_request(request(method, key), false).expect("begun");
            // Who is not let in may be answered, and the stream be over, before this is sent.
            let _ = body.send_data(Bytes::from_static(b"\0\xff\xff\xff\xffrest"), false);
            let answer = soon("an answer", answer).await.expect("answered");
            let told = match answer.headers().get("grpc-status") {
                Some(status) => status.clone(),
                None => {
                    let mut body = answer.into_body();
                    while let Some(data) = body.data().await {
                        data.expect("data");
                    }
                    body.trailers().await.expect("trailers").expect("some")["grpc-status"].clone()
                }
            };
            assert_eq!(told, status, "{method} {key:?}");
        }
    }
    is_served(&service, &key).await;
}

#[tokio::test]
async fn an_address_has_no_more_connections_than_it_may() {
    let (service, database) = guarded(&[("HOOKLANE_LIMITS_CONNECTIONS_PER_ADDRESS", "8")]).await;
    let key = key_of(&database, Role::Admin, Scope::All).await;
    // The test's own client has one.
    let mut held = Vec::new();
    for _ in 0..7 {
        held.push(http2(&service).await);
    }
    let mut one_more = TcpStream::connect(address(&service)).await.expect("the kernel takes it");
    let ended = soon("its end", one_more.read(&mut [0; 64])).await;
    assert!(ended.is_err() || ended.is_ok_and(|bytes| bytes == 0), "it is closed");
    // Another address has room of its own.
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.2:0".parse().expect("an address")).expect("a loopback address");
    let stream = socket.connect(address(&service)).await.expect("connects");
    let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    soon("a place", sender.ready()).await.expect("served");
    held.pop();
    eventually("the place is given back", || async {
        let stream = TcpStream::connect(address(&service)).await.ok()?;
        let (sender, connection) = h2::client::handshake(stream).await.ok()?;
        let connection = tokio::spawn(connection);
        let mut sender = sender.ready().await.ok()?;
        let (answer, _) = sender.send_request(request("ListEndpoints", Some(&key)), true).ok()?;
        let answered = answer.await.is_ok();
        connection.abort();
        answered.then_some(())
    })
    .await;
}

#[tokio::test]
async fn connections_that_say_nothing_or_too_little_are_closed() {
    let (service, _) = guarded(&[]).await;
    let quiet = async |said: &'static [u8]| {
        let mut stream = TcpStream::connect(address(&service)).await.expect("connects");
        stream.write_all(said).await.expect("sent");
        let mut rest = Vec::new();
        // A farewell may come first.
        let _ = soon("its end", stream.read_to_end(&mut rest)).await;
    };
    tokio::join!(quiet(b""), quiet(b"PRI * HT"), quiet(b"POST / H"));
    // One that has said what it wants stays.
    let sender = http2(&service).await;
    sender.ready().await.expect("open");
}

#[tokio::test]
async fn a_list_of_headers_over_its_bound_is_refused() {
    let (service, database) = guarded(&[]).await;
    let key = key_of(&database, Role::Admin, Scope::All).await;
    let sender = http2(&service).await;
    let mut sender = sender.ready().await.expect("open");
    let mut large = request("ListEndpoints", Some(&key));
    large.headers_mut().insert("x-large", "x".repeat(16 * 1024).parse().expect("a value"));
    let (answer, _) = sender.send_request(large, true).expect("sent");
    let is_refused = match soon("an answer", answer).await {
        Ok(answer) => answer.status() == http::StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Err(_) => true,
    };
    assert!(is_refused);
    is_served(&service, &key).await;
    let listed = holder(&service, &key).await.list_endpoints(proto::ListEndpointsRequest::default()).await;
    listed.expect("small ones are served");
}

#[tokio::test]
async fn a_call_is_given_up_when_its_caller_said_it_would() {
    let (service, database) = guarded(&[]).await;
    let key = key_of(&database, Role::Admin, Scope::All).await;
    let mut sender = http2(&service).await;
    for (patience, expected) in [("200m", "4"), ("0n", "4"), ("soon", "3"), ("123456789S", "3")] {
        sender = sender.ready().await.expect("open");
        let mut call = request("Publish", Some(&key));
        call.headers_mut().insert("grpc-timeout", patience.parse().expect("a value"));
        // Its message never comes.
        let (answer, _message) = sender.send_request(call, false).expect("begun");
        let answer = soon("an answer", answer).await.expect("answered");
        assert_eq!(answer.headers()["grpc-status"], expected, "{patience}");
    }
}
