//! Endpoints, events, deliveries, dead letters and figures from the command line, with real receivers.

use hooklane::cli::listen::Behaviour;
use http::StatusCode;

use super::{Stage, field, receiver, row};
use crate::support::eventually;

#[tokio::test]
async fn endpoints_are_added_listed_shown_changed_paused_and_deleted() {
    let stage = Stage::set(&[]).await;
    let receiver = receiver(Behaviour::default()).await;
    let url = format!("{}/hooks", receiver.url());
    let flags = ["--event-type", "order.*", "--timeout", "10s", "--retry-delays", "1m,5m", "--label", "team=shop"];
    let added = stage.done(&[&["endpoint", "add", &url], &flags[..]].concat()).await;
    let id = field(&added, "id").to_owned();
    assert!(field(&added, "secret ").starts_with("whsec_"), "{added}");
    assert_eq!((field(&added, "timeout"), field(&added, "event types")), ("10 s", "order.*"));
    assert!(field(&added, "retries").starts_with("60 s, 5 min"), "{added}");

    let listed = stage.done(&["endpoint", "list", "--label", "team=shop"]).await;
    assert_eq!(row(&listed, &id)[1..], ["ACTIVE", "CLOSED", "1.00", "order.*", &url]);
    assert_eq!(stage.done(&["endpoint", "list", "--state", "paused"]).await, "");

    assert_eq!(stage.done(&["endpoint", "pause", &id]).await, format!("{id} is PAUSED\n"));
    assert_eq!(field(&stage.done(&["endpoint", "show", &id]).await, "state"), "PAUSED");
    assert_eq!(stage.done(&["endpoint", "resume", &id]).await, format!("{id} is ACTIVE\n"));

    let changed = stage.json(&["endpoint", "update", &id, "--max-in-flight", "3", "--filter", "true"]).await.remove(0);
    assert_eq!((&changed["maxInFlight"], &changed["timeout"]), (&3.into(), &"10s".into()), "{changed}");
    let changed = stage.json(&["endpoint", "update", &id, "--clear", "filter"]).await.remove(0);
    assert_eq!((&changed["maxInFlight"], changed.get("filter")), (&3.into(), None), "{changed}");

    let (code, secret, note) = stage.run(&["endpoint", "rotate", &id, "--overlap", "1h"]).await;
    assert!(code == Some(0) && secret.starts_with("whsec_") && secret.lines().count() == 1, "{secret} {note}");
    assert!(note.contains("goes on signing until"), "{note}");
    assert!(stage.done(&["endpoint", "show", &id]).await.contains("version 2"));

    let (code, _, words) = stage.run(&["endpoint", "delete", &id]).await;
    assert!(code == Some(64) && words.contains("--yes"), "{words}");
    let deleted = stage.done(&["endpoint", "delete", &id, "--yes"]).await;
    assert_eq!(deleted, format!("{id} is deleted; canceled with it: 0\n"));
    assert_eq!(stage.done(&["endpoint", "list"]).await, "");
}

#[tokio::test]
async fn an_endpoint_is_added_from_what_another_was_shown_as() {
    let stage = Stage::set(&[]).await;
    let receiver = receiver(Behaviour::default()).await;
    let id = stage.add(&receiver.url(), &["--filter", "event.data.n > 0", "--ordering", "by-key"]).await;
    let shown = stage.json(&["endpoint", "show", &id]).await.remove(0);
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), shown.to_string()).expect("written");
    let path = file.path().to_str().expect("text");
    let copy = stage.json(&["endpoint", "add", "--from", path, "--description", "a copy"]).await.remove(0);
    let copy = &copy["endpoint"];
    assert_ne!(copy["id"], shown["id"]);
    assert_eq!(
        (&copy["url"], &copy["filter"], &copy["ordering"]),
        (&shown["url"], &shown["filter"], &shown["ordering"])
    );
    assert_eq!(copy["description"], "a copy");
}

#[tokio::test]
async fn an_endpoint_is_tested_and_the_exit_code_says_how_it_went() {
    let stage = Stage::set(&[]).await;
    let good = receiver(Behaviour::default()).await;
    let bad =
        receiver(Behaviour { status: Some(StatusCode::IM_A_TEAPOT), body: "short".into(), ..Behaviour::default() })
            .await;
    let id = stage.add(&good.url(), &[]).await;
    let tested = stage.done(&["endpoint", "test", &id, "--data", "{\"a\": 1}", "--event-type", "order.test"]).await;
    assert_eq!((field(&tested, "outcome"), field(&tested, "status")), ("SUCCEEDED", "200"));
    assert!(tested.contains("x-webhook-event: order.test"), "{tested}");
    let id = stage.add(&bad.url(), &[]).await;
    let (code, tested, words) = stage.run(&["endpoint", "test", &id]).await;
    assert_eq!((code, field(&tested, "status"), field(&tested, "body")), (Some(1), "418", "short"));
    assert!(words.contains("did not take it"), "{words}");
}

#[tokio::test]
async fn an_event_is_published_and_its_delivery_shown_with_every_attempt() {
    let stage = Stage::set(&[]).await;
    let receiver = receiver(Behaviour { fail_first: 1, ..Behaviour::default() }).await;
    let endpoint = stage.add(&receiver.url(), &["--retry-delays", "1ms"]).await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), r#"{"order": 1001}"#).expect("written");
    let data = format!("@{}", file.path().display());
    let publish = ["publish", "order.created", &data, "--idempotency-key", "one", "--metadata", "source=test"];
    let published = stage.done(&publish).await;
    assert!(published.starts_with("evt_"), "{published}");
    let delivery = row(&published, "dlv_")[0].to_owned();
    assert_eq!(row(&published, "dlv_"), [&delivery, &endpoint]);
    stage.reaches(&delivery, "SUCCEEDED").await;

    let shown = stage.done(&["delivery", "show", &delivery]).await;
    assert_eq!((field(&shown, "state"), field(&shown, "payload")), ("SUCCEEDED", r#"{"order": 1001}"#));
    assert_eq!((field(&shown, "metadata"), field(&shown, "idempotency key")), ("source=test", "one"));
    let attempts: Vec<_> = shown.lines().skip_while(|line| !line.contains("outcome")).skip(1).collect();
    assert_eq!(attempts.len(), 2, "{shown}");
    assert!(attempts[0].contains("HTTP_ERROR") && attempts[0].contains("503"), "{shown}");
    assert!(attempts[1].contains("SUCCEEDED") && attempts[1].contains("200"), "{shown}");
    assert!(stage.done(&["delivery", "show", &delivery, "--full"]).await.contains("received "));

    let (code, again, note) = stage.run(&publish).await;
    assert!(code == Some(0) && note.contains("a duplicate"), "{note}");
    assert_eq!(row(&again, "dlv_"), [&delivery, &endpoint, "duplicate"]);
    let (code, _, note) = stage.run(&["publish", "order.created", "--tenant", "another"]).await;
    assert!(code == Some(0) && note.contains("no endpoint wants it"), "{note}");
}

#[tokio::test]
async fn deliveries_are_listed_canceled_and_retried() {
    let stage = Stage::set(&[]).await;
    let receiver = receiver(Behaviour::default()).await;
    let endpoint = stage.add(&receiver.url(), &[]).await;
    stage.done(&["endpoint", "pause", &endpoint]).await;
    let first = stage.publish("order.created").await;
    let second = stage.publish("user.created").await;
    let listed = stage.done(&["delivery", "list", "--endpoint", &endpoint, "--state", "pending"]).await;
    assert_eq!(listed.lines().count(), 3, "{listed}");
    assert!(row(&listed, &first).contains(&"order.created") && row(&listed, &second).contains(&"PENDING"), "{listed}");
    let (_, listed, note) = stage.run(&["delivery", "list", "--limit", "1"]).await;
    assert!(listed.contains(&second) && !listed.contains(&first) && note.contains("--all"), "{listed} {note}");
    let all = stage.json(&["delivery", "list", "--event-type", "order.*", "--all"]).await;
    assert_eq!(all.iter().map(|one| &one["id"]).collect::<Vec<_>>(), [first.as_str()]);
    assert!(stage.json(&["delivery", "list", "--until", "1h"]).await.is_empty());

    let canceled = stage.done(&["delivery", "cancel", &first, &second]).await;
    assert!(canceled.contains(&format!("{first} is CANCELED")) && canceled.contains(&second), "{canceled}");
    stage.done(&["endpoint", "resume", &endpoint]).await;
    let retried = stage.done(&["delivery", "retry", &first]).await;
    assert!(retried.starts_with(&format!("{first} is ")) && !retried.contains("CANCELED"), "{retried}");
    stage.reaches(&first, "SUCCEEDED").await;
    assert_eq!(stage.reaches(&second, "CANCELED").await["id"], second.as_str());
}

#[tokio::test]
async fn dead_letters_are_listed_replayed_and_purged_and_stats_count_them() {
    let stage = Stage::set(&[]).await;
    let gone = receiver(Behaviour { status: Some(StatusCode::NOT_FOUND), ..Behaviour::default() }).await;
    let endpoint = stage.add(&gone.url(), &[]).await;
    let delivery = stage.publish("order.created").await;
    stage.reaches(&delivery, "FAILED").await;
    let listed = stage.done(&["dlq", "list", "--endpoint", &endpoint]).await;
    assert!(row(&listed, &delivery).contains(&"order.created") && listed.contains("HTTP 404"), "{listed}");
    let letter = stage.json(&["dlq", "list", "--event-type", "order.*"]).await.remove(0);
    assert_eq!((&letter["deliveryId"], &letter["payload"]), (&delivery.as_str().into(), &"eyJuIjoxfQ==".into()));

    let stats = eventually("it is counted", || async {
        let stats = stage.json(&["stats", "--window", "10m"]).await.remove(0);
        (stats["failed"] == "1").then_some(stats)
    })
    .await;
    assert_eq!((&stats["deadLetters"], &stats["endpoints"][0]["endpointId"]), (&"1".into(), &endpoint.as_str().into()));
    let stats = stage.done(&["stats"]).await;
    assert_eq!((field(&stats, "dead letters"), field(&stats, "success rate")), ("1", "0.0 %"));
    assert_eq!(row(&stats, &endpoint)[2..4], ["0", "1"], "{stats}");

    let counted = stage.done(&["dlq", "replay", "--dry-run"]).await;
    assert!(counted.contains("1 delivery matches; nothing was replayed"), "{counted}");
    let replayed = stage.json(&["dlq", "replay", "--endpoint", &endpoint]).await;
    let last = replayed.last().expect("a line");
    assert_eq!((&last["state"], &last["replayed"]), (&"REPLAY_STATE_COMPLETED".into(), &"1".into()), "{last}");
    let again = eventually("it has failed once more", || async {
        let shown = stage.json(&["delivery", "show", &delivery]).await.remove(0);
        (shown["state"] == "DELIVERY_STATE_FAILED" && shown["attemptCount"] == 2).then_some(shown)
    })
    .await;
    assert_eq!(again["attempts"][1]["trigger"], "ATTEMPT_TRIGGER_REPLAY", "{again}");

    for which in [&[][..], &["--endpoint", &endpoint]] {
        let (code, counted, note) = stage.run(&[&["dlq", "purge"], which].concat()).await;
        assert_eq!((code, counted.as_str()), (Some(0), "1 dead letter matches; none was removed\n"), "{note}");
        assert!(note.contains("--force"), "{note}");
        let counted = stage.json(&[&["dlq", "purge"], which].concat()).await.remove(0);
        assert_eq!((&counted["matched"], counted.get("deleted")), (&"1".into(), None), "{counted}");
    }
    let purged = stage.json(&["dlq", "purge", "--endpoint", &endpoint, "--force"]).await.remove(0);
    assert_eq!((&purged["matched"], &purged["deleted"]), (&"1".into(), &"1".into()));
    assert_eq!(stage.done(&["dlq", "list"]).await, "");
    stage.reaches(&delivery, "FAILED").await;
    let (code, _, words) = stage.run(&["dlq", "purge", "--force"]).await;
    let is_told = words.contains("--endpoint, --event-type or --until, or --tenant") && !words.contains("delivery_ids");
    assert!(code == Some(64) && is_told, "everything is not purged for want of a filter: {words}");
}
