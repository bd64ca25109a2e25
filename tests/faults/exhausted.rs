//! No connection to be had: the server's are taken by others, or ours all wait for a lock.

use std::time::{Duration, Instant};

use sqlx::{Connection as _, PgConnection};
use tonic::Code;

use crate::oracle::every_promise_holds;
use crate::scale::Scale;
use crate::stage::{IN_FLIGHT_MAX, Plan, Stage};

#[tokio::test]
async fn a_server_whose_connections_are_taken_is_told_to_callers_and_work_resumes_by_itself() {
    let scale = Scale::of_this_run();
    let few = vec![("max_connections".to_owned(), "20".to_owned())];
    let stage = Stage::start(Plan { server_settings: few, ..Plan::default() }).await;
    let load = stage.load();
    let mut repeated = Vec::new();
    for time in 0..scale.exhaustions {
        load.acknowledge(scale.events).await;
        let mut looking = stage.database().await;
        let taken = take_all(&stage, &mut looking).await;
        stage.is_unavailable(&format!("refused-{time}")).await;
        assert_eq!(stage.replicas[0].look("/readyz").await, Some(503));
        drop(taken);
        stage.resumes(&load, Instant::now()).await;
        repeated.extend(stage.publish(&format!("refused-{time}")).await.expect("published"));
    }
    load.acknowledge(scale.events).await;
    let (mut ids, refusals) = load.finish().await;
    assert!(refusals.keys().all(|code| *code == Code::Unavailable), "{refusals:?}");
    ids.extend(repeated);
    every_promise_holds(&stage, &ids, scale.exhaustions * IN_FLIGHT_MAX).await;
}

/// Takes every connection that the server gives, its own among them: ends those of the service until it has none.
async fn take_all(stage: &Stage, looking: &mut PgConnection) -> Vec<PgConnection> {
    const END_ALL: &str =
        "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'hooklane'";
    let mut taken = Vec::new();
    let mut undisturbed = 0;
    while undisturbed < 20 {
        while let Ok(one) = PgConnection::connect(&stage.postgres.url("hooklane")).await {
            taken.push(one);
        }
        let ended: i64 = sqlx::query_scalar(END_ALL).fetch_one(&mut *looking).await.expect("asked");
        undisturbed = if ended == 0 { undisturbed + 1 } else { 0 };
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    taken
}

#[tokio::test]
async fn connections_that_all_wait_for_a_lock_are_told_to_callers_and_work_resumes_by_itself() {
    let scale = Scale::of_this_run();
    let stage = Stage::start(Plan::default()).await;
    let load = stage.load();
    let mut locking = stage.database().await;
    let mut repeated = Vec::new();
    for time in 0..scale.exhaustions {
        load.acknowledge(scale.events).await;
        let mut transaction = locking.begin().await.expect("begun");
        sqlx::query("lock table events, outstanding in access exclusive mode")
            .execute(&mut *transaction)
            .await
            .expect("locked");
        stage.is_unavailable(&format!("refused-{time}")).await;
        transaction.rollback().await.expect("rolled back");
        stage.resumes(&load, Instant::now()).await;
        repeated.extend(stage.publish(&format!("refused-{time}")).await.expect("published"));
    }
    load.acknowledge(scale.events).await;
    let (mut ids, refusals) = load.finish().await;
    assert!(refusals.keys().all(|code| *code == Code::Unavailable), "{refusals:?}");
    ids.extend(repeated);
    every_promise_holds(&stage, &ids, scale.exhaustions * IN_FLIGHT_MAX).await;
}
