//! Which ways through the model are taken in the database: every one of a few steps, long ones at random, and those on
//! which a wrong protocol breaks.

use std::collections::{HashMap, VecDeque};

use futures::future::join_all;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use stateright::Model as _;

use crate::check::{NOTHING, WRONG, way_to_break, world};
use crate::protocol::{Action, Budget, Protocol, State};
use crate::replay::Replay;
use crate::rows::Rule;

/// How far every way is followed.
const DEPTH: usize = 8;
/// Databases that are worked on at once.
const SIDE_BY_SIDE: usize = 4;

/// The shortest way to each state within [`DEPTH`] steps, and every other step between two of them, unless it is the
/// beginning of a longer way.
fn every_way(model: &Protocol) -> Vec<Vec<Action>> {
    let start = model.init_states().remove(0);
    let mut queue = VecDeque::from([(start.clone(), Vec::new())]);
    let mut seen: HashMap<State, ()> = HashMap::from([(start.representative(), ())]);
    let mut ways = Vec::new();
    while let Some((state, way)) = queue.pop_front() {
        for (action, next) in model.next_steps(&state) {
            let way: Vec<Action> = way.iter().copied().chain([action]).collect();
            let is_new = seen.insert(next.representative(), ()).is_none();
            if is_new && way.len() < DEPTH && !model.next_steps(&next).is_empty() {
                queue.push_back((next, way));
            } else {
                ways.push(way);
            }
        }
    }
    ways
}

#[tokio::test]
async fn every_way_of_eight_steps_is_the_databases_too() {
    let budget = Budget { crashes: 1, stalls: 1, unheard: 1, releases: 1, cancels: 1, retries: 1 };
    let model = Protocol { workers: 2, deliveries: 1, ..world(budget, 1) };
    let ways = every_way(&model);
    println!("{} ways", ways.len());
    let model = &model;
    let shares = ways.chunks(ways.len().div_ceil(SIDE_BY_SIDE)).map(|share| async move {
        let mut replay = Replay::open(model.deliveries).await;
        for way in share {
            assert_eq!(replay.take(model, way.iter().copied()).await, way.len());
        }
    });
    join_all(shares).await;
}

/// The way that `choices` make through the model.
fn walk(model: &Protocol, choices: &[usize]) -> Vec<Action> {
    let mut state = model.init_states().remove(0);
    let mut way = Vec::new();
    for choice in choices {
        let mut steps = model.next_steps(&state);
        if steps.is_empty() {
            break;
        }
        let (action, next) = steps.swap_remove(choice % steps.len());
        way.push(action);
        state = next;
    }
    way
}

#[test]
fn long_ways_at_random_are_the_databases_too() {
    let budget = Budget { crashes: 2, stalls: 2, unheard: 2, releases: 2, cancels: 2, retries: 2 };
    let model = world(budget, 2);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let replay = runtime.block_on(async { tokio::sync::Mutex::new(Replay::open(model.deliveries).await) });
    let mut runner = TestRunner::new(Config { cases: 64, failure_persistence: None, ..Config::default() });
    let tried = runner.run(&vec(any::<usize>(), 60), |choices| {
        let way = walk(&model, &choices);
        let taken = runtime.block_on(async { replay.lock().await.take(&model, way.iter().copied()).await });
        prop_assert_eq!(taken, way.len());
        Ok(())
    });
    tried.expect("the database does what the model does");
}

#[tokio::test]
async fn where_a_wrong_protocol_breaks_the_database_does_not() {
    let mut replay = Replay::open(2).await;
    for (rule, property) in WRONG.iter().filter(|(rule, _)| *rule != Rule::LossWithoutCap) {
        let budget = Budget { crashes: 0, stalls: 1, unheard: 1, releases: 1, cancels: 1, retries: 1 };
        let way = way_to_break(property, *rule);
        // Every step of it that the real protocol has.
        assert!(replay.take(&world(budget, 1), way.iter().copied()).await + 1 >= way.len(), "{rule:?}: {way:?}");
    }
}

#[tokio::test]
async fn the_eleventh_worker_ends_a_delivery_that_killed_ten() {
    let model = Protocol { workers: 1, deliveries: 1, ..world(Budget { crashes: 10, ..NOTHING }, 0) };
    let mut way = Vec::new();
    for _ in 0..10 {
        way.extend([Action::Look { worker: 0, delivery: 0 }, Action::Claim { worker: 0 }, Action::Send { worker: 0 }]);
        way.extend([Action::Crash { worker: 0 }, Action::Lapse { delivery: 0 }]);
    }
    way.extend([Action::Look { worker: 0, delivery: 0 }, Action::Claim { worker: 0 }]);
    way.push(Action::Complete { worker: 0, answer: None, is_heard: true });
    assert_eq!(Replay::open(1).await.take(&model, way.iter().copied()).await, way.len());
}
