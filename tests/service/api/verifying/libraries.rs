//! Signatures by libraries that receivers use: `stripe`, `standardwebhooks` and `cryptography` of PyPI, `standardwebhooks`
//! of npm, Node's own Ed25519; and by the contract's table, written down once more in Python.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hooklane::api::proto::{PayloadFormat, PublishRequest, RotateSecretRequest, SignatureScheme};
use hooklane::cli::listen::{Behaviour, Receiver};
use hooklane::domain::secret::Secret;
use serde_json::{Value, json};
use tokio::process::Command;

use super::super::{KEY, SECRET, Service, endpoint, event_of, receiver, seconds, service};
use super::{SCHEMES, answers, captured, path, python, tool};

const OTHER: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const OTHER_KEY: &str = "whsk_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

const CONTENTS: [(&str, &[u8]); 4] = [
    ("application/json", "{ \"name\":\"Zoë \\u00e9\",\n \"n\":1.0 }".as_bytes()),
    ("text/plain; charset=utf-8", "Zoë, 17 €\r\n".as_bytes()),
    ("application/octet-stream", b"\x00\xff\xfe\n{}"),
    ("text/plain", b""),
];

/// A request with a secret, and whether that one must fit.
struct Case {
    line: Value,
    scheme: SignatureScheme,
    is_text: bool,
    is_good: bool,
}

/// The request and cases made of it: what fits, what does not, and another body.
async fn cases(
    service: &Service,
    receiver: &Receiver,
    scheme: SignatureScheme,
    request: PublishRequest,
    (good, bad): (&[&str], &[&str]),
) -> Vec<Case> {
    service.publish(request).await;
    let received = receiver.next().await.expect("a request");
    let case = |secret: &str, is_good: bool, body: &[u8]| {
        let mut line = captured(&received);
        line["scheme"] = json!(scheme.as_str_name().trim_start_matches("SIGNATURE_SCHEME_"));
        line["secret"] = json!(secret);
        line["body"] = json!(BASE64.encode(body));
        Case { line, scheme, is_text: str::from_utf8(body).is_ok(), is_good }
    };
    let changed = [&received.body[..], b" "].concat();
    let mut cases: Vec<_> = good.iter().map(|secret| case(secret, true, &received.body)).collect();
    cases.extend(bad.iter().map(|secret| case(secret, false, &received.body)));
    cases.extend(good.iter().map(|secret| case(secret, false, &changed)));
    cases
}

/// Which libraries judge a case.
fn judges(case: &Case) -> Vec<&'static str> {
    let mut judges = match case.scheme {
        SignatureScheme::Timestamped => vec!["hmac_of", "stripe"],
        SignatureScheme::StandardWebhooks => vec!["hmac_of", "npm standardwebhooks", "standardwebhooks"],
        SignatureScheme::StandardWebhooksEd25519 => vec!["cryptography", "node:crypto"],
        _ => vec!["hmac_of"],
    };
    judges.retain(|library| case.is_text || !["stripe", "standardwebhooks", "npm standardwebhooks"].contains(library));
    judges
}

#[tokio::test]
async fn libraries_that_receivers_use_accept_what_is_sent_and_nothing_else() {
    let service = service().await;
    let receiver = receiver(Behaviour::default()).await;
    let mut all = Vec::new();
    for (scheme, format) in SCHEMES
        .into_iter()
        .flat_map(|scheme| [PayloadFormat::Envelope, PayloadFormat::Raw].map(|format| (scheme, format)))
    {
        let is_ed25519 = scheme == SignatureScheme::StandardWebhooksEd25519;
        let (first, second) = if is_ed25519 { (KEY, OTHER_KEY) } else { (SECRET, OTHER) };
        let mut wanted = endpoint(&receiver.url());
        wanted.set_signature_scheme(scheme);
        wanted.set_payload_format(format);
        let registered = service.register_with(wanted, first).await;
        // A receiver knows a secret, or the public key that the endpoint shows.
        let known = |secret: &str, public_key: String| if is_ed25519 { public_key } else { secret.to_owned() };
        let first = known(first, registered.public_key);
        let stranger = Secret::from_seed(&[9; 32]).public_key().expect("a key").to_string();
        let stranger = known("whsec_ICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICA=", stranger);
        let request = |(content_type, payload): (&str, &'static [u8])| PublishRequest {
            endpoint_ids: vec![registered.id.clone()],
            content_type: content_type.to_owned(),
            ..event_of(payload)
        };
        for content in CONTENTS {
            let known: (&[&str], &[&str]) = (&[&first], &[&stranger]);
            all.extend(cases(&service, &receiver, scheme, request(content), known).await);
        }
        let rotation = RotateSecretRequest {
            endpoint_id: registered.id.clone(),
            secret: second.to_owned(),
            overlap: Some(seconds(3_600)),
            ..RotateSecretRequest::default()
        };
        let rotated = service.client.clone().rotate_secret(rotation).await.expect("rotated").into_inner();
        let second = known(second, rotated.endpoint.expect("it").public_key);
        let both: [&str; 2] = [&second, &first];
        let fit = if matches!(scheme, SignatureScheme::BodySha256 | SignatureScheme::BodyHex) { 1 } else { 2 };
        let (good, former) = both.split_at(fit);
        let bad: Vec<_> = former.iter().copied().chain([stranger.as_str()]).collect();
        all.extend(cases(&service, &receiver, scheme, request(CONTENTS[0]), (good, &bad)).await);
    }

    let lines: Vec<_> = all.iter().map(|case| case.line.clone()).collect();
    let mut node = Command::new("node");
    node.arg(path("tests/service/api/verifying/libraries.mjs"))
        .arg(tool("node_modules/standardwebhooks").join("../.."));
    let mut verdicts = answers(python("libraries.py"), &lines).await;
    verdicts.extend(answers(node, &lines).await);
    for (number, case) in all.iter().enumerate() {
        let of_case = verdicts.iter().filter(|verdict| verdict["case"] == number);
        let mut told: Vec<_> = of_case
            .map(|verdict| {
                (verdict["library"].as_str().expect("a name"), verdict["is_good"].as_bool().expect("a verdict"))
            })
            .collect();
        told.sort_unstable();
        let expected: Vec<_> = judges(case).into_iter().map(|library| (library, case.is_good)).collect();
        assert_eq!(told, expected, "{}", case.line);
    }
}
