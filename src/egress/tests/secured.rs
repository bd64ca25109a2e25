//! An endpoint's own certificates: whom it trusts beside the system's authorities, and who it is to a receiver that asks.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::io::AsyncWriteExt as _;
use tokio_rustls::TlsAcceptor;

use super::receiver::{Receiver, read_request};
use super::*;
use crate::domain::tls::{ClientCertificate, TlsOptions, TrustedCertificates};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate of that name and its key, in PEM.
fn certificate(issuer: &Authority, name: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new([name.to_owned()]).unwrap();
    (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}

fn roots(issuer: &Authority) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(issuer.pem().as_bytes()).unwrap()).unwrap();
    roots
}

/// A receiver whose certificate `issuer` signed; it wants certificates of `clients` where there is one. It answers with
/// how many certificates it was shown.
async fn receiver(issuer: &Authority, clients: Option<&Authority>) -> Receiver {
    let (chain, key) = certificate(issuer, "127.0.0.1");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions().unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(clients)), provider).build();
            builder.with_client_cert_verifier(verifier.unwrap())
        }
    };
    let chain = vec![CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key).unwrap()));
    Receiver::start(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let shown = stream.get_ref().1.peer_certificates().map_or(0, <[_]>::len);
            while read_request(&mut stream).await.is_some() {
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{shown}");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        }
    })
    .await
}

fn trusting(issuer: &Authority) -> TlsOptions {
    TlsOptions { trusted: Some(TrustedCertificates::parse(&issuer.pem()).unwrap()), client: None }
}

fn showing(options: TlsOptions, (chain, key): &(String, String)) -> TlsOptions {
    TlsOptions { client: Some(ClientCertificate::parse(chain, key).unwrap()), ..options }
}

async fn send_with(egress: &Egress, receiver: &Receiver, options: &TlsOptions) -> AttemptResult {
    let target = target(&format!("https://{}/", receiver.address), PATIENT).with_tls(options);
    egress.send(outgoing(&target, &event("{}"))).await
}

#[tokio::test]
async fn an_endpoint_trusts_its_own_authority_and_nobody_elses_does() {
    let (ours, other) = (authority("ours"), authority("other"));
    let receiver = receiver(&ours, None).await;
    let egress = egress();
    for _ in 0..2 {
        let result = send_with(&egress, &receiver, &trusting(&ours)).await;
        check(&result, AttemptOutcome::Succeeded, 200, "");
    }
    assert_eq!(receiver.connections(), 1, "kept");
    // The connection that is there is no other endpoint's.
    for options in [TlsOptions::default(), trusting(&other)] {
        let result = send_with(&egress, &receiver, &options).await;
        check(&result, AttemptOutcome::TlsFailed, 0, "TLS handshake failed: certificate of an unknown issuer");
    }
}

#[tokio::test]
async fn a_receiver_that_asks_is_shown_the_endpoints_certificate() {
    let (ours, clients) = (authority("ours"), authority("clients"));
    let receiver = receiver(&ours, Some(&clients)).await;
    let egress = egress();
    let known = showing(trusting(&ours), &certificate(&clients, "hooklane"));
    let result = send_with(&egress, &receiver, &known).await;
    check(&result, AttemptOutcome::Succeeded, 200, "");
    assert_eq!(result.response_body, "1");
    // Neither without one nor with another's.
    for options in [trusting(&ours), showing(trusting(&ours), &certificate(&ours, "hooklane"))] {
        let result = send_with(&egress, &receiver, &options).await;
        check(&result, AttemptOutcome::TlsFailed, 0, "TLS handshake failed: the receiver refused it");
    }
    assert_eq!(send_with(&egress, &receiver, &known).await.outcome, AttemptOutcome::Succeeded);
}

#[tokio::test]
async fn a_receiver_that_does_not_ask_is_shown_nothing() {
    let ours = authority("ours");
    let receiver = receiver(&ours, None).await;
    let options = showing(trusting(&ours), &certificate(&ours, "hooklane"));
    let result = send_with(&egress(), &receiver, &options).await;
    assert_eq!((result.outcome, &*result.response_body), (AttemptOutcome::Succeeded, &b"0"[..]));
}

#[tokio::test]
async fn stored_certificates_that_cannot_be_used_fail_the_attempt_alone() {
    let ours = authority("ours");
    let receiver = receiver(&ours, None).await;
    let (chain, _) = certificate(&ours, "a");
    let client = Some(ClientCertificate::from_stored(chain, "nonsense".to_owned()));
    let result = send_with(&egress(), &receiver, &TlsOptions { client, ..trusting(&ours) }).await;
    check(&result, AttemptOutcome::TlsFailed, 0, "TLS cannot be set up with the endpoint's certificates");
    assert_eq!(receiver.connections(), 0);
}
