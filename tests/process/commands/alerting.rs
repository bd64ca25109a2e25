//! Alerts and events from the command line.

use hooklane::cli::listen::Behaviour;
use http::StatusCode;

use super::{Stage, field, receiver, row};
use crate::support::eventually;

#[tokio::test]
async fn alerts_are_listed_and_acknowledged() {
    let stage = Stage::set(&[]).await;
    let gone = receiver(Behaviour { status: Some(StatusCode::GONE), ..Behaviour::default() }).await;
    let endpoint = stage.add(&gone.url(), &[]).await;
    let delivery = stage.publish("order.created").await;
    stage.reaches(&delivery, "FAILED").await;
    let listed = eventually("the alert is open", || async {
        let listed = stage.done(&["alert", "list", "--open", "--kind", "endpoint-disabled"]).await;
        (!listed.is_empty()).then_some(listed)
    })
    .await;
    let alert = row(&listed, "alr_")[0].to_owned();
    assert!(listed.contains("ENDPOINT_DISABLED") && listed.contains(&endpoint) && listed.contains("open"), "{listed}");
    assert_eq!(stage.done(&["alert", "ack", &alert]).await, format!("{alert} was seen by somebody\n"));
    let shown = stage.json(&["alert", "list", "--endpoint", &endpoint, "--kind", "endpoint-disabled"]).await.remove(0);
    assert!(shown["id"] == alert.as_str() && shown["acknowledgeTime"].is_string(), "{shown}");
    stage.done(&["endpoint", "resume", &endpoint]).await;
    eventually("it closes", || async {
        let open = stage.done(&["alert", "list", "--open", "--kind", "endpoint-disabled"]).await;
        open.is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_event_is_shown_with_its_deliveries() {
    let stage = Stage::set(&[]).await;
    let receiver = receiver(Behaviour::default()).await;
    let (one, other) = (stage.add(&receiver.url(), &[]).await, stage.add(&receiver.url(), &[]).await);
    let published = stage.json(&["publish", "order.created", "{\"n\": 1}", "--priority", "high"]).await.remove(0);
    let event = published["eventId"].as_str().expect("an id");
    let shown = stage.done(&["event", "show", event]).await;
    assert_eq!((field(&shown, "payload"), field(&shown, "priority")), ("{\"n\": 1}", "high"));
    assert!(shown.contains(&one) && shown.contains(&other), "{shown}");
    let shown = stage.json(&["event", "show", event]).await.remove(0);
    assert_eq!((&shown["event"]["id"], shown["deliveries"].as_array().map(Vec::len)), (&event.into(), Some(2)));
}
