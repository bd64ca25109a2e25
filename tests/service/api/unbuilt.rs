//! What is not built yet is refused by name: fields when they are set. Nothing is accepted and ignored.

use hooklane::api::proto::*;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::{Service, endpoint, fields, reason, service, told};

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
async fn every_method_of_the_contract_works() {
    let service = service().await;
    let descriptors = FileDescriptorSet::decode(DESCRIPTORS).expect("descriptors");
    let services =
        descriptors.file.iter().filter(|file| file.package() == "hooklane.v1").flat_map(|file| &file.service);
    let methods: Vec<_> = services.flat_map(|service| &service.method).collect();
    assert!(methods.len() > 20, "the methods were found");
    for method in methods {
        let answer = call(&service, method.name(), method.server_streaming()).await;
        let is_refused = answer.is_err_and(|refusal| refusal.code() == Code::Unimplemented);
        assert!(!is_refused, "{} works", method.name());
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
