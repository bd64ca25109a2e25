//! What holds when several replicas look at once, and when one dies between an alert and its event.

use hooklane::api::proto::*;

use super::super::{receiver, service_with};
use super::{alert_where, deliver, failing, impatient, listener, next_told, operational};
use crate::support::{self, eventually};

async fn told_levels(database: &str) -> Vec<i32> {
    let mut connection = support::connection(database).await;
    let levels = "select told_level from alerts where kind = 1";
    sqlx::query_scalar(levels).fetch_all(&mut connection).await.expect("read")
}

#[tokio::test]
async fn several_replicas_make_one_alert_and_one_event_of_a_condition() {
    let database = support::database().await;
    let service = service_with(database.clone(), &[]).await;
    let others = [service_with(database.clone(), &[]).await, service_with(database.clone(), &[]).await];
    let shop = receiver(failing()).await;
    let registered = service.register(impatient(&shop.url())).await;
    let (listener, to) = listener(&service, "hooklane.*").await;
    let mut failed = Vec::new();
    for place in 0..5 {
        let service = others.get(place % 3).unwrap_or(&service);
        failed.push(deliver(service, DeliveryState::Failed).await.id);
    }
    let is_so = |alert: &Alert| alert.details["threshold"] == "5";
    alert_where(&service, &registered, AlertKind::EndpointFailing, is_so).await;
    let mut told = Vec::new();
    for _ in 0..7 {
        told.push(next_told(&listener).await);
    }
    let levels: Vec<u64> = told.iter().filter_map(|(_, data)| data["consecutive_failures"].as_u64()).collect();
    assert_eq!(levels, [3, 5]);
    let mut deliveries: Vec<&str> = told.iter().filter_map(|(_, data)| data["delivery_id"].as_str()).collect();
    deliveries.sort_unstable();
    failed.sort_unstable();
    assert_eq!(deliveries, failed);
    assert_eq!(operational(&service, &to).await.len(), 7);
}

#[tokio::test]
async fn an_event_that_was_published_and_not_noted_is_not_made_twice() {
    let database = support::database().await;
    let service = service_with(database.clone(), &[]).await;
    let shop = receiver(failing()).await;
    service.register(impatient(&shop.url())).await;
    let (listener, to) = listener(&service, "hooklane.*").await;
    let mut connection = support::connection(&database).await;
    let place: (String, String) = eventually("a place in the timeline", || async {
        let place = "select since::text, since_time::text from failures_told";
        let mut connection = support::connection(&database).await;
        sqlx::query_as(place).fetch_optional(&mut connection).await.expect("read")
    })
    .await;
    for _ in 0..3 {
        deliver(&service, DeliveryState::Failed).await;
    }
    for _ in 0..4 {
        next_told(&listener).await;
    }
    // As it is for whoever comes after a process that died before it had noted anything.
    sqlx::query("update alerts set told_level = 0").execute(&mut connection).await.expect("forgotten");
    sqlx::query(
        "update failures_told set since = $1::pg_snapshot, since_time = $2::timestamptz, until = null, until_time = null,
                                  xid = null, delivery_id = null",
    )
    .bind(&place.0)
    .bind(&place.1)
    .execute(&mut connection)
    .await
    .expect("forgotten");
    eventually("it is told again", || async { (told_levels(&database).await == [3]).then_some(()) }).await;
    let after = deliver(&service, DeliveryState::Failed).await;
    assert_eq!(next_told(&listener).await.1["delivery_id"].as_str(), Some(&*after.id));
    assert_eq!(operational(&service, &to).await.len(), 5);
}

#[tokio::test]
async fn what_a_dead_process_had_counted_is_found_by_a_look_at_every_endpoint() {
    let database = support::database().await;
    let service = service_with(database.clone(), &[]).await;
    let registered = service.register(impatient("http://127.0.0.1:9/")).await;
    let (listener, _) = listener(&service, "hooklane.endpoint.failing").await;
    let mut connection = support::connection(&database).await;
    // On record, and in no process's memory.
    let lost = "with waiting as (
                  insert into outstanding (id, endpoint_id, event_id, due_at, state, priority, payload_format, tenant,
                                           event_type)
                  select gen_random_uuid(), id, gen_random_uuid(), now() + interval '1 hour', 1, 2, 1, 'default', 'a'
                  from endpoints where shown_url = 'http://127.0.0.1:9/'
                )
                update endpoint_health set consecutive_failures = 7, last_failure_time = now()
                where endpoint_id = (select id from endpoints where shown_url = 'http://127.0.0.1:9/')";
    sqlx::query(lost).execute(&mut connection).await.expect("failed");
    let alert = alert_where(&service, &registered, AlertKind::EndpointFailing, |_| true).await;
    assert_eq!((alert.details["consecutive_failures"].as_str(), alert.details["threshold"].as_str()), ("7", "5"));
    for level in [3, 5] {
        assert_eq!(next_told(&listener).await.1["consecutive_failures"], level);
    }
}
