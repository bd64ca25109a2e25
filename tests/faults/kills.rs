//! Replicas that are killed, one after the other, while all of them work.

use std::time::Instant;

use crate::load::Load;
use crate::oracle::every_promise_holds;
use crate::record::Answers;
use crate::scale::Scale;
use crate::stage::{IN_FLIGHT_MAX, Plan, Stage, is_of_a_broken_connection};
use crate::support::eventually;

#[tokio::test]
async fn killed_replicas_lose_nothing_that_was_acknowledged() {
    let scale = Scale::of_this_run();
    let mut stage = Stage::start(Plan { replicas: 3, ..Plan::default() }).await;
    let load = stage.load();
    let mut in_flight = 0;
    for kill in 0..scale.kills {
        acknowledge(&load, scale.kill_events * (kill + 1) / (scale.kills + 1)).await;
        let mut victim = kill % 3;
        if kill % 2 == 0 {
            // With requests that are certainly under way.
            stage.record.answer(Answers::SILENT);
            let before = stage.record.count();
            eventually("a request is held", || async { (stage.record.count() > before).then_some(()) }).await;
            victim = stage.busiest().await;
        }
        in_flight += stage.kill(victim).await;
        stage.record.answer(Answers::BUSY);
        load.spread_over(stage.addresses());
    }
    acknowledge(&load, scale.kill_events).await;
    let over = Instant::now();
    stage.resumes(&load, over).await;
    let (ids, refusals) = load.finish().await;
    assert!(ids.len() >= scale.kill_events);
    assert!(refusals.keys().all(|code| is_of_a_broken_connection(*code)), "{refusals:?}");
    assert!((1..=scale.kills * 4 * IN_FLIGHT_MAX).contains(&in_flight), "{in_flight} attempts were in flight");
    every_promise_holds(&stage, &ids, in_flight).await;
}

/// Waits until so many events are acknowledged in all.
async fn acknowledge(load: &Load, total: usize) {
    load.acknowledge(total.saturating_sub(load.count())).await;
}
