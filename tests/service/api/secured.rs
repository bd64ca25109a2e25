//! Certificates of an endpoint's own, through the API: taken, used, shown but for the key, changed and taken away.

use std::sync::Arc;

use hooklane::api::proto::*;
use hooklane::cli::listen::Behaviour;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tonic::{Code, Status};

use super::{Service, endpoint, event, fields, reason, receiver, service, told};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA")
}

fn certificate(issuer: &Authority) -> (String, String) {
    let params = CertificateParams::new(["127.0.0.1".to_owned()]).expect("parameters");
    let key = KeyPair::generate().expect("a key");
    (params.signed_by(&key, issuer).expect("signed").pem(), key.serialize_pem())
}

/// TLS in front of a plain receiver: only for those whose certificate `issuer` signed. Answers with its URL.
async fn guard(issuer: &Authority, plain: String) -> String {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(issuer.pem().as_bytes()).expect("PEM")).expect("a root");
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let (chain, key) = certificate(issuer);
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(verifier.build().expect("a verifier"))
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(chain.as_bytes()).expect("PEM")],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM"),
        )
        .expect("a certificate");
    let acceptor = TlsAcceptor::from(Arc::new(server));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let url = format!("https://{}/", listener.local_addr().expect("bound"));
    let plain = plain.trim_start_matches("http://").to_owned();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, plain) = (acceptor.clone(), plain.clone());
            tokio::spawn(async move {
                let Ok(mut outside) = acceptor.accept(stream).await else { return };
                let Ok(mut inside) = TcpStream::connect(plain).await else { return };
                let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
            });
        }
    });
    url
}

async fn update(service: &Service, endpoint: Endpoint, paths: &[&str]) -> Result<Endpoint, Status> {
    let update_mask = prost_types::FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() };
    let request = UpdateEndpointRequest { endpoint: Some(endpoint), update_mask: Some(update_mask) };
    service.client.clone().update_endpoint(request).await.map(|answer| answer.into_inner().endpoint.expect("one"))
}

async fn test(service: &Service, id: &str) -> Attempt {
    let request = TestEndpointRequest { endpoint_id: id.to_owned(), ..TestEndpointRequest::default() };
    service.client.clone().test_endpoint(request).await.expect("tried").into_inner().attempt.expect("an attempt")
}

#[tokio::test]
async fn a_receiver_with_a_private_authority_that_wants_a_certificate_is_delivered_to() {
    let service = service().await;
    let issuer = authority();
    let receiver = receiver(Behaviour::default()).await;
    let url = guard(&issuer, receiver.url()).await;
    let (chain, key) = certificate(&issuer);
    let given = Endpoint {
        ca_pem: issuer.pem(),
        client_certificate_pem: chain.clone(),
        client_key_pem: key.clone(),
        ..endpoint(&url)
    };
    let registered = service.register(given.clone()).await;
    assert_eq!((&registered.ca_pem, &registered.client_certificate_pem), (&given.ca_pem, &chain));
    assert_eq!(registered.client_key_pem, "", "input only");
    let delivery = service.publish_one("order.created").await;
    service.in_state(&delivery, DeliveryState::Succeeded).await;
    assert_eq!(receiver.count(), 1);
    assert_eq!(test(&service, &registered.id).await.outcome(), AttemptOutcome::Succeeded);

    // What was read is written back: the key stays. Another certificate wants its own.
    let written = update(&service, Endpoint { description: "x".to_owned(), ..registered.clone() }, &["*"]).await;
    assert_eq!(written.expect("updated").client_certificate_pem, chain);
    assert_eq!(test(&service, &registered.id).await.outcome(), AttemptOutcome::Succeeded);
    let (other, other_key) = certificate(&issuer);
    let changed = Endpoint { client_certificate_pem: other.clone(), etag: String::new(), ..registered.clone() };
    let refusal = update(&service, changed.clone(), &["client_certificate_pem"]).await.expect_err("another's key");
    assert_eq!(reason(&refusal), told(Code::InvalidArgument, "INVALID_FIELD"));
    assert_eq!(fields(&refusal), ["endpoint.client_key_pem"]);
    let changed = Endpoint { client_key_pem: other_key, ..changed };
    let paths = ["client_certificate_pem", "client_key_pem"];
    assert_eq!(update(&service, changed.clone(), &paths).await.expect("updated").client_certificate_pem, other);
    assert_eq!(test(&service, &registered.id).await.outcome(), AttemptOutcome::Succeeded);

    // Taken away, it is refused by the receiver; without the authority, the receiver is not trusted.
    let without = Endpoint { client_certificate_pem: String::new(), client_key_pem: String::new(), ..changed };
    update(&service, without.clone(), &paths).await.expect("updated");
    assert_eq!(test(&service, &registered.id).await.error, "TLS handshake failed: the receiver refused it");
    update(&service, Endpoint { ca_pem: String::new(), ..without }, &["ca_pem"]).await.expect("updated");
    assert_eq!(test(&service, &registered.id).await.error, "TLS handshake failed: certificate of an unknown issuer");
}

#[tokio::test]
async fn bad_certificates_are_named() {
    let service = service().await;
    let issuer = authority();
    let ((chain, key), (_, other_key)) = (certificate(&issuer), certificate(&issuer));
    let [ca, certificate, private] =
        ["ca_pem", "client_certificate_pem", "client_key_pem"].map(|field| format!("endpoint.{field}"));
    for (given, expected) in [
        ((&*key, "", ""), &ca),
        (("nonsense", "", ""), &ca),
        (("", &*chain, ""), &private),
        (("", "", &*key), &certificate),
        (("", "nonsense", &key), &certificate),
        (("", &chain, "canary nonsense"), &private),
        (("", &chain, &other_key), &private),
    ] {
        let endpoint = Endpoint {
            ca_pem: given.0.to_owned(),
            client_certificate_pem: given.1.to_owned(),
            client_key_pem: given.2.to_owned(),
            ..endpoint("https://127.0.0.1:9/")
        };
        let request = RegisterEndpointRequest { endpoint: Some(endpoint.clone()), secret: String::new() };
        let refusal = service.client.clone().register_endpoint(request).await.expect_err(expected);
        assert_eq!(
            (reason(&refusal), fields(&refusal)),
            (told(Code::InvalidArgument, "INVALID_FIELD"), vec![expected.clone()])
        );
        assert!(!format!("{refusal:?}").contains("canary") && !format!("{refusal:?}").contains("PRIVATE KEY"));
        // The same where it comes with its event.
        let inline = InlineEndpoint { endpoint: Some(endpoint), secret: super::SECRET.to_owned() };
        let inline_endpoint = Some(Box::new(inline));
        let request = PublishRequest { inline_endpoint, ..event("a") };
        let refusal = service.client.clone().publish(request).await.expect_err(expected);
        assert_eq!(fields(&refusal), [format!("inline_endpoint.{expected}")]);
    }
}
