//! Commits that were carried out and whose reply was lost: the caller cannot know, asks again with its key, and there is
//! one event.

use tonic::Code;

use crate::oracle::every_promise_holds;
use crate::scale::Scale;
use crate::stage::{Plan, Stage};
use crate::support::eventually;

const COUNTS: &str = "
select (select count(*) from events), (select count(distinct idempotency_key) from events),
       (select count(*) from deliveries)";

#[tokio::test]
async fn a_publish_whose_commit_was_not_told_makes_one_event_when_it_is_repeated() {
    let scale = Scale::of_this_run();
    let stage = Stage::start(Plan::default()).await;
    let load = stage.load();
    for lost in 1..=scale.lost_replies {
        load.acknowledge(scale.events / 10).await;
        stage.proxy.lose_replies(1);
        eventually("a reply is lost", || async { (stage.proxy.lost() == lost).then_some(()) }).await;
    }
    load.acknowledge(scale.events).await;
    let (ids, refusals) = load.finish().await;
    // Never that it was refused for good, and the service itself went on.
    assert_eq!(refusals.keys().collect::<Vec<_>>(), [&Code::Unavailable], "{refusals:?}");
    let (events, keys, deliveries): (i64, i64, i64) =
        sqlx::query_as(COUNTS).fetch_one(&mut stage.database().await).await.expect("counted");
    let acknowledged = i64::try_from(ids.len()).expect("a count");
    assert_eq!((events, keys, deliveries), (acknowledged, acknowledged, acknowledged));
    every_promise_holds(&stage, &ids, 0).await;
}
