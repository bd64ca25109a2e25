//! What commands say and exit with when something is wrong.

use super::Stage;
use crate::program::run;

const NOBODY: &str = "dlv_01h455vb4pex5vsknk084sn02q";

#[tokio::test]
async fn refusals_are_told_with_field_and_reason_and_exit_codes_tell_them_apart() {
    let stage = Stage::set(&[("HOOKLANE_LIMITS_PAYLOAD_BYTES", "100")]).await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "{}").expect("written");
    let nothing = file.path().display().to_string();
    let large = format!("{{\"a\": \"{}\"}}", "x".repeat(200));
    for (arguments, code, parts) in [
        (&["endpoint", "add", "ftp://x"][..], 64, &["INVALID_FIELD", "\n  URL ", "allowed are https and http"][..]),
        (&["endpoint", "add", "not a url", "--timeout", "0s"], 64, &["\n  URL ", "\n  --timeout "]),
        (
            &["endpoint", "add", "http://a", "--rate", "-1", "--retry-jitter", "-2"],
            64,
            &["\n  --rate ", "\n  --retry-jitter "],
        ),
        (&["endpoint", "add", "--from", &nothing], 64, &["\n  endpoint.url "]),
        (&["endpoint", "update", NOBODY, "--retry-delays", "8d"], 64, &["\n  ID ", "\n  --retry-delays "]),
        (&["publish", "order paid", "{"], 64, &["\n  TYPE is not an event type", "\n  DATA "]),
        (
            &["publish", "a", "--endpoint", "ep_1", "--deliver", "1h", "--expire", "1m"],
            64,
            &["--endpoint ", "--expire "],
        ),
        (&["publish", "order.paid", &large], 64, &["RESOURCE_EXHAUSTED (PAYLOAD_TOO_LARGE)"]),
        (&["delivery", "show", "dlv_1"], 64, &["\n  ID "]),
        (&["delivery", "show", NOBODY], 1, &["NOT_FOUND (DELIVERY_NOT_FOUND)", NOBODY]),
        (&["delivery", "list", "--state", "lost"], 64, &["--state", "in-flight"]),
        (&["delivery", "list", "--limit", "0"], 64, &["'0' for '--limit <N>': is not a whole number of 1 or more"]),
        (&["endpoint", "update", "ep_01h455vb4pex5vsknk084sn02q"], 64, &["nothing is named"]),
        (&["endpoint", "add"], 64, &["URL"]),
        (&["endpoint", "add", "--from", "/nowhere/at/all"], 64, &["/nowhere/at/all"]),
        (&["stats", "--window", "31d"], 64, &["\n  --window "]),
        (
            &["tail", "--kind", "failed", "--endpoint", "ep_1", "--event", "evt_1"],
            64,
            &["\n  --endpoint ", "\n  --event "],
        ),
        (&["alert", "list", "--endpoint", "ep_1"], 64, &["\n  --endpoint "]),
        (&["dlq", "list", "--endpoint", "ep_1", "--event-type", "*a"], 64, &["\n  --endpoint ", "\n  --event-type "]),
        (&["dlq", "purge", NOBODY, "--endpoint", "ep_1"], 64, &["--endpoint"]),
        (&["dlq", "purge", NOBODY, "dlv_1"], 64, &["\n  ID (number 2) "]),
        (&["dlq", "purge", "--endpoint", "ep_1", "--tenant", "*"], 64, &["\n  --tenant ", "\n  --endpoint "]),
        (&["dlq", "replay", "--event-type", "a", "--event-type", "*b"], 64, &["\n  --event-type (number 2) "]),
        (
            &["replay", "--endpoint", "ep_1", "--max-per-second", "-1"],
            64,
            &["\n  --endpoint ", "\n  --max-per-second "],
        ),
        (&["replay", "--delivery", "dlv_1", "--tenant", "a b"], 64, &["\n  --tenant ", "\n  --delivery "]),
        (&["replay", "--follow", "rpl_1"], 64, &["\n  --follow "]),
        (&["replay", "--cancel", "rpl_1"], 64, &["\n  --cancel "]),
    ] {
        let (exit, output, error) = stage.run(arguments).await;
        assert_eq!((exit, output.as_str()), (Some(code), ""), "{arguments:?} {error}");
        for part in parts {
            assert!(error.contains(part), "{part:?} in {error}");
        }
    }
}

#[tokio::test]
async fn a_full_queue_is_told_with_when_to_try_again() {
    let stage = Stage::set(&[("HOOKLANE_QUEUE_MAX_OUTSTANDING", "1")]).await;
    let endpoint = stage.add("http://127.0.0.1:1/", &[]).await;
    stage.done(&["endpoint", "pause", &endpoint]).await;
    let (code, error) = crate::support::eventually("the queue is full", || async {
        let (code, _, error) = stage.run(&["publish", "order.paid"]).await;
        (code != Some(0)).then_some((code, error))
    })
    .await;
    assert_eq!(code, Some(75), "{error}");
    assert!(error.contains("RESOURCE_EXHAUSTED (QUEUE_FULL)") && error.contains("; try again in "), "{error}");
}

#[tokio::test]
async fn a_service_that_is_not_there_is_told_and_is_no_fault_of_the_caller() {
    let nowhere = [("HOOKLANE_GRPC_ADDR", "127.0.0.1:1")];
    for arguments in [&["endpoint", "list"][..], &["publish", "a"], &["stats"], &["dlq", "list"], &["replay"]] {
        let (code, output, error) = run(arguments, &nowhere).await;
        assert_eq!((code, output.as_str()), (Some(69), ""), "{error}");
        assert!(error.contains("127.0.0.1:1 cannot be reached by http") && error.contains("refused"), "{error}");
    }
    let (code, _, error) = run(&["health", "--grpc"], &nowhere).await;
    assert!(code == Some(75) && error.contains("127.0.0.1:1"), "{error}");
    for bad in ["here", "ftp://a:1", "127.0.0.1:0"] {
        let (code, _, error) = run(&["stats", "--addr", bad], &[]).await;
        assert!(code == Some(64) && error.contains(bad) && error.contains("https://HOST:PORT"), "{error}");
    }
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_is_no_trouble() {
    let stage = Stage::set(&[]).await;
    for _ in 0..3 {
        stage.add("http://127.0.0.1:1/", &[]).await;
    }
    let program = env!("CARGO_BIN_EXE_hooklane");
    let line = format!("{program} endpoint list --json --addr {} | head -n 1", stage.addr());
    let output = tokio::process::Command::new("/bin/sh").args(["-c", &line]).output().await.expect("a shell");
    let (shown, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!((shown.lines().count(), error.as_ref()), (1, ""));
}
