//! `hooklane verify` on requests of the real service, as a program.

use std::io::Write as _;
use std::process::Stdio;

use hooklane::api::proto::SignatureScheme;
use hooklane::cli::listen::{Behaviour, Received};
use tempfile::NamedTempFile;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::super::{KEY, SECRET, endpoint, event_of, receiver, service, soon};
use super::SCHEMES;

const STRANGER: &str = "whsec_ICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICA=";

/// Exit code, standard output and standard error.
async fn verify(arguments: &[&str], variables: &[(&str, &str)], input: &[u8]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hooklane"));
    command.arg("verify").args(arguments).env_clear().envs(variables.iter().copied()).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it runs");
    // It may well end without having read it.
    let _ = child.stdin.take().expect("piped").write_all(input).await;
    let output = soon("the command's end", child.wait_with_output()).await.expect("it ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// The request as it went over the wire.
fn dump(received: &Received, body: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("a file");
    write!(file, "{} {} HTTP/1.1\r\n", received.method, received.path).expect("written");
    for (name, value) in &received.headers {
        write!(file, "{name}: {}\r\n", value.to_str().expect("text")).expect("written");
    }
    file.write_all(b"\r\n").expect("written");
    file.write_all(body).expect("written");
    file
}

#[tokio::test]
async fn a_captured_request_of_each_scheme_is_verified_and_a_changed_one_is_not() {
    let service = service().await;
    let receiver = receiver(Behaviour::default()).await;
    for scheme in SCHEMES {
        let mut wanted = endpoint(&receiver.url());
        wanted.set_signature_scheme(scheme);
        let is_ed25519 = scheme == SignatureScheme::StandardWebhooksEd25519;
        let registered = service.register_with(wanted, if is_ed25519 { KEY } else { SECRET }).await;
        let request =
            hooklane::api::proto::PublishRequest { endpoint_ids: vec![registered.id], ..event_of("{\"n\":1}") };
        service.publish(request).await;
        let received = receiver.next().await.expect("a request");
        let name = scheme.as_str_name().trim_start_matches("SIGNATURE_SCHEME_");
        let secret = if is_ed25519 { registered.public_key } else { SECRET.to_owned() };

        let file = dump(&received, &received.body);
        let file = file.path().to_str().expect("text");
        let (code, found, words) = verify(&["--request", file, "--secret", &secret], &[], b"").await;
        assert_eq!((code, words.as_str()), (Some(0), ""), "{found}");
        assert!(found.starts_with(&format!("scheme     {name}, in ")) && found.ends_with("\nverified\n"), "{found}");
        assert!(found.contains("signature  1 of 1 is by secret 1 of 1\n") && !found.contains(&secret), "{found}");

        // In parts, by the environment, the body on standard input.
        let headers: Vec<_> = ["x-webhook-signature", "webhook-id", "webhook-timestamp", "webhook-signature"]
            .into_iter()
            .filter_map(|name| Some(format!("{name}: {}", received.headers.get(name)?.to_str().expect("text"))))
            .flat_map(|line| ["--header".to_owned(), line])
            .collect();
        let headers: Vec<_> = headers.iter().map(String::as_str).collect();
        let two = format!("{STRANGER},{secret}");
        let (code, found, _) = verify(&headers, &[("HOOKLANE_SECRET", &two)], &received.body).await;
        assert_eq!((code, found.contains("is by secret 2 of 2\n")), (Some(0), true), "{found}");
        let (code, found, words) = verify(&headers, &[("HOOKLANE_SECRET", &two)], b"{\"n\":2}").await;
        assert_eq!(code, Some(1), "{found}{words}");
        assert!(words.starts_with("hooklane: not verified: ") && words.contains("not byte for byte"), "{words}");

        let changed = [&received.body[..], b"\n"].concat();
        let (code, _, words) = verify(&headers, &[("HOOKLANE_SECRET", &two)], &changed).await;
        assert_eq!(code, Some(1), "{words}");
        assert!(words.contains("the signature is good without the newline at its end"), "{words}");
        let (code, _, words) = verify(&["--request", file, "--secret", STRANGER], &[], b"").await;
        assert_eq!(code, Some(1), "{words}");
        assert!(words.contains(if is_ed25519 { "no secret is an Ed25519 key" } else { "the secret is another one" }));

        let has_time = !matches!(scheme, SignatureScheme::BodySha256 | SignatureScheme::BodyHex);
        let late = ["--request", file, "--secret", &secret, "--now", "2100-01-01T00:00:00Z"];
        let (code, _, words) = verify(&late, &[], b"").await;
        assert_eq!(
            (code, words.contains("the signature is good, but was made ")),
            (Some(i32::from(has_time)), has_time)
        );
        let ignored = ["--request", file, "--secret", &secret, "--ignore-time"];
        assert_eq!(verify(&ignored, &[], b"").await.0, Some(0));
    }
}

#[tokio::test]
async fn what_cannot_be_verified_at_all_is_bad_usage() {
    let header = ["--header", "x-webhook-signature: t=1,v1=00"];
    for (arguments, words) in [
        (vec![], "no secret; allowed are --secret, --secret-file and HOOKLANE_SECRET"),
        (vec!["--secret", SECRET], "no request; allowed are --header, --headers-file and --request"),
        (vec!["--secret", SECRET, "--request", "/nowhere"], "--request /nowhere: "),
        (vec!["--secret", "short", header[0], header[1]], "--secret is not a secret"),
        (vec!["--secret", SECRET, "--header", "nonsense"], "is no header; allowed is 'Name: value'"),
        (vec!["--secret", SECRET, header[0], header[1], "--now", "soon"], "is no time"),
        (vec!["--secret", SECRET, header[0], header[1], "--request", "-"], "cannot be used with"),
    ] {
        let (code, found, told) = verify(&arguments, &[], b"").await;
        assert_eq!((code, found.as_str()), (Some(64), ""), "{told}");
        assert!(told.contains(words) && !told.contains("short"), "{words}: {told}");
    }
}
