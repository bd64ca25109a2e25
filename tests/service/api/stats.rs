//! GetStats: counts, rates and quantiles of a window, and how the queue stands.

use hooklane::api::proto::*;
use hooklane::cli::listen::Behaviour;
use http::StatusCode;
use tonic::Code;

use super::{
    Service, endpoint, event, eventually, fields, reason, receiver, retries, seconds, service, service_with, told,
};
use crate::support;

async fn stats(service: &Service, request: GetStatsRequest) -> GetStatsResponse {
    service.client.clone().get_stats(request).await.expect("answered").into_inner()
}

fn micros(span: Option<prost_types::Duration>) -> i64 {
    let span = span.expect("a span");
    span.seconds * 1_000_000 + i64::from(span.nanos) / 1_000
}

#[tokio::test]
async fn what_happened_is_counted_by_tenant_and_endpoint() {
    let service = service().await;
    let accepting = receiver(Behaviour::default()).await;
    let refusing = receiver(Behaviour { status: Some(StatusCode::BAD_GATEWAY), ..Behaviour::default() }).await;
    let good = service.register(endpoint(&accepting.url())).await.id;
    let given = Endpoint { retry_policy: Some(retries(1)), ..endpoint(&refusing.url()) };
    let bad = service.register(given).await.id;
    for _ in 0..3 {
        for delivery in service.publish(event("a")).await.deliveries {
            let state = if delivery.endpoint_id == good { DeliveryState::Succeeded } else { DeliveryState::Failed };
            service.in_state(&delivery.delivery_id, state).await;
        }
    }
    // The commit is seen before it is counted.
    let found = eventually("all is counted", || async {
        Some(stats(&service, GetStatsRequest::default()).await).filter(|found| found.attempts == 9)
    })
    .await;
    assert_eq!((found.succeeded, found.failed, found.dead_letters), (3, 3, 3));
    assert_eq!((found.outstanding, found.in_flight, found.oldest_due_age), (0, 0, None));
    assert!((found.success_rate - 0.5).abs() < 1e-9);
    for quantiles in [found.attempt_duration.expect("attempts"), found.end_to_end.expect("successes")] {
        assert!(0 < micros(quantiles.p50) && micros(quantiles.p50) <= micros(quantiles.p95));
        assert!(micros(quantiles.p95) <= micros(quantiles.p99));
    }
    assert!(micros(found.attempt_duration_mean) > 0);
    let rows: Vec<_> = found.endpoints.iter().map(|one| (one.endpoint_id.clone(), one.succeeded, one.failed)).collect();
    assert_eq!(rows, [(bad.clone(), 0, 3), (good.clone(), 3, 0)], "the busiest first");
    assert!((found.endpoints[1].success_rate - 1.0).abs() < 1e-9 && found.endpoints[1].attempt_duration.is_some());
    for days in [0, 1, 30] {
        let window = Some(seconds(days * 86_400 + if days == 0 { 7_200 } else { 0 }));
        let wide = stats(&service, GetStatsRequest { window, ..Default::default() }).await;
        assert_eq!((wide.succeeded, wide.failed, wide.attempts), (3, 3, 9), "{days}");
    }
    let others = stats(&service, GetStatsRequest { tenant: "acme".to_owned(), ..Default::default() }).await;
    assert_eq!(others, GetStatsResponse::default());
    let all = stats(&service, GetStatsRequest { tenant: "*".to_owned(), ..Default::default() }).await;
    assert_eq!((all.attempts, all.dead_letters, all.endpoints.len()), (9, 3, 2));
}

#[tokio::test]
async fn what_was_counted_outlives_the_process_and_is_counted_once() {
    let url = support::database().await;
    let first = service_with(url.clone(), &[]).await;
    let accepting = receiver(Behaviour::default()).await;
    first.register(endpoint(&accepting.url())).await;
    let id = first.publish_one("a").await;
    first.in_state(&id, DeliveryState::Succeeded).await;
    first.app.stop().await;
    let second = service_with(url, &[]).await;
    let id = second.publish_one("a").await;
    second.in_state(&id, DeliveryState::Succeeded).await;
    let found = eventually("both are counted", || async {
        Some(stats(&second, GetStatsRequest::default()).await).filter(|found| found.succeeded == 2)
    })
    .await;
    assert_eq!((found.attempts, found.endpoints.len(), found.endpoints[0].succeeded), (2, 1, 2));
}

#[tokio::test]
async fn the_queue_is_shown_as_it_stands() {
    let service = service().await;
    let silent = receiver(Behaviour::default()).await;
    let waiting = service.register(endpoint(&silent.url())).await.id;
    service.client.clone().pause_endpoint(PauseEndpointRequest { endpoint_id: waiting.clone() }).await.expect("paused");
    for _ in 0..5 {
        service.publish_one("a").await;
    }
    let found = eventually("time passes", || async {
        Some(stats(&service, GetStatsRequest::default()).await).filter(|found| found.oldest_due_age.is_some())
    })
    .await;
    assert_eq!((found.outstanding, found.in_flight), (5, 0));
    assert!(micros(found.oldest_due_age) > 0);
    assert_eq!(found.endpoints.len(), 1, "{found:?}");
    assert_eq!((found.endpoints[0].endpoint_id.as_str(), found.endpoints[0].outstanding), (waiting.as_str(), 5));
    assert!(found.endpoints[0].oldest_due_age.is_some());
    assert_eq!((found.success_rate, found.attempt_duration, found.attempt_duration_mean), (0.0, None, None));
}

#[tokio::test]
async fn long_queues_are_shown_without_counting_them() {
    let url = support::database().await;
    let mut admin = support::connection(&url).await;
    let rows = "insert into endpoints (id, tenant, url, shown_url, description, event_types, signature_scheme,
                       payload_format, timeout_ms, max_in_flight, labels, state, version, create_time, update_time)
         select md5('e' || n)::uuid, case n when 0 then 'small' else 'default' end, 'http://h/', 'http://h/', '', '{}', 1,
                1, 1000, 10, '{}', 2, 1, now(), now()
         from generate_series(0, 2) n;
         insert into outstanding (id, endpoint_id, event_id, due_at, state, priority, payload_format, tenant, event_type)
         select md5('d' || n)::uuid, md5('e' || case when n % 1000 = 0 then 0 when n % 3 = 0 then 1 else 2 end)::uuid,
                md5('v' || n)::uuid, now() - interval '1 minute', 1, 2, 1,
                case when n % 1000 = 0 then 'small' else 'default' end, 'a'
         from generate_series(1, 30000) n";
    sqlx::raw_sql(rows).execute(&mut admin).await.expect("filled");
    let service = service_with(url, &[]).await;
    for (tenant, outstanding, endpoints) in
        [("*", 30_000, 3), ("default", 29_970, 2), ("small", 30, 1), ("nobody", 0, 0)]
    {
        let found = stats(&service, GetStatsRequest { tenant: tenant.to_owned(), ..Default::default() }).await;
        assert_eq!((found.outstanding, found.endpoints.len()), (outstanding, endpoints), "{tenant}");
        assert_eq!(found.oldest_due_age.is_some_and(|age| age.seconds >= 60), outstanding > 0, "{tenant}");
    }
}

#[tokio::test]
async fn a_window_is_checked() {
    let service = service().await;
    for window in [seconds(0), seconds(-1), seconds(30 * 86_400 + 1)] {
        let request = GetStatsRequest { tenant: "a b".to_owned(), window: Some(window) };
        let refusal = service.client.clone().get_stats(request).await.expect_err("refused");
        assert_eq!(reason(&refusal), told(Code::InvalidArgument, "INVALID_FIELD"));
        assert_eq!(fields(&refusal), ["tenant", "window"]);
    }
}
