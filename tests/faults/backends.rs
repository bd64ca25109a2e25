//! Connections of the service that the server ends at random, one a second.

use std::time::{Duration, Instant};

use tonic::Code;

use crate::oracle::every_promise_holds;
use crate::scale::Scale;
use crate::stage::{IN_FLIGHT_MAX, Plan, Stage};

const END_ONE: &str = "
select pg_terminate_backend(pid) from pg_stat_activity
where application_name = 'hooklane' and pid <> pg_backend_pid() order by random() limit 1";

#[tokio::test]
async fn connections_that_end_at_random_lose_nothing() {
    const REPLICAS: usize = 2;
    let scale = Scale::of_this_run();
    let stage = Stage::start(Plan { replicas: REPLICAS, ..Plan::default() }).await;
    let load = stage.load();
    load.acknowledge(scale.events).await;
    let mut database = stage.database().await;
    let mut every_second = tokio::time::interval(Duration::from_secs(1));
    let mut ended = 0;
    while ended < scale.terminations {
        every_second.tick().await;
        let was_one: Option<bool> = sqlx::query_scalar(END_ONE).fetch_optional(&mut database).await.expect("asked");
        ended += usize::from(was_one == Some(true));
    }
    stage.resumes(&load, Instant::now()).await;
    let (ids, refusals) = load.finish().await;
    assert!(refusals.keys().all(|code| *code == Code::Unavailable), "{refusals:?}");
    every_promise_holds(&stage, &ids, ended * REPLICAS * IN_FLIGHT_MAX).await;
}
