//! Secrets that this replica cannot open: their endpoints wait, and hold up nobody else.

use hooklane::api::proto::*;
use hooklane::cli::listen::Behaviour;
use tonic::Code;

use super::{endpoint, event, reason, receiver, service_with, told};
use crate::support::{self, connection, eventually};

#[tokio::test]
async fn deliveries_of_an_endpoint_that_does_not_open_wait_until_it_does() {
    let url = support::database().await;
    let service = service_with(url.clone(), &[]).await;
    let receiver = receiver(Behaviour::default()).await;
    let closed = service.register(endpoint(&receiver.url())).await;
    let open = service.register(endpoint(&receiver.url())).await;
    let mut database = connection(&url).await;
    // As a replica would that has another key already.
    let sealed_by = "update endpoint_secrets set key_id = $1 from endpoints e
                     where e.id = endpoint_id and key_id = $2 and e.id <> $3";
    let open_id = open.id.parse::<hooklane::domain::id::EndpointId>().expect("an id").uuid();
    let change = async |database: &mut sqlx::PgConnection, to: &str, from: &str| {
        let changed = sqlx::query(sealed_by).bind(to).bind(from).bind(open_id).execute(database).await;
        assert_eq!(changed.expect("changed").rows_affected(), 1);
    };
    change(&mut database, "elsewhere", "tests").await;

    let published = service.publish(event("order.created")).await;
    let id_at = |endpoint: &Endpoint| {
        let found = published.deliveries.iter().find(|delivery| delivery.endpoint_id == endpoint.id);
        found.expect("a delivery").delivery_id.clone()
    };
    service.in_state(&id_at(&open), DeliveryState::Succeeded).await;
    // Claimed at least once, and handed back.
    let gen_of = "select max(claim_gen)::bigint from outstanding";
    eventually("it was claimed", || async {
        let claims: Option<i64> = sqlx::query_scalar(gen_of).fetch_one(&mut connection(&url).await).await.ok()?;
        (claims? >= 2).then_some(())
    })
    .await;
    let waiting = service.delivery(&id_at(&closed)).await;
    assert_eq!((waiting.state(), waiting.attempt_count), (DeliveryState::Pending, 0), "{waiting:?}");
    let test = TestEndpointRequest { endpoint_id: closed.id.clone(), ..TestEndpointRequest::default() };
    let refusal = service.client.clone().test_endpoint(test).await.expect_err("it does not open");
    assert_eq!(reason(&refusal), told(Code::Internal, "INTERNAL"));
    assert!(!refusal.message().contains("elsewhere"), "{refusal:?}");

    change(&mut database, "tests", "elsewhere").await;
    service.in_state(&id_at(&closed), DeliveryState::Succeeded).await;
    assert_eq!(receiver.count(), 2);
}

#[tokio::test]
async fn a_sealed_value_that_was_moved_does_not_open() {
    let url = support::database().await;
    let service = service_with(url.clone(), &[]).await;
    let [one, other] =
        ["http://a:b@127.0.0.1:9/", "http://c:d@127.0.0.1:9/"].map(|url| service.register(endpoint(url)));
    let (one, other) = (one.await, other.await);
    let get = async |id: &str| {
        let request = GetEndpointRequest { endpoint_id: id.to_owned() };
        service.client.clone().get_endpoint(request).await.map(|answer| answer.into_inner().endpoint.expect("one").url)
    };
    assert_eq!(get(&one.id).await.expect("read"), "http://a:b@127.0.0.1:9/");
    let uuids = [&one, &other].map(|one| one.id.parse::<hooklane::domain::id::EndpointId>().expect("an id").uuid());
    let swap = "update endpoints e set sealed = o.sealed from endpoints o where e.id = $1 and o.id = $2";
    let swapped = sqlx::query(swap).bind(uuids[0]).bind(uuids[1]).execute(&mut connection(&url).await).await;
    assert_eq!(swapped.expect("swapped").rows_affected(), 1);
    assert_eq!(reason(&get(&one.id).await.expect_err("moved")), told(Code::Internal, "INTERNAL"));
    assert_eq!(get(&other.id).await.expect("read"), "http://c:d@127.0.0.1:9/");
}
