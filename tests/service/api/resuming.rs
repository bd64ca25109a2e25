//! StreamDeliveryEvents from the past: after a token, from a time on, and for readers that come late to what they get.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use hooklane::api::proto::stream_delivery_events_request::From;
use hooklane::api::proto::stream_delivery_events_response::Item;
use hooklane::api::proto::*;
use hooklane::cli::listen::Behaviour;
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::task::JoinSet;
use tonic::{Code, Status, Streaming};

use super::{Client, Service, endpoint, event, fields, reason, receiver, service_with, soon, told};
use crate::support;

/// What a message told: a row's number or a heartbeat, and its token.
type Told = (Option<i32>, String);

struct Stream(Streaming<StreamDeliveryEventsResponse>);

impl Stream {
    /// On a connection of its own: streams that stand still use up the window that those of one connection share.
    async fn open(service: &Service, request: StreamDeliveryEventsRequest) -> Result<Self, Status> {
        let mut client = Client::new(service.channel().await);
        soon("a stream", client.stream_delivery_events(request)).await.map(|answer| Self(answer.into_inner()))
    }

    async fn from(service: &Service, from: From) -> Result<Self, Status> {
        Self::open(service, StreamDeliveryEventsRequest { from: Some(from), ..Default::default() }).await
    }

    async fn after(service: &Service, token: &str) -> Self {
        Self::from(service, From::ResumeToken(token.to_owned())).await.expect("resumed")
    }

    async fn now(service: &Service) -> Self {
        let mut stream = Self::open(service, StreamDeliveryEventsRequest::default()).await.expect("opened");
        assert_eq!(stream.told().await.0, None, "the first message is a heartbeat");
        stream
    }

    async fn told(&mut self) -> Told {
        let message = soon("a message", self.0.message()).await.expect("no end").expect("no end");
        assert!(!message.resume_token.is_empty(), "every message has a token");
        let number = match message.item.expect("an item") {
            Item::Event(event) => Some(event.delivery.expect("a delivery").event_type.parse().expect("a number")),
            Item::Heartbeat(_) => None,
        };
        (number, message.resume_token)
    }

    /// The next `count` numbers, and the last one's token.
    async fn numbers(&mut self, count: usize) -> (Vec<i32>, String) {
        let (mut numbers, mut last) = (Vec::new(), String::new());
        while numbers.len() < count {
            let (number, token) = self.told().await;
            numbers.extend(number);
            last = token;
        }
        (numbers, last)
    }
}

/// Rows of the timeline without deliveries behind them; each has a number for its event's type.
async fn write(connection: &mut PgConnection, first: i32, count: i32) {
    let rows = "insert into timeline (time, delivery_id, endpoint_id, event_id, kind, state, priority, attempt_count,
                                      tenant, event_type)
                select now(), gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 1, 1, 2, 0, 'default', n::text
                from generate_series($1::int, $1::int + $2::int - 1) n";
    sqlx::query(rows).bind(first).bind(count).execute(connection).await.expect("written");
}

fn sorted(mut numbers: Vec<i32>) -> Vec<i32> {
    numbers.sort_unstable();
    numbers
}

/// A generator of its own, so that a run can be repeated.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// Eight writers with delays and rollbacks, who write these numbers.
fn writers(url: &str, count: i32) -> JoinSet<()> {
    let mut writers = JoinSet::new();
    for writer in 0..8_i32 {
        let url = url.to_owned();
        writers.spawn(async move {
            let mut connection = support::connection(&url).await;
            let (mut state, mut number) = (writer.cast_unsigned().into(), writer * count / 8);
            while number < (writer + 1) * count / 8 {
                let size = (1 + (next(&mut state) % 15) as i32).min((writer + 1) * count / 8 - number);
                let mut transaction = sqlx::Connection::begin(&mut connection).await.expect("begun");
                write(&mut transaction, number, size).await;
                tokio::time::sleep(Duration::from_millis(next(&mut state) % 30)).await;
                if next(&mut state).is_multiple_of(4) {
                    transaction.rollback().await.expect("rolled back");
                } else {
                    transaction.commit().await.expect("committed");
                    number += size;
                }
            }
        });
    }
    writers
}

#[tokio::test]
async fn a_client_that_drops_and_resumes_a_hundred_times_on_any_replica_sees_exactly_the_whole() {
    const ROWS: i32 = 4_000;
    const DROPS: usize = 100;
    let url = support::database().await;
    let replicas = [service_with(url.clone(), &[]).await, service_with(url.clone(), &[]).await];
    let mut token =
        Stream::open(&replicas[0], StreamDeliveryEventsRequest::default()).await.expect("open").told().await.1;
    let writers = writers(&url, ROWS);
    let (mut seen, mut state) = (Vec::new(), 7);
    for drop in 0..DROPS {
        let mut stream = Stream::after(&replicas[(next(&mut state) % 2) as usize], &token).await;
        // Enough that the whole is not seen before the last drop, and sometimes nothing at all.
        let count = next(&mut state) as usize % (2 * ROWS as usize / DROPS).saturating_sub(2);
        let count = count.min((ROWS as usize - seen.len()) / 2);
        for _ in 0..count {
            let (number, after) = stream.told().await;
            seen.extend(number);
            token = after;
        }
        assert!(drop < DROPS && seen.len() < ROWS as usize);
    }
    let mut last = Stream::after(&replicas[0], &token).await;
    let rest = ROWS as usize - seen.len();
    seen.extend(last.numbers(rest).await.0);
    writers.join_all().await;
    assert!(sorted(seen) == (0..ROWS).collect::<Vec<_>>(), "none is missing and none came twice");
    // Nothing more comes but what happens now.
    write(&mut support::connection(&url).await, ROWS, 1).await;
    assert_eq!(last.numbers(1).await.0, [ROWS]);
}

#[tokio::test]
async fn from_a_time_on_the_past_is_told_and_then_what_happens_without_a_seam() {
    let url = support::database().await;
    let service = service_with(url.clone(), &[]).await;
    let mut connection = support::connection(&url).await;
    write(&mut connection, 0, 300).await;
    let now: String = sqlx::query_scalar("select extract(epoch from clock_timestamp())::text")
        .fetch_one(&mut connection)
        .await
        .expect("read");
    let (seconds, micros) = now.split_once('.').expect("a fraction");
    let time = prost_types::Timestamp {
        seconds: seconds.parse().expect("a number"),
        nanos: micros.parse::<i32>().expect("a number") * 1_000,
    };
    for first in (300..1_500).step_by(100) {
        write(&mut connection, first, 100).await;
    }
    // Several readers come while it goes on: each sees each row once, what was there and what comes.
    let writers = {
        let url = url.clone();
        tokio::spawn(async move {
            let mut connection = support::connection(&url).await;
            for first in (1_500..3_000).step_by(50) {
                write(&mut connection, first, 50).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
    };
    for _ in 0..4 {
        let mut stream = Stream::from(&service, From::StartTime(time)).await.expect("opened");
        assert_eq!(stream.told().await.0, None, "the first message is a heartbeat");
        let (numbers, token) = stream.numbers(400).await;
        // Dropped in the middle, and resumed.
        drop(stream);
        let mut stream = Stream::after(&service, &token).await;
        let whole = [numbers, stream.numbers(3_000 - 300 - 400).await.0].concat();
        assert!(sorted(whole) == (300..3_000).collect::<Vec<_>>());
    }
    writers.await.expect("no panic");
    // Further back than anything is kept: everything. A time to come: what happens from now on.
    let long_ago = From::StartTime(prost_types::Timestamp { seconds: 0, nanos: 0 });
    let mut all = Stream::from(&service, long_ago).await.expect("opened");
    assert!(sorted(all.numbers(3_000).await.0) == (0..3_000).collect::<Vec<_>>());
    let to_come = From::StartTime(prost_types::Timestamp { seconds: 4_000_000_000, nanos: 0 });
    let mut live = Stream::from(&service, to_come).await.expect("opened");
    live.told().await;
    write(&mut connection, 3_000, 1).await;
    assert_eq!((live.numbers(1).await.0, all.numbers(1).await.0), (vec![3_000], vec![3_000]));
    let malformed = From::StartTime(prost_types::Timestamp { seconds: 0, nanos: -1 });
    let refusal = Stream::from(&service, malformed).await.err().expect("refused");
    assert_eq!(reason(&refusal), told(Code::InvalidArgument, "INVALID_FIELD"));
    assert_eq!(fields(&refusal), ["start_time"]);
}

#[tokio::test]
async fn tokens_of_others_and_altered_ones_are_invalid() {
    let url = support::database().await;
    let service = service_with(url, &[]).await;
    let token = Stream::open(&service, StreamDeliveryEventsRequest::default()).await.expect("open").told().await.1;
    let refused = async |request: StreamDeliveryEventsRequest| {
        let refusal = Stream::open(&service, request).await.err().expect("refused");
        assert_eq!(reason(&refusal), told(Code::InvalidArgument, "RESUME_TOKEN_INVALID"));
        assert_eq!(fields(&refusal), ["resume_token"]);
    };
    let with = |token: &str, tenant: &str| StreamDeliveryEventsRequest {
        tenant: tenant.to_owned(),
        from: Some(From::ResumeToken(token.to_owned())),
        ..StreamDeliveryEventsRequest::default()
    };
    for tenant in ["acme", "*"] {
        refused(with(&token, tenant)).await;
    }
    let bytes = BASE64.decode(&token).expect("base64");
    for place in 0..bytes.len() {
        let mut altered = bytes.clone();
        altered[place] ^= 0x10;
        refused(with(&BASE64.encode(&altered), "")).await;
    }
    for forged in ["", "x", "AAAA", &token[1..], &token[..token.len() - 1], &format!("{token}A"), &"A".repeat(500_000)]
    {
        refused(with(forged, "")).await;
    }
    // Another installation's.
    let elsewhere = service_with(support::database().await, &[]).await;
    let foreign = Stream::open(&elsewhere, StreamDeliveryEventsRequest::default()).await.expect("open").told().await.1;
    refused(with(&foreign, "")).await;
    // It is bound to no filter: the same token goes on with another one.
    let other = StreamDeliveryEventsRequest { event_types: vec!["7".to_owned()], ..with(&token, "default") };
    assert_eq!(Stream::open(&service, other).await.expect("resumed").told().await.0, None);
}

#[tokio::test]
async fn tokens_older_than_what_is_kept_or_of_another_cluster_have_expired() {
    // As retention does, with all that there was of one of the tables.
    let dropped = |parent: &str| {
        format!(
            "do $$ declare part record; begin
               for part in select inhrelid::regclass as name from pg_inherits
                           where inhparent = '{parent}'::regclass and pg_get_expr((select relpartbound from pg_class where oid = inhrelid), inhrelid)
                                 < 'FOR VALUES FROM (''' || (now() + interval '1 day')::date
               loop execute 'drop table ' || part.name; end loop; end $$"
        )
    };
    // As if it had been restored from a dump here, just now.
    let restored = "update stream_clusters set since = now()".to_owned();
    for change in [dropped("timeline"), dropped("settled_succeeded"), restored] {
        let url = support::database().await;
        let service = service_with(url.clone(), &[]).await;
        let token = Stream::open(&service, StreamDeliveryEventsRequest::default()).await.expect("open").told().await.1;
        let mut connection = support::connection(&url).await;
        sqlx::raw_sql(AssertSqlSafe(change.clone())).execute(&mut connection).await.expect("changed");
        let refusal = Stream::from(&service, From::ResumeToken(token)).await.err().expect("refused");
        assert_eq!(reason(&refusal), told(Code::OutOfRange, "RESUME_TOKEN_EXPIRED"), "{change}");
        // What is kept can be had by time.
        let long_ago = From::StartTime(prost_types::Timestamp { seconds: 0, nanos: 0 });
        assert_eq!(Stream::from(&service, long_ago).await.expect("opened").told().await.0, None);
    }
}

#[tokio::test]
async fn a_token_outlives_the_replica_that_gave_it() {
    let url = support::database().await;
    let mut connection = support::connection(&url).await;
    let first = service_with(url.clone(), &[]).await;
    let mut stream = Stream::now(&first).await;
    write(&mut connection, 0, 10).await;
    let (mut seen, token) = stream.numbers(6).await;
    drop(stream);
    first.app.stop().await;
    write(&mut connection, 10, 5).await;
    let second = service_with(url, &[]).await;
    let mut stream = Stream::after(&second, &token).await;
    seen.extend(stream.numbers(9).await.0);
    assert_eq!(sorted(seen), (0..15).collect::<Vec<_>>());
}

#[tokio::test]
async fn heartbeats_carry_the_token_of_all_that_was_read_though_nothing_passed_the_filter() {
    let url = support::database().await;
    let service = service_with(url.clone(), &[]).await;
    let mut connection = support::connection(&url).await;
    let request = StreamDeliveryEventsRequest {
        event_types: vec!["nothing".to_owned()],
        ..StreamDeliveryEventsRequest::default()
    };
    let mut filtered = Stream::open(&service, request).await.expect("opened");
    let (None, at_first) = filtered.told().await else { panic!("an event") };
    let mut all = Stream::now(&service).await;
    write(&mut connection, 0, 50).await;
    assert_eq!(all.numbers(50).await.0.len(), 50);
    // Within 10 s; what it stands for is behind the rows.
    let (None, later) = filtered.told().await else { panic!("an event") };
    write(&mut connection, 50, 1).await;
    assert_eq!(Stream::after(&service, &later).await.numbers(1).await.0, [50]);
    assert_eq!(sorted(Stream::after(&service, &at_first).await.numbers(51).await.0), (0..51).collect::<Vec<_>>());
}

#[tokio::test]
async fn readers_that_stand_still_miss_nothing_and_hold_up_nobody() {
    const STALLED: usize = 60;
    // More than the ring holds, and than transports take.
    const ROWS: i32 = 18_000;
    let url = support::database().await;
    let service = service_with(url.clone(), &[]).await;
    let mut connection = support::connection(&url).await;
    let mut stalled = Vec::new();
    for _ in 0..STALLED {
        stalled.push(Stream::now(&service).await);
    }
    // Some begin in the past and stand still there.
    write(&mut connection, -1, 1).await;
    for _ in 0..20 {
        let long_ago = From::StartTime(prost_types::Timestamp { seconds: 0, nanos: 0 });
        stalled.push(Stream::from(&service, long_ago).await.expect("opened"));
    }
    let mut reader = Stream::now(&service).await;
    let mut seen = Vec::new();
    for first in (0..ROWS).step_by(1_000) {
        write(&mut connection, first, 1_000).await;
        seen.extend(reader.numbers(1_000).await.0);
    }
    let whole: Vec<i32> = (0..ROWS).collect();
    assert!(sorted(seen) == whole, "whoever reads gets everything, whoever does not");
    // One of each kind takes it up again: nothing was skipped, and nothing comes twice.
    let mut late = stalled.swap_remove(0);
    let (numbers, token) = late.numbers(ROWS as usize + 1).await;
    assert_eq!(sorted(numbers)[1..], whole);
    let mut from_the_past = stalled.pop().expect("one");
    assert_eq!(sorted(from_the_past.numbers(ROWS as usize + 1).await.0)[1..], whole);
    // They are live again, and the place they have reached is a place like any.
    write(&mut connection, ROWS, 1).await;
    assert_eq!(late.numbers(1).await.0, [ROWS]);
    assert_eq!(Stream::after(&service, &token).await.numbers(1).await.0, [ROWS]);
}

#[tokio::test]
async fn one_deliverys_events_come_in_order_across_the_seam() {
    let url = support::database().await;
    let service = service_with(url, &[]).await;
    let receiver = receiver(Behaviour { fail_first: 3, ..Behaviour::default() }).await;
    service.register(endpoint(&receiver.url())).await;
    let publishing = {
        let mut client = service.client.clone();
        tokio::spawn(async move {
            for _ in 0..20 {
                let request = PublishBatchRequest { requests: vec![event("a"); 10] };
                client.publish_batch(request).await.expect("published");
            }
        })
    };
    let begin = || From::StartTime(prost_types::Timestamp { seconds: 0, nanos: 0 });
    for round in 0..5 {
        let request = StreamDeliveryEventsRequest { from: Some(begin()), ..StreamDeliveryEventsRequest::default() };
        let mut messages = service.client.clone().stream_delivery_events(request).await.expect("opened").into_inner();
        let mut by_delivery = HashMap::<String, Vec<DeliveryEventKind>>::new();
        let mut count = 0;
        while count < 1_000 {
            let message = soon("a message", messages.message()).await.expect("no end").expect("no end");
            let Some(Item::Event(event)) = message.item else { continue };
            let kind = event.kind();
            by_delivery.entry(event.delivery.expect("a delivery").id).or_default().push(kind);
            count += 1;
        }
        assert_eq!(by_delivery.len(), 200, "{round}");
        use DeliveryEventKind::{AttemptFailed, Queued, Succeeded};
        let expected = [Queued, AttemptFailed, AttemptFailed, AttemptFailed, Succeeded];
        assert!(by_delivery.values().all(|kinds| *kinds == expected), "{by_delivery:?}");
    }
    publishing.await.expect("no panic");
}
