//! TLS and client certificates on the gRPC port.

use std::path::Path;
use std::sync::Arc;

use hooklane::api::proto;
use hooklane::api::proto::webhook_service_client::WebhookServiceClient;
use hooklane::app::App;
use hooklane::config::{Config, Flags, Profile};
use hyper_util::rt::TokioIo;
use rcgen::string::Ia5String;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::{event, reason, told};
use crate::support::{self, eventually};

type Issuer = CertifiedIssuer<'static, KeyPair>;

/// Who signs certificates.
fn authority() -> Issuer {
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA")
}

/// A certificate of these names and its key, in PEM.
fn certificate(issuer: &Issuer, names: Vec<SanType>) -> (String, String) {
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.subject_alt_names = names;
    let key = KeyPair::generate().expect("a key");
    (params.signed_by(&key, issuer).expect("signed").pem(), key.serialize_pem())
}

fn text(text: &str) -> Ia5String {
    text.try_into().expect("ASCII")
}

fn server_certificate(issuer: &Issuer) -> (String, String) {
    certificate(issuer, vec![SanType::DnsName(text("localhost"))])
}

/// Files as the settings name them.
struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder") }
    }

    fn write(&self, name: &str, content: &str) {
        // Whole at once, as rotations do.
        let fresh = self.path("fresh");
        std::fs::write(&fresh, content).expect("written");
        std::fs::rename(fresh, self.path(name)).expect("renamed");
    }

    fn path(&self, name: &str) -> String {
        Path::join(self.folder.path(), name).to_string_lossy().into_owned()
    }
}

/// A service with TLS and these settings.
async fn service(files: &Files, settings: &[(&str, String)]) -> (App, String) {
    let database = support::database().await;
    let any_port = || Some("127.0.0.1:0".to_owned());
    let database_url = Some(database.clone());
    let flags = Flags { grpc_addr: any_port(), ops_addr: any_port(), database_url, ..Flags::default() };
    let own = [("HOOKLANE_TLS_CERT_FILE", files.path("cert")), ("HOOKLANE_TLS_KEY_FILE", files.path("key"))];
    let environment = own.iter().chain(settings).map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let config = Config::load(Profile::Dev, &flags, environment).expect("settings");
    (App::start(config).await.expect("the service starts"), database)
}

/// A caller that trusts `issuer` and shows `client`.
fn caller(issuer: &Issuer, client: Option<&(String, String)>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(issuer.pem().as_bytes()).expect("PEM")).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    let builder = builder.with_root_certificates(roots);
    let mut config = match client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM")];
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
            builder.with_client_auth_cert(chain, key).expect("a certificate")
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

fn localhost() -> ServerName<'static> {
    ServerName::try_from("localhost").expect("a name")
}

/// A connection that trusts `issuer` and shows `client`.
async fn connect(
    app: &App,
    issuer: &Issuer,
    client: Option<&(String, String)>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(app.grpc_addr().expect("it serves gRPC")).await?;
    TlsConnector::from(caller(issuer, client)).connect(localhost(), tcp).await
}

/// The same from another address than that of the others here.
async fn connect_from_elsewhere(app: &App) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.3:0".parse().expect("an address")).expect("a loopback address");
    socket.connect(app.grpc_addr().expect("it serves gRPC")).await.expect("connects")
}

/// How a handshake begins.
fn client_hello(issuer: &Issuer) -> Vec<u8> {
    let mut hello = Vec::new();
    let mut connection = ClientConnection::new(caller(issuer, None), localhost()).expect("a connection");
    connection.write_tls(&mut hello).expect("written");
    hello
}

/// A channel over one connection.
async fn channel(stream: TlsStream<TcpStream>) -> Result<Channel, tonic::transport::Error> {
    let mut stream = Some(TokioIo::new(stream));
    let once = tower::service_fn(move |_| {
        let stream = stream.take().ok_or_else(|| std::io::Error::other("the connection is over"));
        std::future::ready(stream)
    });
    Endpoint::from_static("http://localhost").connect_with_connector(once).await
}

fn serial(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().expect("a certificate")[0].to_vec()
}

#[tokio::test]
async fn calls_go_over_tls_and_plain_text_is_not_understood() {
    let (files, issuer) = (Files::new(), authority());
    let (cert, key) = server_certificate(&issuer);
    files.write("cert", &cert);
    files.write("key", &key);
    let (app, _) = service(&files, &[]).await;
    let secure = channel(connect(&app, &issuer, None).await.expect("trusted")).await.expect("HTTP/2");
    WebhookServiceClient::new(secure).publish(event("a")).await.expect("published");
    let stranger = authority();
    connect(&app, &stranger, None).await.expect_err("signed by somebody else");
    let plain = format!("http://{}", app.grpc_addr().expect("it serves gRPC"));
    let refused = match WebhookServiceClient::connect(plain).await {
        Ok(mut client) => client.publish(event("a")).await.is_err(),
        Err(_) => true,
    };
    assert!(refused);
}

#[tokio::test]
async fn a_certificate_that_changes_is_used_and_a_bad_one_is_not() {
    let (files, issuer) = (Files::new(), authority());
    let (cert, key) = server_certificate(&issuer);
    files.write("cert", &cert);
    files.write("key", &key);
    let (app, _) = service(&files, &[]).await;
    let open = connect(&app, &issuer, None).await.expect("trusted");
    let before = serial(&open);
    let mut client = WebhookServiceClient::new(channel(open).await.expect("HTTP/2"));

    // Half of a rotation, and then the whole: the certificate without its key is not used.
    let (cert, key) = server_certificate(&issuer);
    files.write("cert", &cert);
    let between = serial(&connect(&app, &issuer, None).await.expect("goes on"));
    assert_eq!(between, before);
    files.write("key", &key);
    let after = eventually("the new certificate is used", || async {
        let seen = serial(&connect(&app, &issuer, None).await.expect("trusted"));
        Some(seen).filter(|seen| *seen != before)
    })
    .await;
    assert_eq!(after, CertificateDer::from_pem_slice(cert.as_bytes()).expect("PEM").to_vec());
    client.publish(event("a")).await.expect("connections that are open stay open");

    // Rubbish, until something good comes.
    files.write("cert", "rubbish");
    let (cert, key) = server_certificate(&issuer);
    assert_eq!(serial(&connect(&app, &issuer, None).await.expect("goes on")), after);
    files.write("key", &key);
    files.write("cert", &cert);
    eventually("the third certificate is used", || async {
        let seen = serial(&connect(&app, &issuer, None).await.expect("trusted"));
        Some(()).filter(|()| seen != after)
    })
    .await;
}

#[tokio::test]
async fn without_usable_files_it_does_not_start() {
    let files = Files::new();
    let database_url = Some(support::database().await);
    let any_port = || Some("127.0.0.1:0".to_owned());
    let flags = Flags { grpc_addr: any_port(), ops_addr: any_port(), database_url, ..Flags::default() };
    let own = [("HOOKLANE_TLS_CERT_FILE", files.path("cert")), ("HOOKLANE_TLS_KEY_FILE", files.path("key"))];
    let load = || {
        let environment = own.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        Config::load(Profile::Dev, &flags, environment).expect("settings")
    };
    let missing = App::start(load()).await.expect_err("no files").to_string();
    assert!(missing.contains(&files.path("cert")), "{missing}");
    files.write("cert", "rubbish");
    files.write("key", "rubbish");
    let unusable = App::start(load()).await.expect_err("rubbish").to_string();
    assert!(unusable.contains("certificate in PEM"), "{unusable}");
}

#[tokio::test]
async fn a_client_certificate_says_who_calls() {
    let (files, issuer, clients) = (Files::new(), authority(), authority());
    let (cert, key) = server_certificate(&issuer);
    files.write("cert", &cert);
    files.write("key", &key);
    files.write("ca", &clients.pem());
    let rules = "uri:spiffe://prod/shop publisher shop, dns:ops.internal admin *, email:audit@example.com viewer *";
    let settings = [
        ("HOOKLANE_AUTH", "mtls".to_owned()),
        ("HOOKLANE_TLS_CLIENT_CA_FILE", files.path("ca")),
        ("HOOKLANE_TLS_CLIENTS", rules.to_owned()),
    ];
    let (app, _) = service(&files, &settings).await;
    let client = async |names: Vec<SanType>| {
        let stream = connect(&app, &issuer, Some(&certificate(&clients, names))).await.expect("signed");
        WebhookServiceClient::new(channel(stream).await.expect("HTTP/2"))
    };
    let of = |tenant: &str| proto::PublishRequest { tenant: tenant.to_owned(), ..event("a") };
    let list = |tenant: &str| proto::ListEndpointsRequest { tenant: tenant.to_owned(), ..Default::default() };

    // The first of the certificate's names that has a rule counts.
    let names = vec![SanType::DnsName(text("elsewhere")), SanType::URI(text("spiffe://prod/shop"))];
    let mut shop = client(names).await;
    shop.publish(of("shop")).await.expect("its own");
    let refusal = shop.publish(of("bank")).await.expect_err("another's");
    assert_eq!(reason(&refusal), told(Code::PermissionDenied, "TENANT_DENIED"));
    let refusal = shop.list_endpoints(list("")).await.expect_err("no viewer");
    assert_eq!(reason(&refusal), told(Code::PermissionDenied, "ROLE_REQUIRED"));

    let mut ops = client(vec![SanType::DnsName(text("OPS.internal"))]).await;
    ops.list_endpoints(list("*")).await.expect("an admin of all");
    let mut audit = client(vec![SanType::Rfc822Name(text("audit@example.com"))]).await;
    audit.list_endpoints(list("*")).await.expect("a viewer of all");
    let refusal = audit.publish(of("shop")).await.expect_err("no publisher");
    assert_eq!(reason(&refusal), told(Code::PermissionDenied, "ROLE_REQUIRED"));

    let mut stranger = client(vec![SanType::URI(text("spiffe://prod/other"))]).await;
    let refusal = stranger.publish(of("shop")).await.expect_err("no rule");
    assert_eq!(reason(&refusal), told(Code::Unauthenticated, "CREDENTIAL_INVALID"));

    // Without a certificate of the clients' CA there is no connection. TLS 1.3 tells the client after its handshake.
    let forged = certificate(&authority(), vec![SanType::DnsName(text("ops.internal"))]);
    for shown in [None, Some(&forged)] {
        if let Ok(stream) = connect(&app, &issuer, shown).await
            && let Ok(channel) = channel(stream).await
        {
            WebhookServiceClient::new(channel).list_endpoints(list("*")).await.expect_err("no certificate");
        }
    }
}

#[tokio::test]
async fn handshakes_that_never_end_hinder_nobody_and_are_ended() {
    let (files, issuer) = (Files::new(), authority());
    let (cert, key) = server_certificate(&issuer);
    files.write("cert", &cert);
    files.write("key", &key);
    let (app, _) = service(&files, &[]).await;
    let hello = client_hello(&issuer);
    // Nothing, the beginning of a record (RFC 8446, section 5.1), half a greeting, and all of it.
    let forms = [&[][..], b"\x16\x03\x01", &hello[..hello.len() / 2], &hello];
    // More than may shake hands at once, all from another address than the one that calls.
    let mut silent = Vec::new();
    for said in forms.into_iter().cycle().take(300) {
        let mut stream = connect_from_elsewhere(&app).await;
        stream.write_all(said).await.expect("sent");
        silent.push((stream, said.len() == hello.len()));
    }
    let secure = channel(connect(&app, &issuer, None).await.expect("trusted")).await.expect("HTTP/2");
    WebhookServiceClient::new(secure).publish(event("a")).await.expect("published");
    let mut answered = 0;
    for (mut stream, is_whole) in silent {
        let mut rest = Vec::new();
        let _ = super::soon("its end", stream.read_to_end(&mut rest)).await;
        assert!(is_whole || rest.is_empty(), "who has not greeted is not answered");
        answered += usize::from(!rest.is_empty());
    }
    assert!(answered > 0, "some got as far as the server's greeting");
    // All of it has been given back.
    let stream = connect_from_elsewhere(&app).await;
    let shaken = TlsConnector::from(caller(&issuer, None)).connect(localhost(), stream);
    super::soon("a handshake", shaken).await.expect("trusted");
}

#[tokio::test]
async fn an_address_has_no_more_unfinished_handshakes_than_connections() {
    const MAX: usize = 8;
    let (files, issuer) = (Files::new(), authority());
    let (cert, key) = server_certificate(&issuer);
    files.write("cert", &cert);
    files.write("key", &key);
    let (app, _) = service(&files, &[("HOOKLANE_LIMITS_CONNECTIONS_PER_ADDRESS", MAX.to_string())]).await;
    let hello = client_hello(&issuer);
    let mut open = Vec::new();
    for _ in 0..5 * MAX {
        let mut stream = connect_from_elsewhere(&app).await;
        // Who is over the bound may be gone before this is sent.
        let _ = stream.write_all(&hello).await;
        open.push(stream);
    }
    // The address is full, and others are served.
    let secure = channel(connect(&app, &issuer, None).await.expect("trusted")).await.expect("HTTP/2");
    WebhookServiceClient::new(secure).publish(event("a")).await.expect("published");
    let mut answered = 0;
    for mut stream in open {
        let mut rest = Vec::new();
        let _ = super::soon("its end", stream.read_to_end(&mut rest)).await;
        answered += usize::from(!rest.is_empty());
    }
    assert_eq!(answered, MAX, "the others were refused without an answer");
}
