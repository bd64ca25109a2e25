//! What is not built yet is refused by name: calls as a whole, fields when they are set. Nothing is accepted and ignored.

use hooklane::api::proto::*;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::{Service, endpoint, fields, reason, service, told};

/// The calls that work.
const BUILT: &[&str] = &[
    "RegisterEndpoint",
    "GetEndpoint",
    "ListEndpoints",
    "UpdateEndpoint",
    "DeleteEndpoint",
    "PauseEndpoint",
    "ResumeEndpoint",
    "RotateSecret",
    "TestEndpoint",
    "Publish",
    "PublishBatch",
    "GetEvent",
    "GetDelivery",
    "ListDeliveries",
    "RetryDelivery",
    "CancelDelivery",
    "StreamDeliveryEvents",
    "ListDeadLetters",
    "DeleteDeadLetters",
    "ListAlerts",
    "AcknowledgeAlert",
];

/// Calls a method by name with an empty message.
async fn call(service: &Service, name: &str, is_streaming: bool) -> Result<(), Status> {
    let mut grpc = Grpc::new(service.channel().await);
    grpc.ready().await.expect("connected");
    let path: PathAndQuery = format!("/hooklane.v1.WebhookService/{name}").parse().expect("a path");
    let codec = ProstCodec::<(), ()>::default();
    match is_streaming {
        true => grpc.server_streaming(Request::new(()), path, codec).await.map(drop),
        false => grpc.unary(Request::new(()), path, codec).await.map(drop),
    }
}

#[tokio::test]
async fn every_method_of_the_contract_works_or_says_that_it_is_not_built() {
    let service = service().await;
    let descriptors = FileDescriptorSet::decode(DESCRIPTORS).expect("descriptors");
    let services =
        descriptors.file.iter().filter(|file| file.package() == "hooklane.v1").flat_map(|file| &file.service);
    let methods: Vec<_> = services.flat_map(|service| &service.method).collect();
    assert!(methods.len() > BUILT.len());
    for name in BUILT {
        assert!(methods.iter().any(|method| method.name() == *name), "{name} is in the contract");
    }
    for method in methods {
        let name = method.name();
        let answer = call(&service, name, method.server_streaming()).await;
        if BUILT.contains(&name) {
            let is_refused = answer.is_err_and(|refusal| refusal.code() == Code::Unimplemented);
            assert!(!is_refused, "{name} works");
        } else {
            let refusal = answer.expect_err(name);
            assert_eq!(reason(&refusal), told(Code::Unimplemented, "NOT_BUILT"), "{name}");
            assert!(refusal.message().contains(name), "{}", refusal.message());
        }
    }
    let refusal = call(&service, "Nonsense", false).await.expect_err("unknown");
    assert_eq!(reason(&refusal), told(Code::Unimplemented, "UNSUPPORTED"));
}

#[tokio::test]
async fn fields_of_an_endpoint_that_are_not_built_are_named() {
    let service = service().await;
    let mut client = service.client.clone();
    let set = Endpoint {
        ca_pem: "x".to_owned(),
        client_certificate_pem: "x".to_owned(),
        client_key_pem: "x".to_owned(),
        ..endpoint("http://127.0.0.1:9/")
    };
    let expected = ["ca_pem", "client_certificate_pem", "client_key_pem"].map(|field| format!("endpoint.{field}"));
    let request = RegisterEndpointRequest { endpoint: Some(set.clone()), secret: String::new() };
    let refusal = client.register_endpoint(request).await.expect_err("not built");
    assert_eq!(reason(&refusal), told(Code::Unimplemented, "NOT_BUILT"));
    assert_eq!(fields(&refusal), expected);

    let id = service.register(endpoint("http://127.0.0.1:9/")).await.id;
    let request = UpdateEndpointRequest { endpoint: Some(Endpoint { id, ..set }), update_mask: None };
    let refusal = client.update_endpoint(request).await.expect_err("not built");
    assert_eq!((reason(&refusal), fields(&refusal)), (told(Code::Unimplemented, "NOT_BUILT"), expected.to_vec()));
}
