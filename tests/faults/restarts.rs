//! PostgreSQL that is restarted, and whose first process is killed, while the service works.

use std::time::Instant;

use hooklane::cli::postgres::RestartMode;
use tonic::Code;

use crate::oracle::every_promise_holds;
use crate::scale::Scale;
use crate::stage::{IN_FLIGHT_MAX, Plan, Stage};

#[tokio::test]
async fn a_database_that_is_restarted_or_killed_loses_nothing_and_the_service_resumes_by_itself() {
    const REPLICAS: usize = 2;
    let scale = Scale::of_this_run();
    let mut stage = Stage::start(Plan { replicas: REPLICAS, ..Plan::default() }).await;
    let load = stage.load();
    let modes = [
        (RestartMode::Fast, scale.restarts),
        (RestartMode::Immediate, scale.restarts),
        (RestartMode::Kill, scale.crashes),
    ];
    let mut restarts = 0;
    for (mode, times) in modes {
        for _ in 0..times {
            load.acknowledge(scale.events).await;
            stage.restart(mode).await;
            stage.resumes(&load, Instant::now()).await;
            restarts += 1;
        }
    }
    load.acknowledge(scale.events).await;
    let (ids, refusals) = load.finish().await;
    assert!(refusals.keys().all(|code| *code == Code::Unavailable), "{refusals:?}");
    assert!(stage.replicas.iter_mut().all(|replica| replica.runs()));
    every_promise_holds(&stage, &ids, restarts * REPLICAS * IN_FLIGHT_MAX).await;
}
