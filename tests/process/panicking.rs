//! What is told, or left, by a program that fails: a panic, forced where every secret is at hand, that prints all it can reach: none of them is in what is printed.
//!
//! It ends a process, so this program is run anew for it. What signs (`Signer`), and what is sent (`Target`, `Outgoing`)
//! cannot be printed at all.

use std::collections::BTreeMap;
use std::process::Stdio;

use hooklane::api::proto::*;
use hooklane::app::App;
use hooklane::config::{Config, Flags, Profile};
use hooklane::domain::api_key::ApiKey;
use hooklane::domain::headers::OwnHeaders;
use hooklane::domain::id::KeyId;
use hooklane::domain::keyring::Keyring;
use hooklane::domain::secret::Secret;
use hooklane::domain::tls::{ClientCertificate, TlsOptions};
use hooklane::domain::url::EndpointUrl;
use hooklane::domain::verification::Verifier;
use hooklane::egress::{Egress, Proxy};
use hooklane::store::Store;
use tokio::process::Command;
use zeroize::Zeroizing;

use crate::load::Client;
use crate::program::{PATIENCE, Replica};
use crate::support::database;

/// What tells the program that is run anew where its database is.
const DATABASE: &str = "PANICKING_TEST_DATABASE";
const KEYS: &str = "k1:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

/// What is looked for. Each is of a place of its own.
const CANARIES: [&str; 13] = [
    "canary-database-password",
    "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE",
    "canary-proxy-password",
    "canary-collector-password",
    "canary-collector-header",
    "canary-secret-text",
    "canary-secret-of-endpoint",
    "canary-secret-rotated",
    "canary-url-password",
    "canary-url-query",
    "canary-header-value",
    "canary-client-key",
    "canary-api-key-of-32-bytes-in-all",
];

#[tokio::test]
async fn a_panic_prints_no_secret() {
    let url = database().await.replacen("@localhost", ":canary-database-password@localhost", 1);
    let mut program = Command::new(std::env::current_exe().expect("who am I"));
    program.args(["--exact", "panicking::what_holds_secrets_panics", "--ignored", "--nocapture"]);
    program.env(DATABASE, &url).env("RUST_BACKTRACE", "full").stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, program.output()).await.expect("it ends").expect("it runs");
    let printed = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(!output.status.success(), "{printed}");
    // It got as far as it should, and said what it has.
    for part in [
        "panicked at",
        "everything at hand",
        "[\"k1\"]",
        "ApiKey(",
        "App {",
        "Secret(…)",
        "ClientCertificate {",
        "stack",
    ] {
        assert!(printed.contains(part), "{part} in {printed}");
    }
    for canary in CANARIES {
        for form in forms(canary) {
            let at = printed.find(&form).map(|at| printed[..at].chars().rev().take(300).collect::<Vec<_>>());
            let before: Option<String> = at.map(|chars| chars.into_iter().rev().collect());
            assert_eq!(before, None, "{canary} is printed, after this");
        }
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_crash_leaves_no_memory_on_a_disk() {
    // What this process may, its children might.
    let core = rlimit::Resource::CORE;
    core.get().and_then(|(_, hard)| core.set(hard, hard)).expect("set");
    let replica = Replica::start(&database().await, &[]).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", replica.pid())).expect("its limits");
    let line = limits.lines().find(|line| line.starts_with("Max core file size")).expect("the limit");
    assert_eq!(line.split_whitespace().nth(4), Some("0"), "{line}");
}

/// As it is, and as hex, base64 and a list of numbers have it, without what its neighbours would change.
fn forms(canary: &str) -> [String; 4] {
    use base64::Engine as _;
    let hex = canary.bytes().map(|byte| format!("{byte:02x}")).collect();
    let encoded = base64::engine::general_purpose::STANDARD_NO_PAD.encode(&canary.as_bytes()[..12]);
    let numbers: Vec<_> = canary.bytes().map(|byte| byte.to_string()).collect();
    [canary.to_owned(), hex, encoded, numbers.join(", ")]
}

/// Run by [`a_panic_prints_no_secret`], as a program of its own.
#[tokio::test]
#[ignore = "it panics: the other test runs it"]
async fn what_holds_secrets_panics() {
    let Some(url) = std::env::var_os(DATABASE) else { return };
    let url = url.into_string().expect("text");
    let settings: BTreeMap<String, String> = [
        ("DATABASE_URL", url.as_str()),
        ("HOOKLANE_AUTH", "none"),
        ("HOOKLANE_GRPC_ADDR", "127.0.0.1:0"),
        ("HOOKLANE_OPS_ADDR", "127.0.0.1:0"),
        ("HOOKLANE_ENCRYPTION_KEYS", KEYS),
        ("HOOKLANE_EGRESS_ALLOW_HTTP", "true"),
        ("HOOKLANE_EGRESS_ALLOW_PORTS", "any"),
        ("HOOKLANE_EGRESS_ALLOW_CIDRS", "127.0.0.0/8"),
        ("HOOKLANE_EGRESS_PROXY", "http://user:canary-proxy-password@127.0.0.1:1"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:canary-collector-password@127.0.0.1:1"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=canary-collector-header"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    let flags = Flags { database_url: Some(url), ..Flags::default() };
    let (config, effective) = Config::explain(Profile::Serve, &flags, settings).expect("settings");

    // Everything by itself.
    let certificate = rcgen::generate_simple_self_signed(["hooklane".to_owned()]).expect("made");
    let client = ClientCertificate::from_stored(certificate.cert.pem(), "canary-client-key".to_owned());
    let secret = Secret::from_stored("canary-secret-text".to_owned());
    let address = EndpointUrl::from_stored("https://shop:canary-url-password@127.0.0.1/?canary-url-query");
    let headers = OwnHeaders::from_stored([("x-key".to_owned(), "canary-header-value".to_owned())].into());
    let bytes = *b"canary-api-key-of-32-bytes-in-all".first_chunk::<32>().expect("32 bytes");
    let key = ApiKey::new(KeyId::from_uuid(uuid::Uuid::from_u128(1)), Zeroizing::new(bytes));
    let digest = key.digest();
    let keys = Keyring::parse(KEYS).expect("keys");
    let proxy = Proxy::parse("http://user:canary-proxy-password@127.0.0.1:1", false).expect("a proxy");
    let verifier = Verifier::parse("canary-secret-text", None).expect("a secret");
    let tls = TlsOptions { client: Some(client), ..TlsOptions::default() };
    let egress = Egress::new(config.egress.clone()).expect("an egress");

    // And a replica that has taken some in, and tries to deliver with them.
    let store = Store::open(&config.store).await.expect("the database");
    let app = App::start(config.clone()).await.expect("it starts");
    let mut client =
        Client::connect(format!("http://{}", app.grpc_addr().expect("it serves"))).await.expect("connects");
    let given = Endpoint {
        url: "http://shop:canary-url-password@127.0.0.1:1/?canary-url-query".to_owned(),
        headers: [("x-key".to_owned(), "canary-header-value".to_owned())].into(),
        ..Endpoint::default()
    };
    let text = || "canary-secret-of-endpoint".to_owned();
    let request = RegisterEndpointRequest { endpoint: Some(given.clone()), secret: text() };
    let registered = client.register_endpoint(request.clone()).await.expect("registered").into_inner();
    let rotate = RotateSecretRequest {
        endpoint_id: registered.endpoint.as_ref().expect("one").id.clone(),
        secret: "canary-secret-rotated".to_owned(),
        ..RotateSecretRequest::default()
    };
    let rotated = client.rotate_secret(rotate.clone()).await.expect("rotated").into_inner();
    // One inside of another, with a URL that is none.
    let bad = Endpoint { url: "canary-url-query".to_owned(), client_key_pem: "canary-client-key".to_owned(), ..given };
    let inline = InlineEndpoint { endpoint: Some(bad), secret: text() };
    let inline = PublishRequest { inline_endpoint: Some(Box::new(inline)), ..PublishRequest::default() };
    let messages = (request, registered, rotate, rotated, inline);
    let event = PublishRequest {
        event_type: "order.created".to_owned(),
        body: Some(publish_request::Body::Payload("{}".into())),
        ..PublishRequest::default()
    };
    let published = client.publish(event).await.expect("published").into_inner();
    let request = GetDeliveryRequest { delivery_id: published.deliveries[0].delivery_id.clone() };
    crate::support::eventually("it is tried", || async {
        let delivery = client.clone().get_delivery(request.clone()).await.ok()?.into_inner().delivery?;
        (delivery.attempt_count > 0).then_some(())
    })
    .await;

    let at_hand: [&dyn std::fmt::Debug; 17] = [
        &flags, &config, &effective, &secret, &address, &headers, &key, &digest, &keys, &proxy, &verifier, &tls,
        &egress, &store, &app, &client, &messages,
    ];
    panic!("everything at hand: {at_hand:?}\n{at_hand:#?}");
}
