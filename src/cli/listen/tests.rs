//! The receiver over real connections.

use std::time::Duration;

use bytes::Bytes;
use clap::Parser as _;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::*;
use crate::cli::{Cli, Command};
use crate::domain::endpoint::SignatureScheme;
use crate::domain::secret::Secret;
use crate::domain::signature::Signer;
use crate::domain::time::Timestamp;
use crate::domain::verification::Rejected;

const BODY: &[u8] = br#"{"event":"order.created"}"#;
/// Far longer than anything here takes.
const DEADLINE: Duration = Duration::from_secs(20);

async fn start(behaviour: Behaviour) -> Receiver {
    Receiver::start(ReceiverOptions { behaviour, ..ReceiverOptions::default() }).await.unwrap()
}

async fn connect(addr: SocketAddr) -> SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(addr).await.unwrap();
    let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

type Answer = hyper::Result<Response<hyper::body::Incoming>>;

async fn send(client: &mut SendRequest<Full<Bytes>>, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut request = Request::post("/hook?a=1").header("host", "receiver");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    client.ready().await?;
    client.send_request(request.body(Full::new(Bytes::copy_from_slice(body))).unwrap()).await
}

async fn status_of(client: &mut SendRequest<Full<Bytes>>, headers: &[(&str, &str)], body: &[u8]) -> u16 {
    let answer = timeout(DEADLINE, send(client, headers, body)).await.unwrap().unwrap();
    let status = answer.status().as_u16();
    answer.into_body().collect().await.unwrap();
    status
}

#[tokio::test]
async fn a_good_signature_is_answered_200_and_a_bad_one_401() {
    let (hmac, key) = (Secret::from_random(&[1; 32]), Secret::from_seed(&[1; 32]));
    let secrets = [Secret::from_random(&[2; 32]), hmac.clone(), key.clone()].map(Into::into).to_vec();
    let receiver = Receiver::start(ReceiverOptions { secrets, ..ReceiverOptions::default() }).await.unwrap();
    let mut client = connect(receiver.addr()).await;
    let now = jiff::Timestamp::now().as_second();
    for scheme in (1..=5).filter_map(SignatureScheme::from_number) {
        let signed =
            |secret, time| Signer::new(scheme, [secret]).sign("evt_1", Timestamp::from_micros(time * 1_000_000), BODY);
        let has_time = !matches!(scheme, SignatureScheme::BodySha256 | SignatureScheme::BodyHex);
        let late = if has_time { Verdict::Bad(Rejected::Stale) } else { Verdict::Good };
        let is_ed25519 = scheme.is_ed25519();
        let stranger = if is_ed25519 { Secret::from_seed(&[3; 32]) } else { Secret::from_random(&[3; 32]) };
        let secret = if is_ed25519 { &key } else { &hmac };
        for (headers, body, verdict) in [
            (signed(secret, now), BODY, Verdict::Good),
            (signed(secret, now), b"tampered", Verdict::Bad(Rejected::Mismatch)),
            (signed(&stranger, now), BODY, Verdict::Bad(Rejected::Mismatch)),
            (signed(secret, now - 3_600), BODY, late),
            (
                vec![("x-webhook-signature", "nonsense".to_owned())],
                BODY,
                Verdict::Bad(Rejected::Malformed("x-webhook-signature")),
            ),
            (Vec::new(), BODY, Verdict::Bad(Rejected::Missing("x-webhook-signature"))),
        ] {
            let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let expected = if verdict == Verdict::Good { 200 } else { 401 };
            assert_eq!(status_of(&mut client, &headers, body).await, expected, "{verdict:?}");
            assert_eq!(receiver.next().await.unwrap().verdict, verdict);
        }
    }
    receiver.set_behaviour(Behaviour { status: Some(StatusCode::ACCEPTED), ..receiver.behaviour() });
    assert_eq!(status_of(&mut client, &[], BODY).await, 202, "an explicit status stands");
}

#[tokio::test]
async fn a_named_scheme_accepts_no_other() {
    let secret = Secret::from_random(&[1; 32]);
    let receiver = Receiver::start(ReceiverOptions {
        secrets: vec![secret.clone().into()],
        scheme: Some(SignatureScheme::StandardWebhooks),
        ..ReceiverOptions::default()
    });
    let receiver = receiver.await.unwrap();
    let now = jiff::Timestamp::now().as_second();
    let headers = Signer::new(SignatureScheme::Timestamped, [&secret]).sign(
        "evt_1",
        Timestamp::from_micros(now * 1_000_000),
        BODY,
    );
    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(status_of(&mut connect(receiver.addr()).await, &headers, BODY).await, 401);
    assert_eq!(receiver.next().await.unwrap().verdict, Verdict::Bad(Rejected::Missing("webhook-id")));
}

#[tokio::test]
async fn a_request_is_handed_on_as_it_came() {
    let receiver = start(Behaviour::default()).await;
    let headers = [("x-webhook-delivery", "dlv_1"), ("x-webhook-attempt", "3"), ("x-webhook-event", "order.created")];
    assert_eq!(status_of(&mut connect(receiver.addr()).await, &headers, BODY).await, 200);
    let received = receiver.next().await.unwrap();
    assert_eq!((received.path.as_str(), &received.body[..], received.oversized), ("/hook?a=1", BODY, false));
    assert_eq!((received.delivery_id.as_deref(), received.attempt), (Some("dlv_1"), Some(3)));
    assert_eq!((received.event_type.as_deref(), received.verdict), (Some("order.created"), Verdict::Unchecked));
    assert_eq!(received.headers["x-webhook-attempt"], "3");
    assert_eq!((received.status, receiver.count()), (Some(StatusCode::OK), 1));
}

#[tokio::test]
async fn the_first_requests_of_each_delivery_fail() {
    let receiver = start(Behaviour { fail_first: 2, ..Behaviour::default() }).await;
    let mut client = connect(receiver.addr()).await;
    for delivery in ["dlv_1", "dlv_2"] {
        for expected in [503, 503, 200, 200] {
            assert_eq!(status_of(&mut client, &[("x-webhook-delivery", delivery)], BODY).await, expected);
        }
    }
    receiver.set_behaviour(receiver.behaviour());
    assert_eq!(status_of(&mut client, &[("x-webhook-delivery", "dlv_1")], BODY).await, 503, "counted anew");
}

#[tokio::test]
async fn the_answer_is_the_one_that_was_ordered() {
    let mut behaviour = Behaviour {
        status: Some(StatusCode::IM_A_TEAPOT),
        retry_after: Some(7),
        body: Bytes::from_static(b"short and stout"),
        ..Behaviour::default()
    };
    behaviour.headers.insert("x-own", HeaderValue::from_static("yes"));
    let receiver = start(behaviour).await;
    let mut client = connect(receiver.addr()).await;
    let answer = send(&mut client, &[], BODY).await.unwrap();
    assert_eq!(answer.status(), 418);
    assert_eq!((&answer.headers()["x-own"], &answer.headers()["retry-after"]), (&"yes".parse().unwrap(), &7.into()));
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "short and stout");
    receiver.set_behaviour(Behaviour { status: Some(StatusCode::NO_CONTENT), ..receiver.behaviour() });
    assert_eq!(status_of(&mut client, &[], BODY).await, 204, "on the same connection, without its body");
    assert_eq!(status_of(&mut client, &[], BODY).await, 204);
    receiver.set_behaviour(Behaviour { fail_rate: 1.0, ..Behaviour::default() });
    assert_eq!(status_of(&mut client, &[], BODY).await, 503);
}

#[tokio::test]
async fn a_delayed_answer_is_handed_on_first_and_still_given_when_stopped() {
    let delay = Duration::from_millis(300);
    let receiver = start(Behaviour { delay, ..Behaviour::default() }).await;
    let mut client = connect(receiver.addr()).await;
    let began = Instant::now();
    let answer = tokio::spawn(async move { status_of(&mut client, &[], BODY).await });
    assert!(receiver.next().await.is_some());
    assert!(!answer.is_finished());
    receiver.stop().await;
    assert_eq!(answer.await.unwrap(), 200);
    assert!(began.elapsed() >= delay);
    assert!(receiver.next().await.is_none());
    assert!(TcpStream::connect(receiver.addr()).await.is_err());
}

#[tokio::test]
async fn a_silent_receiver_never_answers() {
    let receiver = start(Behaviour { silent: true, ..Behaviour::default() }).await;
    let mut client = connect(receiver.addr()).await;
    let answer = tokio::spawn(async move { send(&mut client, &[], BODY).await });
    assert_eq!(receiver.next().await.unwrap().status, None);
    assert!(!answer.is_finished());
    timeout(DEADLINE, receiver.stop()).await.unwrap();
    assert!(answer.await.unwrap().is_err());
}

#[tokio::test]
async fn requests_over_the_limit_are_turned_away_unanswered() {
    let receiver = Receiver::start(ReceiverOptions { limit: Some(1), ..ReceiverOptions::default() }).await.unwrap();
    let mut client = connect(receiver.addr()).await;
    assert_eq!(status_of(&mut client, &[], BODY).await, 200);
    assert!(send(&mut client, &[], BODY).await.is_err());
    assert_eq!(receiver.count(), 1);
}

#[tokio::test]
async fn without_a_backlog_requests_are_only_counted() {
    let receiver = Receiver::start(ReceiverOptions { backlog: 0, ..ReceiverOptions::default() }).await.unwrap();
    let mut client = connect(receiver.addr()).await;
    for _ in 0..3 {
        assert_eq!(status_of(&mut client, &[], BODY).await, 200);
    }
    assert_eq!(receiver.count(), 3);
    receiver.abort();
    assert!(receiver.next().await.is_none());
}

#[tokio::test]
async fn malformed_input_is_survived() {
    let receiver = start(Behaviour::default()).await;
    let oversized = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", BODY_BYTES_MAX + 1);
    for (bytes, answer) in [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(), "HTTP/1.1 400"),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n", "HTTP/1.1 400"),
        (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", ""),
        (oversized.as_bytes(), "HTTP/1.1 413"),
        (b"OPTIONS * HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx-webhook-event: \xff\r\n\r\n", "HTTP/1.1 200"),
        (b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", "HTTP/1.1 200"),
    ] {
        let mut stream = TcpStream::connect(receiver.addr()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut told = Vec::new();
        let _ = timeout(DEADLINE, stream.read_to_end(&mut told)).await.unwrap();
        let told = String::from_utf8_lossy(&told);
        assert!(told.starts_with(answer), "{:?}: {told:?}", String::from_utf8_lossy(bytes));
    }
    assert_eq!(status_of(&mut connect(receiver.addr()).await, &[], BODY).await, 200);
    assert!(receiver.next().await.unwrap().oversized);
}

#[tokio::test]
async fn the_command_shows_its_count_of_requests_and_ends() {
    let line = "hooklane listen --addr 127.0.0.1:0 --count 2 --status 204";
    let Ok(Command::Listen(args)) = Cli::try_parse_from(line.split(' ')).map(|cli| cli.command) else {
        panic!("not understood: {line}");
    };
    let receiver = Arc::new(Receiver::start(options(*args, None).unwrap()).await.unwrap());
    let addr = receiver.addr();
    let (shown, out) = io::pipe().unwrap();
    let printer = Printer::for_stdout(true, false);
    let showing = tokio::spawn(async move { show(&receiver, 2, Some(printer), out).await });
    let mut client = connect(addr).await;
    for _ in 0..2 {
        assert_eq!(status_of(&mut client, &[], BODY).await, 204);
    }
    assert!(timeout(DEADLINE, showing).await.unwrap().unwrap().is_ok());
    let shown = io::read_to_string(shown).unwrap();
    let lines: Vec<_> = shown.lines().collect();
    assert_eq!((lines.len(), lines[0]), (3, format!("listening http://{addr}").as_str()));
    assert!(lines[1..].iter().all(|line| line.contains("\"status\":204")), "{shown}");
}

#[test]
fn flags_are_checked() {
    for bad in [
        "--status 199",
        "--status 600",
        "--fail-rate 1.1",
        "--fail-rate NaN",
        "--delay 2",
        "--header nonsense",
        "--header Content-Length:1",
        "--count 0",
        "--quiet --json",
        "--addr nowhere",
    ] {
        let line = format!("hooklane listen {bad}");
        assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{bad}");
    }
    let good = "hooklane listen --addr [::1]:0 --header X-A:b --header X-A:c --fail-rate 1 --delay 250ms --status 599";
    assert!(Cli::try_parse_from(good.split(' ')).is_ok());
}
