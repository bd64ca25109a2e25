//! RotateSecret: two secrets sign while they overlap, the former one ends by itself, and the scheme may change with it.

use hooklane::api::proto::*;
use hooklane::cli::listen::{Behaviour, Received, Receiver};
use hooklane::domain::endpoint::SignatureScheme as Scheme;
use hooklane::domain::verification::{Rejected, Verifier, verify};
use tonic::{Code, Status};

use super::{KEY, SECRET, Service, endpoint, event, fields, reason, receiver, seconds, service, told};
use crate::support::eventually;

const OTHER: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

async fn rotate(service: &Service, request: RotateSecretRequest) -> Result<RotateSecretResponse, Status> {
    service.client.clone().rotate_secret(request).await.map(tonic::Response::into_inner)
}

fn rotation(id: &str, secret: &str, overlap: i64) -> RotateSecretRequest {
    RotateSecretRequest {
        endpoint_id: id.to_owned(),
        secret: secret.to_owned(),
        overlap: Some(seconds(overlap)),
        ..RotateSecretRequest::default()
    }
}

/// A further request to the endpoint.
async fn next(service: &Service, receiver: &Receiver) -> Received {
    service.publish(event("a")).await;
    receiver.next().await.expect("a request")
}

/// Whether a receiver that knows `secret` alone accepts the request.
fn is_signed_by(received: &Received, scheme: Scheme, secret: &str) -> Result<(), Rejected> {
    let verifier = Verifier::parse(secret, Some(scheme)).expect("a secret");
    let header = |name: &str| received.headers.get(name).and_then(|value| value.to_str().ok());
    verify(scheme, &verifier, header, &received.body, received.time.as_second())
}

async fn registered(service: &Service, receiver: &Receiver, scheme: SignatureScheme) -> Endpoint {
    let mut given = endpoint(&receiver.url());
    given.set_signature_scheme(scheme);
    service.register(given).await
}

#[tokio::test]
async fn both_secrets_sign_until_the_former_one_ends_by_itself() {
    let service = service().await;
    let receiver = receiver(Behaviour::default()).await;
    for (asked, scheme) in [
        (SignatureScheme::Timestamped, Scheme::Timestamped),
        (SignatureScheme::StandardWebhooks, Scheme::StandardWebhooks),
    ] {
        let registered = registered(&service, &receiver, asked).await;
        // Whatever is remembered of the endpoint is of before the rotation.
        assert_eq!(is_signed_by(&next(&service, &receiver).await, scheme, SECRET), Ok(()));
        let answer = rotate(&service, rotation(&registered.id, OTHER, 4)).await.expect("rotated");
        assert_eq!(answer.secret, OTHER);
        let rotated = answer.endpoint.expect("the endpoint");
        assert_ne!(rotated.etag, registered.etag);
        let versions: Vec<_> = rotated.secrets.iter().map(|secret| (secret.version, secret.expire_time)).collect();
        assert_eq!(versions, [(2, None), (1, answer.previous_expire_time)]);
        let overlap = answer.previous_expire_time.expect("a time").seconds
            - rotated.secrets[0].create_time.expect("a time").seconds;
        assert_eq!(overlap, 4);

        let during = next(&service, &receiver).await;
        assert_eq!([SECRET, OTHER].map(|secret| is_signed_by(&during, scheme, secret)), [Ok(()); 2]);
        let after = eventually("the former secret ended", || async {
            let received = next(&service, &receiver).await;
            is_signed_by(&received, scheme, SECRET).is_err().then_some(received)
        })
        .await;
        assert_eq!(is_signed_by(&after, scheme, SECRET), Err(Rejected::Mismatch));
        assert_eq!(is_signed_by(&after, scheme, OTHER), Ok(()));
        let delete = DeleteEndpointRequest { endpoint_id: registered.id, etag: String::new() };
        service.client.clone().delete_endpoint(delete).await.expect("deleted");
    }
}

#[tokio::test]
async fn a_key_is_made_where_none_is_brought_and_its_public_half_is_readable() {
    let service = service().await;
    let receiver = receiver(Behaviour::default()).await;
    let mut given = endpoint(&receiver.url());
    given.set_signature_scheme(SignatureScheme::StandardWebhooksEd25519);
    let request = RegisterEndpointRequest { endpoint: Some(given), secret: String::new() };
    let answer = service.client.clone().register_endpoint(request).await.expect("registered").into_inner();
    let registered = answer.endpoint.expect("it");
    assert!(answer.secret.starts_with("whsk_") && answer.secret != KEY);
    let request = GetEndpointRequest { endpoint_id: registered.id };
    let read = service.client.clone().get_endpoint(request).await.expect("read").into_inner().endpoint.expect("it");
    assert!(read.public_key.starts_with("whpk_") && read.public_key == registered.public_key, "{read:?}");
    let received = next(&service, &receiver).await;
    for verifier in [&read.public_key, &answer.secret] {
        assert_eq!(is_signed_by(&received, Scheme::StandardWebhooksEd25519, verifier), Ok(()));
    }
}

#[tokio::test]
async fn the_body_schemes_sign_with_the_new_secret_alone() {
    let service = service().await;
    let receiver = receiver(Behaviour::default()).await;
    let registered = registered(&service, &receiver, SignatureScheme::BodySha256).await;
    rotate(&service, rotation(&registered.id, OTHER, 3_600)).await.expect("rotated");
    let received = next(&service, &receiver).await;
    assert_eq!(is_signed_by(&received, Scheme::BodySha256, OTHER), Ok(()));
    assert_eq!(is_signed_by(&received, Scheme::BodySha256, SECRET), Err(Rejected::Mismatch));
}

#[tokio::test]
async fn an_overlap_of_nothing_leaves_the_new_secret_alone() {
    let service = service().await;
    let receiver = receiver(Behaviour::default()).await;
    let id = registered(&service, &receiver, SignatureScheme::Timestamped).await.id;
    let defaults = RotateSecretRequest { endpoint_id: id.clone(), ..RotateSecretRequest::default() };
    let second = rotate(&service, defaults).await.expect("rotated");
    let created = second.endpoint.expect("it").secrets[0].create_time.expect("a time");
    assert_eq!(second.previous_expire_time.expect("a time").seconds - created.seconds, 24 * 3_600);
    let third = rotate(&service, rotation(&id, OTHER, 0)).await.expect("rotated").endpoint.expect("it");
    assert_eq!(third.secrets.iter().map(|secret| secret.version).collect::<Vec<_>>(), [3]);
    let received = next(&service, &receiver).await;
    assert_eq!(is_signed_by(&received, Scheme::Timestamped, OTHER), Ok(()));
    for former in [SECRET, &second.secret] {
        assert_eq!(is_signed_by(&received, Scheme::Timestamped, former), Err(Rejected::Mismatch));
    }
}

#[tokio::test]
async fn changing_between_hmac_and_ed25519_takes_a_rotation_and_both_forms_overlap() {
    let service = service().await;
    let receiver = receiver(Behaviour::default()).await;
    let original = registered(&service, &receiver, SignatureScheme::Timestamped).await;
    assert_eq!(original.public_key, "");
    let mut changed = Endpoint { id: original.id.clone(), ..Endpoint::default() };
    changed.set_signature_scheme(SignatureScheme::StandardWebhooksEd25519);
    let request = UpdateEndpointRequest { endpoint: Some(changed), update_mask: None };
    let refusal = service.client.clone().update_endpoint(request).await.expect_err("another kind");
    assert_eq!(
        (reason(&refusal), fields(&refusal)),
        (told(Code::InvalidArgument, "INVALID_FIELD"), vec!["endpoint.signature_scheme".to_owned()])
    );
    assert!(refusal.message().contains("RotateSecret"), "{}", refusal.message());

    // To a key that the server makes.
    let mut request = rotation(&original.id, "", 3_600);
    request.set_signature_scheme(SignatureScheme::StandardWebhooksEd25519);
    let answer = rotate(&service, request).await.expect("rotated");
    let rotated = answer.endpoint.expect("it");
    assert_eq!(rotated.signature_scheme(), SignatureScheme::StandardWebhooksEd25519);
    assert!(answer.secret.starts_with("whsk_") && rotated.public_key.starts_with("whpk_"), "{rotated:?}");
    let received = next(&service, &receiver).await;
    assert_eq!(is_signed_by(&received, Scheme::StandardWebhooksEd25519, &rotated.public_key), Ok(()));
    assert_eq!(is_signed_by(&received, Scheme::Timestamped, SECRET), Ok(()));

    // And back, by a secret that tells its kind: the form is Standard Webhooks' still, the key still signs.
    let answer = rotate(&service, rotation(&original.id, OTHER, 3_600)).await.expect("rotated");
    let back = answer.endpoint.expect("it");
    assert_eq!((back.signature_scheme(), back.public_key.as_str()), (SignatureScheme::StandardWebhooks, ""));
    let received = next(&service, &receiver).await;
    assert_eq!(is_signed_by(&received, Scheme::StandardWebhooks, OTHER), Ok(()));
    assert_eq!(is_signed_by(&received, Scheme::StandardWebhooksEd25519, &rotated.public_key), Ok(()));
    assert_eq!(is_signed_by(&received, Scheme::Timestamped, SECRET), Ok(()));
    let own_key = rotate(&service, rotation(&original.id, KEY, 0)).await.expect("rotated").endpoint.expect("it");
    assert_eq!(own_key.signature_scheme(), SignatureScheme::StandardWebhooksEd25519);
    let received = next(&service, &receiver).await;
    assert_eq!(is_signed_by(&received, Scheme::StandardWebhooksEd25519, &own_key.public_key), Ok(()));
    assert!(!received.headers.contains_key("x-webhook-signature"), "an overlap of nothing ends all others");
}

#[tokio::test]
async fn bad_rotations_are_refused_and_change_nothing() {
    let service = service().await;
    let receiver = receiver(Behaviour::default()).await;
    let original = registered(&service, &receiver, SignatureScheme::StandardWebhooks).await;
    let with_scheme = |secret: &str, scheme: i32| RotateSecretRequest {
        signature_scheme: scheme,
        ..rotation(&original.id, secret, 0)
    };
    for (request, field) in [
        (rotation(&original.id, "a-secret-of-our-own", 0), "secret"),
        (rotation(&original.id, "whsk_AAAA", 0), "secret"),
        (with_scheme(KEY, SignatureScheme::BodyHex.into()), "secret"),
        (with_scheme(OTHER, SignatureScheme::StandardWebhooksEd25519.into()), "secret"),
        (with_scheme(OTHER, 6), "signature_scheme"),
        (with_scheme(OTHER, 65_536), "signature_scheme"),
        (rotation(&original.id, OTHER, 7 * 24 * 3_600 + 1), "overlap"),
        (rotation(&original.id, OTHER, -1), "overlap"),
    ] {
        let refusal = rotate(&service, request).await.expect_err(field);
        assert_eq!(
            (reason(&refusal), fields(&refusal)),
            (told(Code::InvalidArgument, "INVALID_FIELD"), vec![field.to_owned()])
        );
        assert!(![KEY, OTHER].iter().any(|secret| refusal.message().contains(secret)), "secrets are not repeated");
    }
    let request = GetEndpointRequest { endpoint_id: original.id.clone() };
    let now = service.client.clone().get_endpoint(request).await.expect("read").into_inner().endpoint.expect("it");
    assert_eq!(now, original);
}

#[tokio::test]
async fn rotations_at_once_all_count_and_only_so_many_secrets_sign() {
    let service = service().await;
    let receiver = receiver(Behaviour::default()).await;
    let id = registered(&service, &receiver, SignatureScheme::Timestamped).await.id;
    let mut latest = Endpoint::default();
    for _ in 0..4 {
        let rotations = (0..3).map(|_| rotate(&service, rotation(&id, "", 3_600)));
        let answers = futures::future::try_join_all(rotations).await.expect("rotated");
        latest = answers
            .into_iter()
            .filter_map(|answer| answer.endpoint)
            .max_by_key(|one| one.secrets[0].version)
            .expect("it");
    }
    let versions: Vec<_> = latest.secrets.iter().map(|secret| secret.version).collect();
    assert_eq!(versions, (4..=13).rev().collect::<Vec<_>>());
    let signature = next(&service, &receiver).await.headers["x-webhook-signature"].clone();
    assert_eq!(signature.to_str().expect("text").matches(",v1=").count(), 10);
}
