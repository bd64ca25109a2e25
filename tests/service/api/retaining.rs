//! Retention: days leave by stage, nobody waits for it, and what a delivery still needs outlasts its day.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hooklane::api::proto::*;
use hooklane::cli::listen::Behaviour;
use hooklane::domain::id::{DeliveryId, EventId};
use hooklane::store::{Config, Retention, Retired, Store};
use http::StatusCode;
use sqlx::types::Uuid;
use sqlx::{AssertSqlSafe, PgConnection};
use tonic::Code;

use super::{Service, endpoint, event_of, receiver, retries, service_with, soon};
use crate::support::{self, eventually};

const PARENTS: [&str; 4] = ["settled_succeeded", "settled_failed", "timeline", "events"];

/// So that the service's own chore finds nothing to do in these tests, however long they take.
const KEEPS_ALL: [(&str, &str); 2] =
    [("HOOKLANE_RETENTION_SUCCEEDED", "3650d"), ("HOOKLANE_RETENTION_FAILED", "3650d")];

const fn days(count: u64) -> Duration {
    Duration::from_secs(count * 86_400)
}

async fn store_with(url: &str, retention: Retention) -> Arc<Store> {
    let config = Config { retention, ..support::config(url.to_owned()) };
    Store::open(&config).await.expect("the store opens")
}

/// A partition for the day that began so many days before today. Its name needs quotes.
async fn past_day(connection: &mut PgConnection, parent: &str, ago: u64) -> String {
    let name = format!("{parent} {ago} days ago");
    let bound = |days_ago: u64| {
        match parent {
        "events" => format!(
            "lpad(to_hex((extract(epoch from date_trunc('day', now()) - interval '{days_ago} days') * 1000)::bigint), 12, '0')
             || '00000000000000000000'"
        ),
        _ => format!("(date_trunc('day', now()) - interval '{days_ago} days')::text"),
    }
    };
    let statement = format!(
        "do $$ begin
           execute format('create table %I (like {parent} including all)', '{name}');
           execute format('alter table {parent} attach partition %I for values from (%L) to (%L)', '{name}', {}, {});
         end $$",
        bound(ago),
        bound(ago - 1),
    );
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await.expect("a partition of the past");
    name
}

/// The tables of the past that are there.
async fn past_tables(connection: &mut PgConnection) -> BTreeSet<String> {
    let names: Vec<String> = sqlx::query_scalar(
        "select relname::text from pg_class where relnamespace = 'hooklane'::regnamespace and relkind = 'r'
           and relname like '%days ago'",
    )
    .fetch_all(connection)
    .await
    .expect("read");
    names.into_iter().collect()
}

/// Steps until every day that is left is to be kept.
async fn retire_all(store: &Store) {
    eventually("every day that is over has left", || async {
        let step = store.retire_day().await.expect("a step");
        assert_ne!(step, Retired::Elsewhere, "nobody else is there");
        Some(()).filter(|()| step == Retired::Nothing)
    })
    .await;
}

/// An id as it was drawn so many days ago, at noon.
async fn old_id(connection: &mut PgConnection, ago: u64) -> Uuid {
    let statement = format!(
        "select (lpad(to_hex((extract(epoch from date_trunc('day', now()) - interval '{ago} days' + interval '12 hours')
                * 1000)::bigint), 12, '0') || '70008' || substr(md5(random()::text), 1, 15))::uuid"
    );
    sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(connection).await.expect("an id")
}

/// Makes an event one that was published so many days ago, wherever its deliveries stand; answers its new id.
async fn age(connection: &mut PgConnection, event: &str, ago: u64) -> EventId {
    let (event, old): (EventId, _) = (event.parse().expect("an id"), old_id(connection, ago).await);
    let columns = "tenant, event_type, payload, content_type, idempotency_key, metadata, cloudevents_source, priority,
                   ordering_key, deliver_time, expire_time";
    let moved = format!(
        "with taken as (delete from events where id = $1 returning *)
         insert into events (id, {columns}) select $2, {columns} from taken"
    );
    let moved = sqlx::query(AssertSqlSafe(moved)).bind(event.uuid()).bind(old).execute(&mut *connection);
    assert_eq!(moved.await.expect("moved").rows_affected(), 1);
    for table in ["outstanding", "settled_failed", "settled_succeeded", "timeline"] {
        let follow = AssertSqlSafe(format!("update {table} set event_id = $2 where event_id = $1"));
        sqlx::query(follow).bind(event.uuid()).bind(old).execute(&mut *connection).await.expect("followed");
    }
    // Their ids are not of that time.
    let apart = "insert into deliveries_apart select id, event_id, tenant from deliveries where event_id = $1";
    sqlx::query(apart).bind(old).execute(&mut *connection).await.expect("noted");
    EventId::from_uuid(old)
}

async fn count(connection: &mut PgConnection, from: &str) -> i64 {
    let statement = format!("select count(*) from {from}");
    sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(connection).await.expect("counted")
}

#[tokio::test]
async fn days_leave_by_stage() {
    let url = support::database().await;
    let retention = Retention {
        succeeded: days(5),
        failed: days(10),
        dead_letters: days(7),
        timeline: days(20),
        payloads: days(15),
    };
    let store = store_with(&url, retention).await;
    let mut connection = support::connection(&url).await;
    let before = count(&mut connection, "pg_inherits where inhparent = 'events'::regclass").await;
    let mut kept = BTreeSet::new();
    for (parent, days) in [("settled_succeeded", 5), ("settled_failed", 10), ("timeline", 20), ("events", 15)] {
        kept.insert(past_day(&mut connection, parent, days).await);
        past_day(&mut connection, parent, days + 2).await;
        past_day(&mut connection, parent, days + 100).await;
    }
    assert_eq!(past_tables(&mut connection).await.len(), 12);
    retire_all(&store).await;
    assert_eq!(past_tables(&mut connection).await, kept);
    assert_eq!(count(&mut connection, "leaving_partitions").await, 0);
    let after = count(&mut connection, "pg_inherits where inhparent = 'events'::regclass").await;
    assert_eq!(after, before + 1, "days to come and the present ones are there as before");
}

/// The process that detaches, where it is waiting for others.
async fn waiting_detacher(connection: &mut PgConnection) -> Option<i32> {
    sqlx::query_scalar(
        "select pid from pg_stat_activity where datname = current_database() and state = 'active'
           and query like 'alter table hooklane.%detach partition%' and wait_event_type = 'Lock'",
    )
    .fetch_optional(connection)
    .await
    .expect("read")
}

/// A transaction that has read every table and stays open.
async fn open_reader(url: &str) -> PgConnection {
    let mut reader = support::connection(url).await;
    sqlx::raw_sql("begin isolation level repeatable read").execute(&mut reader).await.expect("begun");
    for parent in PARENTS {
        count(&mut reader, parent).await;
    }
    reader
}

#[tokio::test]
async fn an_open_reader_delays_a_days_end_and_nobody_else() {
    let url = support::database().await;
    let service = service_with(url.clone(), &KEEPS_ALL).await;
    let receiver = receiver(Behaviour::default()).await;
    service.register(endpoint(&receiver.url())).await;
    let mut connection = support::connection(&url).await;
    for parent in PARENTS {
        past_day(&mut connection, parent, 40).await;
    }
    let store = store_with(&url, Retention::default()).await;
    let mut reader = open_reader(&url).await;
    eventually("deliveries went on while a day waited for its end", || async {
        let retiring = tokio::spawn({
            let store = Arc::clone(&store);
            async move { store.retire_day().await }
        });
        let mut looking = support::connection(&url).await;
        let detacher = eventually("it waits", || async {
            let mut looking = support::connection(&url).await;
            waiting_detacher(&mut looking).await
        })
        .await;
        // Published, claimed, settled, read.
        let id = service.publish_one("order.created").await;
        service.in_state(&id, DeliveryState::Succeeded).await;
        let behind: i64 = sqlx::query_scalar("select count(*) from pg_locks l where $1 = any(pg_blocking_pids(l.pid))")
            .bind(detacher)
            .fetch_one(&mut looking)
            .await
            .expect("read");
        assert_eq!(behind, 0, "nobody waits for whoever waits");
        let strong: i64 = sqlx::query_scalar(
            "select count(*) from pg_locks l join pg_class c on c.oid = l.relation
             where l.pid = $1 and c.relkind = 'p' and l.granted
               and l.mode in ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')",
        )
        .bind(detacher)
        .fetch_one(&mut looking)
        .await
        .expect("read");
        assert_eq!(strong, 0, "no lock that a reader or writer would wait for");
        let was_beside = waiting_detacher(&mut looking).await == Some(detacher);
        let step = retiring.await.expect("no panic").expect("a step");
        assert!(matches!(step, Retired::Waiting(_)), "{step:?}");
        was_beside.then_some(())
    })
    .await;
    assert_eq!(past_tables(&mut connection).await.len(), 4);
    sqlx::raw_sql("commit").execute(&mut reader).await.expect("ended");
    retire_all(&store).await;
    assert!(past_tables(&mut connection).await.is_empty());
}

#[tokio::test]
async fn what_was_killed_while_it_detached_or_dropped_is_finished() {
    let url = support::database().await;
    let store = store_with(&url, Retention::default()).await;
    let mut connection = support::connection(&url).await;
    let detached = past_day(&mut connection, "timeline", 41).await;
    let by_hand = past_day(&mut connection, "timeline", 42).await;
    past_day(&mut connection, "settled_failed", 40).await;
    let mut reader = open_reader(&url).await;
    let retiring = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.retire_day().await }
    });
    let detacher = eventually("it waits", || async {
        let mut looking = support::connection(&url).await;
        waiting_detacher(&mut looking).await
    })
    .await;
    sqlx::query("select pg_terminate_backend($1)").bind(detacher).execute(&mut connection).await.expect("killed");
    retiring.await.expect("no panic").expect_err("killed in the middle");
    assert_eq!(count(&mut connection, "pg_inherits where inhdetachpending").await, 1);
    sqlx::raw_sql("commit").execute(&mut reader).await.expect("ended");
    // Another one was killed when its day was detached and not dropped; and somebody detached a day to keep it.
    let steps = format!(
        "insert into leaving_partitions values ('{detached}', 'timeline', now());
         alter table timeline detach partition \"{detached}\";
         alter table timeline detach partition \"{by_hand}\";"
    );
    sqlx::raw_sql(AssertSqlSafe(steps)).execute(&mut connection).await.expect("as if killed");
    let another = store_with(&url, Retention::default()).await;
    retire_all(&another).await;
    assert_eq!(past_tables(&mut connection).await, BTreeSet::from([by_hand]));
    assert_eq!(count(&mut connection, "leaving_partitions").await, 0);
}

async fn get_event(service: &Service, id: EventId) -> Result<Event, Code> {
    let request = GetEventRequest { event_id: id.to_string() };
    let answer = service.client.clone().get_event(request).await;
    answer.map(|answer| answer.into_inner().event.expect("an event")).map_err(|refusal| refusal.code())
}

#[tokio::test]
async fn a_delivery_that_waits_longer_than_its_days_retention_keeps_its_payload() {
    let url = support::database().await;
    let service = service_with(url.clone(), &KEEPS_ALL).await;
    let receiver = receiver(Behaviour::default()).await;
    let endpoint = service.register(endpoint(&receiver.url())).await;
    let request = PauseEndpointRequest { endpoint_id: endpoint.id.clone() };
    service.client.clone().pause_endpoint(request).await.expect("paused");
    let request = PublishRequest {
        idempotency_key: "key-of-40-days".to_owned(),
        ordering_key: "o".to_owned(),
        ..event_of(r#"{"kept": "beyond its day"}"#)
    };
    let published = service.publish(request).await;
    let waiting = published.deliveries[0].delivery_id.clone();
    let mut connection = support::connection(&url).await;
    past_day(&mut connection, "events", 40).await;
    let event = age(&mut connection, &published.event_id, 40).await;
    // One of the same day that nothing needs.
    let forgotten = service.publish(PublishRequest { endpoint_ids: vec![endpoint.id.clone()], ..event_of("{}") }).await;
    let canceled = forgotten.deliveries[0].delivery_id.clone();
    service
        .client
        .clone()
        .cancel_delivery(CancelDeliveryRequest { delivery_id: canceled.clone() })
        .await
        .expect("canceled");
    let forgotten = age(&mut connection, &forgotten.event_id, 40).await;
    past_day(&mut connection, "settled_failed", 40).await;
    let long_ago =
        "update settled_failed set settle_time = date_trunc('day', now()) - interval '40 days' + interval '12 hours'";
    sqlx::raw_sql(long_ago).execute(&mut connection).await.expect("settled long ago");

    let store = store_with(&url, Retention::default()).await;
    retire_all(&store).await;
    assert!(past_tables(&mut connection).await.is_empty());
    assert_eq!(get_event(&service, forgotten).await.expect_err("its day is over"), Code::NotFound);
    let request = GetDeliveryRequest { delivery_id: canceled };
    assert_eq!(service.client.clone().get_delivery(request).await.expect_err("its day is over").code(), Code::NotFound);

    let kept = get_event(&service, event).await.expect("kept");
    assert_eq!(kept.payload, r#"{"kept": "beyond its day"}"#);
    let delivery = service.delivery(&waiting).await;
    assert_eq!((delivery.idempotency_key.as_str(), delivery.ordering_key.as_str()), ("key-of-40-days", "o"));
    assert_eq!(delivery.event.expect("with its event").payload, kept.payload);
    let request = ResumeEndpointRequest { endpoint_id: endpoint.id.clone() };
    service.client.clone().resume_endpoint(request).await.expect("resumed");
    service.in_state(&waiting, DeliveryState::Succeeded).await;
    let body = receiver.next().await.expect("one").body;
    assert!(String::from_utf8_lossy(&body).contains(r#""data":{"kept": "beyond its day"}"#));

    // It can be sent anew as long as the delivery is kept; after that nothing needs it.
    assert_eq!(store.prune_kept().await.expect("pruned"), 1, "whose the canceled one was");
    assert_eq!(count(&mut connection, "events_kept").await, 1);
    past_day(&mut connection, "settled_succeeded", 40).await;
    let long_ago = "update settled_succeeded set settle_time = date_trunc('day', now()) - interval '40 days' + interval '12 hours'";
    sqlx::raw_sql(long_ago).execute(&mut connection).await.expect("settled long ago");
    retire_all(&store).await;
    assert_eq!(store.prune_kept().await.expect("pruned"), 2, "the event, and whose its delivery was");
    assert_eq!(get_event(&service, event).await.expect_err("nothing needs it"), Code::NotFound);
    assert_eq!(count(&mut connection, "events_kept").await, 0);
}

#[tokio::test]
async fn what_failed_or_succeeded_is_sent_again_from_a_payload_that_outlasted_its_day() {
    let url = support::database().await;
    let service = service_with(url.clone(), &KEEPS_ALL).await;
    let refusing =
        receiver(Behaviour { fail_first: 1, fail_status: StatusCode::NOT_FOUND, ..Behaviour::default() }).await;
    let taking = receiver(Behaviour::default()).await;
    let failing = Endpoint { retry_policy: Some(retries(0)), ..endpoint(&refusing.url()) };
    service.register(failing).await;
    service.register(endpoint(&taking.url())).await;
    let published = service.publish(event_of(r#"{"again": true}"#)).await;
    let mut ended = Vec::new();
    for made in &published.deliveries {
        let delivery = eventually("it is settled", || async {
            Some(service.delivery(&made.delivery_id).await).filter(|delivery| delivery.settle_time.is_some())
        });
        ended.push(delivery.await);
    }
    let mut connection = support::connection(&url).await;
    past_day(&mut connection, "events", 40).await;
    age(&mut connection, &published.event_id, 40).await;
    retire_all(&*store_with(&url, Retention::default()).await).await;
    assert_eq!(count(&mut connection, "events_kept").await, 1);

    let letters = service.client.clone().list_dead_letters(ListDeadLettersRequest::default()).await.expect("listed");
    let letters = letters.into_inner().dead_letters;
    assert_eq!(letters.iter().map(|letter| letter.payload.as_ref()).collect::<Vec<_>>(), [br#"{"again": true}"#]);
    let by_state = |state: DeliveryState| ended.iter().find(|one| one.state() == state).expect("one").id.clone();
    let failed = by_state(DeliveryState::Failed);
    service.client.clone().retry_delivery(RetryDeliveryRequest { delivery_id: failed.clone() }).await.expect("retried");
    let again = service.in_state(&failed, DeliveryState::Succeeded).await;
    assert_eq!(again.event.expect("its event").payload, r#"{"again": true}"#);
    let filter = ReplayFilter {
        delivery_ids: vec![by_state(DeliveryState::Succeeded)],
        states: vec![DeliveryState::Succeeded.into()],
        ..ReplayFilter::default()
    };
    let request = StartReplayRequest { filter: Some(filter), ..StartReplayRequest::default() };
    service.client.clone().start_replay(request).await.expect("started");
    let first = soon("the first request", taking.next()).await.expect("one");
    let anew = soon("it is sent anew", taking.next()).await.expect("another");
    assert_ne!(first.delivery_id, anew.delivery_id);
    let data = |body: &[u8]| String::from_utf8_lossy(body).split_once(r#""data":"#).map(|(_, data)| data.to_owned());
    assert_eq!(data(&anew.body).expect("an envelope"), r#"{"again": true}}"#);
    assert_eq!(data(&first.body), data(&anew.body));
}

#[tokio::test]
async fn events_that_outlast_their_day_have_every_column() {
    let url = support::database().await;
    let mut connection = support::connection(&url).await;
    let mut columns = Vec::new();
    for table in ["events", "events_kept"] {
        let of: Vec<(String, String, bool)> = sqlx::query_as(
            "select attname::text, format_type(atttypid, atttypmod), attnotnull from pg_attribute
             where attrelid = to_regclass($1) and attnum > 0 and not attisdropped order by attname",
        )
        .bind(table)
        .fetch_all(&mut connection)
        .await
        .expect("read");
        assert!(of.len() > 10);
        columns.push(of);
    }
    assert_eq!(columns[0], columns[1]);
    // And each is copied: a row with a value in every column arrives as it was.
    past_day(&mut connection, "events", 40).await;
    let event = old_id(&mut connection, 40).await;
    let rows = "insert into events (id, tenant, event_type, payload, content_type, idempotency_key, metadata,
                                    cloudevents_source, priority, ordering_key, deliver_time, expire_time,
                                    trace, routing_note)
                values ($1, 'acme', 'a.b', '\\x00ff', 'text/plain', 'k', '{\"m\": \"n\"}', '/s', 1, 'o', now(), now(), '\\x01', 'r')";
    sqlx::query(rows).bind(event).execute(&mut connection).await.expect("written");
    let nulls: i64 =
        sqlx::query_scalar("select count(*) from events e, jsonb_each(to_jsonb(e)) c where c.value = 'null'")
            .fetch_one(&mut connection)
            .await
            .expect("read");
    assert_eq!(nulls, 0, "a column that this test does not know: events_kept has to take it as well");
    let needing = "insert into outstanding (id, endpoint_id, event_id, due_at, state, priority, payload_format, tenant, event_type)
                   values ($2, $2, $1, now() + interval '1 day', 1, 2, 1, 'acme', 'a.b')";
    let delivery = DeliveryId::from_uuid(old_id(&mut connection, 40).await);
    sqlx::query(needing).bind(event).bind(delivery.uuid()).execute(&mut connection).await.expect("written");
    let select = |table: &str| AssertSqlSafe(format!("select to_jsonb(e) from {table} e"));
    let before: serde_json::Value = sqlx::query_scalar(select("events")).fetch_one(&mut connection).await.expect("one");
    retire_all(&*store_with(&url, Retention::default()).await).await;
    let after: serde_json::Value =
        sqlx::query_scalar(select("events_kept")).fetch_one(&mut connection).await.expect("one");
    assert_eq!(before, after);
}

#[tokio::test]
async fn an_event_is_kept_whichever_table_its_delivery_is_in() {
    const TABLES: [(&str, &str, &str); 3] = [
        ("outstanding", "due_at, state", "now() + interval '1 day', 1"),
        ("settled_succeeded", "settle_time, claim_gen, attempt_count, last_status", "now(), 1, 1, 200"),
        (
            "settled_failed",
            "settle_time, claim_gen, attempt_count, last_status, state, reason",
            "now(), 1, 1, 500, 5, 'r'",
        ),
    ];
    let url = support::database().await;
    let mut connection = support::connection(&url).await;
    past_day(&mut connection, "events", 40).await;
    let mut needed = Vec::new();
    for place in 0..=TABLES.len() {
        let event = old_id(&mut connection, 40).await;
        let row =
            "insert into events (id, tenant, event_type, payload, content_type) values ($1, 't', 'a', '1', 'a/b')";
        sqlx::query(row).bind(event).execute(&mut connection).await.expect("written");
        // One has no delivery.
        let Some((table, columns, values)) = TABLES.get(place) else { break };
        let made = format!(
            "insert into {table} (id, endpoint_id, event_id, priority, payload_format, tenant, event_type, {columns})
             values ($2, $1, $1, 2, 1, 't', 'a', {values})"
        );
        let delivery = DeliveryId::of(EventId::from_uuid(event), u64::MAX).uuid();
        let made = sqlx::query(AssertSqlSafe(made)).bind(event).bind(delivery).execute(&mut connection);
        made.await.expect("written");
        needed.push(event);
    }
    let store = store_with(&url, Retention::default()).await;
    retire_all(&store).await;
    assert_eq!(store.prune_kept().await.expect("pruned"), 0);
    let kept: Vec<Uuid> =
        sqlx::query_scalar("select id from events_kept").fetch_all(&mut connection).await.expect("read");
    assert_eq!(kept.into_iter().collect::<BTreeSet<_>>(), needed.iter().copied().collect());
    for (left, (table, ..)) in [2, 1, 0].into_iter().zip(TABLES) {
        sqlx::raw_sql(AssertSqlSafe(format!("delete from {table}"))).execute(&mut connection).await.expect("gone");
        assert_eq!(store.prune_kept().await.expect("pruned"), 1, "{table}");
        assert_eq!(count(&mut connection, "events_kept").await, left);
    }
}
