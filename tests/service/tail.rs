//! Reading the timeline: every committed row exactly once, in whatever order transactions commit, from any place in it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use hooklane::domain::fields::Tenant;
use hooklane::domain::id::EndpointId;
use hooklane::domain::time::Timestamp;
use hooklane::store::plans::{self, Guarded};
use hooklane::store::{
    Batch, Cursor, Key, Position, Publisher, Store, TailError, TimelineEvent, TimelineFilter, TransitionKind,
};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::publish::{event, register};
use crate::queue::{lane, success};
use crate::support;

/// A transition a value, every fourth a success; the event's type is a number that no other has.
const ROWS: &str = "
with n as (
  select n, case when n % 10 = 0 then 'acme' else 'default' end as tenant
  from generate_series($1::int, $1::int + $2::int - 1) n
), succeeded as (
  insert into settled_succeeded (id, endpoint_id, event_id, settle_time, claim_gen, attempt_count, last_status, priority,
                                 payload_format, tenant, event_type, xid, started_at, duration_us, trigger)
  select gen_random_uuid(), '00000000-0000-0000-0000-000000000007', gen_random_uuid(), now(), 1, 1, 200, 2, 1, tenant,
         n::text, pg_current_xact_id(), now(), 1, 1
  from n where n % 4 = 3
)
insert into timeline (time, delivery_id, endpoint_id, event_id, kind, state, priority, attempt_count, tenant, event_type)
select now(), gen_random_uuid(), '00000000-0000-0000-0000-000000000007', gen_random_uuid(), 1 + n % 2, 1, 2, 0, tenant,
       n::text
from n where n % 4 <> 3";

async fn write(connection: &mut PgConnection, first: i32, count: i32) {
    sqlx::query(ROWS).bind(first).bind(count).execute(connection).await.expect("written");
}

async fn open() -> (Arc<Store>, String) {
    let url = support::database().await;
    (Store::open(&support::config(url.clone())).await.expect("opens"), url)
}

async fn present(store: &Store) -> Arc<Cursor> {
    Arc::new(store.timeline_cursor().await.expect("read"))
}

fn numbers(events: &[TimelineEvent]) -> Vec<i32> {
    events.iter().map(|event| event.event_type.parse().expect("a number")).collect()
}

fn sorted(mut numbers: Vec<i32>) -> Vec<i32> {
    numbers.sort_unstable();
    numbers
}

/// Reads a whole batch that ends now, in pages of `limit`.
async fn read(store: &Store, lower: &Arc<Cursor>, limit: usize) -> (Vec<TimelineEvent>, Arc<Cursor>) {
    let mut events = Vec::new();
    let mut rest: Option<(Arc<Cursor>, Key)> = None;
    loop {
        let page =
            store.timeline_since(lower, rest.as_ref().map(|(upper, key)| (upper, *key)), limit).await.expect("read");
        assert!(page.events.len() <= limit);
        events.extend(page.events);
        let Some(key) = page.rest else { return (events, page.batch.upper) };
        rest = Some((page.batch.upper, key));
    }
}

/// Reads what is left of a batch, as a reader of the past does.
async fn read_past(
    store: &Store,
    batch: &Batch,
    mut after: Key,
    filter: &TimelineFilter,
    limit: usize,
) -> (Vec<TimelineEvent>, usize) {
    let (mut events, mut pages) = (Vec::new(), 0);
    loop {
        let page = store.timeline_past(batch, after, filter, limit).await.expect("read");
        events.extend(page.events);
        pages += 1;
        let Some(key) = page.rest else { return (events, pages) };
        after = key;
    }
}

#[tokio::test]
async fn the_timeline_is_read_exactly_once_whatever_commits_late() {
    let (store, url) = open().await;
    let start = present(&store).await;
    let (mut late, mut early) = (support::connection(&url).await, support::connection(&url).await);
    sqlx::query("begin").execute(&mut late).await.expect("begun");
    write(&mut late, 1, 1).await;
    write(&mut early, 2, 1).await;
    let (events, next) = read(&store, &start, 10).await;
    assert_eq!(numbers(&events), [2]);
    sqlx::query("commit").execute(&mut late).await.expect("committed");
    let (events, next) = read(&store, &next, 10).await;
    assert_eq!(numbers(&events), [1]);
    assert!(read(&store, &next, 10).await.0.is_empty());
    // From the beginning again, it is the same.
    assert_eq!(sorted(numbers(&read(&store, &start, 1).await.0)), [1, 2]);
}

/// What a writer does next, from a generator of its own: no luck of the clock decides.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

#[tokio::test]
async fn with_many_writers_that_dawdle_and_roll_back_nothing_is_lost_repeated_or_held_up() {
    const WRITERS: i32 = 24;
    const EACH: i32 = 850;
    let (store, url) = open().await;
    // A transaction that has a number, in another database of the cluster, open throughout.
    let mut elsewhere = PgConnection::connect(&support::postgres().await.url("postgres")).await.expect("connects");
    sqlx::raw_sql("begin; select pg_current_xact_id()").execute(&mut elsewhere).await.expect("begun");
    let start = present(&store).await;
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let url = url.clone();
        writers.spawn(async move {
            let mut connection = support::connection(&url).await;
            let (mut state, mut written) = (writer.cast_unsigned().into(), 0);
            while written < EACH {
                let count = (1 + (next(&mut state) % 20) as i32).min(EACH - written);
                let is_kept = !next(&mut state).is_multiple_of(5);
                let mut transaction = connection.begin().await.expect("begun");
                write(&mut transaction, writer * EACH + written, count).await;
                tokio::time::sleep(Duration::from_millis(next(&mut state) % 15)).await;
                if is_kept {
                    transaction.commit().await.expect("committed");
                    written += count;
                } else {
                    transaction.rollback().await.expect("rolled back");
                }
            }
        });
    }
    let mut seen = Vec::new();
    let mut cursor = Arc::clone(&start);
    let mut batches = 0;
    loop {
        let is_over = writers.is_empty();
        let (events, after) = read(&store, &cursor, 500).await;
        assert!(events.iter().map(TimelineEvent::key).is_sorted());
        seen.extend(numbers(&events));
        (cursor, batches) = (after, batches + 1);
        // The read after the last commit is the last one: nothing may be held up by who is still open.
        if is_over {
            break;
        }
        while let Some(ended) = writers.try_join_next() {
            ended.expect("no panic");
        }
    }
    assert!(batches > 10, "it was read while it was written: {batches}");
    let whole: Vec<i32> = (0..WRITERS * EACH).collect();
    assert_eq!(whole.len(), 20_400);
    assert!(sorted(seen) == whole, "none is lost and none is repeated");

    // The same by readers of the past, from any row on: what one read before it and what one reads after it is the whole.
    let batch = Batch { lower: start, upper: cursor };
    let all = TimelineFilter::default();
    let before = Key::before(&batch.lower.snapshot);
    let (events, _) = read_past(&store, &batch, before, &all, 500).await;
    assert!(sorted(numbers(&events)) == whole);
    let keys: Vec<Key> = events.iter().map(TimelineEvent::key).collect();
    assert!(keys.windows(2).all(|pair| pair[0] < pair[1]), "no two rows have one place");
    for at in [0, 1, 499, 500, 10_000, 20_398, 20_399] {
        let (rest, _) = read_past(&store, &batch, keys[at], &all, 5_000).await;
        assert!(numbers(&rest) == numbers(&events[at + 1..]), "{at}");
    }
    sqlx::query("rollback").execute(&mut elsewhere).await.expect("rolled back");
}

#[tokio::test]
async fn the_past_is_read_through_its_filter_in_bounded_steps() {
    let (store, url) = open().await;
    let mut connection = support::connection(&url).await;
    let lower = present(&store).await;
    for first in (0..60_000).step_by(100) {
        write(&mut connection, first, 100).await;
    }
    let batch = Batch { upper: present(&store).await, lower };
    let before = Key::before(&batch.lower.snapshot);
    let acme = Some(Tenant::parse("acme").expect("a tenant"));
    let filter =
        TimelineFilter { tenant: acme.clone(), kinds: vec![TransitionKind::Queued], ..TimelineFilter::default() };
    let (events, _) = read_past(&store, &batch, before, &filter, 500).await;
    assert!(sorted(numbers(&events)) == (0..60_000).step_by(10).collect::<Vec<_>>());
    // One that nothing passes: several pages, each of which looked through a part.
    let none = TimelineFilter { endpoints: vec![EndpointId::from_uuid(Uuid::nil())], ..TimelineFilter::default() };
    let (events, pages) = read_past(&store, &batch, before, &none, 500).await;
    assert!(events.is_empty() && (5..10).contains(&pages), "{pages}");
    // A transaction of more rows than a page looks through is got past, too.
    write(&mut connection, 60_000, 2_000).await;
    write(&mut connection, 62_000, 10).await;
    let longer = Batch { lower: Arc::clone(&batch.upper), upper: present(&store).await };
    let start = Key::before(&longer.lower.snapshot);
    let (events, _) = read_past(&store, &longer, start, &TimelineFilter::default(), 100).await;
    assert!(sorted(numbers(&events)) == (60_000..62_010).collect::<Vec<_>>());
    let one = TimelineFilter { kinds: vec![TransitionKind::AttemptFailed], tenant: acme, ..TimelineFilter::default() };
    assert!(read_past(&store, &batch, before, &one, 500).await.0.is_empty());
}

#[tokio::test]
async fn a_beginning_is_found_by_time() {
    let (store, url) = open().await;
    let mut connection = support::connection(&url).await;
    // A transaction a second, as if for the last quarter of an hour: number 900 was 900 s ago.
    let now = store.clock().now();
    let past = "insert into timeline (time, delivery_id, endpoint_id, event_id, kind, state, priority, attempt_count,
                                      tenant, event_type)
                values ($2::timestamptz - $1::int * interval '1 s', gen_random_uuid(), gen_random_uuid(),
                        gen_random_uuid(), 1, 1, 2, 0, 'default', $1::int::text)";
    for age in (1..=900).rev() {
        let query = sqlx::query(past).bind(age).bind(now.to_string());
        query.execute(&mut connection).await.expect("written");
    }
    let upper = present(&store).await;
    for age in [1, 2, 59, 61, 450, 899, 900, 1_000, 10_000_000_i32] {
        let time = now.minus(Duration::from_secs(age.unsigned_abs().into()));
        let lower = store.timeline_beginning(time).await.expect("found");
        assert!(lower.is_unrefined());
        let lower = Arc::new(store.refined(&lower, upper.snapshot.xmax()).await.expect("found"));
        let batch = Batch { lower, upper: Arc::clone(&upper) };
        let before = Key::before(&batch.lower.snapshot);
        let (events, _) = read_past(&store, &batch, before, &TimelineFilter::default(), 100).await;
        let expected: Vec<i32> = (1..=900).rev().filter(|one| *one <= age).collect();
        assert_eq!(numbers(&events), expected, "{age}");
    }
    // What lies before the day is not looked through, and of the day at most the minute that numbers may be late.
    let lower = store.timeline_beginning(now.minus(Duration::from_secs(300))).await.expect("found");
    let lower = store.refined(&lower, upper.snapshot.xmax()).await.expect("found");
    let looked_through = upper.snapshot.xmax() - lower.snapshot.xmax();
    assert!((300..=370).contains(&looked_through) || is_near_midnight(now), "{looked_through}");
    let to_come = store.timeline_beginning(now.plus(Duration::from_secs(3_600))).await.expect("found");
    assert!(!to_come.is_beginning);
}

/// Whether the rows of a quarter of an hour may lie in two days.
fn is_near_midnight(now: Timestamp) -> bool {
    now.seconds().rem_euclid(86_400) < 1_000
}

#[tokio::test]
async fn transitions_show_the_keys_of_events_that_another_process_published() {
    let (store, url) = open().await;
    let mut connection = support::connection(&url).await;
    let lower = present(&store).await;
    let keys =
        [[Some("order-1"), None], [None, Some("customer-7")], [Some("order-2"), Some("customer-8")], [None, None]];
    for [idempotency_key, ordering_key] in keys {
        let event = Uuid::now_v7();
        sqlx::query(
            "insert into events (id, tenant, event_type, payload, content_type, idempotency_key, ordering_key, priority)
             values ($1, 'default', 'a', '{}', 'application/json', $2, $3, 2)",
        )
        .bind(event)
        .bind(idempotency_key)
        .bind(ordering_key)
        .execute(&mut connection)
        .await
        .expect("an event");
        for (kind, state) in [(1_i16, 1_i16), (4, 4)] {
            sqlx::query(
                "insert into timeline (time, delivery_id, endpoint_id, event_id, kind, state, priority, attempt_count,
                                       tenant, event_type)
                 values (now(), $1, $1, $1, $2, $3, 2, 0, 'default', 'a')",
            )
            .bind(event)
            .bind(kind)
            .bind(state)
            .execute(&mut connection)
            .await
            .expect("a transition");
        }
    }
    let wanted: Vec<_> =
        keys.iter().flat_map(|keys| std::iter::repeat_n(keys.map(|key| key.map(str::to_owned)), 2)).collect();
    let shown = |events: &[TimelineEvent]| -> Vec<[Option<String>; 2]> {
        events.iter().map(|event| [event.idempotency_key.clone(), event.ordering_key.clone()]).collect()
    };
    let (events, upper) = read(&store, &lower, 3).await;
    assert_eq!(shown(&events), wanted, "live");
    let after = Key::before(&lower.snapshot);
    let (events, _) = read_past(&store, &Batch { lower, upper }, after, &TimelineFilter::default(), 3).await;
    assert_eq!(shown(&events), wanted, "of the past");
}

#[tokio::test]
async fn a_cursor_of_another_line_of_transactions_or_from_before_what_is_kept_is_refused() {
    let (store, url) = open().await;
    let cursor = present(&store).await;
    assert!(store.is_cursor_kept(&cursor).await.expect("judged"));
    let other = Arc::new(Cursor { epoch: cursor.epoch ^ 1, ..(*cursor).clone() });
    assert!(!store.is_cursor_kept(&other).await.expect("judged"));
    assert!(matches!(store.timeline_since(&other, None, 10).await, Err(TailError::Expired)));
    let old = Arc::new(Cursor { time: cursor.time.minus(Duration::from_secs(3 * 86_400)), ..(*cursor).clone() });
    assert!(!store.is_cursor_kept(&old).await.expect("judged"), "the oldest partition is yesterday's");
    assert!(matches!(store.timeline_since(&old, None, 10).await, Err(TailError::Expired)));
    // Its transactions number what they do; what came with a dump from elsewhere is no part of the stream.
    let mut connection = support::connection(&url).await;
    write(&mut connection, 1, 1).await;
    sqlx::query("update timeline set xid = '900000000'::xid8").execute(&mut connection).await.expect("as if restored");
    write(&mut connection, 2, 1).await;
    assert_eq!(numbers(&read(&store, &cursor, 10).await.0), [2]);
    // A database that has lived on another cluster begins anew where it arrived.
    let arrival = "update stream_clusters set since = now()";
    sqlx::query(arrival).execute(&mut connection).await.expect("as if it had come from elsewhere");
    assert!(!store.is_cursor_kept(&cursor).await.expect("judged"));
    let beginning = store.timeline_beginning(cursor.time).await.expect("found");
    assert!(beginning.time > cursor.time);
}

#[tokio::test]
async fn replicas_that_start_at_once_agree_on_the_key_of_tokens() {
    let url = support::database().await;
    let config = support::config(url);
    let opening = (0..8).map(|_| async { *Store::open(&config).await.expect("opens").stream_key().bytes() });
    let keys = futures::future::join_all(opening).await;
    assert!(keys.iter().all(|key| *key == keys[0]) && keys[0] != [0; 32]);
    let another = open().await.0;
    assert_ne!(*another.stream_key().bytes(), keys[0], "it is drawn for each database");
}

/// How each of a plan's scans of what tells of transitions was done.
async fn scans(connection: &mut PgConnection, statement: &Guarded, arguments: &str) -> HashMap<String, f64> {
    let prepare = format!("prepare guarded ({}) as {}", statement.types, statement.sql);
    sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut *connection).await.expect("prepared");
    let execute = format!("explain (analyze, format json) execute guarded {arguments}");
    let plan: serde_json::Value =
        sqlx::query_scalar(AssertSqlSafe(execute)).fetch_one(&mut *connection).await.expect("explained");
    sqlx::raw_sql("deallocate guarded").execute(connection).await.expect("forgotten");
    let (mut found, mut nodes) = (HashMap::new(), vec![&plan[0]["Plan"]]);
    while let Some(node) = nodes.pop() {
        nodes.extend(node["Plans"].as_array().into_iter().flatten());
        let text = |key: &str| node[key].as_str().unwrap_or_default();
        let number = |key: &str| node[key].as_f64().unwrap_or_default();
        let relation = text("Relation Name");
        if relation.starts_with("timeline") || relation.starts_with("settled_succeeded") {
            let rows = number("Actual Rows") + number("Rows Removed by Filter");
            *found.entry(text("Node Type").to_owned()).or_default() += rows * number("Actual Loops");
        }
    }
    found
}

#[tokio::test]
async fn the_timeline_is_read_by_index_whatever_the_statistics() {
    let (store, url) = open().await;
    let mut connection = support::connection(&url).await;
    let lower = present(&store).await;
    sqlx::query("analyze timeline, settled_succeeded").execute(&mut connection).await.expect("analyzed while empty");
    for first in (0..50_000).step_by(500) {
        write(&mut connection, first, 500).await;
    }
    let middle = present(&store).await;
    write(&mut connection, 50_000, 20).await;
    let upper = present(&store).await;
    let mut reader = plans::connect(&url).await.expect("connects");
    for statistics in ["of an empty table", "of a large one"] {
        let arguments = |lower: &Cursor, upper: &str, limit: u32| {
            let xmax = lower.snapshot.xmax();
            let before =
                format!("'{}', 'ffffffff-ffff-ffff-ffff-ffffffffffff', 2147483647, 32767", lower.snapshot.xmin() - 1);
            format!("array['{}'], '{xmax}', {upper}, {before}, now() - interval '1 day', {limit}", xmax - 1)
        };
        let live = format!("({})", arguments(&middle, "null", 1_024));
        let found = scans(&mut reader, &plans::SINCE, &live).await;
        assert!(found.keys().all(|how| how.contains("Index")), "{statistics}: {found:?}");
        let rows: f64 = found.values().sum();
        assert!(rows <= 600.0, "the new rows, and those of one transaction: {statistics}: {found:?}");
        let batch = arguments(&lower, &format!("'{}'", upper.snapshot), 256);
        let past = format!("({batch}, null, '{{}}', null, null, '{{}}', 256)");
        let found = scans(&mut reader, &plans::REPLAY, &past).await;
        assert!(found.keys().all(|how| how.contains("Index")), "{statistics}: {found:?}");
        let rows: f64 = found.values().sum();
        assert!(rows <= 3_000.0, "about what the page has: {statistics}: {found:?}");
        let analyze = "vacuum analyze timeline, settled_succeeded";
        sqlx::query(analyze).execute(&mut connection).await.expect("analyzed");
    }
}

#[tokio::test]
async fn what_is_queued_together_and_what_succeeds_is_told_one_by_one() {
    const ENDPOINTS: usize = 40;
    let (store, url) = open().await;
    let mut endpoints = HashSet::new();
    for _ in 0..ENDPOINTS {
        endpoints.insert(register(&store, &[]).await);
    }
    let start = present(&store).await;
    let published = Publisher::start(&store).publish(event("order.created")).await.expect("published");
    let expected: HashSet<_> = published.deliveries.iter().map(|one| (one.delivery_id, one.endpoint_id)).collect();
    let told = |events: &[TimelineEvent]| events.iter().map(|one| (one.delivery, one.endpoint)).collect::<Vec<_>>();
    let mut connection = support::connection(&url).await;
    let rows: i64 = sqlx::query_scalar("select count(*) from timeline").fetch_one(&mut connection).await.expect("read");
    assert_eq!(rows, 2, "32 deliveries a row");
    for limit in [1, 7, 32, 100] {
        let (events, _) = read(&store, &start, limit).await;
        assert_eq!(events.len(), ENDPOINTS, "pages of {limit}");
        assert_eq!(HashSet::from_iter(told(&events)), expected, "pages of {limit}");
        let is_queued = |one: &TimelineEvent| {
            one.kind == TransitionKind::Queued && one.event == published.event_id && one.next_attempt_time.is_some()
        };
        assert!(events.iter().all(is_queued), "{events:?}");
    }

    let queued = present(&store).await;
    let lanes: Vec<_> = endpoints.iter().map(|endpoint| lane(*endpoint, 1)).collect();
    let claims = store.claim(&lanes).await.expect("claimed");
    let completions: Vec<_> = claims.claimed.iter().map(success).collect();
    assert_eq!(store.complete(&completions).await.expect("completed").won.len(), ENDPOINTS);
    for limit in [1, 7, 100] {
        let (events, _) = read(&store, &queued, limit).await;
        assert_eq!((events.len(), HashSet::from_iter(told(&events))), (ENDPOINTS, expected.clone()));
        for one in &events {
            let attempt = one.attempt.as_ref().expect("it ended one");
            assert_eq!((one.kind, one.attempt_count, attempt.number), (TransitionKind::Succeeded, 1, 1));
            assert_eq!((attempt.status, attempt.url.as_str()), (200, "http://127.0.0.1:9/"));
        }
    }

    // Of one endpoint, whichever row it is in, and of one delivery, both are found.
    let batch = Batch { lower: start, upper: present(&store).await };
    for (delivery, endpoint) in told(&read(&store, &queued, 100).await.0) {
        let of_endpoint = TimelineFilter { endpoints: vec![endpoint], ..TimelineFilter::default() };
        let of_delivery = TimelineFilter { delivery: Some(delivery), ..TimelineFilter::default() };
        for filter in [of_endpoint, of_delivery] {
            let (events, _) = read_past(&store, &batch, Key::before(&batch.lower.snapshot), &filter, 100).await;
            let kinds: Vec<_> = events.iter().map(|event| event.kind).collect();
            assert_eq!(kinds, [TransitionKind::Queued, TransitionKind::Succeeded]);
            assert!(events.iter().all(|event| event.delivery == delivery));
        }
    }
}

#[tokio::test]
async fn positions_are_what_a_reader_has_read() {
    let (store, url) = open().await;
    let mut connection = support::connection(&url).await;
    let lower = present(&store).await;
    write(&mut connection, 0, 10).await;
    let page = store.timeline_since(&lower, None, 4).await.expect("read");
    let key = page.rest.expect("there is more");
    assert_eq!(key, page.events[3].key());
    let position = Position::Within(page.batch.clone(), key);
    assert_eq!(position.lower(), &lower);
    // What is written in between is of the next batch.
    write(&mut connection, 10, 5).await;
    let rest = store.timeline_since(&lower, Some((&page.batch.upper, key)), 100).await.expect("read");
    assert_eq!((rest.events.len(), rest.rest), (6, None));
    let (events, _) = read(&store, &page.batch.upper, 100).await;
    assert_eq!(sorted(numbers(&events)), (10..15).collect::<Vec<_>>());
}
