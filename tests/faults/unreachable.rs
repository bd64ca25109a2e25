//! A database that cannot be reached, with nobody told: the link swallows every packet.

use std::time::{Duration, Instant};

use tonic::Code;

use crate::oracle::every_promise_holds;
use crate::scale::Scale;
use crate::stage::{Plan, Stage};
use crate::support::eventually;

/// By when a probe sees it.
const UNREADY_WITHIN: Duration = Duration::from_secs(6);

/// Of the event that is published in silence, and again after it.
const KEY: &str = "asked-in-silence";

#[tokio::test]
async fn an_unreachable_database_is_told_to_callers_and_work_resumes_by_itself() {
    const REPLICAS: usize = 2;
    let scale = Scale::of_this_run();
    let stage = Stage::start(Plan { replicas: REPLICAS, ..Plan::default() }).await;
    let load = stage.load();
    load.acknowledge(scale.events).await;

    stage.proxy.go_silent();
    let silent_since = Instant::now();
    for replica in &stage.replicas {
        eventually("a replica is unready", || async { (replica.look("/readyz").await == Some(503)).then_some(()) })
            .await;
    }
    assert!(silent_since.elapsed() < UNREADY_WITHIN, "unready after {:?}", silent_since.elapsed());
    // Probes go on, as they do in production: none may cost a connection for good.
    for replica in &stage.replicas {
        for _ in 0..2 {
            assert_eq!(replica.look("/livez").await, Some(200));
            assert_eq!(replica.look("/readyz").await, Some(503));
        }
    }
    stage.is_unavailable(KEY).await;
    tokio::time::sleep(scale.unreachable.saturating_sub(silent_since.elapsed())).await;
    // What was claimed when the link broke stands as it did, nobody could change it; and nothing is sent any more.
    let (in_flight, acknowledged, arrived) = (stage.in_flight().await, load.count(), stage.record.count());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let later = (stage.in_flight().await, load.count(), stage.record.count());
    assert_eq!(later, (in_flight, acknowledged, arrived), "something got through");

    stage.proxy.come_back();
    stage.resumes(&load, Instant::now()).await;
    let published = stage.publish(KEY).await.expect("published");
    load.acknowledge(scale.events).await;
    let (mut ids, refusals) = load.finish().await;
    ids.extend(published);
    assert!(refusals.keys().all(|code| *code == Code::Unavailable), "{refusals:?}");
    every_promise_holds(&stage, &ids, in_flight).await;
}
