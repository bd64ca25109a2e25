//! What else is served on the port: health, reflection, gRPC-Web; and the operations port beside it.

use bytes::Bytes;
use hooklane::api::proto::{DeliveryState, Endpoint, ListEndpointsResponse, PublishRequest, PublishResponse};
use hooklane::cli::listen::Behaviour;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::TokioExecutor;
use prost::Message as _;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use sqlx::Connection as _;

use super::metrics::ops;
use super::{endpoint, event, receiver, service, service_with, soon};
use crate::support;

async fn http(request: Request<Full<Bytes>>) -> Response<Bytes> {
    let client = HttpClient::builder(TokioExecutor::new()).build_http();
    let (head, body) = client.request(request).await.expect("answered").into_parts();
    Response::from_parts(head, body.collect().await.expect("a body").to_bytes())
}

#[tokio::test]
async fn health_is_serving_and_says_when_it_ends() {
    let service = service().await;
    let mut health = HealthClient::new(service.channel().await);
    for name in ["", "hooklane.v1.WebhookService"] {
        let request = HealthCheckRequest { service: name.to_owned() };
        let answer = health.check(request).await.expect("known").into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{name:?}");
    }
    let unknown = HealthCheckRequest { service: "x".to_owned() };
    assert_eq!(health.check(unknown).await.expect_err("unknown").code(), tonic::Code::NotFound);
    let mut watch = health.watch(HealthCheckRequest::default()).await.expect("watched").into_inner();
    let next = async |watch: &mut tonic::Streaming<tonic_health::pb::HealthCheckResponse>| {
        soon("a status", watch.message()).await.expect("a message").map(|answer| answer.status())
    };
    assert_eq!(next(&mut watch).await, Some(ServingStatus::Serving));
    let stopping = tokio::spawn(service.app.stop());
    assert_eq!(next(&mut watch).await, Some(ServingStatus::NotServing));
    drop(watch);
    soon("the end", stopping).await.expect("stopped");
}

#[tokio::test]
async fn health_is_not_serving_while_the_database_does_not_answer() {
    let url = support::database().await;
    let name = url.split(['/', '?']).find(|part| part.starts_with("test_")).expect("a name").to_owned();
    let service = service_with(url, &[]).await;
    let mut watches = Vec::new();
    for name in ["", "hooklane.v1.WebhookService"] {
        let mut health = HealthClient::new(service.channel().await);
        let request = HealthCheckRequest { service: name.to_owned() };
        watches.push(health.watch(request).await.expect("watched").into_inner());
    }
    let mut expect = async |status: ServingStatus| {
        for watch in &mut watches {
            let answer = soon("a status", watch.message()).await.expect("a message").expect("not the end");
            assert_eq!(answer.status(), status);
        }
    };
    expect(ServingStatus::Serving).await;
    let admin = support::postgres().await.url("postgres");
    let mut admin = sqlx::PgConnection::connect(&admin).await.expect("connects");
    let allow = async |admin: &mut sqlx::PgConnection, is_allowed: bool| {
        let statement = format!("alter database {name} allow_connections {is_allowed}");
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&mut *admin).await.expect("altered");
        let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = $1";
        sqlx::query(end).bind(&name).execute(&mut *admin).await.expect("ended");
    };
    allow(&mut admin, false).await;
    expect(ServingStatus::NotServing).await;
    let (status, _, _) = ops(&service.app, "GET", "/readyz", "").await;
    let (code, _, health) = ops(&service.app, "GET", "/health", "").await;
    let health: serde_json::Value = serde_json::from_str(&health).expect("JSON");
    assert_eq!((status, code), (503, 503));
    assert_eq!((&health["status"], &health["draining"]), (&"unavailable".into(), &false.into()));
    assert_ne!(health["database"]["status"], "ok");
    let (status, _, _) = ops(&service.app, "GET", "/livez", "").await;
    assert_eq!(status, 200, "it lives");
    allow(&mut admin, true).await;
    expect(ServingStatus::Serving).await;
}

#[tokio::test]
async fn reflection_answers_in_both_versions() {
    macro_rules! check {
        ($service:expr, $version:ident) => {{
            use tonic_reflection::pb::$version::ServerReflectionRequest;
            use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
            use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
            use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;
            let ask = async |request| {
                let mut client = ServerReflectionClient::new($service.channel().await);
                let request = ServerReflectionRequest { host: String::new(), message_request: Some(request) };
                let mut answers =
                    client.server_reflection_info(futures::stream::iter([request])).await.expect("served").into_inner();
                answers.message().await.expect("a message").expect("an answer").message_response.expect("one")
            };
            let MessageResponse::ListServicesResponse(list) = ask(MessageRequest::ListServices(String::new())).await
            else {
                panic!("no list")
            };
            let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
            for name in ["hooklane.v1.WebhookService", "grpc.health.v1.Health"] {
                assert!(names.iter().any(|listed| listed == name), "{name} in {names:?}");
            }
            for symbol in ["hooklane.v1.WebhookService", "hooklane.v1.Delivery", "google.rpc.ErrorInfo"] {
                let asked = MessageRequest::FileContainingSymbol(symbol.to_owned());
                match ask(asked).await {
                    MessageResponse::FileDescriptorResponse(files) => {
                        assert!(!files.file_descriptor_proto.is_empty(), "{symbol}");
                    }
                    other => panic!("{symbol}: {other:?}"),
                }
            }
        }};
    }
    let service = service().await;
    check!(service, v1);
    check!(service, v1alpha);
}

#[tokio::test]
async fn reflection_can_be_switched_off() {
    let settings = [("HOOKLANE_GRPC_REFLECTION", "false")];
    let service = super::service_with(crate::support::database().await, &settings).await;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    let mut client = ServerReflectionClient::new(service.channel().await);
    let refusal = client.server_reflection_info(futures::stream::empty()).await.expect_err("off");
    assert_eq!(refusal.code(), tonic::Code::Unimplemented);
}

/// A gRPC-Web call; answers the response's messages and its trailers as text.
async fn web(address: &str, method: &str, message: Vec<u8>) -> (Response<Bytes>, Vec<Bytes>, String) {
    let length = u32::try_from(message.len()).expect("small").to_be_bytes();
    let body = [&[0][..], &length, &message].concat();
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("{address}/hooklane.v1.WebhookService/{method}"))
        .header("content-type", "application/grpc-web+proto")
        .header("x-grpc-web", "1")
        .header("origin", "http://localhost:5173")
        .body(Full::new(Bytes::from(body)))
        .expect("a request");
    let response = http(request).await;
    let (mut messages, mut trailers, mut rest) = (Vec::new(), String::new(), response.body().clone());
    while rest.len() >= 5 {
        let prefix = rest.split_to(5);
        let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        let part = rest.split_to(length);
        match prefix[0] {
            0 => messages.push(part),
            _ => trailers = String::from_utf8(part.to_vec()).expect("text"),
        }
    }
    assert!(rest.is_empty());
    (response, messages, trailers)
}

#[tokio::test]
async fn browsers_call_over_http_1() {
    let service = service().await;
    let id = service.register(endpoint("http://127.0.0.1:9/")).await.id;
    let (response, messages, trailers) = web(&service.address, "Publish", event("a").encode_to_vec()).await;
    assert_eq!((response.status().as_u16(), response.version()), (200, http::Version::HTTP_11));
    assert_eq!(response.headers()["content-type"], "application/grpc-web+proto");
    assert_eq!(response.headers()["access-control-allow-origin"], "http://localhost:5173");
    assert!(trailers.contains("grpc-status:0"), "{trailers}");
    let published = PublishResponse::decode(messages[0].clone()).expect("a response");
    assert_eq!(published.deliveries[0].endpoint_id, id);

    let (_, messages, _) = web(&service.address, "ListEndpoints", Vec::new()).await;
    let listed = ListEndpointsResponse::decode(messages[0].clone()).expect("a response");
    let ids: Vec<_> = listed.endpoints.into_iter().map(|Endpoint { id, .. }| id).collect();
    assert_eq!(ids, [id]);

    // A refusal has its details where a browser may read them.
    let bad = PublishRequest { tenant: "a b".to_owned(), ..event("a") };
    let (response, messages, trailers) = web(&service.address, "Publish", bad.encode_to_vec()).await;
    let exposed = response.headers()["access-control-expose-headers"].to_str().expect("text").to_owned();
    assert!(messages.is_empty() && exposed.contains("grpc-status-details-bin"), "{exposed}");
    let status = response.headers().get("grpc-status").map(|value| value.to_str().expect("text").to_owned());
    assert!(
        status.as_deref() == Some("3") || trailers.contains("grpc-status:3"),
        "{:?} {trailers}",
        response.headers()
    );
    let has_details = response.headers().contains_key("grpc-status-details-bin");
    assert!(has_details || trailers.contains("grpc-status-details-bin"), "{:?} {trailers}", response.headers());

    // Over the message's limit as well.
    let (response, _, trailers) = web(&service.address, "GetEvent", vec![0; 2 * 1024 * 1024]).await;
    let status = response.headers().get("grpc-status").map(|value| value.to_str().expect("text").to_owned());
    assert!(
        status.as_deref() == Some("8") || trailers.contains("grpc-status:8"),
        "{:?} {trailers}",
        response.headers()
    );
}

#[tokio::test]
async fn pages_of_this_machine_may_call_and_no_others() {
    let service = service().await;
    let request = |origin: &str| {
        Request::builder()
            .method(Method::OPTIONS)
            .uri(format!("{}/hooklane.v1.WebhookService/Publish", service.address))
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "content-type,x-grpc-web")
            .body(Full::default())
            .expect("a request")
    };
    let response = http(request("http://localhost:5173")).await;
    assert!(response.status().is_success());
    assert_eq!(response.headers()["access-control-allow-origin"], "http://localhost:5173");
    assert!(response.headers().contains_key("access-control-allow-headers"));
    let elsewhere = request("https://shop.example");
    assert!(!http(elsewhere).await.headers().contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn the_operations_port_tells_how_the_replica_is() {
    let service = service().await;
    for (path, part) in [("livez", "ok"), ("readyz", "ok"), ("health", "\"status\":\"ok\"")] {
        let uri = format!("http://{}/{path}", service.app.ops_addr());
        let response = http(Request::get(uri).body(Full::default()).expect("a request")).await;
        let text = String::from_utf8_lossy(response.body()).into_owned();
        assert!(response.status().is_success() && text.contains(part), "{path}: {text}");
    }
}

#[tokio::test]
async fn health_tells_of_each_part() {
    let service = service().await;
    let receiver = receiver(Behaviour::default()).await;
    service.register(endpoint(&receiver.url())).await;
    let id = service.publish_one("a").await;
    service.in_state(&id, DeliveryState::Succeeded).await;
    let health = crate::support::eventually("the parts are looked at", || async {
        let (status, head, body) = ops(&service.app, "GET", "/health", "").await;
        assert!(status == 200 && head.contains("content-type: application/json"), "{head}");
        let health: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        Some(health).filter(|health| health["endpoints"]["active"] == 1 && health["engine"]["lanes"] == 1)
    })
    .await;
    for (pointer, expected) in [
        ("/status", serde_json::json!("ok")),
        ("/version", env!("CARGO_PKG_VERSION").into()),
        ("/draining", false.into()),
        ("/database/status", "ok".into()),
        ("/queue/size", 0.into()),
        ("/queue/dead_letters", 0.into()),
        ("/engine/requests_in_flight", 0.into()),
        ("/endpoints/paused", 0.into()),
        ("/endpoints/disabled", 0.into()),
        ("/endpoints/open_circuits", 0.into()),
        ("/streams/subscribers", 0.into()),
        ("/replicas/0/roles", serde_json::json!(["api", "worker"])),
    ] {
        assert_eq!(health.pointer(pointer), Some(&expected), "{pointer} of {health}");
    }
    assert_eq!(health["replicas"][0]["name"], health["replica"]);
    assert!(health["database"]["latency_seconds"].as_f64().is_some_and(|latency| latency > 0.0), "{health}");
    let version = health["database"]["server_version"].as_str().expect("a version");
    assert!(version.starts_with(|first: char| first.is_ascii_digit()) && !version.contains(' '), "{version}");
    assert!(health["database"]["connections"]["engine"]["idle"].is_u64(), "{health}");
}

#[tokio::test]
async fn a_message_that_is_no_protobuf_is_the_callers_fault() {
    let service = service().await;
    let (response, _, trailers) = web(&service.address, "Publish", vec![0xff; 20]).await;
    let status = response.headers().get("grpc-status").map(|value| value.to_str().expect("text").to_owned());
    assert!(
        status.as_deref() == Some("3") || trailers.contains("grpc-status:3"),
        "{:?} {trailers}",
        response.headers()
    );
}
