//! API keys over their lives: made, used, expired, revoked; and what one of them may have at a time.

use std::time::Duration;

use hooklane::api::proto;
use hooklane::api::proto::webhook_service_client::WebhookServiceClient;
use hooklane::domain::access::{Role, Scope};
use hooklane::domain::api_key::ApiKey;
use hooklane::domain::id::KeyId;
use hooklane::store::{KeyRecord, Keys, NewKey};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;
use zeroize::Zeroizing;

use super::{Service, event, reason, service_with, soon, told};
use crate::support::{self, eventually};

/// A service that asks for keys, and its database.
pub(super) async fn guarded(settings: &[(&str, &str)]) -> (Service, String) {
    let database = support::database().await;
    let settings: Vec<_> = settings.iter().copied().chain([("HOOKLANE_AUTH", "api-key")]).collect();
    (service_with(database.clone(), &settings).await, database)
}

/// Makes a key, as `hooklane key create` does; answers its id and its text.
pub(super) async fn make_key(
    database: &str,
    role: Role,
    scope: Scope,
    expires_in: Option<Duration>,
) -> (KeyId, String) {
    let (keys, clock) = Keys::open(&support::config(database.to_owned())).await.expect("the database");
    let key = ApiKey::new(KeyId::from_uuid(clock.new_uuid()), Zeroizing::new(rand::random()));
    let (id, digest) = (key.id(), key.digest());
    let new = NewKey { id, name: format!("a {role}"), role, scope, digest, expires_in };
    assert!(keys.create(&new).await.expect("made"));
    (id, key.expose().to_string())
}

/// The text of a key that never expires.
pub(super) async fn key_of(database: &str, role: Role, scope: Scope) -> String {
    make_key(database, role, scope, None).await.1
}

pub(super) fn bearer(key: &str) -> MetadataValue<Ascii> {
    format!("Bearer {key}").parse().expect("a header")
}

/// Adds a key to each call.
#[derive(Debug, Clone)]
pub(super) struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

pub(super) type Holder = WebhookServiceClient<InterceptedService<Channel, Bearer>>;

/// A client that has a key.
pub(super) async fn holder(service: &Service, key: &str) -> Holder {
    WebhookServiceClient::with_interceptor(service.channel().await, Bearer(bearer(key)))
}

async fn record(database: &str, id: KeyId) -> KeyRecord {
    let (keys, _) = Keys::open(&support::config(database.to_owned())).await.expect("the database");
    keys.list().await.expect("read").into_iter().find(|record| record.id == id).expect("the key")
}

async fn revoke(database: &str, id: KeyId) {
    let (keys, _) = Keys::open(&support::config(database.to_owned())).await.expect("the database");
    assert!(keys.revoke(id).await.expect("revoked"));
}

#[tokio::test]
async fn a_key_works_at_once_and_its_use_is_noted() {
    let (service, database) = guarded(&[]).await;
    let (id, key) = make_key(&database, Role::Publisher, Scope::All, None).await;
    assert_eq!(record(&database, id).await.last_used_time, None);
    holder(&service, &key).await.publish(event("a")).await.expect("published");
    let used = eventually("the use is noted", || async { record(&database, id).await.last_used_time }).await;
    assert!(used >= record(&database, id).await.create_time);
    // The secret is nowhere: what is kept of it is a digest.
    let mut connection = support::connection(&database).await;
    let row: String =
        sqlx::query_scalar("select k::text from api_keys k").fetch_one(&mut connection).await.expect("a row");
    let secret = key.rsplit_once('_').map_or(key.as_str(), |(_, secret)| secret);
    assert!(!row.contains(secret), "{row}");
}

#[tokio::test]
async fn a_revoked_key_is_refused_and_its_streams_end() {
    let (service, database) = guarded(&[]).await;
    let (id, key) = make_key(&database, Role::Viewer, Scope::All, None).await;
    let (_, other) = make_key(&database, Role::Viewer, Scope::All, None).await;
    let mut client = holder(&service, &key).await;
    let request = proto::StreamDeliveryEventsRequest::default;
    let mut stream = client.stream_delivery_events(request()).await.expect("open").into_inner();
    let mut others = holder(&service, &other).await.stream_delivery_events(request()).await.expect("open").into_inner();
    soon("a heartbeat", stream.message()).await.expect("live");
    revoke(&database, id).await;
    let ended = soon("the stream's end", async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                other => return other.expect_err("a status"),
            }
        }
    })
    .await;
    assert_eq!(reason(&ended), told(Code::Unauthenticated, "CREDENTIAL_INVALID"));
    let refusal = client.list_endpoints(proto::ListEndpointsRequest::default()).await.expect_err("revoked");
    assert_eq!(reason(&refusal), told(Code::Unauthenticated, "CREDENTIAL_INVALID"));
    assert!(soon("a heartbeat", others.message()).await.is_ok(), "other keys' streams go on");
}

#[tokio::test]
async fn an_expired_key_is_refused_and_its_streams_end() {
    let (service, database) = guarded(&[]).await;
    let (_, key) = make_key(&database, Role::Viewer, Scope::All, Some(Duration::from_secs(3))).await;
    let mut client = holder(&service, &key).await;
    let request = proto::StreamDeliveryEventsRequest::default();
    let mut stream = client.stream_delivery_events(request).await.expect("not expired yet").into_inner();
    let ended = soon("the stream's end", async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                other => return other.expect_err("a status"),
            }
        }
    })
    .await;
    assert_eq!(reason(&ended), told(Code::Unauthenticated, "CREDENTIAL_INVALID"));
    let refusal = client.list_endpoints(proto::ListEndpointsRequest::default()).await.expect_err("expired");
    assert_eq!(reason(&refusal), told(Code::Unauthenticated, "CREDENTIAL_INVALID"));
}

#[tokio::test]
async fn a_key_has_no_more_streams_than_it_may() {
    let (service, database) = guarded(&[("HOOKLANE_LIMITS_STREAMS_PER_KEY", "2")]).await;
    let [one, other] = [(), ()].map(|()| key_of(&database, Role::Viewer, Scope::All));
    let [mut one, mut other] = [holder(&service, &one.await).await, holder(&service, &other.await).await];
    let request = proto::StreamDeliveryEventsRequest::default;
    let first = one.stream_delivery_events(request()).await.expect("the first");
    let _second = one.stream_delivery_events(request()).await.expect("the second");
    let refusal = one.stream_delivery_events(request()).await.expect_err("the third");
    assert_eq!(reason(&refusal), told(Code::ResourceExhausted, "QUOTA"));
    assert!(refusal.get_details_retry_info().is_some() && refusal.get_details_quota_failure().is_some());
    other.stream_delivery_events(request()).await.expect("another key's");
    one.list_endpoints(proto::ListEndpointsRequest::default()).await.expect("other calls go on");
    drop(first);
    eventually("the place is given back", || async { one.clone().stream_delivery_events(request()).await.ok() }).await;
}

#[tokio::test]
async fn a_key_makes_no_more_calls_a_second_than_it_may() {
    let (service, database) = guarded(&[("HOOKLANE_LIMITS_REQUESTS_PER_SECOND", "5")]).await;
    let [one, other] = [(), ()].map(|()| key_of(&database, Role::Viewer, Scope::All));
    let [one, mut other] = [holder(&service, &one.await).await, holder(&service, &other.await).await];
    let request = proto::ListEndpointsRequest::default;
    let calls = (0..100).map(|_| {
        let mut client = one.clone();
        async move { client.list_endpoints(request()).await }
    });
    let answers = futures::future::join_all(calls).await;
    let refused: Vec<_> = answers.into_iter().filter_map(Result::err).collect();
    assert!((1..=95).contains(&refused.len()), "{}", refused.len());
    for refusal in &refused {
        assert_eq!(reason(refusal), told(Code::ResourceExhausted, "QUOTA"));
        let wait = refusal.get_details_retry_info().and_then(|info| info.retry_delay).expect("when to try again");
        assert!(wait <= Duration::from_secs(1), "{wait:?}");
    }
    other.list_endpoints(request()).await.expect("another key's");
}
