//! Replicas whose own clock is an hour off, one ahead and one behind: nobody can tell from what they do.
//!
//! Their clock is shifted by a library that is put before the C library's (`clock.c`), built with the compiler that Rust
//! links with. Where there is no such thing as LD_PRELOAD (on macOS), the case says that it is skipped.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use hooklane::api::proto::{DeliveryState, ListDeliveriesRequest};
use hooklane::domain::id::{DeliveryId, uuid_time};

use crate::load::{Client, delivery};
use crate::oracle::every_promise_holds;
use crate::program::Replica;
use crate::record::{Answers, Arrival};
use crate::scale::Scale;
use crate::stage::{Plan, Stage};

const HOUR: i64 = 3_600;
/// How far a time may be from another one of the same moment, on a slow machine.
const NEAR: Duration = Duration::from_secs(60);
/// The first retry comes after 1 s ±30 %; its latest, on a slow machine.
const FIRST_RETRY: (Duration, Duration) = (Duration::from_millis(690), Duration::from_secs(30));

#[tokio::test]
async fn a_clock_that_is_an_hour_off_has_no_effect() {
    if !cfg!(target_os = "linux") {
        skipped();
        return;
    }
    let scale = Scale::of_this_run();
    let folder = tempfile::tempdir().expect("a folder");
    let mut stage = Stage::start(Plan { replicas: 0, ..Plan::default() }).await;
    for shift in [HOUR, -HOUR] {
        let library = shifted_clock(folder.path(), shift);
        stage.add_replica(&[("LD_PRELOAD", &library)]).await;
        assert_is_shifted(&stage.replicas[stage.replicas.len() - 1], shift).await;
    }
    stage.record.answer(Answers { fail_first: 1, ..Answers::BUSY });
    let load = stage.load();
    load.acknowledge(scale.events).await;
    stage.resumes(&load, Instant::now()).await;
    let (ids, refusals) = load.finish().await;
    assert!(refusals.is_empty(), "{refusals:?}");
    every_promise_holds(&stage, &ids, 0).await;

    let arrivals = stage.record.arrivals();
    for id in &ids {
        let [first, second] = &arrivals[id][..] else { panic!("{id}: {:?}", arrivals[id]) };
        for arrival in [first, second] {
            // The signed time is checked with it, against 5 min.
            assert!(arrival.is_verified, "{arrival:?}");
            assert_near(Duration::from_secs(arrival.told), arrival.at, arrival);
        }
        let waited = second.at - first.at;
        assert!((FIRST_RETRY.0..FIRST_RETRY.1).contains(&waited), "{id} was repeated after {waited:?}");
        let drawn = uuid_time(id.parse::<DeliveryId>().expect("an id").uuid()).micros();
        assert_near(Duration::from_micros(drawn.try_into().expect("after 1970")), first.at, first);
    }
    assert_times_are_the_databases(&stage.client().await, &ids[0], &arrivals[&ids[0]]).await;
}

/// What a caller is told agrees with what the receiver saw.
async fn assert_times_are_the_databases(client: &Client, id: &str, arrivals: &[Arrival]) {
    let shown = delivery(client, id).await;
    assert_eq!(shown.state(), DeliveryState::Succeeded);
    let seconds = |time: Option<prost_types::Timestamp>| {
        Duration::from_secs(time.expect("a time").seconds.try_into().expect("after 1970"))
    };
    assert_near(seconds(shown.create_time), arrivals[0].at, &arrivals[0]);
    assert_near(seconds(shown.settle_time), arrivals[1].at, &arrivals[1]);
    for (attempt, arrival) in shown.attempts.iter().zip(arrivals) {
        assert_near(seconds(attempt.start_time), arrival.at, arrival);
    }
}

fn assert_near(time: Duration, seen: Duration, arrival: &Arrival) {
    assert!(time.abs_diff(seen) < NEAR, "{time:?} is not near {seen:?}: {arrival:?}");
}

/// Builds the library for a shift in seconds; answers its path.
fn shifted_clock(folder: &Path, shift: i64) -> String {
    let library = folder.join(format!("clock{shift}.so"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/clock.c");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", &format!("-DSHIFT=({shift})"), "-o"])
        .arg(&library)
        .arg(source)
        .output()
        .expect("the C compiler that Rust links with");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    library.into_os_string().into_string().expect("text")
}

/// The date of a replica's answers is that of its own clock: without this, the case would prove nothing.
async fn assert_is_shifted(replica: &Replica, shift: i64) {
    let mut client = Client::connect(replica.grpc.clone()).await.expect("connects");
    let answer = client.list_deliveries(ListDeliveriesRequest::default()).await.expect("listed");
    let date = answer.metadata().get("date").and_then(|date| date.to_str().ok()).expect("a date");
    let told = jiff::Timestamp::try_from(httpdate::parse_http_date(date).expect("a date")).expect("a time");
    let ahead = told.as_second() - jiff::Timestamp::now().as_second();
    assert!((ahead - shift).abs() < 60, "its clock is {ahead} s ahead");
}

#[expect(clippy::print_stderr, reason = "a case that did not run should not look as if it had")]
fn skipped() {
    eprintln!("SKIPPED: a process's clock is shifted with LD_PRELOAD, which only Linux has");
}
