//! Publishing from SQL: in the caller's transaction, by a role that may do nothing else, once, in order, visibly.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use hooklane::api::proto::*;
use hooklane::cli::listen::{Behaviour, Receiver};
use sqlx::postgres::PgDatabaseError;
use sqlx::{AssertSqlSafe, PgConnection};
use tonic::Code;

use super::{Service, endpoint, event, event_of, receiver, service_with, soon};
use crate::support::{self, eventually};

/// Calls `hooklane.publish` with arguments as they would be written.
async fn publish(connection: &mut PgConnection, arguments: &str) -> Result<String, sqlx::Error> {
    let statement = format!("select hooklane.publish({arguments})");
    sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(connection).await
}

async fn execute(connection: &mut PgConnection, statement: &str) {
    sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(connection).await.expect(statement);
}

async fn get_event(service: &Service, id: &str) -> Result<GetEventResponse, Code> {
    let request = GetEventRequest { event_id: id.to_owned() };
    service.client.clone().get_event(request).await.map(tonic::Response::into_inner).map_err(|refusal| refusal.code())
}

/// The event, once it was taken up and found its endpoints, or was laid to rest.
async fn taken_up(service: &Service, id: &str) -> GetEventResponse {
    eventually(&format!("{id} is taken up"), || async {
        let found = get_event(service, id).await.ok()?;
        let is_waiting = found.event.as_ref().is_some_and(|event| event.routing_note.starts_with("INBOX: "));
        Some(found).filter(|_| !is_waiting)
    })
    .await
}

async fn nothing_waits(url: &str) {
    eventually("everything is taken up", || async {
        let mut connection = support::connection(url).await;
        let left: i64 = sqlx::query_scalar("select count(*) from inbox").fetch_one(&mut connection).await.ok()?;
        Some(()).filter(|()| left == 0)
    })
    .await;
}

fn data(body: &[u8]) -> String {
    let body = String::from_utf8_lossy(body);
    let (_, data) = body.split_once(r#""data":"#).expect("an envelope");
    data.strip_suffix('}').expect("its end").to_owned()
}

async fn next_data(receiver: &Receiver) -> String {
    data(&soon("a request", receiver.next()).await.expect("one").body)
}

#[tokio::test]
async fn an_event_is_published_with_the_callers_transaction_and_rolled_back_with_it() {
    let url = support::database().await;
    let service = service_with(url.clone(), &[]).await;
    let receiver = receiver(Behaviour::default()).await;
    let endpoint = service.register(endpoint(&receiver.url())).await;
    let mut connection = support::connection(&url).await;
    execute(&mut connection, "create table public.orders (id int)").await;

    execute(&mut connection, "begin; insert into public.orders values (1)").await;
    let gone =
        publish(&mut connection, "event_type => 'order.created', payload => '{\"order\": 1}'").await.expect("called");
    execute(&mut connection, "rollback").await;

    let payload = r#"{"order" :  2, "b": 1e2, "a": null, "order": 2}"#;
    execute(&mut connection, "begin; insert into public.orders values (2)").await;
    let arguments = format!(
        "event_type => 'order.created', payload => '{payload}', tenant => 'default', idempotency_key => 'order-2',
         ordering_key => 'customer-7', priority => 'HIGH', expire_time => now() + interval '1 hour',
         metadata => '{{\"source\": \"shop\"}}'"
    );
    let id = publish(&mut connection, &arguments).await.expect("called");
    assert_eq!(get_event(&service, &id).await.expect_err("not committed"), Code::NotFound);
    execute(&mut connection, "commit").await;

    let taken = taken_up(&service, &id).await;
    let event = taken.event.expect("an event");
    assert_eq!((event.id.as_str(), event.payload.as_ref()), (id.as_str(), payload.as_bytes()));
    assert_eq!((event.event_type.as_str(), event.content_type.as_str()), ("order.created", "application/json"));
    assert_eq!((event.idempotency_key.as_str(), event.ordering_key.as_str()), ("order-2", "customer-7"));
    assert_eq!((event.priority(), event.routing_note.as_str()), (Priority::High, ""));
    assert_eq!(event.metadata, [("source".to_owned(), "shop".to_owned())].into());
    assert!(event.expire_time.is_some() && event.deliver_time.is_none());
    let [delivery] = &taken.deliveries[..] else { panic!("one delivery: {:?}", taken.deliveries) };
    assert_eq!(delivery.endpoint_id, endpoint.id);
    service.in_state(&delivery.id, DeliveryState::Succeeded).await;
    assert_eq!(next_data(&receiver).await, payload, "byte for byte");
    assert_eq!(receiver.count(), 1, "what was rolled back is not delivered");
    assert_eq!(get_event(&service, &gone).await.expect_err("rolled back"), Code::NotFound);
    let waiting: i64 =
        sqlx::query_scalar("select count(*) from inbox").fetch_one(&mut connection).await.expect("counted");
    assert_eq!(waiting, 0);
}

#[tokio::test]
async fn a_role_may_publish_and_do_nothing_else() {
    let url = support::database().await;
    let service = service_with(url.clone(), &[]).await;
    let mut connection = support::connection(&url).await;
    let may: Vec<String> = sqlx::query_scalar(
        "select c.relname::text from pg_class c
         where c.relnamespace = 'hooklane'::regnamespace
           and case when c.relkind in ('r', 'p', 'v')
                    then has_table_privilege('hooklane_publisher', c.oid,
                                             'select, insert, update, delete, truncate, references, trigger') end
         union all
         select c.relname::text from pg_class c
         where c.relnamespace = 'hooklane'::regnamespace
           and case when c.relkind = 'S'
                    then has_sequence_privilege('hooklane_publisher', c.oid, 'usage, select, update') end
         union all
         select p.proname::text from pg_proc p
         where p.pronamespace = 'hooklane'::regnamespace and p.proname <> 'uuid_time'
           and has_function_privilege('hooklane_publisher', p.oid, 'execute')
         union all
         select 'create' where has_schema_privilege('hooklane_publisher', 'hooklane', 'create')",
    )
    .fetch_all(&mut connection)
    .await
    .expect("read");
    assert_eq!(may, ["publish"]);
    execute(&mut connection, "set role hooklane_publisher").await;
    for refused in [
        "select * from hooklane.events",
        "select * from hooklane.endpoint_secrets",
        "insert into hooklane.inbox (id, tenant, event_type, payload, is_repeat, priority) values (gen_random_uuid(), 'a', 'b', '', false, 2)",
        "delete from hooklane.inbox",
        "select hooklane.new_uuid()",
        "create table hooklane.mine (id int)",
    ] {
        let error = sqlx::raw_sql(refused).execute(&mut connection).await.expect_err(refused);
        assert_eq!(error.as_database_error().and_then(|error| error.code()).as_deref(), Some("42501"), "{refused}");
    }
    // A caller's search path and temporary tables lead nobody astray.
    execute(&mut connection, "set search_path = pg_temp, public; create temporary table inbox (id int)").await;
    let id = publish(&mut connection, "'order.created', '{}'").await.expect("published");
    assert!(taken_up(&service, &id).await.deliveries.is_empty(), "nobody wants it, and it is there");
}

#[tokio::test]
async fn bad_arguments_are_refused_in_the_call_with_what_is_allowed() {
    let url = support::database().await;
    let _service = service_with(url.clone(), &[("HOOKLANE_LIMITS_PAYLOAD_BYTES", "1000")]).await;
    let mut connection = support::connection(&url).await;
    let good = "'order.created', '{}'";
    for (arguments, code, column, hint) in [
        ("null, '{}'", "22004", "event_type", "name the type"),
        ("'order created', '{}'", "22023", "event_type", "1 to 128 characters"),
        ("'', '{}'", "22023", "event_type", "1 to 128 characters"),
        ("E'a\\n', '{}'", "22023", "event_type", "1 to 128 characters"),
        ("repeat('x', 129), '{}'", "22023", "event_type", "1 to 128 characters"),
        ("'hooklane.endpoint.failing', '{}'", "22023", "event_type", "does not begin with hooklane."),
        ("'a', null", "22004", "payload", "'null'::json"),
        ("'a', ('\"' || repeat('x', 999) || '\"')::json", "54000", "payload", "allowed are 1000"),
        ("'a', (repeat('[', 129) || repeat(']', 129))::json", "22023", "payload", "128 levels"),
        ("'a', '{}', tenant => 'a b'", "22023", "tenant", "1 to 64 characters"),
        ("'a', '{}', idempotency_key => 'ä'", "22023", "idempotency_key", "255 visible ASCII"),
        ("'a', '{}', idempotency_key => repeat('x', 256)", "22023", "idempotency_key", "255 visible ASCII"),
        ("'a', '{}', ordering_key => 'a b'", "22023", "ordering_key", "255 visible ASCII"),
        ("'a', '{}', priority => 'urgent'", "22023", "priority", "HIGH, NORMAL and LOW"),
        ("'a', '{}', deliver_time => now() + interval '367 days'", "22023", "deliver_time", "366 days"),
        ("'a', '{}', deliver_time => 'infinity'", "22023", "deliver_time", "366 days"),
        ("'a', '{}', expire_time => now() - interval '1 second'", "22023", "expire_time", "a time to come"),
        ("'a', '{}', expire_time => 'infinity'", "22023", "expire_time", "a time to come"),
        (
            "'a', '{}', deliver_time => now() + interval '2 hours', expire_time => now() + interval '1 hour'",
            "22023",
            "expire_time",
            "after deliver_time",
        ),
        ("'a', '{}', metadata => '[1]'", "22023", "metadata", "object of strings"),
        ("'a', '{}', metadata => '{\"a\": 1}'", "22023", "metadata", "object of strings"),
        ("'a', '{}', metadata => '{\"\": \"x\"}'", "22023", "metadata", "object of strings"),
        ("'a', '{}', metadata => jsonb_build_object('a', repeat('x', 4096))", "54000", "metadata", "32 entries"),
        (
            "'a', '{}', metadata => (select jsonb_object_agg(n, '') from generate_series(1, 33) n)",
            "54000",
            "metadata",
            "32 entries",
        ),
    ] {
        let error = publish(&mut connection, arguments).await.expect_err(arguments);
        let refusal = error.as_database_error().expect("refused").downcast_ref::<PgDatabaseError>();
        assert_eq!((refusal.code(), refusal.column()), (code, Some(column)), "{arguments}: {refusal}");
        assert!(refusal.message().starts_with(column), "{refusal}");
        assert!(refusal.hint().is_some_and(|words| words.contains(hint)), "{arguments}: {:?}", refusal.hint());
    }
    // What is no JSON, the type refuses.
    let error = publish(&mut connection, "'a', '{'").await.expect_err("no JSON");
    assert_eq!(error.as_database_error().and_then(|error| error.code()).as_deref(), Some("22P02"));
    for accepted in [
        good,
        "'a', (repeat('[', 128) || repeat(']', 128))::json",
        "'a', ('[\"\\\"' || repeat('[', 500) || '\"]')::json",
        "'a', 'null'",
        "'a', '{}', tenant => '', idempotency_key => '', ordering_key => null, priority => null, metadata => '{}'",
        "'a', '{}', deliver_time => '-infinity'",
    ] {
        let id = publish(&mut connection, accepted).await.expect(accepted);
        id.parse::<hooklane::domain::id::EventId>().expect("an id of an event");
    }
}

#[tokio::test]
async fn an_id_is_drawn_as_everywhere_else() {
    let mut connection = support::connection(&support::database().await).await;
    for _ in 0..50 {
        let (id, text): (sqlx::types::Uuid, String) =
            sqlx::query_as("select u, typeid('evt', u) from (select new_uuid() as u offset 0) n")
                .fetch_one(&mut connection)
                .await
                .expect("drawn");
        assert_eq!((id.get_version_num(), id.get_variant()), (7, uuid::Variant::RFC4122));
        assert_eq!(hooklane::domain::id::EventId::from_uuid(id).to_string(), text);
        let is_now: bool = sqlx::query_scalar("select abs(extract(epoch from clock_timestamp() - uuid_time($1))) < 60")
            .bind(id)
            .fetch_one(&mut connection)
            .await
            .expect("compared");
        assert!(is_now);
    }
}

#[tokio::test]
async fn idempotency_keys_hold_as_for_calls() {
    let url = support::database().await;
    let service = service_with(url.clone(), &[]).await;
    let first = receiver(Behaviour::default()).await;
    service.register(endpoint(&first.url())).await;
    let mut connection = support::connection(&url).await;
    let keyed = "'order.created', '{\"n\": 1}', idempotency_key => 'k'";
    execute(&mut connection, "begin").await;
    let id = publish(&mut connection, keyed).await.expect("published");
    assert_eq!(publish(&mut connection, keyed).await.expect("a repeat that waits"), id);
    execute(&mut connection, "commit").await;
    assert_eq!(taken_up(&service, &id).await.deliveries.len(), 1);
    assert_eq!(next_data(&first).await, r#"{"n": 1}"#);

    // The calls know it, and it knows the calls'.
    let call =
        |key: &str, payload: &'static str| PublishRequest { idempotency_key: key.to_owned(), ..event_of(payload) };
    let repeat = service.publish(call("k", r#"{"n": 1}"#)).await;
    assert!(repeat.duplicate && repeat.event_id == id);
    let called = service.publish(call("called", r#"{"n": 2}"#)).await;
    assert_eq!(next_data(&first).await, r#"{"n": 2}"#);
    let again = "'order.created', '{\"n\": 2}', idempotency_key => 'called'";
    assert_eq!(publish(&mut connection, again).await.expect("a repeat"), called.event_id);
    for other in
        ["'order.created', '{\"n\":1}', idempotency_key => 'k'", "'order.paid', '{\"n\": 1}', idempotency_key => 'k'"]
    {
        let error = publish(&mut connection, other).await.expect_err("other content");
        let refusal = error.as_database_error().expect("refused").downcast_ref::<PgDatabaseError>();
        assert_eq!((refusal.code(), refusal.column()), ("23505", Some("idempotency_key")));
        assert!(refusal.hint().is_some_and(|hint| hint.contains(&id)), "{:?}", refusal.hint());
    }
    // Another tenant's key is another key.
    let acme = publish(&mut connection, "'order.created', '[]', tenant => 'acme', idempotency_key => 'k'").await;
    assert_ne!(acme.expect("published"), id);

    // Endpoints that have come since get the first event's delivery.
    nothing_waits(&url).await;
    let second = receiver(Behaviour::default()).await;
    service.register(endpoint(&second.url())).await;
    assert_eq!(publish(&mut connection, keyed).await.expect("a repeat"), id);
    assert_eq!(next_data(&second).await, r#"{"n": 1}"#);
    nothing_waits(&url).await;
    assert_eq!((first.count(), second.count()), (2, 1));
    assert_eq!(get_event(&service, &id).await.expect("kept").deliveries.len(), 2);
}

#[tokio::test]
async fn what_a_key_met_after_the_call_is_visible_on_the_event() {
    let url = support::database().await;
    let service = service_with(url.clone(), &[]).await;
    let receiver = receiver(Behaviour::default()).await;
    service.register(endpoint(&receiver.url())).await;
    // Neither transaction can see the other's key.
    let (mut one, mut two, mut three) =
        (support::connection(&url).await, support::connection(&url).await, support::connection(&url).await);
    for connection in [&mut one, &mut two, &mut three] {
        execute(connection, "begin").await;
    }
    let first = publish(&mut one, "'order.created', '{\"n\": 1}', idempotency_key => 'k'").await.expect("published");
    let same = publish(&mut two, "'order.created', '{\"n\": 1}', idempotency_key => 'k'").await.expect("published");
    let other = publish(&mut three, "'order.created', '{\"n\": 2}', idempotency_key => 'k'").await.expect("published");
    assert_eq!(HashSet::from([&first, &same, &other]).len(), 3);
    execute(&mut one, "commit").await;
    assert_eq!(taken_up(&service, &first).await.deliveries.len(), 1);
    for connection in [&mut two, &mut three] {
        execute(connection, "commit").await;
    }
    let same = taken_up(&service, &same).await;
    assert!(same.deliveries.is_empty());
    let note = same.event.expect("kept").routing_note;
    assert_eq!(note, format!("DUPLICATE: {first} was published before with this idempotency key"));
    let other = taken_up(&service, &other).await;
    assert!(other.deliveries.is_empty());
    let other = other.event.expect("kept");
    assert!(other.routing_note.starts_with("IDEMPOTENCY_KEY_CONFLICT: "), "{}", other.routing_note);
    assert_eq!(other.payload, r#"{"n": 2}"#);
    assert_eq!(next_data(&receiver).await, r#"{"n": 1}"#);
    assert_eq!(receiver.count(), 1);
}

#[tokio::test]
async fn events_of_a_key_are_delivered_in_the_order_of_their_calls() {
    let url = support::database().await;
    let service = service_with(url.clone(), &[]).await;
    let receiver = receiver(Behaviour::default()).await;
    service.register(Endpoint { ordering: Ordering::ByKey.into(), ..endpoint(&receiver.url()) }).await;
    let mut connection = support::connection(&url).await;
    // More than a page of them in one transaction, which draws many ids in a millisecond.
    let many = "select hooklane.publish('a', to_json(n), ordering_key => 'k' || n % 3) from generate_series(1, 600) n";
    execute(&mut connection, many).await;
    let mut seen = BTreeMap::<i64, Vec<i64>>::new();
    for _ in 0..600 {
        let number: i64 = next_data(&receiver).await.parse().expect("a number");
        seen.entry(number % 3).or_default().push(number);
    }
    assert!(seen.values().all(|numbers| numbers.len() == 200 && numbers.is_sorted()), "{seen:?}");
}

#[tokio::test]
async fn a_call_that_commits_late_goes_before_those_that_come_after_its_commit() {
    let url = support::database().await;
    let service = service_with(url.clone(), &[]).await;
    let receiver = receiver(Behaviour::default()).await;
    service.register(Endpoint { ordering: Ordering::Fifo.into(), ..endpoint(&receiver.url()) }).await;
    let (mut late, mut other) = (support::connection(&url).await, support::connection(&url).await);
    for round in 0..10 {
        execute(&mut late, "begin").await;
        publish(&mut late, &format!("'a', '[{round}, 1]'")).await.expect("called");
        publish(&mut other, &format!("'a', '[{round}, 0]'")).await.expect("published");
        assert_eq!(next_data(&receiver).await, format!("[{round}, 0]"), "nobody waits for an open transaction");
        execute(&mut late, "commit").await;
        publish(&mut other, &format!("'a', '[{round}, 2]'")).await.expect("published");
        assert_eq!(next_data(&receiver).await, format!("[{round}, 1]"));
        assert_eq!(next_data(&receiver).await, format!("[{round}, 2]"));
    }
}

#[tokio::test]
async fn several_replicas_take_everything_up_once() {
    const CONNECTIONS: usize = 16;
    const EACH: usize = 40;
    let url = support::database().await;
    let receiver = receiver(Behaviour::default()).await;
    let mut services = vec![service_with(url.clone(), &[]).await];
    services[0].register(endpoint(&receiver.url())).await;
    let publishing: Vec<_> = (0..CONNECTIONS)
        .map(|place| {
            let url = url.clone();
            tokio::spawn(async move {
                let mut connection = support::connection(&url).await;
                let mut ids = Vec::new();
                for n in 0..EACH {
                    ids.push(publish(&mut connection, &format!("'a', '[{place}, {n}]'")).await.expect("published"));
                }
                ids
            })
        })
        .collect();
    // Others come and go meanwhile, and the inbox changes hands.
    services.push(service_with(url.clone(), &[]).await);
    services.push(service_with(url.clone(), &[]).await);
    services.remove(0).app.stop().await;
    let mut ids = HashSet::new();
    for one in publishing {
        ids.extend(one.await.expect("no panic"));
    }
    assert_eq!(ids.len(), CONNECTIONS * EACH);
    let mut bodies = HashSet::new();
    while bodies.len() < CONNECTIONS * EACH {
        bodies.insert(next_data(&receiver).await);
    }
    let mut connection = support::connection(&url).await;
    let (events, deliveries, waiting): (i64, i64, i64) = sqlx::query_as(
        "select (select count(*) from events), (select count(*) from deliveries), (select count(*) from inbox)",
    )
    .fetch_one(&mut connection)
    .await
    .expect("counted");
    assert_eq!((events, deliveries, waiting), (ids.len() as i64, ids.len() as i64, 0));
    for id in ids.iter().take(20) {
        assert_eq!(taken_up(&services[0], id).await.deliveries.len(), 1);
    }
}

#[tokio::test]
async fn what_finds_no_room_waits_and_says_so() {
    let url = support::database().await;
    let service = service_with(url.clone(), &[("HOOKLANE_QUEUE_MAX_OUTSTANDING", "1")]).await;
    let receiver = receiver(Behaviour::default()).await;
    let endpoint_id = service.register(endpoint(&receiver.url())).await.id;
    let request = PauseEndpointRequest { endpoint_id: endpoint_id.clone() };
    service.client.clone().pause_endpoint(request).await.expect("paused");
    service.publish(event("fills.the.queue")).await;
    let mut connection = support::connection(&url).await;
    let id = publish(&mut connection, "'order.created', '[1]'").await.expect("published");
    let waiting = get_event(&service, &id).await.expect("it is there").event.expect("an event");
    assert!(waiting.routing_note.starts_with("INBOX: "), "{waiting:?}");
    assert_eq!(waiting.payload, "[1]");
    service.client.clone().resume_endpoint(ResumeEndpointRequest { endpoint_id }).await.expect("resumed");
    assert_eq!(taken_up(&service, &id).await.deliveries.len(), 1);
    assert_eq!([next_data(&receiver).await, next_data(&receiver).await], ["{}", "[1]"]);
}

#[tokio::test]
async fn filters_choose_and_what_waited_for_weeks_is_delivered() {
    let url = support::database().await;
    let mut connection = support::connection(&url).await;
    // Called and committed while no replica ran, and partitions of those days were never made.
    execute(
        &mut connection,
        "insert into inbox (id, tenant, event_type, payload, is_repeat, priority)
         select (lpad(to_hex((extract(epoch from now() - interval '60 days') * 1000)::bigint), 12, '0')
                 || '7000800000000000000' || n)::uuid, 'default', 'a', convert_to('{\"n\": ' || n || '}', 'UTF8'), false, 2
         from generate_series(1, 2) n",
    )
    .await;
    let service = service_with(url.clone(), &[("HOOKLANE_RETENTION_PAYLOADS", "90d")]).await;
    let receiver = receiver(Behaviour::default()).await;
    service.register(Endpoint { filter: "event.data.n == 3".to_owned(), ..endpoint(&receiver.url()) }).await;
    execute(&mut connection, "select hooklane.publish('a', json_build_object('n', n)) from generate_series(2, 4) n")
        .await;
    assert_eq!(next_data(&receiver).await, r#"{"n" : 3}"#);
    nothing_waits(&url).await;
    let old: i64 = sqlx::query_scalar("select count(*) from events where uuid_time(id) < now() - interval '59 days'")
        .fetch_one(&mut connection)
        .await
        .expect("counted");
    assert_eq!(old, 2, "by the ids that their callers were told");
    tokio::time::timeout(Duration::from_millis(1), receiver.next()).await.expect_err("no other matched");
}
