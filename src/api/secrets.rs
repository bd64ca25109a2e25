//! RotateSecret, and where secrets come from: the caller, or the operating system's generator.

use std::time::Duration;

use rand::TryRng as _;
use rand::rngs::SysRng;
use tonic::Status;
use zeroize::Zeroizing;

use super::auth::Caller;
use super::convert::Violations;
use super::convert::endpoint::{rotated_scheme, to_proto};
use super::convert::time::{from_duration, to_timestamp};
use super::endpoints::UPDATE_TRIES;
use super::service::Webhooks;
use super::{proto, status, under_way};
use crate::domain::Problem;
use crate::domain::endpoint::SignatureScheme;
use crate::domain::id::EndpointId;
use crate::domain::secret::Secret;
use crate::store::{RotateError, Rotation};

/// How long a former secret goes on signing unless the caller says otherwise, and at most.
const OVERLAP_DEFAULT: Duration = Duration::from_secs(24 * 3600);
const OVERLAP_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

impl Webhooks {
    /// Gives an endpoint a new secret and shows it. Tried until nobody else changes the endpoint meanwhile.
    pub(super) async fn rotate(
        &self,
        caller: &Caller,
        request: proto::RotateSecretRequest,
    ) -> Result<proto::RotateSecretResponse, Status> {
        let mut v = Violations::new();
        let id = v.take("endpoint_id", request.endpoint_id.parse::<EndpointId>());
        let asked = request.overlap.as_ref().map_or(Ok(OVERLAP_DEFAULT), from_duration);
        let overlap = v.take("overlap", asked.and_then(parse_overlap));
        let scheme = rotated_scheme(request.signature_scheme, &mut v);
        let (id, overlap) = match (id, overlap) {
            (Some(id), Some(overlap)) if v.is_empty() => (id, overlap),
            _ => return Err(v.into_status()),
        };
        for _ in 0..UPDATE_TRIES {
            let current = self.stored_endpoint(caller, id).await?;
            let mut v = Violations::new();
            if current.is_inline {
                let problem =
                    "names an endpoint that came with its event, and so does its secret; publish with another";
                v.invalid("endpoint_id", Problem::new(problem));
                return Err(v.into_status());
            }
            let scheme = scheme.unwrap_or_else(|| implied_scheme(&request.secret, current.spec.signature_scheme));
            let Some(secret) = secret_for(scheme, &request.secret, &mut v)? else { return Err(v.into_status()) };
            let newest = current.secrets.iter().map(|secret| secret.version).max().unwrap_or_default();
            let rotation = Rotation {
                tenant: current.tenant,
                endpoint: id,
                version: current.version,
                scheme,
                secret,
                secret_version: newest.cast_signed() + 1,
                overlap,
            };
            match self.services.store.rotate_secret(&rotation).await {
                Ok(previous) => {
                    return Ok(proto::RotateSecretResponse {
                        secret: rotation.secret.expose().to_owned(),
                        previous_expire_time: Some(to_timestamp(previous)),
                        endpoint: Some(to_proto(self.stored_endpoint(caller, id).await?, caller)),
                    });
                }
                Err(RotateError::VersionMoved) => {}
                Err(RotateError::Store(error)) => return Err(error.into()),
            }
        }
        Err(status::keeps_changing(id))
    }

    /// Whether the secrets that sign by `former` can sign by `wanted`.
    pub(super) async fn do_secrets_fit(
        &self,
        id: EndpointId,
        former: SignatureScheme,
        wanted: SignatureScheme,
    ) -> Result<bool, Status> {
        let Some((_, lane)) = self.services.store.lane_endpoints(&[id]).await?.pop() else { return Ok(true) };
        let lane = lane?;
        let mut secrets = lane.secrets.iter().filter(|secret| secret.scheme == former);
        Ok(secrets.all(|one| Secret::parse(one.secret.expose(), wanted).is_ok()))
    }
}

/// The caller's secret, checked, or a new one where there is none; `None` with the problem noted.
pub(super) fn secret_for(
    scheme: SignatureScheme,
    given: &str,
    violations: &mut Violations,
) -> Result<Option<Secret>, Status> {
    if !given.is_empty() {
        return Ok(violations.take("secret", Secret::parse(given, scheme)));
    }
    let mut bytes = Zeroizing::new([0; 32]);
    SysRng.try_fill_bytes(&mut *bytes).map_err(|error| {
        tracing::error!(%error, call = under_way::call(), trace_id = under_way::trace_id(), "the operating system gave no random bytes");
        status::internal()
    })?;
    Ok(Some(if scheme.is_ed25519() { Secret::from_seed(&bytes) } else { Secret::from_random(&bytes) }))
}

/// The scheme that a rotation which names none goes on with: the endpoint's own, unless the secret is one of the other
/// kind.
fn implied_scheme(secret: &str, current: SignatureScheme) -> SignatureScheme {
    match (secret.split('_').next(), current.is_ed25519()) {
        (Some("whsk"), false) => SignatureScheme::StandardWebhooksEd25519,
        (Some("whsec"), true) => SignatureScheme::StandardWebhooks,
        _ => current,
    }
}

fn parse_overlap(overlap: Duration) -> Result<Duration, Problem> {
    if overlap <= OVERLAP_MAX { Ok(overlap) } else { Err(Problem::new("is out of range; allowed is 0 to 7 days")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_secrets_differ_and_fit_their_scheme() {
        for scheme in (1..=5).filter_map(SignatureScheme::from_number) {
            let mut violations = Violations::new();
            let [one, other] = [(), ()].map(|()| secret_for(scheme, "", &mut violations).expect("random bytes"));
            assert!(one != other);
            assert!(one.is_some_and(|secret| Secret::parse(secret.expose(), scheme).is_ok()), "{scheme:?}");
        }
    }

    #[test]
    fn a_secret_of_the_other_kind_brings_its_scheme() {
        use SignatureScheme::*;
        for (secret, current, expected) in [
            ("whsk_x", BodyHex, StandardWebhooksEd25519),
            ("whsk_x", StandardWebhooksEd25519, StandardWebhooksEd25519),
            ("whsec_x", StandardWebhooksEd25519, StandardWebhooks),
            ("whsec_x", Timestamped, Timestamped),
            ("anything", StandardWebhooksEd25519, StandardWebhooksEd25519),
            ("", BodySha256, BodySha256),
        ] {
            assert_eq!(implied_scheme(secret, current), expected, "{secret} {current:?}");
        }
    }
}
