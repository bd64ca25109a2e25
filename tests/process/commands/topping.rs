//! `hooklane top`, as one picture.

use hooklane::cli::listen::Behaviour;

use super::{Stage, receiver};
use crate::support::eventually;

#[tokio::test]
async fn a_picture_of_lanes_rates_and_trouble() {
    let stage = Stage::set(&[]).await;
    let receiver = receiver(Behaviour::default()).await;
    let waiting = stage.add(&receiver.url(), &["--event-type", "order.*"]).await;
    stage.done(&["endpoint", "pause", &waiting]).await;
    let busy = stage.add(&receiver.url(), &["--event-type", "user.*"]).await;
    stage.publish("order.created").await;
    let delivery = stage.publish("user.created").await;
    stage.reaches(&delivery, "SUCCEEDED").await;
    let picture = eventually("both are counted", || async {
        let picture = stage.done(&["top", "--once"]).await;
        let has = |id: &str| picture.lines().any(|line| line.starts_with(id));
        (has(&waiting) && has(&busy) && picture.contains("1 succeeded")).then_some(picture)
    })
    .await;
    assert!(picture.contains("1 outstanding") && picture.contains("0/s queued"), "{picture}");
    let lanes: Vec<_> = picture.lines().filter(|line| line.starts_with("ep_")).collect();
    assert!(lanes[0].starts_with(&waiting) && lanes[0].contains("PAUSED"), "most outstanding first: {picture}");
    assert!(lanes[1].contains("ACTIVE    CLOSED") && lanes[1].contains("100.0 %"), "{picture}");
    assert!(lanes[1].contains(&receiver.url()), "{picture}");
}

#[tokio::test]
async fn without_a_terminal_it_says_what_to_do_instead() {
    let stage = Stage::set(&[("HOOKLANE_AUTH", "api-key")]).await;
    let (code, _, error) = stage.run(&["top"]).await;
    assert!(code == Some(64) && error.contains("--once"), "{error}");
    let (code, _, error) = stage.run(&["top", "--once"]).await;
    assert!(code == Some(1) && error.contains("CREDENTIAL_MISSING"), "{error}");
    let (code, _, error) = stage.run(&["top", "--once", "--every", "0s"]).await;
    assert!(code == Some(64) && error.contains("1s to 1h"), "{error}");
}
