//! Who may call: every call of the contract by every role, on their own tenant's things and on another's.

use std::collections::BTreeMap;

use bytes::{Buf as _, BufMut as _, Bytes};
use hooklane::api::proto;
use hooklane::domain::access::{Role, Scope};
use hooklane::domain::id::EndpointId;
use prost::Message;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::keys::{bearer, guarded, key_of};
use super::{Service, endpoint, event, reason, told};
use crate::support;

/// Messages as they are on the wire.
#[derive(Debug, Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = from.remaining();
        Ok(Some(from.copy_to_bytes(length)))
    }
}

/// Makes any call; answers its first message.
async fn call(channel: &Channel, key: &str, method: &str, message: Vec<u8>) -> Result<Bytes, Status> {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.expect("connected");
    let mut request = Request::new(futures::stream::iter([Bytes::from(message)]));
    request.metadata_mut().insert("authorization", bearer(key));
    let path = format!("/hooklane.v1.WebhookService/{method}").parse().expect("a path");
    let mut answer = client.streaming(request, path, Raw).await?.into_inner();
    answer.message().await.map(Option::unwrap_or_default)
}

/// The calls of the service, as the contract has them.
fn methods() -> Vec<String> {
    let files = prost_types::FileDescriptorSet::decode(proto::DESCRIPTORS).expect("descriptors");
    let services = files.file.iter().flat_map(|file| &file.service);
    let methods: Vec<_> = services.flat_map(|service| &service.method).map(|method| method.name().to_owned()).collect();
    assert!(methods.len() >= 27, "{methods:?}");
    methods
}

/// Something of one tenant's.
struct Things {
    tenant: &'static str,
    endpoint: String,
    event: String,
    delivery: String,
    /// One that exists, where replays are built.
    replay: String,
    alert: String,
}

/// No id of anything.
const NOBODYS: &str = "01h455vb4pex5vsknk084sn02q";

impl Things {
    async fn make(service: &Service, database: &str, admin: &str, tenant: &'static str) -> Self {
        let channel = service.channel().await;
        let made = proto::RegisterEndpointRequest {
            endpoint: Some(proto::Endpoint { tenant: tenant.to_owned(), ..endpoint("http://127.0.0.1:9/") }),
            ..Default::default()
        };
        let made = call(&channel, admin, "RegisterEndpoint", made.encode_to_vec()).await.expect("registered");
        let made = proto::RegisterEndpointResponse::decode(made).expect("an answer").endpoint.expect("an endpoint");
        let event = proto::PublishRequest { tenant: tenant.to_owned(), ..event("order.created") };
        let published = call(&channel, admin, "Publish", event.encode_to_vec()).await.expect("published");
        let published = proto::PublishResponse::decode(published).expect("an answer");
        let filter = Some(proto::ReplayFilter { tenant: tenant.to_owned(), ..Default::default() });
        let replay = proto::StartReplayRequest { filter, dry_run: true, ..Default::default() };
        let replay = match call(&channel, admin, "StartReplay", replay.encode_to_vec()).await {
            Ok(answer) => proto::StartReplayResponse::decode(answer).expect("an answer").replay.expect("a replay").id,
            Err(refusal) => {
                assert_eq!(reason(&refusal), told(Code::Unimplemented, "NOT_BUILT"));
                format!("rpl_{NOBODYS}")
            }
        };
        let delivery = published.deliveries[0].delivery_id.clone();
        let alert = made.id.replace("ep_", "alr_");
        let endpoint: EndpointId = made.id.parse().expect("an id");
        // What opens one by itself takes a while.
        let mut connection = support::connection(database).await;
        let inserted = sqlx::query(
            "insert into alerts (id, tenant, endpoint_id, kind, level, is_quiet, message, details, open_time)
             values ($1, $2, $1, 4, 1, true, '', '{}', now())",
        );
        inserted.bind(endpoint.uuid()).bind(tenant).execute(&mut connection).await.expect("an alert");
        Self { tenant, endpoint: made.id, event: published.event_id, delivery, replay, alert }
    }
}

/// How a call shows that what it names is another tenant's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Foreign {
    /// The thing is not there.
    NotFound,
    /// The tenant is denied.
    Denied,
    /// Each event of the batch is judged by itself.
    EachDenied,
}

/// Who may make a call, how a foreign one is refused, and a request for somebody's things. A new call has to be added
/// here, or the walk does not pass.
fn case(method: &str, of: &Things) -> (&'static [Role], Foreign, Vec<u8>) {
    use Foreign::{Denied, EachDenied, NotFound};
    use Role::{Admin, Operator, Publisher, Viewer};
    const ADMIN: &[Role] = &[Admin];
    const OPERATE: &[Role] = &[Admin, Operator];
    const PUBLISH: &[Role] = &[Admin, Publisher];
    const FOLLOW: &[Role] = &[Admin, Publisher, Operator, Viewer];
    const READ: &[Role] = &[Admin, Operator, Viewer];
    let tenant = || of.tenant.to_owned();
    let (endpoint_id, delivery_id, replay_id) = (of.endpoint.clone(), of.delivery.clone(), of.replay.clone());
    macro_rules! request {
        ($roles:ident, $foreign:ident, $message:ident { $($field:tt)* }) => {
            ($roles, $foreign, proto::$message { $($field)* }.encode_to_vec())
        };
    }
    match method {
        "RegisterEndpoint" => {
            let endpoint = proto::Endpoint { tenant: tenant(), ..endpoint("http://127.0.0.1:9/") };
            request!(ADMIN, Denied, RegisterEndpointRequest { endpoint: Some(endpoint), ..Default::default() })
        }
        "GetEndpoint" => request!(READ, NotFound, GetEndpointRequest { endpoint_id }),
        "ListEndpoints" => request!(READ, Denied, ListEndpointsRequest { tenant: tenant(), ..Default::default() }),
        "UpdateEndpoint" => {
            let endpoint = proto::Endpoint { id: endpoint_id, description: "x".to_owned(), ..Default::default() };
            request!(ADMIN, NotFound, UpdateEndpointRequest { endpoint: Some(endpoint), ..Default::default() })
        }
        "DeleteEndpoint" => request!(ADMIN, NotFound, DeleteEndpointRequest { endpoint_id, ..Default::default() }),
        "PauseEndpoint" => request!(OPERATE, NotFound, PauseEndpointRequest { endpoint_id }),
        "ResumeEndpoint" => request!(OPERATE, NotFound, ResumeEndpointRequest { endpoint_id }),
        "RotateSecret" => request!(ADMIN, NotFound, RotateSecretRequest { endpoint_id, ..Default::default() }),
        "TestEndpoint" => request!(OPERATE, NotFound, TestEndpointRequest { endpoint_id, ..Default::default() }),
        "Publish" => request!(PUBLISH, Denied, PublishRequest { tenant: tenant(), ..event("order.created") }),
        "PublishBatch" => {
            let requests = vec![proto::PublishRequest { tenant: tenant(), ..event("order.created") }];
            request!(PUBLISH, EachDenied, PublishBatchRequest { requests })
        }
        "GetEvent" => request!(FOLLOW, NotFound, GetEventRequest { event_id: of.event.clone() }),
        "GetDelivery" => request!(FOLLOW, NotFound, GetDeliveryRequest { delivery_id }),
        "ListDeliveries" => request!(FOLLOW, Denied, ListDeliveriesRequest { tenant: tenant(), ..Default::default() }),
        "RetryDelivery" => request!(OPERATE, NotFound, RetryDeliveryRequest { delivery_id }),
        "CancelDelivery" => request!(OPERATE, NotFound, CancelDeliveryRequest { delivery_id }),
        "StreamDeliveryEvents" => {
            request!(FOLLOW, Denied, StreamDeliveryEventsRequest { tenant: tenant(), ..Default::default() })
        }
        "ListDeadLetters" => request!(READ, Denied, ListDeadLettersRequest { tenant: tenant(), ..Default::default() }),
        "DeleteDeadLetters" => {
            let endpoint_id = endpoint_id.clone();
            request!(OPERATE, Denied, DeleteDeadLettersRequest { tenant: tenant(), endpoint_id, ..Default::default() })
        }
        "StartReplay" => {
            let filter = Some(proto::ReplayFilter { tenant: tenant(), ..Default::default() });
            request!(OPERATE, Denied, StartReplayRequest { filter, dry_run: true, ..Default::default() })
        }
        "GetReplay" => request!(READ, NotFound, GetReplayRequest { replay_id }),
        "ListReplays" => request!(READ, Denied, ListReplaysRequest { tenant: tenant(), ..Default::default() }),
        "CancelReplay" => request!(OPERATE, NotFound, CancelReplayRequest { replay_id }),
        "StreamReplay" => request!(READ, NotFound, StreamReplayRequest { replay_id }),
        "ListAlerts" => request!(READ, Denied, ListAlertsRequest { tenant: tenant(), ..Default::default() }),
        "AcknowledgeAlert" => {
            request!(OPERATE, NotFound, AcknowledgeAlertRequest { alert_id: of.alert.clone() })
        }
        "GetStats" => request!(READ, Denied, GetStatsRequest { tenant: tenant(), ..Default::default() }),
        unknown => panic!("{unknown} is a new call: say here who may make it"),
    }
}

fn check_own(what: &str, answer: Result<Bytes, Status>) {
    if let Err(refusal) = answer {
        let is_let_in = !matches!(refusal.code(), Code::Unauthenticated | Code::PermissionDenied | Code::Internal);
        assert!(is_let_in && refusal.code() != Code::NotFound, "{what}: {refusal:?}");
    }
}

fn check_foreign(what: &str, answer: Result<Bytes, Status>, foreign: Foreign) {
    match (answer, foreign) {
        (Err(refusal), Foreign::NotFound) => assert_eq!(refusal.code(), Code::NotFound, "{what}: {refusal:?}"),
        (Err(refusal), Foreign::Denied) => {
            assert_eq!(reason(&refusal), told(Code::PermissionDenied, "TENANT_DENIED"), "{what}");
        }
        (Ok(answer), Foreign::EachDenied) => {
            let results = proto::PublishBatchResponse::decode(answer).expect("an answer").results;
            let Some(proto::publish_batch_result::Result::Error(refusal)) = &results[0].result else {
                panic!("{what}: {results:?}");
            };
            assert_eq!(Code::from_i32(refusal.code), Code::PermissionDenied, "{what}");
        }
        (answer, _) => panic!("{what}: {answer:?}"),
    }
}

#[tokio::test]
async fn every_call_is_open_to_its_roles_and_to_their_own_tenant() {
    let (service, database) = guarded(&[]).await;
    let admin = key_of(&database, Role::Admin, Scope::All).await;
    let own = Things::make(&service, &database, &admin, "shop").await;
    let other = Things::make(&service, &database, &admin, "bank").await;
    let channel = service.channel().await;
    let before = call(&channel, &admin, "GetEndpoint", case("GetEndpoint", &other).2).await.expect("read");

    let mut methods = methods();
    // What ends a thing comes after what looks at it.
    methods.sort_by_key(|method| method.starts_with("Delete"));
    for role in [Role::Viewer, Role::Publisher, Role::Operator, Role::Admin] {
        let key = key_of(&database, role, Scope::parse("shop").expect("a scope")).await;
        for method in &methods {
            let (roles, foreign, request) = case(method, &own);
            let (_, _, foreign_request) = case(method, &other);
            let what = format!("{method} by {role}");
            let answer = call(&channel, &key, method, request).await;
            let foreign_answer = call(&channel, &key, method, foreign_request).await;
            if roles.contains(&role) {
                check_own(&format!("{what} on its own"), answer);
                check_foreign(&format!("{what} on another's"), foreign_answer, foreign);
            } else {
                for answer in [answer, foreign_answer] {
                    let refusal = answer.expect_err(&what);
                    assert_eq!(reason(&refusal), told(Code::PermissionDenied, "ROLE_REQUIRED"), "{what}");
                }
            }
        }
    }
    let after = call(&channel, &admin, "GetEndpoint", case("GetEndpoint", &other).2).await.expect("read");
    let etag = |answer| proto::GetEndpointResponse::decode(answer).expect("an answer").endpoint.expect("one").etag;
    assert_eq!(etag(before), etag(after), "nothing of the other tenant's has changed");
    let delivery = call(&channel, &admin, "GetDelivery", case("GetDelivery", &other).2).await.expect("read");
    let delivery = proto::GetDeliveryResponse::decode(delivery).expect("an answer").delivery.expect("one");
    assert_ne!(delivery.state(), proto::DeliveryState::Canceled);
}

#[tokio::test]
async fn no_call_is_open_without_a_credential_or_with_a_bad_one() {
    let (service, database) = guarded(&[]).await;
    let good = key_of(&database, Role::Admin, Scope::All).await;
    let channel = service.channel().await;
    let other_secret = format!("{}{}", &good[..good.len() - 43], "A".repeat(43));
    let unknown = format!("hlk_{NOBODYS}_{}", "A".repeat(43));
    for method in methods() {
        // What the body holds does not matter: it is not read.
        let mut client = Grpc::new(channel.clone());
        client.ready().await.expect("connected");
        let path = format!("/hooklane.v1.WebhookService/{method}").parse().expect("a path");
        let body = Request::new(futures::stream::iter([Bytes::from_static(b"\xff no protobuf")]));
        let refusal = client.streaming(body, path, Raw).await.expect_err("nobody");
        assert_eq!(reason(&refusal), told(Code::Unauthenticated, "CREDENTIAL_MISSING"), "{method}");
        for bad in [&other_secret, &unknown, "nonsense"] {
            let refusal = call(&channel, bad, &method, b"\xff no protobuf".to_vec()).await.expect_err("bad");
            assert_eq!(reason(&refusal), told(Code::Unauthenticated, "CREDENTIAL_INVALID"), "{method} {bad}");
        }
    }
}

#[tokio::test]
async fn a_key_for_all_tenants_acts_for_any_and_lists_all_of_them() {
    let (service, database) = guarded(&[]).await;
    let admin = key_of(&database, Role::Admin, Scope::All).await;
    let shop = Things::make(&service, &database, &admin, "shop").await;
    let bank = Things::make(&service, &database, &admin, "bank").await;
    let viewer = key_of(&database, Role::Viewer, Scope::All).await;
    let channel = service.channel().await;
    let list = async |key: &str, tenant: &str| {
        let request = proto::ListEndpointsRequest { tenant: tenant.to_owned(), ..Default::default() };
        let answer = call(&channel, key, "ListEndpoints", request.encode_to_vec()).await?;
        let listed = proto::ListEndpointsResponse::decode(answer).expect("an answer").endpoints;
        Ok::<_, Status>(listed.into_iter().map(|endpoint| endpoint.id).collect::<Vec<_>>())
    };
    assert_eq!(list(&viewer, "*").await.expect("all"), [bank.endpoint.clone(), shop.endpoint.clone()]);
    assert_eq!(list(&viewer, "bank").await.expect("one"), std::slice::from_ref(&bank.endpoint));
    assert_eq!(list(&viewer, "").await.expect("default"), Vec::<String>::new());
    let own = key_of(&database, Role::Viewer, Scope::parse("shop").expect("a scope")).await;
    assert_eq!(list(&own, "").await.expect("its own"), [shop.endpoint]);
    let refusal = list(&own, "*").await.expect_err("denied");
    assert_eq!(reason(&refusal), told(Code::PermissionDenied, "TENANT_DENIED"));
}

#[tokio::test]
async fn a_page_token_leads_into_no_other_tenant() {
    let (service, database) = guarded(&[]).await;
    let admin = key_of(&database, Role::Admin, Scope::All).await;
    let channel = service.channel().await;
    for tenant in ["shop", "bank"] {
        Things::make(&service, &database, &admin, tenant).await;
        Things::make(&service, &database, &admin, tenant).await;
    }
    let keys: BTreeMap<_, _> =
        futures::future::join_all(["shop", "bank"].map(async |tenant| {
            (tenant, key_of(&database, Role::Viewer, Scope::parse(tenant).expect("a scope")).await)
        }))
        .await
        .into_iter()
        .collect();
    let endpoints = async |tenant: &str, page_token: String| {
        let request = proto::ListEndpointsRequest { page_size: 1, page_token, ..Default::default() };
        let answer = call(&channel, &keys[tenant], "ListEndpoints", request.encode_to_vec()).await?;
        Ok::<_, Status>(proto::ListEndpointsResponse::decode(answer).expect("an answer").next_page_token)
    };
    let deliveries = async |tenant: &str, page_token: String| {
        let request = proto::ListDeliveriesRequest { page_size: 1, page_token, ..Default::default() };
        let answer = call(&channel, &keys[tenant], "ListDeliveries", request.encode_to_vec()).await?;
        Ok::<_, Status>(proto::ListDeliveriesResponse::decode(answer).expect("an answer").next_page_token)
    };
    let tokens = [endpoints("shop", String::new()).await, deliveries("shop", String::new()).await];
    let [of_endpoints, of_deliveries] = tokens.map(|token| token.expect("a page"));
    assert!(!of_endpoints.is_empty() && !of_deliveries.is_empty());
    endpoints("shop", of_endpoints.clone()).await.expect("its own");
    deliveries("shop", of_deliveries.clone()).await.expect("its own");
    for refusal in [endpoints("bank", of_endpoints).await, deliveries("bank", of_deliveries).await] {
        assert_eq!(super::fields(&refusal.expect_err("another's")), ["page_token"]);
    }
}

#[tokio::test]
async fn a_resume_token_is_good_for_its_own_tenant_alone() {
    let (service, database) = guarded(&[]).await;
    let scope = |tenant| Scope::parse(tenant).expect("a scope");
    let [shop, bank] =
        [key_of(&database, Role::Viewer, scope("shop")).await, key_of(&database, Role::Viewer, scope("bank")).await];
    let channel = service.channel().await;
    let open = async |key: &str, from| {
        let request = proto::StreamDeliveryEventsRequest { from, ..Default::default() };
        let answer = call(&channel, key, "StreamDeliveryEvents", request.encode_to_vec()).await?;
        let first = proto::StreamDeliveryEventsResponse::decode(answer).expect("an answer");
        Ok::<_, Status>(proto::stream_delivery_events_request::From::ResumeToken(first.resume_token))
    };
    let token = open(&shop, None).await.expect("open");
    open(&shop, Some(token.clone())).await.expect("its own");
    let refusal = open(&bank, Some(token)).await.expect_err("another's");
    assert_eq!(reason(&refusal), told(Code::InvalidArgument, "RESUME_TOKEN_INVALID"));
}

#[tokio::test]
async fn a_publish_reaches_no_endpoint_of_another_tenant() {
    let (service, database) = guarded(&[]).await;
    let admin = key_of(&database, Role::Admin, Scope::All).await;
    let other = Things::make(&service, &database, &admin, "bank").await;
    let key = key_of(&database, Role::Publisher, Scope::parse("shop").expect("a scope")).await;
    let channel = service.channel().await;
    let request = proto::PublishRequest { endpoint_ids: vec![other.endpoint], ..event("order.created") };
    let refusal = call(&channel, &key, "Publish", request.encode_to_vec()).await.expect_err("not there");
    assert_eq!(reason(&refusal), told(Code::NotFound, "ENDPOINT_NOT_FOUND"));
    let published = call(&channel, &key, "Publish", event("order.created").encode_to_vec()).await.expect("its own");
    assert!(proto::PublishResponse::decode(published).expect("an answer").deliveries.is_empty());
}

#[tokio::test]
async fn secrets_of_an_endpoint_are_shown_to_admins_alone() {
    let receiver = super::receiver(Default::default()).await;
    let (service, database) = guarded(&[]).await;
    let scope = || Scope::parse("shop").expect("a scope");
    let [admin, operator] =
        [key_of(&database, Role::Admin, scope()).await, key_of(&database, Role::Operator, scope()).await];
    let channel = service.channel().await;
    let url = format!("{}?token=hush", receiver.url().replace("http://", "http://user:hush@"));
    let endpoint = proto::Endpoint { headers: [("X-Token".to_owned(), "hush".to_owned())].into(), ..endpoint(&url) };
    let request = proto::RegisterEndpointRequest { endpoint: Some(endpoint), ..Default::default() };
    let made = call(&channel, &admin, "RegisterEndpoint", request.encode_to_vec()).await.expect("registered");
    let made = proto::RegisterEndpointResponse::decode(made).expect("an answer").endpoint.expect("an endpoint");
    assert_eq!((made.url.matches("hush").count(), made.headers["X-Token"].as_str()), (2, "hush"));
    let id = || made.id.clone();
    let requests = [
        ("GetEndpoint", proto::GetEndpointRequest { endpoint_id: id() }.encode_to_vec()),
        ("ListEndpoints", proto::ListEndpointsRequest::default().encode_to_vec()),
        ("PauseEndpoint", proto::PauseEndpointRequest { endpoint_id: id() }.encode_to_vec()),
        ("ResumeEndpoint", proto::ResumeEndpointRequest { endpoint_id: id() }.encode_to_vec()),
        ("TestEndpoint", proto::TestEndpointRequest { endpoint_id: id(), ..Default::default() }.encode_to_vec()),
    ];
    for (method, request) in requests {
        let shown = call(&channel, &operator, method, request.clone()).await.expect("answered");
        let has = |answer: &Bytes, text: &[u8]| answer.windows(text.len()).any(|part| part == text);
        assert!(!has(&shown, b"hush") && has(&shown, b"[redacted]"), "{method}");
        let shown = call(&channel, &admin, method, request).await.expect("answered");
        assert!(has(&shown, b"hush"), "{method}");
    }
}

#[tokio::test]
async fn health_needs_no_credential_and_reflection_does() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;

    let (service, database) = guarded(&[]).await;
    let channel = service.channel().await;
    HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await.expect("open to probes");
    let refusal = ServerReflectionClient::new(channel.clone())
        .server_reflection_info(futures::stream::empty())
        .await
        .expect_err("closed");
    assert_eq!(reason(&refusal), told(Code::Unauthenticated, "CREDENTIAL_MISSING"));
    let key = key_of(&database, Role::Viewer, Scope::parse("shop").expect("a scope")).await;
    let header: MetadataValue<_> = bearer(&key);
    let mut asked = Request::new(futures::stream::empty());
    asked.metadata_mut().insert("authorization", header);
    ServerReflectionClient::new(channel.clone()).server_reflection_info(asked).await.expect("open to any key");
    let refusal = call(&channel, &key, "Nonsense", Vec::new()).await.expect_err("no such call");
    assert_eq!(reason(&refusal), told(Code::Unimplemented, "UNSUPPORTED"));
}
