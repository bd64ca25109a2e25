//! What is made of what a receiver does, however badly.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

use super::receiver::{Receiver, read_request};
use super::*;
use crate::domain::attempt::{BODY_BYTES_KEPT, BODY_BYTES_READ};

async fn answered(answer: impl Into<Vec<u8>>) -> AttemptResult {
    send(&egress(), &Receiver::answering(answer).await.url("/"), PATIENT).await
}

#[tokio::test]
async fn an_answer_is_kept() {
    let answer = "HTTP/1.1 503 Go Away\r\nX-One: \u{e4}\r\nretry-after: 60\r\ncontent-length: 4\r\n\r\nbusy";
    let result = answered(answer).await;
    check(&result, AttemptOutcome::HttpError, 503, "HTTP 503: Service Unavailable");
    assert_eq!(result.response_headers[0], ("x-one".to_owned(), "\u{e4}".to_owned()));
    assert_eq!(result.response_headers.len(), 3);
    assert_eq!((result.response_body.as_ref(), result.response_truncated), (b"busy".as_slice(), false));
    assert_eq!(result.retry_after, Some(Duration::from_secs(60)));
    assert!(result.duration > Duration::ZERO);
}

#[tokio::test]
async fn retry_after_is_read_on_429_and_503_alone() {
    for (status, read) in [(200, false), (301, false), (429, true), (500, false), (503, true)] {
        let answer = format!("HTTP/1.1 {status} X\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n");
        let result = answered(answer).await;
        assert_eq!((result.status, result.retry_after), (status, read.then(|| Duration::from_secs(7))));
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    for (status, error) in [(302, "HTTP 302: Found"), (308, "HTTP 308: Permanent Redirect")] {
        let location = elsewhere.url("/");
        let answer = format!("HTTP/1.1 {status} X\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
        check(&answered(answer).await, AttemptOutcome::HttpError, status, error);
    }
    assert_eq!(elsewhere.connections(), 0);
}

#[tokio::test]
async fn switching_protocols_is_an_answer_like_another() {
    let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
    check(&answered(answer).await, AttemptOutcome::HttpError, 101, "HTTP 101: Switching Protocols");
}

#[tokio::test]
async fn a_stalled_body_ends_at_the_deadline_and_the_status_decides() {
    for (head, outcome, status, error) in [
        ("HTTP/1.1 500 X", AttemptOutcome::HttpError, 500, "HTTP 500: Internal Server Error"),
        ("HTTP/1.1 200 X", AttemptOutcome::Succeeded, 200, ""),
    ] {
        let receiver = Receiver::stalling(format!("{head}\r\ncontent-length: 100\r\n\r\npart")).await;
        let result = send(&egress(), &receiver.url("/"), SHORT).await;
        check(&result, outcome, status, error);
        assert_eq!((result.response_body.as_ref(), result.response_truncated), (b"part".as_slice(), true));
        assert!((SHORT..2 * SHORT).contains(&result.duration), "{:?}", result.duration);
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_leaves_the_status_to_decide() {
    for (head, outcome, status, error) in [
        ("HTTP/1.1 400 X", AttemptOutcome::HttpError, 400, "HTTP 400: Bad Request"),
        ("HTTP/1.1 200 X", AttemptOutcome::Succeeded, 200, ""),
    ] {
        let receiver = Receiver::closing(format!("{head}\r\ncontent-length: 100\r\n\r\npart")).await;
        let result = send(&egress(), &receiver.url("/"), PATIENT).await;
        check(&result, outcome, status, error);
        assert_eq!((result.response_body.as_ref(), result.response_truncated), (b"part".as_slice(), true));
    }
}

#[tokio::test]
async fn a_silent_receiver_is_a_timeout_and_its_connection_is_closed() {
    let (closed, seen) = oneshot::channel();
    let closed = std::sync::Mutex::new(Some(closed));
    let receiver = Receiver::start(move |mut stream| {
        let closed = closed.lock().unwrap().take();
        async move {
            read_request(&mut stream).await;
            let end = stream.read_u8().await;
            let _ = closed.unwrap().send(end.is_err());
        }
    })
    .await;
    let result = send(&egress(), &receiver.url("/"), SHORT).await;
    check(&result, AttemptOutcome::Timeout, 0, "timeout: no answer within 0.5 s");
    assert!(tokio::time::timeout(PATIENT, seen).await.unwrap().unwrap());
}

/// Sends what no socket buffer takes, and waits until nothing holds the payload any more.
async fn send_much(receiver: &Receiver, timeout: Duration) -> AttemptResult {
    let (target, event) = (target(&receiver.url("/"), timeout), event(vec![b'0'; 32 << 20]));
    let result = egress().send(Outgoing { format: PayloadFormat::Raw, ..outgoing(&target, &event) }).await;
    let released = async {
        while !event.payload.is_unique() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENT, released).await.expect("the request outlived its attempt");
    result
}

#[tokio::test]
async fn a_receiver_that_does_not_read_is_a_timeout_and_holds_nothing() {
    let receiver = Receiver::start(|stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let result = send_much(&receiver, SHORT).await;
    check(&result, AttemptOutcome::Timeout, 0, "timeout: no answer within 0.5 s");
}

#[tokio::test]
async fn an_answer_before_the_request_is_through_counts_and_holds_nothing() {
    for (rest, timeout) in [("content-length: 0\r\n\r\n", PATIENT), ("content-length: 9\r\n\r\npart", SHORT)] {
        let receiver = Receiver::start(move |mut stream| async move {
            let _ = stream.read_u8().await;
            let _ = stream.write_all(format!("HTTP/1.1 413 X\r\n{rest}").as_bytes()).await;
            std::future::pending::<()>().await;
        })
        .await;
        let result = send_much(&receiver, timeout).await;
        check(&result, AttemptOutcome::HttpError, 413, "HTTP 413: Payload Too Large");
    }
}

#[tokio::test]
async fn an_endless_body_is_read_up_to_its_bound_and_its_connection_closed() {
    for head in ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 500 X\r\ncontent-length: 999999999999\r\n\r\n"] {
        let (written, seen) = oneshot::channel();
        let written = std::sync::Mutex::new(Some(written));
        let receiver = Receiver::start(move |mut stream| {
            let written = written.lock().unwrap().take();
            async move {
                read_request(&mut stream).await;
                let _ = stream.write_all(head.as_bytes()).await;
                while stream.write_all(&[b'x'; 1_024]).await.is_ok() {}
                let _ = written.unwrap().send(());
            }
        })
        .await;
        let result = send(&egress(), &receiver.url("/"), PATIENT).await;
        assert_eq!((result.response_body.len(), result.response_truncated), (BODY_BYTES_KEPT, true));
        assert!(result.duration < PATIENT / 2);
        tokio::time::timeout(PATIENT, seen).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn bodies_are_kept_to_their_bound_and_connections_to_theirs() {
    for (size, truncated, connections) in [
        (0, false, 1),
        (BODY_BYTES_KEPT, false, 1),
        (BODY_BYTES_KEPT + 1, true, 1),
        (BODY_BYTES_READ, true, 1),
        (BODY_BYTES_READ * 4, true, 2),
    ] {
        let body = "x".repeat(size);
        let receiver = Receiver::answering(format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n{body}")).await;
        let egress = egress();
        for _ in 0..2 {
            let result = send(&egress, &receiver.url("/"), PATIENT).await;
            check(&result, AttemptOutcome::Succeeded, 200, "");
            assert_eq!(result.response_body, body[..size.min(BODY_BYTES_KEPT)]);
            assert_eq!(result.response_truncated, truncated, "{size}");
        }
        assert_eq!(receiver.connections(), connections, "{size}");
    }
}

#[tokio::test]
async fn a_chunked_body_is_read_like_another() {
    let chunks = "3\r\nabc\r\n2\r\nde\r\n0\r\ntrailer: x\r\n\r\n";
    let result = answered(format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunks}")).await;
    assert_eq!((result.response_body.as_ref(), result.response_truncated), (b"abcde".as_slice(), false));
}

#[tokio::test]
async fn what_is_not_http_is_a_protocol_error() {
    let many_headers = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(101));
    let large_head = format!("HTTP/1.1 200 OK\r\na: {}\r\n\r\n", "x".repeat(HEAD_BYTES_MAX));
    for answer in
        ["SSH-2.0-OpenSSH_9.2\r\n", "\0\u{1}\u{2}\r\n\r\n", "HTTP/1.1 abc X\r\n\r\n", &many_headers, &large_head]
    {
        let receiver = Receiver::stalling(answer).await;
        let result = send(&egress(), &receiver.url("/"), PATIENT).await;
        check(&result, AttemptOutcome::ProtocolError, 0, "what came was not a valid HTTP response");
    }
}

#[tokio::test]
async fn a_head_of_nearly_the_bound_succeeds() {
    let value = "x".repeat(HEAD_BYTES_MAX - 100);
    let result = answered(format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\na: {value}\r\n\r\n")).await;
    check(&result, AttemptOutcome::Succeeded, 200, "");
    assert_eq!(result.response_headers, [("content-length".to_owned(), "0".to_owned())]);
}

#[tokio::test]
async fn a_connection_that_ends_before_the_answer_is_a_protocol_error() {
    for answer in ["", "HTTP/1.1 200 OK\r\ncontent-"] {
        let receiver = Receiver::closing(answer).await;
        let result = send(&egress(), &receiver.url("/"), PATIENT).await;
        check(&result, AttemptOutcome::ProtocolError, 0, "the connection was closed before an answer came");
    }
    let resetting = Receiver::start(|mut stream| async move {
        read_request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-").await;
        stream.set_zero_linger().unwrap();
    })
    .await;
    let result = send(&egress(), &resetting.url("/"), PATIENT).await;
    check(&result, AttemptOutcome::ProtocolError, 0, "the connection broke before an answer came");
}

#[tokio::test]
async fn a_reused_connection_that_dies_under_a_request_is_a_protocol_error() {
    let receiver = Receiver::start(|mut stream| async move {
        read_request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        read_request(&mut stream).await;
    })
    .await;
    let egress = egress();
    check(&send(&egress, &receiver.url("/"), PATIENT).await, AttemptOutcome::Succeeded, 200, "");
    let result = send(&egress, &receiver.url("/"), PATIENT).await;
    check(&result, AttemptOutcome::ProtocolError, 0, "the connection was closed before an answer came");
    assert_eq!(receiver.connections(), 1);
}
