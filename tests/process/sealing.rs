//! Secrets at rest, from outside: known ones are pushed through every path and looked for everywhere, and master keys
//! change under load.

use std::collections::BTreeSet;
use std::time::Duration;

use hooklane::api::proto::*;
use hooklane::cli::listen::{Behaviour, Receiver, ReceiverOptions};
use hooklane::domain::verification::Verifier;
use http::StatusCode;
use sqlx::{AssertSqlSafe, Row as _};
use tonic::Status;
use tonic_types::StatusExt as _;

use crate::commands;
use crate::load::{Client, Load, Tally, settled};
use crate::program::{Program, Replica, SERVE, run};
use crate::support::{connection, database, eventually};

const K1: &str = "k1:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const K2: &str = "k2:AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

/// How long something that must come may take to come.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is looked for. Each is of a path of its own, so that what is found tells where it came from.
const CANARIES: [&str; 16] = [
    "canary-secret-registered",
    "canary-secret-rotated",
    "canary-secret-inline",
    "canary-secret-refused bad",
    "canary-url-password",
    "canary-url-query",
    "canary-url-updated",
    "canary-url-refused",
    "canary-url-inline",
    "canary-header-value",
    "canary-header-updated",
    "canary-header-refused\u{7f}",
    "canary-credential",
    "canary-proxy",
    "canary-client-key",
    "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE",
];

/// Where they must not be: everything that was told to anybody.
#[derive(Default)]
struct Told(Vec<(String, String)>);

impl Told {
    fn add(&mut self, what: impl Into<String>, text: impl Into<String>) {
        self.0.push((what.into(), text.into()));
    }

    fn refusal(&mut self, what: &str, refusal: &Status) {
        let details = refusal.get_error_details();
        self.add(what, format!("{refusal:?} {} {details:?}", refusal.message()));
    }

    /// Looks for each canary and each of `more`, as it is and as base64 and hex have it.
    fn has_none(&self, more: &[&str]) {
        use base64::Engine as _;
        for canary in CANARIES.iter().chain(more) {
            let hex: String = canary.bytes().map(|byte| format!("{byte:02x}")).collect();
            // Without what its neighbours would change.
            let encoded = base64::engine::general_purpose::STANDARD_NO_PAD.encode(&canary.as_bytes()[..12]);
            for (what, text) in &self.0 {
                for form in [*canary, &hex, &encoded] {
                    let at = text.find(form).map(|at| text[..at].chars().rev().take(300).collect::<Vec<_>>());
                    let before: Option<String> = at.map(|chars| chars.into_iter().rev().collect());
                    assert!(before.is_none(), "{canary:?} is in {what}, after {before:?}");
                }
            }
        }
    }
}

/// Everything that the database holds, a table at a time, as pg_dump would have it.
async fn dump(url: &str, told: &mut Told) {
    let mut connection = connection(url).await;
    let tables = "select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
                  where n.nspname = 'hooklane' and c.relkind in ('r', 'p', 'v')";
    let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&mut connection).await.expect("tables");
    assert!(tables.iter().any(|table| table == "endpoint_secrets"), "{tables:?}");
    for table in tables {
        let rows = AssertSqlSafe(format!("select t::text from {table} t"));
        let rows: Vec<String> = sqlx::query_scalar(rows).fetch_all(&mut connection).await.expect("rows");
        told.add(format!("the table {table}"), rows.join("\n"));
    }
}

fn endpoint(url: &str) -> Endpoint {
    let exponential = ExponentialBackoff {
        initial_delay: Some(prost_types::Duration { seconds: 0, nanos: 1_000_000 }),
        ..ExponentialBackoff::default()
    };
    let retry_policy = RetryPolicy {
        backoff: Some(retry_policy::Backoff::Exponential(exponential)),
        max_retries: Some(1),
        ..RetryPolicy::default()
    };
    Endpoint { url: url.to_owned(), retry_policy: Some(retry_policy), ..Endpoint::default() }
}

fn event() -> PublishRequest {
    PublishRequest {
        event_type: "order.created".to_owned(),
        body: Some(publish_request::Body::Payload("{}".into())),
        ..PublishRequest::default()
    }
}

/// A receiver's address with credentials and a query.
fn secret_url(receiver: &str, password: &str, query: &str) -> String {
    format!("{}/hooks?token={query}", receiver.replace("http://", &format!("http://shop:{password}@")))
}

#[tokio::test]
async fn known_secrets_are_in_no_log_error_attempt_or_table() {
    let url = database().await;
    let mut told = Told::default();
    // Everything that anything would ever log.
    let settings = [("HOOKLANE_ENCRYPTION_KEYS", K1), ("HOOKLANE_LOG", "trace"), ("HOOKLANE_AUTH", "none")];
    let mut replica = Replica::start(&url, &settings).await;
    let mut client = Client::connect(replica.grpc.clone()).await.expect("connects");
    let verifiers = ["canary-secret-registered", "canary-secret-inline", "canary-secret-rotated"];
    let secrets = verifiers.map(|text| Verifier::parse(text, None).expect("a secret")).to_vec();
    let options = ReceiverOptions { secrets, ..ReceiverOptions::default() };
    let receiver = Receiver::start(options).await.expect("a receiver");
    let failing = Behaviour { status: Some(StatusCode::SERVICE_UNAVAILABLE), ..Behaviour::default() };
    let failing = commands::receiver(failing).await;

    // Registered, and shown to its owner alone.
    let mut given = endpoint(&secret_url(&receiver.url(), "canary-url-password", "canary-url-query"));
    given.headers.insert("Authorization".to_owned(), "Bearer canary-header-value".to_owned());
    let request =
        RegisterEndpointRequest { endpoint: Some(given.clone()), secret: "canary-secret-registered".to_owned() };
    let registered = client.register_endpoint(request).await.expect("registered").into_inner();
    let registered = registered.endpoint.expect("an endpoint");
    assert_eq!((&registered.url, &registered.headers), (&given.url, &given.headers));

    // A key in PEM, of which each line is looked for.
    let made = rcgen::generate_simple_self_signed(["hooklane".to_owned()]).expect("made");
    let key = made.signing_key.serialize_pem();
    given.client_certificate_pem = made.cert.pem();
    given.client_key_pem = key.clone();

    // Delivered with all of it; what fails is told, retried and given up.
    let mut ids = Vec::new();
    let unreachable = secret_url("http://127.0.0.1:1", "canary-url-password", "canary-url-query");
    let no_tls = secret_url(&receiver.url(), "canary-url-password", "canary-url-query").replace("http:", "https:");
    for other in [secret_url(&failing.url(), "canary-url-password", "canary-url-query"), unreachable, no_tls] {
        let endpoint = Some(Endpoint { url: other, ..given.clone() });
        let request = RegisterEndpointRequest { endpoint, secret: "canary-secret-registered".to_owned() };
        let answer = client.register_endpoint(request).await.expect("registered").into_inner();
        ids.push(answer.endpoint.expect("an endpoint").id);
    }
    let published = client.publish(event()).await.expect("published").into_inner();
    let received = receiver.next().await.expect("a request");
    assert_eq!(received.headers["authorization"], "Bearer canary-header-value");
    assert_eq!(received.path, "/hooks?token=canary-url-query");
    settled(&client).await;
    for delivery in published.deliveries {
        let request = GetDeliveryRequest { delivery_id: delivery.delivery_id };
        told.add("a delivery", format!("{:?}", client.get_delivery(request).await.expect("read").into_inner()));
    }
    let stats = client.get_stats(GetStatsRequest::default()).await.expect("read").into_inner();
    told.add("the statistics", format!("{stats:?}"));
    let alerts = client.list_alerts(ListAlertsRequest::default()).await.expect("read").into_inner();
    told.add("the alerts", format!("{alerts:?}"));
    let letters = client.list_dead_letters(ListDeadLettersRequest::default()).await.expect("read").into_inner();
    told.add("the dead letters", format!("{letters:?}"));
    for id in &ids {
        let request = TestEndpointRequest { endpoint_id: id.clone(), ..TestEndpointRequest::default() };
        let mut answer = client.test_endpoint(request).await.expect("tried").into_inner();
        // What was sent is shown to whoever sees secrets.
        answer.attempt.as_mut().expect("an attempt").request_headers.clear();
        told.add("a test", format!("{answer:?}"));
    }

    // Changed, rotated, and brought along with an event.
    given.client_key_pem.clear();
    given.client_certificate_pem.clear();
    let mut changed =
        Endpoint { id: registered.id.clone(), url: secret_url(&receiver.url(), "x", "canary-url-updated"), ..given };
    changed.headers.insert("Authorization".to_owned(), "Bearer canary-header-updated".to_owned());
    let request = UpdateEndpointRequest { endpoint: Some(changed), update_mask: None };
    client.update_endpoint(request).await.expect("updated");
    let request = RotateSecretRequest {
        endpoint_id: registered.id.clone(),
        secret: "canary-secret-rotated".to_owned(),
        ..RotateSecretRequest::default()
    };
    let mut rotated = client.rotate_secret(request).await.expect("rotated").into_inner();
    assert_eq!(std::mem::take(&mut rotated.secret), "canary-secret-rotated");
    let inline = InlineEndpoint {
        endpoint: Some(endpoint(&secret_url(&receiver.url(), "x", "canary-url-inline"))),
        secret: "canary-secret-inline".to_owned(),
    };
    for _ in 0..2 {
        let request = PublishRequest { inline_endpoint: Some(Box::new(inline.clone())), ..event() };
        client.publish(request).await.expect("published");
    }
    settled(&client).await;
    let inline = async { while receiver.next().await.expect("a request").path != "/hooks?token=canary-url-inline" {} };
    tokio::time::timeout(PATIENCE, inline).await.expect("the inline endpoint gets its own");

    // Refused.
    let mut refuse = async |what: &str, change: fn(&mut RegisterEndpointRequest)| {
        let mut request = RegisterEndpointRequest { endpoint: Some(endpoint(&receiver.url())), secret: String::new() };
        change(&mut request);
        let refusal = client.register_endpoint(request).await.expect_err(what);
        told.refusal(what, &refusal);
    };
    refuse("a bad client key", |request| {
        let endpoint = request.endpoint.as_mut().expect("one");
        endpoint.client_certificate_pem = "nonsense".to_owned();
        endpoint.client_key_pem = "canary-client-key".to_owned();
    })
    .await;
    refuse("a bad secret", |request| request.secret = "canary-secret-refused bad".to_owned()).await;
    refuse("a bad header", |request| {
        let endpoint = request.endpoint.as_mut().expect("one");
        endpoint.headers.insert("x-key".to_owned(), "canary-header-refused\u{7f}".to_owned());
    })
    .await;
    for bad in
        ["ftp://a:canary-url-refused@b", "http://10.0.0.1/?canary-url-refused", "http://a:canary-url-refused@[::1"]
    {
        let request = RegisterEndpointRequest { endpoint: Some(endpoint(bad)), secret: String::new() };
        let refusal = client.register_endpoint(request).await.expect_err(bad);
        told.refusal(bad.split(':').next().expect("a scheme"), &refusal);
    }
    let mut request = tonic::Request::new(ListEndpointsRequest::default());
    request.metadata_mut().insert("authorization", "Bearer canary-credential".parse().expect("text"));
    let _ = client.list_endpoints(request).await;

    for path in ["/health", "/metrics", "/readyz"] {
        told.add(path, replica.read(path).await.unwrap_or_default());
    }
    replica.signal("TERM").await;
    assert_eq!(replica.ended().await.code(), Some(0));
    let log = replica.log();
    assert!(log.contains("TRACE") && log.len() > 10_000, "everything was logged");
    told.add("the log", log);
    dump(&url, &mut told).await;
    let keys = [("DATABASE_URL", url.as_str()), ("HOOKLANE_ENCRYPTION_KEYS", K1), ("HOOKLANE_LOG", "trace")];
    for arguments in [["keys", "list"], ["keys", "rotate"]] {
        let (code, output, error) = run(&arguments, &keys).await;
        assert_eq!(code, Some(0), "{error}");
        told.add(arguments.join(" "), output + &error);
    }
    let lines: Vec<_> = key.lines().filter(|line| !line.starts_with("---")).collect();
    told.has_none(&lines);
}

#[tokio::test]
async fn serve_starts_with_keys_or_the_word_that_none_are_wanted() {
    let url = database().await;
    let without: Vec<_> = SERVE.iter().copied().filter(|(name, _)| *name != "HOOKLANE_ENCRYPTION_KEYS").collect();
    let settings = [&without[..], &[("DATABASE_URL", url.as_str())]].concat();
    let (code, output, error) = run(&["serve"], &settings).await;
    assert_eq!((code, output.as_str()), (Some(64), ""));
    for part in ["HOOKLANE_ENCRYPTION_KEYS", "hooklane keys generate", "encryption.plaintext = true"] {
        assert!(error.contains(part), "{part} in {error}");
    }
    let (code, key, error) = run(&["keys", "generate", "--id", "first"], &[]).await;
    assert!(code == Some(0) && key.starts_with("first:") && error.is_empty(), "{key} {error}");
    let replica = Replica::start(&url, &[("HOOKLANE_ENCRYPTION_KEYS", key.trim())]).await;
    drop(replica);

    // From here on it must be there, and be the one that it was.
    let plain = ("HOOKLANE_ENCRYPTION_PLAINTEXT", "true");
    for (more, words) in [
        (&[plain][..], "does not have"),
        (&[("HOOKLANE_ENCRYPTION_KEYS", K1)], "does not have"),
        (&[("HOOKLANE_ENCRYPTION_KEYS", &K1.replace("k1", "first"))], "another key first"),
    ] {
        let (code, _, error) = run(&["serve"], &[&settings[..], more].concat()).await;
        assert!(code == Some(64) && error.contains("first") && error.contains(words), "{code:?} {error}");
    }
    let keys = [key.trim(), K1].join(",");
    drop(Replica::start(&url, &[("HOOKLANE_ENCRYPTION_KEYS", &keys)]).await);
    let empty = database().await;
    let (code, _, error) = run(&["keys", "rotate", "--database-url", &empty], &[]).await;
    assert!(code == Some(64) && error.contains("encryption.keys"), "{error}");
    let (code, ..) = run(&["keys", "generate", "--id", "a b"], &[]).await;
    assert_eq!(code, Some(64));
}

/// How many secrets and settings are under which key.
async fn usage(url: &str) -> Vec<(Option<String>, i64)> {
    let statement = "select key_id, count(*) from (select key_id from endpoint_secrets union all
                     select sealed_key_id from endpoints) k group by key_id order by key_id";
    let rows = sqlx::query(statement).fetch_all(&mut connection(url).await).await.expect("counted");
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[tokio::test]
async fn keys_change_under_load_however_often_the_change_is_interrupted() {
    const ENDPOINTS: usize = 300;
    let url = database().await;
    // As before there was any encryption.
    let plain = [("HOOKLANE_ENCRYPTION_KEYS", ""), ("HOOKLANE_ENCRYPTION_PLAINTEXT", "true")];
    let mut replica = Replica::start(&url, &plain).await;
    let mut client = Client::connect(replica.grpc.clone()).await.expect("connects");
    let tally = Tally::start(Behaviour::default()).await;
    tally.register(&mut client).await;
    for number in 0..ENDPOINTS {
        let mut given = endpoint(&format!("http://u:p{number}@127.0.0.1:9/?q"));
        given.event_types = vec!["never".to_owned()];
        let request = RegisterEndpointRequest { endpoint: Some(given), secret: String::new() };
        client.register_endpoint(request).await.expect("registered");
    }
    let all = 2 * (ENDPOINTS as i64 + 1);
    assert_eq!(usage(&url).await, [(None, all)]);
    let load = Load::start(&replica.grpc);
    let mut change = async |keys: &str| {
        replica.signal("TERM").await;
        replica.ended().await;
        let more = [("HOOKLANE_ENCRYPTION_KEYS", keys)];
        replica = Replica::start(&url, &more).await;
        load.move_to(&replica.grpc);
        load.acknowledge(50).await;
    };

    let both = [K2, K1].join(",");
    for (keys, last) in [(K1, "k1"), (&both, "k2")] {
        change(keys).await;
        let settings = [("DATABASE_URL", url.as_str()), ("HOOKLANE_ENCRYPTION_KEYS", keys)];
        // Killed wherever it is: what it had done stays, and all of it can be read.
        for _ in 0..5 {
            let before = usage(&url).await;
            let rotating = Program::start(&["keys", "rotate"], &settings);
            eventually("some are re-wrapped, or all", || async {
                let now = usage(&url).await;
                (now != before || now.len() == 1).then_some(())
            })
            .await;
            rotating.kill().await;
            load.acknowledge(20).await;
        }
        let (code, output, error) = run(&["keys", "rotate"], &settings).await;
        assert!(code == Some(0) && output.contains(&format!("sealed with {last}")), "{output} {error}");
        assert_eq!(usage(&url).await, [(Some(last.to_owned()), all)]);
        let (_, output, _) = run(&["keys", "rotate"], &settings).await;
        assert!(output.contains("; 0 values"), "{output}");
    }
    // The former key is needed no more.
    change(K2).await;
    let mut listed = client_of(&replica).await;
    let page = listed.list_endpoints(ListEndpointsRequest { page_size: 500, ..Default::default() }).await;
    let urls: BTreeSet<_> = page.expect("listed").into_inner().endpoints.into_iter().map(|one| one.url).collect();
    assert_eq!(urls.len(), ENDPOINTS + 1);
    assert!(urls.contains("http://u:p299@127.0.0.1:9/?q"));

    // And back: nothing is sealed.
    let settings =
        [("DATABASE_URL", url.as_str()), ("HOOKLANE_ENCRYPTION_KEYS", K2), ("HOOKLANE_ENCRYPTION_PLAINTEXT", "true")];
    replica.signal("TERM").await;
    replica.ended().await;
    replica = Replica::start(&url, &settings[1..]).await;
    load.move_to(&replica.grpc);
    let (code, output, error) = run(&["keys", "rotate"], &settings).await;
    assert!(code == Some(0) && output.contains("nothing is sealed"), "{output} {error}");
    assert_eq!(usage(&url).await, [(None, all)]);
    let (ids, _) = load.finish().await;
    settled(&client_of(&replica).await).await;
    tally.all_of(&ids).await;
    let log = replica.log();
    assert!(!log.contains("cannot be opened"), "{log}");
}

async fn client_of(replica: &Replica) -> Client {
    Client::connect(replica.grpc.clone()).await.expect("connects")
}

#[tokio::test]
async fn dev_keeps_a_key_beside_its_data() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("open");
    let data = dir.path().join("dev");
    let path = data.to_string_lossy().into_owned();
    let arguments = ["dev", "--data-dir", &path, "--grpc-addr", "127.0.0.1:0", "--ops-addr", "127.0.0.1:0"];
    let secret = "http://u:p@127.0.0.1:9/?q";
    let mut key = String::new();
    for round in 0..2 {
        let mut replica = Replica::start_as(&arguments, &[]).await;
        let mut client = client_of(&replica).await;
        if round == 0 {
            let request = RegisterEndpointRequest { endpoint: Some(endpoint(secret)), secret: String::new() };
            client.register_endpoint(request).await.expect("registered");
        }
        let page = client.list_endpoints(ListEndpointsRequest::default()).await.expect("listed").into_inner();
        assert_eq!(page.endpoints[0].url, secret);
        let file = data.join("encryption.keys");
        assert_eq!(std::fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
        let now = std::fs::read_to_string(file).expect("readable");
        assert!(round == 0 || now == key, "the key stays");
        key = now;
        replica.signal("TERM").await;
        assert_eq!(replica.ended().await.code(), Some(0), "{}", replica.log());
    }
}
