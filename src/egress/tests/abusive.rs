//! Receivers that mean harm, each at every stage of a request: slow, endless, cut off, nonsense. Time is the runtime's own
//! and stands still while anybody works, so that a deadline is kept to the millisecond or not at all.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream as Stream;
use tokio::time::{Instant, sleep};

use super::receiver::{Receiver, read_request};
use super::script::Script;
use super::*;
use crate::domain::address::Ports;
use crate::domain::attempt::{BODY_BYTES_KEPT, RETRY_AFTER_MAX};

/// The shortest that an endpoint can have.
const DEADLINE: Duration = Duration::from_secs(1);
/// By how much an attempt may pass it. What is promised.
const LATE_MAX: Duration = Duration::from_millis(250);
/// How slowly a slow one goes.
const PACE: Duration = Duration::from_millis(50);

/// Makes an attempt; asserts that it ended in time, and answers how long it took and what came of it.
async fn timed(egress: &Egress, url: &str) -> (Duration, AttemptResult) {
    let target = target(url, DEADLINE);
    let (event, began) = (event(vec![b'x'; 4 << 10]), Instant::now());
    let outgoing = Outgoing { format: PayloadFormat::Raw, ..outgoing(&target, &event) };
    let result = egress.send(outgoing).await;
    let took = began.elapsed();
    assert!(took <= DEADLINE + LATE_MAX, "{took:?} {result:?}");
    (took, result)
}

async fn times_out(what: &str, egress: &Egress, url: &str) {
    let (took, result) = timed(egress, url).await;
    assert_eq!(
        (result.outcome, result.status, &*result.error),
        (AttemptOutcome::Timeout, 0, "timeout: no answer within 1 s"),
        "{what}"
    );
    assert!(took >= DEADLINE, "{what} {took:?}");
}

/// A receiver that writes something at each of its steps for as long as anybody reads.
async fn trickling(head: &'static str, step: &'static [u8]) -> Receiver {
    Receiver::start(move |mut stream| async move {
        read_request(&mut stream).await;
        let _ = stream.write_all(head.as_bytes()).await;
        while stream.write_all(step).await.is_ok() {
            sleep(PACE).await;
        }
    })
    .await
}

/// What two sockets' buffers hold is taken from a receiver before anybody notices, in bytes.
const BUFFERED_MAX: usize = 32 << 20;

async fn forever(_: Stream) {
    std::future::pending::<()>().await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_resolver_costs_the_deadline_and_no_more() {
    let script = Script::late(&[&["127.0.0.1"]], Duration::from_secs(3_600));
    let rules = EgressRules { allow_http: true, allow_ports: Ports::Any, ..EgressRules::default() };
    let config = Config { rules, proxy: None, user_agent: "hooklane/1.2.3".to_owned() };
    let egress = Egress::with(config, RootCertStore::empty(), Resolver::scripted(script)).unwrap();
    times_out("DNS", &egress, "http://slow.example.com/").await;
}

#[tokio::test(start_paused = true)]
async fn silence_at_any_stage_costs_the_deadline_and_no_more() {
    let egress = egress();
    // Accepted by the kernel, and by nobody else: no answer to a request, and none to a handshake.
    let silent = Receiver::start(forever).await;
    times_out("headers", &egress, &silent.url("/")).await;
    times_out("TLS", &egress, &silent.url("/").replace("http:", "https:")).await;
    // One byte of TLS a while.
    let trickle = Receiver::start(|mut stream| async move {
        for byte in [0x16, 3, 3, 0x40, 0].into_iter().chain(std::iter::repeat(0)) {
            if stream.write_all(&[byte]).await.is_err() {
                return;
            }
            sleep(PACE).await;
        }
    })
    .await;
    let (_, result) = timed(&egress, &trickle.url("/").replace("http:", "https:")).await;
    assert!(matches!(result.outcome, AttemptOutcome::Timeout | AttemptOutcome::TlsFailed), "{result:?}");
}

#[tokio::test(start_paused = true)]
async fn answers_that_trickle_cost_the_deadline_and_no_more() {
    let egress = egress();
    for (what, head, step) in [
        ("a status line", "HTTP/1.1 200 ", &b"x"[..]),
        ("a header", "HTTP/1.1 200 OK\r\nx: ", b"y"),
        ("headers", "HTTP/1.1 200 OK\r\n", b"a: b\r\n"),
        ("interim answers", "", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
        ("continues", "", b"HTTP/1.1 100 Continue\r\n\r\n"),
        ("line ends", "", b"\r\n"),
    ] {
        times_out(what, &egress, &trickling(head, step).await.url("/")).await;
    }
    // A status that came decides, however long the rest takes.
    for (head, step) in [
        ("HTTP/1.1 200 OK\r\n\r\n", &b"x"[..]),
        ("HTTP/1.1 200 OK\r\ncontent-length: 999999999\r\n\r\n", b"x"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"0"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;", b"x"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n"),
    ] {
        let (_, result) = timed(&egress, &trickling(head, step).await.url("/")).await;
        assert_eq!((result.outcome, result.status), (AttemptOutcome::Succeeded, 200), "{head:?} {result:?}");
        assert!(result.response_body.len() <= BODY_BYTES_KEPT);
    }
}

/// A receiver that writes without pause for as long as anybody reads, and says how much that was.
async fn flooding(head: Vec<u8>, step: Vec<u8>) -> (Receiver, tokio::sync::mpsc::UnboundedReceiver<usize>) {
    let (told, hears) = tokio::sync::mpsc::unbounded_channel();
    let script = Arc::new((head, step, told));
    let receiver = Receiver::start(move |mut stream| {
        let script = Arc::clone(&script);
        async move {
            let (head, step, told) = &*script;
            read_request(&mut stream).await;
            let mut written = 0;
            if stream.write_all(head).await.is_ok() {
                while stream.write_all(step).await.is_ok() {
                    written += step.len();
                }
            }
            let _ = told.send(written);
        }
    })
    .await;
    (receiver, hears)
}

#[tokio::test]
async fn floods_are_cut_off_where_they_pass_a_bound() {
    let egress = egress();
    for (what, head, step, outcome) in [
        ("endless headers", &b"HTTP/1.1 200 OK\r\n"[..], b"a: b\r\n".repeat(1_000), AttemptOutcome::ProtocolError),
        ("one endless header", b"HTTP/1.1 200 OK\r\nx: ", vec![b'y'; 8_192], AttemptOutcome::ProtocolError),
        ("an endless status line", b"HTTP/1.1 200 ", vec![b'y'; 8_192], AttemptOutcome::ProtocolError),
        ("an endless name", b"HTTP/1.1 200 OK\r\n", vec![b'y'; 8_192], AttemptOutcome::ProtocolError),
        ("an endless body", b"HTTP/1.1 200 OK\r\n\r\n", vec![b'x'; 8_192], AttemptOutcome::Succeeded),
        // Of no meaning here: it is not unpacked.
        ("a bomb", b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n", vec![0; 8_192], AttemptOutcome::Succeeded),
        (
            "an endless chunk",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffff\r\n",
            vec![b'x'; 8_192],
            AttemptOutcome::Succeeded,
        ),
    ] {
        let (receiver, mut hears) = flooding(head.to_vec(), step).await;
        let result = send(&egress, &receiver.url("/"), PATIENT).await;
        assert_eq!(result.outcome, outcome, "{what} {result:?}");
        assert!(result.response_body.len() <= BODY_BYTES_KEPT, "{what}");
        let written = tokio::time::timeout(PATIENT, hears.recv()).await.expect("its connection is closed").unwrap();
        assert!(written <= BUFFERED_MAX, "{what} {written}");
    }
}

#[tokio::test]
async fn floods_of_nothing_are_cut_off_as_well() {
    let egress = egress();
    let interim = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n".repeat(100);
    let nothing = "more came than is read, and no answer in it";
    for (what, head, step, outcome, error) in [
        ("interim answers", &b""[..], interim, AttemptOutcome::ProtocolError, nothing),
        // Zeros before a size are no size yet.
        (
            "an endless size",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            vec![b'0'; 8_192],
            AttemptOutcome::Succeeded,
            "",
        ),
    ] {
        let (receiver, mut hears) = flooding(head.to_vec(), step).await;
        let result = send(&egress, &receiver.url("/"), PATIENT).await;
        assert_eq!((result.outcome, &*result.error, result.response_body.len()), (outcome, error, 0), "{what}");
        let written = tokio::time::timeout(PATIENT, hears.recv()).await.expect("its connection is closed").unwrap();
        assert!(written <= BUFFERED_MAX, "{what} {written}");
    }
}

#[tokio::test]
async fn what_an_exchange_may_have_is_new_for_each() {
    let interim = "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n".repeat(1_000);
    let receiver = Receiver::answering(format!("{interim}HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")).await;
    let egress = egress();
    // Ten of them are more than one may have.
    for _ in 0..10 {
        check(&send(&egress, &receiver.url("/"), PATIENT).await, AttemptOutcome::Succeeded, 200, "");
    }
    assert_eq!(receiver.connections(), 1);
}

#[tokio::test]
async fn a_reset_after_any_byte_is_an_end_that_is_told() {
    const ANSWER: &[u8] = b"HTTP/1.1 503 X\r\nretry-after: 7\r\ncontent-length: 5\r\n\r\nhello";
    let head = ANSWER.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    let egress = egress();
    for at in 0..=ANSWER.len() {
        for is_reset in [true, false] {
            let receiver = Receiver::start(move |mut stream| async move {
                read_request(&mut stream).await;
                let _ = stream.write_all(&ANSWER[..at]).await;
                if is_reset {
                    let _ = stream.set_zero_linger();
                }
            })
            .await;
            let result = send(&egress, &receiver.url("/"), PATIENT).await;
            match result.outcome {
                // A reset may overtake what was written before it.
                AttemptOutcome::ProtocolError => assert!(at < head || is_reset, "{at}"),
                AttemptOutcome::HttpError => {
                    assert!(at >= head, "{at}");
                    assert_eq!((result.status, result.retry_after), (503, Some(Duration::from_secs(7))), "{at}");
                    assert!(b"hello".starts_with(&result.response_body), "{at}");
                }
                other => panic!("{at}: {other:?} {}", result.error),
            }
        }
    }
}

#[tokio::test]
async fn a_connection_reset_while_the_request_is_read_is_an_end_that_is_told() {
    let egress = egress();
    for bytes in [0, 1, 16, 200, 1_000, 100_000] {
        let receiver = Receiver::start(move |mut stream| async move {
            let mut read = vec![0; bytes];
            let _ = stream.read_exact(&mut read).await;
            let _ = stream.set_zero_linger();
        })
        .await;
        let (target, event) = (target(&receiver.url("/"), PATIENT), event(vec![b'0'; 8 << 20]));
        let result = egress.send(Outgoing { format: PayloadFormat::Raw, ..outgoing(&target, &event) }).await;
        assert_eq!((result.outcome, result.status), (AttemptOutcome::ProtocolError, 0), "{bytes} {result:?}");
    }
}

#[tokio::test]
async fn a_wait_that_nobody_could_mean_is_none_or_the_longest() {
    let egress = egress();
    let megabyte = "9".repeat(1 << 20);
    for (value, wait) in [
        ("1e300", None),
        ("-1", None),
        ("NaN", None),
        ("Infinity", None),
        ("1.7976931348623157e308", None),
        ("\u{ff}\u{fe}", None),
        ("99999999999999999999999999999999", Some(RETRY_AFTER_MAX)),
        ("Fri, 31 Dec 9999 23:59:59 GMT", Some(RETRY_AFTER_MAX)),
        ("Fri, 31 Dec 0000 23:59:59 GMT", None),
        (&"7".repeat(8_000), Some(RETRY_AFTER_MAX)),
        (&megabyte, None),
    ] {
        let answer = format!("HTTP/1.1 503 X\r\nretry-after: {value}\r\ncontent-length: 0\r\n\r\n");
        let result = send(&egress, &Receiver::answering(answer).await.url("/"), PATIENT).await;
        let shown: String = value.chars().take(40).collect();
        assert_eq!(result.retry_after, wait, "{shown}");
        // A head of a megabyte is no head.
        let expected =
            if value.len() > HEAD_BYTES_MAX { AttemptOutcome::ProtocolError } else { AttemptOutcome::HttpError };
        assert_eq!(result.outcome, expected, "{shown}");
    }
}

#[tokio::test]
async fn an_address_that_takes_no_connection_costs_the_deadline_and_no_more() {
    // A listener whose queue is full drops what comes: its callers try on.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = socket.listen(1).unwrap();
    let address: SocketAddr = full.local_addr().unwrap();
    let mut held = Vec::new();
    while let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_millis(500), Stream::connect(address)).await {
        held.push(stream);
        assert!(held.len() < 100, "the queue has an end");
    }
    let result = send(&egress(), &format!("http://{address}/"), SHORT).await;
    check(&result, AttemptOutcome::Timeout, 0, "timeout: no answer within 0.5 s");
}
