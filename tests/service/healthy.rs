//! Tables stay healthy: deliveries by the ten thousand while another session holds a snapshot open, as a dump does. In
//! pages, never in time; `hooklane bench --scenario healthy` is the same with two million.

use hooklane::domain::id::EndpointId;
use hooklane::domain::time::Timestamp;
use hooklane::store::{LaneRequest, Publisher, Store};
use sqlx::PgConnection;

use crate::publish::{event, register};
use crate::queue::{BEGINNING, lane, success};
use crate::{plans, support};

/// Published, claimed and settled behind the snapshot.
const DELIVERIES: usize = 20_000;
const BATCH: usize = 250;

/// Publishes a batch, claims it and settles it; answers when it was claimed.
async fn deliver(store: &Store, publisher: &Publisher, endpoint: EndpointId) -> Timestamp {
    let published = publisher.publish_in_order(vec![event("order.created"); BATCH]).await;
    assert!(published.iter().all(Result::is_ok));
    let request = LaneRequest { ahead: 1_000, ..lane(endpoint, BATCH as u32) };
    let claimed = store.claim(&[request]).await.expect("claimed").claimed;
    assert_eq!(claimed.len(), BATCH);
    let settled = store.complete(&claimed.iter().map(success).collect::<Vec<_>>()).await.expect("completed");
    assert_eq!(settled.won.len(), BATCH);
    claimed[0].claimed_at
}

/// The pages that a claim touches of a batch that waits, from a low-water mark on; and those of the table.
async fn pages(store: &Store, publisher: &Publisher, endpoint: EndpointId, url: &str, from: Timestamp) -> (u64, i64) {
    publisher.publish(event("order.created")).await.expect("published");
    let mut looking = support::connection(url).await;
    let heap: i64 =
        sqlx::query_scalar("select pg_relation_size('outstanding') / current_setting('block_size')::bigint")
            .fetch_one(&mut looking)
            .await
            .expect("read");
    let claimed = plans::claim_pages(url, endpoint, from).await;
    let rest = store.claim(&[lane(endpoint, 64)]).await.expect("claimed").claimed;
    assert_eq!(rest.len(), 1, "explaining has left it");
    store.complete(&rest.iter().map(success).collect::<Vec<_>>()).await.expect("completed");
    (claimed, heap)
}

async fn run(connection: &mut PgConnection, statement: &'static str) {
    sqlx::raw_sql(statement).execute(connection).await.expect(statement);
}

#[tokio::test]
async fn claims_and_tables_come_back_from_a_long_snapshot() {
    let url = support::database().await;
    let store = Store::open(&support::config(url.clone())).await.expect("opens");
    let endpoint = register(&store, &[]).await;
    let publisher = Publisher::start(&store);
    let mut vacuuming = support::connection(&url).await;
    let mark = deliver(&store, &publisher, endpoint).await;
    run(&mut vacuuming, "vacuum outstanding").await;
    let (fresh, fresh_heap) = pages(&store, &publisher, endpoint, &url, BEGINNING).await;

    let mut holder = support::connection(&url).await;
    run(&mut holder, "begin isolation level repeatable read; select count(*) from outstanding").await;
    let mut last = mark;
    for _ in 0..DELIVERIES / BATCH {
        last = deliver(&store, &publisher, endpoint).await;
    }
    run(&mut vacuuming, "vacuum outstanding").await;
    let (from_the_beginning, held_heap) = pages(&store, &publisher, endpoint, &url, BEGINNING).await;
    assert!(from_the_beginning > 5 * fresh, "{from_the_beginning} pages: the snapshot has kept what was delivered");
    assert!(held_heap > 10 * fresh_heap, "{held_heap} pages");
    let (from_the_mark, _) = pages(&store, &publisher, endpoint, &url, last).await;
    assert!(
        from_the_mark <= 3 * fresh,
        "{from_the_mark} pages instead of {fresh}: a lane claims from where it left off"
    );

    run(&mut holder, "commit").await;
    run(&mut vacuuming, "vacuum outstanding").await;
    let (after, after_heap) = pages(&store, &publisher, endpoint, &url, BEGINNING).await;
    assert!(after <= 3 * fresh, "{after} pages instead of {fresh}");
    assert!(after_heap <= 2 * fresh_heap.max(8), "{after_heap} pages of the table instead of {fresh_heap}");
}

#[tokio::test]
async fn tables_that_are_queues_are_vacuumed_by_count() {
    let mut connection = support::connection(&support::database().await).await;
    for table in ["outstanding", "endpoint_health", "order_keys", "inbox", "idempotency_keys"] {
        let options: Vec<String> =
            sqlx::query_scalar("select unnest(reloptions) from pg_class where oid = to_regclass($1)")
                .bind(table)
                .fetch_all(&mut connection)
                .await
                .expect("read");
        let is_set = |option: &str| options.iter().any(|set| set == option);
        assert!(is_set("autovacuum_vacuum_scale_factor=0"), "{table}: {options:?}");
        let threshold =
            options.iter().find_map(|set| set.strip_prefix("autovacuum_vacuum_threshold=")?.parse::<u32>().ok());
        assert!(threshold.is_some_and(|rows| rows <= 50_000), "{table}: {options:?}");
    }
}
