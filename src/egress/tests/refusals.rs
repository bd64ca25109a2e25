//! Where no request arrives: forbidden addresses, dead hosts, names and certificates that are not right.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::receiver::{Receiver, read_request};
use super::*;

#[tokio::test]
async fn a_forbidden_address_is_refused_before_anything_is_dialled() {
    let receiver = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let port = receiver.address.port();
    let egress = egress_with(EgressRules { allow_http: true, ..EgressRules::default() });
    for host in ["127.0.0.1", "localhost", "2130706433", "[::ffff:127.0.0.1]", "[::1]", "0.0.0.0", "user@127.1"] {
        for scheme in ["http", "https"] {
            let result = send(&egress, &format!("{scheme}://{host}:{port}/"), PATIENT).await;
            check(&result, AttemptOutcome::Blocked, 0, "blocked: the address is not public");
        }
    }
    assert_eq!(receiver.connections(), 0);
}

#[tokio::test]
async fn one_forbidden_address_condemns_a_name() {
    // `localhost` may have 127.0.0.1 and ::1; only one of them is allowed here, and where it has but one, none.
    let egress = egress_with(EgressRules {
        allow_http: true,
        allow_cidrs: vec!["::/0".parse().unwrap()],
        ..EgressRules::default()
    });
    let result = send(&egress, "http://localhost:9/", PATIENT).await;
    let has_v4 = tokio::net::lookup_host("localhost:9").await.unwrap().any(|address| address.is_ipv4());
    assert_eq!(result.outcome == AttemptOutcome::Blocked, has_v4);
}

#[tokio::test]
async fn plain_http_is_refused_unless_allowed() {
    let receiver = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let egress = egress_with(EgressRules {
        allow_http: false,
        allow_cidrs: vec!["127.0.0.0/8".parse().unwrap()],
        ..EgressRules::default()
    });
    let result = send(&egress, &receiver.url("/"), PATIENT).await;
    check(&result, AttemptOutcome::Blocked, 0, "blocked: plain http is not allowed");
    assert_eq!(receiver.connections(), 0);
}

#[tokio::test]
async fn a_dead_port_is_a_failed_connection() {
    // Bound and closed again: nobody listens there.
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let result = send(&egress(), &format!("http://{dead}/"), PATIENT).await;
    check(&result, AttemptOutcome::ConnectFailed, 0, "connection refused");
}

#[tokio::test]
async fn a_name_that_is_not_there_does_not_resolve() {
    let result = send(&egress(), "http://nope.invalid/", PATIENT).await;
    check(&result, AttemptOutcome::DnsFailed, 0, "the host name did not resolve");
}

/// A receiver with a certificate for `name`, and an egress that trusts it.
async fn tls_receiver(name: &str) -> (Receiver, Egress) {
    let certified = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let certificate = certified.cert.der().clone();
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(server));
    let receiver = Receiver::start(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            while read_request(&mut stream).await.is_some() {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            }
        }
    })
    .await;
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let rules =
        EgressRules { allow_http: false, allow_cidrs: vec!["127.0.0.0/8".parse().unwrap()], ..EgressRules::default() };
    let trusting = Egress::with(
        Config { rules, proxy: None, user_agent: "hooklane/1.2.3".to_owned() },
        roots,
        Resolver::default(),
    )
    .unwrap();
    (receiver, trusting)
}

#[tokio::test]
async fn a_trusted_certificate_of_the_right_name_is_delivered_to() {
    let (receiver, trusting) = tls_receiver("127.0.0.1").await;
    let url = format!("https://{}/", receiver.address);
    for _ in 0..2 {
        check(&send(&trusting, &url, PATIENT).await, AttemptOutcome::Succeeded, 200, "");
    }
    assert_eq!(receiver.connections(), 1);
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_fails_the_handshake() {
    let (receiver, _) = tls_receiver("127.0.0.1").await;
    let result = send(&egress(), &format!("https://{}/", receiver.address), PATIENT).await;
    check(&result, AttemptOutcome::TlsFailed, 0, "TLS handshake failed: certificate of an unknown issuer");
}

#[tokio::test]
async fn a_certificate_of_another_name_fails_the_handshake() {
    let (receiver, trusting) = tls_receiver("example.com").await;
    let result = send(&trusting, &format!("https://{}/", receiver.address), PATIENT).await;
    check(&result, AttemptOutcome::TlsFailed, 0, "TLS handshake failed: certificate of another host");
}

#[tokio::test]
async fn a_receiver_without_tls_fails_the_handshake() {
    let talking = Receiver::start(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let result = send(&egress(), &format!("https://{}/", talking.address), PATIENT).await;
    check(&result, AttemptOutcome::TlsFailed, 0, "TLS handshake failed: what came was not TLS");

    let closing = Receiver::start(|mut stream| async move {
        let _ = stream.read_u8().await;
    })
    .await;
    let result = send(&egress(), &format!("https://{}/", closing.address), PATIENT).await;
    check(&result, AttemptOutcome::TlsFailed, 0, "TLS handshake failed: the connection was closed");
}

#[tokio::test]
async fn a_handshake_that_stalls_is_a_timeout() {
    let stalling = Receiver::start(|mut stream| async move {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let result = send(&egress(), &format!("https://{}/", stalling.address), SHORT).await;
    check(&result, AttemptOutcome::Timeout, 0, "timeout: no answer within 0.5 s");
    assert!(result.duration < 2 * SHORT, "{:?}", result.duration);
}
