//! What is sent, in the eyes of others: the examples of receivers, `hooklane verify`, and libraries that are not ours.
//!
//! Here is what these groups share: requests as they arrived, and programs that judge them.

mod cloudevents;
mod command;
mod examples;
mod libraries;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hooklane::api::proto::SignatureScheme;
use hooklane::cli::listen::Received;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::soon;

const SCHEMES: [SignatureScheme; 5] = [
    SignatureScheme::Timestamped,
    SignatureScheme::StandardWebhooks,
    SignatureScheme::StandardWebhooksEd25519,
    SignatureScheme::BodySha256,
    SignatureScheme::BodyHex,
];

/// A path in this repository.
fn path(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)
}

/// Something that `.ci/setup test` installs.
fn tool(relative: &str) -> PathBuf {
    let tool = path("target/tools").join(relative);
    assert!(tool.exists(), "{} is missing: run `.ci/setup test`, as `make test` does", tool.display());
    tool
}

/// A request as the scripts read it.
fn captured(received: &Received) -> Value {
    let headers: serde_json::Map<_, _> = received
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), Value::from(value.to_str().expect("text"))))
        .collect();
    json!({"headers": headers, "body": BASE64.encode(&received.body)})
}

/// What a script says to these lines: JSON in, JSON out.
async fn answers(mut command: Command, lines: &[Value]) -> Vec<Value> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().expect("it runs");
    let mut input = child.stdin.take().expect("piped");
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    // Beside reading what it says: a full pipe would stop both.
    let writing = tokio::spawn(async move { input.write_all(text.as_bytes()).await });
    let output = soon("the end of a script", child.wait_with_output()).await.expect("it ends");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {words}", command.as_std());
    writing.await.expect("it runs").expect("it reads");
    let lines = String::from_utf8(output.stdout).expect("text");
    lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// A Python script beside this file, in the environment that has the libraries.
fn python(script: &str) -> Command {
    let mut command = Command::new(tool("venv/bin/python"));
    command.arg(path("tests/service/api/verifying").join(script));
    command
}
