//! The contract is built: every method of it answers, and no other.

use hooklane::api::proto::*;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::{Service, reason, service, told};

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
