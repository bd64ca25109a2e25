//! Dead letters: listed, counted, deleted, retried.

use hooklane::api::proto::*;
use hooklane::cli::listen::Behaviour;
use http::StatusCode;
use sqlx::AssertSqlSafe;
use tonic::Code;

use super::{Service, endpoint, event, fields, reason, receiver, retries, service, service_with, told};
use crate::support;

/// An endpoint that answers 503 and gives up after one retry.
async fn failing(service: &Service) -> (hooklane::cli::listen::Receiver, Endpoint) {
    let refusing = receiver(Behaviour { status: Some(StatusCode::SERVICE_UNAVAILABLE), ..Behaviour::default() }).await;
    let given = Endpoint { retry_policy: Some(retries(1)), ..endpoint(&refusing.url()) };
    let endpoint = service.register(given).await;
    (refusing, endpoint)
}

async fn list(service: &Service, request: ListDeadLettersRequest) -> Vec<DeadLetter> {
    let (mut listed, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListDeadLettersRequest { page_token, ..request.clone() };
        let page = service.client.clone().list_dead_letters(request).await.expect("listed").into_inner();
        listed.extend(page.dead_letters);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return listed;
        }
    }
}

async fn delete(service: &Service, request: DeleteDeadLettersRequest) -> (u64, u64) {
    let answer = service.client.clone().delete_dead_letters(request).await.expect("deleted").into_inner();
    (answer.matched, answer.deleted)
}

#[tokio::test]
async fn a_failed_delivery_is_a_dead_letter_that_says_why() {
    let service = service().await;
    let (_refusing, endpoint) = failing(&service).await;
    let id = service.publish_one("order.created").await;
    let delivery = service.in_state(&id, DeliveryState::Failed).await;
    let letters = list(&service, ListDeadLettersRequest::default()).await;
    assert_eq!(letters.len(), 1);
    let letter = &letters[0];
    assert_eq!((&letter.delivery_id, &letter.event_id), (&id, &delivery.event_id));
    assert_eq!(
        (letter.endpoint_id.as_str(), letter.endpoint_url.as_str()),
        (endpoint.id.as_str(), endpoint.url.as_str())
    );
    assert_eq!((letter.tenant.as_str(), letter.event_type.as_str()), ("default", "order.created"));
    assert_eq!(letter.payload, "{}");
    assert_eq!(letter.failure_reason, "HTTP 503: Service Unavailable");
    assert_eq!(letter.attempts, 2);
    assert_eq!((letter.create_time, letter.dead_time), (delivery.create_time, delivery.settle_time));
    assert_eq!(letter.last_attempt_time, delivery.attempts[1].start_time);
    let (dead, expire) = (letter.dead_time.expect("a time"), letter.expire_time.expect("a time"));
    assert_eq!((expire.seconds - dead.seconds, expire.nanos), (7 * 86_400, dead.nanos));
}

#[tokio::test]
async fn dead_letters_are_listed_in_pages_newest_first_and_filtered() {
    let service = service().await;
    let (_one, first) = failing(&service).await;
    let mut expected = Vec::new();
    for n in 0..7 {
        let id = service.publish_one(if n % 2 == 0 { "order.created" } else { "user.created" }).await;
        service.in_state(&id, DeliveryState::Failed).await;
        expected.push(id);
    }
    expected.reverse();
    let ids = |letters: Vec<DeadLetter>| letters.into_iter().map(|letter| letter.delivery_id).collect::<Vec<_>>();
    for page_size in [1, 3, 6, 7, 8, 0] {
        let request = ListDeadLettersRequest { page_size, ..Default::default() };
        assert_eq!(ids(list(&service, request).await), expected, "{page_size}");
    }
    let third = service.delivery(&expected[2]).await.settle_time;
    let none = ListDeadLettersRequest { page_size: 2, ..Default::default() };
    for (request, count) in [
        (ListDeadLettersRequest { endpoint_id: first.id.clone(), ..none.clone() }, 7),
        (
            ListDeadLettersRequest {
                endpoint_id: service.register(endpoint("http://127.0.0.1:9/")).await.id,
                ..none.clone()
            },
            0,
        ),
        (ListDeadLettersRequest { tenant: "acme".to_owned(), ..none.clone() }, 0),
        (ListDeadLettersRequest { tenant: "*".to_owned(), ..none.clone() }, 7),
        (ListDeadLettersRequest { event_types: vec!["order.*".to_owned()], ..none.clone() }, 4),
        (ListDeadLettersRequest { event_types: vec!["user.created".to_owned(), "x".to_owned()], ..none.clone() }, 3),
        (ListDeadLettersRequest { event_types: vec!["*".to_owned()], ..none.clone() }, 7),
        (ListDeadLettersRequest { event_types: vec!["hooklane.*".to_owned()], ..none.clone() }, 0),
        (ListDeadLettersRequest { dead_after: third, ..none.clone() }, 2),
        (ListDeadLettersRequest { dead_before: third, ..none.clone() }, 4),
    ] {
        assert_eq!(list(&service, request.clone()).await.len(), count, "{request:?}");
    }
    // A canceled delivery is none.
    let quiet = service.register(Endpoint { event_types: vec!["quiet".to_owned()], ..endpoint("http://127.0.0.1:9/") });
    let quiet = quiet.await.id;
    let request = PublishRequest { endpoint_ids: vec![quiet], ..event("quiet") };
    let id = service.publish(request).await.deliveries[0].delivery_id.clone();
    service.client.clone().cancel_delivery(CancelDeliveryRequest { delivery_id: id.clone() }).await.expect("canceled");
    service.in_state(&id, DeliveryState::Canceled).await;
    assert_eq!(list(&service, none).await.len(), 7);
}

#[tokio::test]
async fn deleting_counts_first_and_leaves_the_delivery_readable() {
    let service = service().await;
    let (_one, first) = failing(&service).await;
    let mut ids = Vec::new();
    for event_type in ["a.x", "a.x", "b", "b", "b"] {
        let id = service.publish_one(event_type).await;
        service.in_state(&id, DeliveryState::Failed).await;
        ids.push(id);
    }
    let none = DeleteDeadLettersRequest::default();
    let a = DeleteDeadLettersRequest { event_types: vec!["a.*".to_owned()], ..none.clone() };
    assert_eq!(delete(&service, a.clone()).await, (2, 0));
    assert_eq!(
        delete(&service, DeleteDeadLettersRequest { tenant: "default".to_owned(), ..none.clone() }).await,
        (5, 0)
    );
    assert_eq!(
        delete(&service, DeleteDeadLettersRequest { tenant: "acme".to_owned(), force: true, ..none.clone() }).await,
        (0, 0)
    );
    assert_eq!(delete(&service, DeleteDeadLettersRequest { force: true, ..a.clone() }).await, (2, 2));
    assert_eq!(delete(&service, DeleteDeadLettersRequest { force: true, ..a }).await, (0, 0), "once");

    // By id: those that are dead letters.
    let named =
        DeleteDeadLettersRequest { delivery_ids: vec![ids[0].clone(), ids[2].clone()], force: true, ..none.clone() };
    assert_eq!(delete(&service, named).await, (1, 1));
    let before = service.delivery(&ids[4]).await.settle_time;
    let older =
        DeleteDeadLettersRequest { dead_before: before, endpoint_id: first.id.clone(), force: true, ..none.clone() };
    assert_eq!(delete(&service, older).await, (1, 1));
    assert_eq!(list(&service, ListDeadLettersRequest::default()).await.len(), 1);

    let kept = service.delivery(&ids[0]).await;
    assert_eq!(
        (kept.state(), kept.reason.as_str(), kept.attempts.len()),
        (DeliveryState::Failed, "HTTP 503: Service Unavailable", 2)
    );

    let refusal = service.client.clone().delete_dead_letters(DeleteDeadLettersRequest { force: true, ..none }).await;
    let refusal = refusal.expect_err("everything, by mistake");
    assert_eq!(reason(&refusal), told(Code::InvalidArgument, "INVALID_FIELD"));
    assert_eq!(fields(&refusal), ["delivery_ids"]);
}

#[tokio::test]
async fn a_retried_delivery_is_no_dead_letter_until_it_fails_again() {
    let service = service().await;
    let (refusing, _endpoint) = failing(&service).await;
    let id = service.publish_one("a").await;
    let first = service.in_state(&id, DeliveryState::Failed).await;
    delete(&service, DeleteDeadLettersRequest { tenant: "default".to_owned(), force: true, ..Default::default() })
        .await;
    assert!(list(&service, ListDeadLettersRequest::default()).await.is_empty());

    // One that was deleted as a dead letter can still be retried; failing again makes it one again.
    let retry = RetryDeliveryRequest { delivery_id: id.clone() };
    service.client.clone().retry_delivery(retry.clone()).await.expect("retried");
    super::eventually("it failed again", || async {
        let delivery = service.delivery(&id).await;
        (delivery.state() == DeliveryState::Failed && delivery.settle_time != first.settle_time).then_some(())
    })
    .await;
    let letters = list(&service, ListDeadLettersRequest::default()).await;
    assert_eq!((letters.len(), letters[0].attempts), (1, 4));

    refusing.stop().await;
    service.client.clone().retry_delivery(retry).await.expect("retried");
    let ids: Vec<_> = list(&service, ListDeadLettersRequest::default()).await;
    let state = service.delivery(&id).await.state();
    assert!(ids.is_empty() || state == DeliveryState::Failed, "{ids:?}");
}

#[tokio::test]
async fn a_dead_letter_ends_with_its_retention() {
    let url = support::database().await;
    let service = service_with(url.clone(), &[("HOOKLANE_RETENTION_DEAD_LETTERS", "2h")]).await;
    let (_refusing, _endpoint) = failing(&service).await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let id = service.publish_one("a").await;
        service.in_state(&id, DeliveryState::Failed).await;
        ids.push(id);
    }
    let letter = list(&service, ListDeadLettersRequest::default()).await.remove(0);
    let (dead, expire) = (letter.dead_time.expect("a time"), letter.expire_time.expect("a time"));
    assert_eq!(expire.seconds - dead.seconds, 7_200);

    let mut connection = support::connection(&url).await;
    // Moved, for no partition key is updated in place: as if it had failed two hours and a second ago.
    let aged = "with one as (delete from settled_failed where id in (select id from settled_failed order by id limit 1) returning *)
                insert into settled_failed
                select (jsonb_populate_record(null::settled_failed,
                        to_jsonb(one) || jsonb_build_object('settle_time', now() - interval '2 hours 1 second'))).*
                from one";
    sqlx::raw_sql(AssertSqlSafe(aged)).execute(&mut connection).await.expect("aged");
    let letters = list(&service, ListDeadLettersRequest::default()).await;
    assert_eq!(letters.iter().map(|letter| &letter.delivery_id).collect::<Vec<_>>(), [&ids[1]]);
    let all = DeleteDeadLettersRequest { tenant: "default".to_owned(), ..Default::default() };
    assert_eq!(delete(&service, all).await, (1, 0));
    assert_eq!(service.delivery(&ids[0]).await.state(), DeliveryState::Failed);
}
