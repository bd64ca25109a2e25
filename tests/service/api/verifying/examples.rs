//! The receivers of `examples/verify` as programs: they take what the real service signs, and nothing else.

use std::net::SocketAddr;
use std::process::Stdio;

use hooklane::api::proto::{DeliveryState, PublishRequest, RotateSecretRequest, SignatureScheme};
use hooklane::domain::endpoint::SignatureScheme as Scheme;
use hooklane::domain::secret::Secret;
use hooklane::domain::signature::Signer;
use hooklane::domain::time::Timestamp;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::super::{KEY, SECRET, endpoint, event_of, seconds, service, soon};
use super::{path, tool};

const OTHER: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const OTHER_KEY: &str = "whsk_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const BODY: &[u8] = b"{\"n\":1}";

/// A running example; it ends with this.
struct Example {
    addr: SocketAddr,
    _child: Child,
}

impl Example {
    /// Starts it with [`SECRET`] and the public half of [`KEY`].
    async fn start(mut command: Command) -> Self {
        command.env("WEBHOOK_SECRET", format!("{SECRET},{}", public_key())).env("PORT", "0");
        // Python's server writes a line for each request to standard error.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().expect("it runs");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let first = soon("its first line", lines.next_line()).await.expect("text").expect("a line");
        // What it says of each request would fill the pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let addr = first.strip_prefix("listening http://").expect("an address").parse().expect("an address");
        Self { addr, _child: child }
    }

    /// What it answers to a request with those headers.
    async fn answer(&self, headers: &[(&str, String)], body: &[u8]) -> u16 {
        let mut request = format!("POST /hooks HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.addr);
        let ours = [("X-Webhook-ID", "dlv_1".to_owned()), ("X-Webhook-Event", "order.created".to_owned())];
        for (name, value) in ours.iter().chain(headers) {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
        let mut stream = TcpStream::connect(self.addr).await.expect("connects");
        stream.write_all(&[request.as_bytes(), body].concat()).await.expect("writes");
        let mut answer = Vec::new();
        soon("its answer", stream.read_to_end(&mut answer)).await.expect("reads");
        let answer = String::from_utf8_lossy(&answer).into_owned();
        answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{answer:?}"))
    }
}

fn public_key() -> String {
    let key = Secret::parse(KEY, Scheme::StandardWebhooksEd25519).expect("a key");
    key.public_key().expect("a key").to_string()
}

async fn takes_what_the_service_signs(example: &Example) {
    let service = service().await;
    let url = format!("http://{}/hooks", example.addr);
    let outcome = async |scheme: SignatureScheme, secret: &str, successor: Option<&str>| {
        let mut wanted = endpoint(&url);
        wanted.set_signature_scheme(scheme);
        let id = service.register_with(wanted, secret).await.id;
        if let Some(successor) = successor {
            let rotation = RotateSecretRequest {
                endpoint_id: id.clone(),
                secret: successor.to_owned(),
                overlap: Some(seconds(3_600)),
                ..RotateSecretRequest::default()
            };
            service.client.clone().rotate_secret(rotation).await.expect("rotated");
        }
        let published = service.publish(PublishRequest { endpoint_ids: vec![id], ..event_of("{\"n\":1}") }).await;
        let id = published.deliveries[0].delivery_id.clone();
        let settled = async {
            loop {
                let delivery = service.delivery(&id).await;
                if delivery.settle_time.is_some() {
                    break delivery;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        let delivery = soon("the delivery's end", settled).await;
        (delivery.state(), delivery.last_status_code, delivery.attempt_count)
    };
    for scheme in
        [SignatureScheme::Timestamped, SignatureScheme::StandardWebhooks, SignatureScheme::StandardWebhooksEd25519]
    {
        let is_ed25519 = scheme == SignatureScheme::StandardWebhooksEd25519;
        let (known, other) = if is_ed25519 { (KEY, OTHER_KEY) } else { (SECRET, OTHER) };
        let succeeded = (DeliveryState::Succeeded, 204, 1);
        assert_eq!(outcome(scheme, known, None).await, succeeded, "{scheme:?}");
        assert_eq!(outcome(scheme, known, Some(other)).await, succeeded, "{scheme:?} while two secrets overlap");
        assert_eq!(outcome(scheme, other, None).await, (DeliveryState::Failed, 401, 1), "{scheme:?}");
    }
}

async fn refuses_everything_else(example: &Example) {
    let now = jiff::Timestamp::now().as_second();
    for scheme in [Scheme::Timestamped, Scheme::StandardWebhooks, Scheme::StandardWebhooksEd25519] {
        let secret = Secret::parse(if scheme.is_ed25519() { KEY } else { SECRET }, scheme).expect("a secret");
        let signed =
            |time: i64| Signer::new(scheme, [&secret]).sign("evt_1", Timestamp::from_micros(time * 1_000_000), BODY);
        assert_eq!(example.answer(&signed(now), BODY).await, 204, "{scheme:?}");
        // Far from the edge of five minutes, so that no slow machine decides.
        assert_eq!(example.answer(&signed(now - 240), BODY).await, 204, "{scheme:?}");
        for (time, body) in [(now - 400, BODY), (now + 400, BODY), (now, &b"{\"n\":2}"[..]), (now, b"")] {
            assert_eq!(example.answer(&signed(time), body).await, 401, "{scheme:?} {}", time - now);
        }
    }
    // A public key is no secret.
    for scheme in [Scheme::Timestamped, Scheme::StandardWebhooks] {
        let forger = Secret::from_stored(public_key());
        let forged = Signer::new(scheme, [&forger]).sign("evt_1", Timestamp::from_micros(now * 1_000_000), BODY);
        assert_eq!(example.answer(&forged, BODY).await, 401, "{scheme:?}");
    }
    let signature = ("webhook-signature", "v1,AAAA".to_owned());
    let id = ("webhook-id", "evt_1".to_owned());
    for headers in [
        vec![],
        vec![("x-webhook-signature", "nonsense".to_owned())],
        vec![("x-webhook-signature", "v1=00".to_owned())],
        vec![signature.clone(), id.clone()],
        vec![signature, id, ("webhook-timestamp", "soon".to_owned())],
    ] {
        assert_eq!(example.answer(&headers, BODY).await, 400, "{headers:?}");
    }
}

async fn check(command: Command) {
    let example = Example::start(command).await;
    refuses_everything_else(&example).await;
    takes_what_the_service_signs(&example).await;
}

#[tokio::test]
async fn the_receiver_in_python_verifies() {
    let mut command = Command::new(tool("venv/bin/python"));
    command.arg(path("examples/verify/python/receiver.py"));
    check(command).await;
}

#[tokio::test]
async fn the_receiver_in_node_verifies() {
    let mut command = Command::new("node");
    command.arg(path("examples/verify/node/receiver.mjs"));
    check(command).await;
}

/// `cargo test` builds the examples beside the tests, and `cargo test --test service` takes the one that was built last.
#[tokio::test]
async fn the_receiver_in_rust_verifies() {
    let tests = std::env::current_exe().expect("a program");
    let program = tests.ancestors().nth(2).expect("a folder").join("examples/verify");
    assert!(program.exists(), "{} is missing: run `cargo build --example verify`", program.display());
    check(Command::new(program)).await;
}

#[test]
fn the_examples_are_short() {
    for file in ["python/receiver.py", "node/receiver.mjs", "rust/main.rs"] {
        let text = std::fs::read_to_string(path("examples/verify").join(file)).expect("readable");
        assert!(text.lines().count() <= 60, "{file}");
    }
}
