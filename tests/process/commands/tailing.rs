//! `hooklane tail` beside a service that is killed and comes back.

use std::process::Stdio;

use hooklane::cli::listen::Behaviour;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::{Stage, receiver};
use crate::program::{PATIENCE, Replica};

/// A running `hooklane tail --json`.
struct Tail {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Tail {
    fn start(addr: &str, flags: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hooklane"));
        command.args(["tail", "--json", "--addr", addr]).args(flags).env_clear();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("it runs");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { child, lines }
    }

    /// Event, kind and the token of the next line.
    async fn next(&mut self) -> (String, String, String) {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await.expect("something happens");
        let line: Value = serde_json::from_str(&line.expect("text").expect("a line")).expect("JSON");
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        (text(&line["event"]["delivery"]["id"]), text(&line["event"]["kind"]), text(&line["resumeToken"]))
    }
}

fn kind(name: &str) -> String {
    format!("DELIVERY_EVENT_KIND_{name}")
}

#[tokio::test]
async fn a_tail_outlives_the_service_that_is_killed_and_misses_nothing() {
    let mut stage = Stage::set(&[]).await;
    let receiver = receiver(Behaviour::default()).await;
    stage.add(&receiver.url(), &[]).await;
    let addr = stage.addr().to_owned();
    let first = stage.publish("order.created").await;
    stage.reaches(&first, "SUCCEEDED").await;
    let mut tail = Tail::start(&addr, &["--since", "1h", "--kind", "queued", "--kind", "succeeded"]);
    assert_eq!(tail.next().await.0, first);
    assert_eq!(tail.next().await.1, kind("SUCCEEDED"));

    // Killed; what happens while the tail is away is told when it is back. It comes back to the same address.
    stage.replica.signal("KILL").await;
    stage.replica.ended().await;
    let elsewhere = Replica::start(&stage.url, &[]).await;
    let published = crate::program::run(
        &["publish", "order.paid", "--json"],
        &[("HOOKLANE_GRPC_ADDR", elsewhere.grpc.trim_start_matches("http://"))],
    )
    .await;
    let published: Value = serde_json::from_str(&published.1).expect("JSON");
    let second = published["deliveries"][0]["deliveryId"].as_str().expect("a delivery").to_owned();
    stage.replica = Replica::start(&stage.url, &[("HOOKLANE_GRPC_ADDR", &addr)]).await;
    let (queued, what, _) = tail.next().await;
    assert_eq!((queued, what), (second.clone(), kind("QUEUED")));
    let (succeeded, what, token) = tail.next().await;
    assert_eq!((succeeded, what), (second, kind("SUCCEEDED")));
    let third = stage.publish("order.shipped").await;
    assert_eq!(tail.next().await.0, third, "it goes on live");

    // Another one goes on from any message of it.
    let mut later = Tail::start(&addr, &["--resume-token", &token, "--count", "2"]);
    let told = [later.next().await, later.next().await];
    assert!(told.iter().all(|(delivery, ..)| *delivery == third), "{told:?}");
    let ended = tokio::time::timeout(PATIENCE, later.child.wait()).await.expect("it ends").expect("a status");
    assert_eq!(ended.code(), Some(0));
}

#[tokio::test]
async fn a_tail_shows_what_it_is_asked_for_and_ends_by_a_signal_with_a_token() {
    let stage = Stage::set(&[]).await;
    let failing = receiver(Behaviour { fail_first: 1, ..Behaviour::default() }).await;
    let endpoint = stage.add(&failing.url(), &["--retry-delays", "1ms"]).await;
    let delivery = stage.publish("order.created").await;
    stage.publish("user.created").await;
    stage.reaches(&delivery, "SUCCEEDED").await;
    let shown =
        stage.done(&["tail", "--since", "1h", "--event-type", "order.*", "--endpoint", &endpoint, "-n", "3"]).await;
    let lines: Vec<_> = shown.lines().collect();
    assert!(lines.iter().all(|line| line.contains(&delivery) && line.contains("order.created")), "{shown}");
    assert!(lines[0].contains("  QUEUED ") && lines[1].contains("ATTEMPT_FAILED"), "{shown}");
    assert!(lines[1].contains("HTTP 503") && lines[1].contains("; next in "), "{shown}");
    assert!(lines[2].contains("SUCCEEDED") && lines[2].contains("attempt 2: 200"), "{shown}");

    let mut tail = Tail::start(stage.addr(), &["--since", "1h", "--delivery", &delivery]);
    tail.next().await;
    let id = tail.child.id().expect("it runs").to_string();
    let killed = Command::new("/bin/sh").args(["-c", "kill -s INT \"$1\"", "sh", &id]).status().await;
    assert!(killed.expect("a shell").success());
    let ended = tokio::time::timeout(PATIENCE, tail.child.wait_with_output()).await.expect("it ends").expect("output");
    let note = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.code() == Some(0) && note.contains("--resume-token "), "{note}");

    let (code, _, error) = stage.run(&["tail", "--resume-token", "forged"]).await;
    assert!(code == Some(64) && error.contains("RESUME_TOKEN_INVALID"), "{error}");
}
