//! RegisterEndpoint, GetEndpoint, ListEndpoints, UpdateEndpoint and DeleteEndpoint.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use tonic::Status;

use super::auth::Caller;
use super::convert::endpoint::{Patch, secret_does_not_fit, to_proto, version_of};
use super::convert::mask::Mask;
use super::convert::{self, Violations, sole};
use super::paging::{Binding, cut, page_size};
use super::secrets::secret_for;
use super::service::Webhooks;
use super::{proto, status, under_way};
use crate::domain::Problem;
use crate::domain::endpoint::{Endpoint, EndpointState};
use crate::domain::fields::parse_map;
use crate::domain::id::EndpointId;
use crate::store::{DeleteOutcome, EndpointFilter, NewEndpoint, UpdateError};

/// How often an update without etag is tried while others change the endpoint.
pub(super) const UPDATE_TRIES: usize = 10;
/// How long a deletion cancels deliveries before it answers; a chore cancels the rest.
const CANCEL_MAX: Duration = Duration::from_secs(3);

impl Webhooks {
    /// Registers an endpoint and shows its secret.
    pub(super) async fn register(
        &self,
        caller: &Caller,
        request: proto::RegisterEndpointRequest,
    ) -> Result<proto::RegisterEndpointResponse, Status> {
        let given = sole("endpoint", request.endpoint.ok_or_else(is_required))?;
        let mut v = Violations::new();
        let tenant = caller.tenant("endpoint.tenant", &given.tenant, &mut v);
        let patch = Patch::parse(&given, &Mask::all(), &self.config.egress_rules, &mut v);
        let secret = match patch.signature_scheme() {
            Some(scheme) => secret_for(scheme, &request.secret, &mut v)?,
            // What the secret must look like depends on a scheme that is refused already.
            None => None,
        };
        let spec = patch.into_spec(&mut v);
        let new = match (tenant, spec, secret) {
            (Some(tenant), Some(spec), Some(secret)) if v.is_empty() => NewEndpoint { tenant, spec, secret },
            _ => return Err(v.into_status()),
        };
        let registered = self.services.store.register_endpoint(&new).await;
        let endpoint = registered.map_err(|error| status::register_refused(error, new.spec.external_id.as_deref()))?;
        Ok(proto::RegisterEndpointResponse {
            endpoint: Some(to_proto(endpoint, caller)),
            secret: new.secret.expose().to_owned(),
        })
    }

    /// One endpoint.
    pub(super) async fn endpoint(
        &self,
        caller: &Caller,
        request: proto::GetEndpointRequest,
    ) -> Result<proto::GetEndpointResponse, Status> {
        let id = sole("endpoint_id", request.endpoint_id.parse())?;
        Ok(proto::GetEndpointResponse { endpoint: Some(to_proto(self.stored_endpoint(caller, id).await?, caller)) })
    }

    /// A page of endpoints.
    pub(super) async fn list_endpoints_page(
        &self,
        caller: &Caller,
        request: proto::ListEndpointsRequest,
    ) -> Result<proto::ListEndpointsResponse, Status> {
        let binding = binding(caller, &request);
        let (filter, limit) = read_filter(caller, request, &binding)?;
        let (endpoints, end) = self.services.store.list_endpoints(&filter, limit + 1).await?;
        let (endpoints, end) = cut(endpoints, end, limit, |endpoint| endpoint.id);
        Ok(proto::ListEndpointsResponse {
            endpoints: endpoints.into_iter().map(|endpoint| to_proto(endpoint, caller)).collect(),
            next_page_token: end.map(|last| binding.token(last.uuid())).unwrap_or_default(),
        })
    }

    /// Changes an endpoint. With an etag it is tried once, without one until nobody else changes it meanwhile.
    pub(super) async fn update(
        &self,
        caller: &Caller,
        request: proto::UpdateEndpointRequest,
    ) -> Result<proto::UpdateEndpointResponse, Status> {
        let given = sole("endpoint", request.endpoint.ok_or_else(is_required))?;
        let paths = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
        let mut v = Violations::new();
        let id = v.take("endpoint.id", given.id.parse::<EndpointId>());
        let mask = Mask::parse(&paths, &given, &mut v);
        let patch = Patch::parse(&given, &mask, &self.config.egress_rules, &mut v);
        let id = match id {
            Some(id) if v.is_empty() => id,
            _ => return Err(v.into_status()),
        };
        let wanted_version = version_of(&given.etag);
        let claimed_tenant = (mask.names_tenant() && !given.tenant.is_empty()).then_some(given.tenant.as_str());
        for _ in 0..UPDATE_TRIES {
            let current = self.stored_endpoint(caller, id).await?;
            if wanted_version.is_some_and(|wanted| wanted != current.version) {
                return Err(status::etag_mismatch(id));
            }
            let mut v = Violations::new();
            if claimed_tenant.is_some_and(|claimed| claimed != current.tenant.as_str()) {
                v.invalid("endpoint.tenant", Problem::new("cannot be changed; register the endpoint there instead"));
            }
            let spec = patch.apply(&current.spec, &mut v);
            let (former, wanted) = (current.spec.signature_scheme, spec.signature_scheme);
            if former != wanted && !self.do_secrets_fit(id, former, wanted).await? {
                v.invalid("endpoint.signature_scheme", secret_does_not_fit(former, wanted));
            }
            if !v.is_empty() {
                return Err(v.into_status());
            }
            if spec == current.spec {
                return Ok(proto::UpdateEndpointResponse { endpoint: Some(to_proto(current, caller)) });
            }
            match self.services.store.update_endpoint(&current.tenant, id, current.version, &spec).await {
                Ok(endpoint) => {
                    return Ok(proto::UpdateEndpointResponse { endpoint: Some(to_proto(endpoint, caller)) });
                }
                Err(UpdateError::VersionMoved) if wanted_version.is_none() => {}
                Err(error) => return Err(status::update_refused(error, id, spec.external_id.as_deref())),
            }
        }
        Err(status::keeps_changing(id))
    }

    /// Deletes an endpoint and cancels what is outstanding for it, as far as that goes at once.
    pub(super) async fn delete(
        &self,
        caller: &Caller,
        request: proto::DeleteEndpointRequest,
    ) -> Result<proto::DeleteEndpointResponse, Status> {
        let id = sole("endpoint_id", request.endpoint_id.parse())?;
        self.see_endpoint(caller, id).await?;
        match self.services.store.delete_endpoint(id, version_of(&request.etag)).await? {
            DeleteOutcome::Deleted => {}
            DeleteOutcome::NotFound => return Err(status::endpoint_not_found(id)),
            DeleteOutcome::VersionMoved => return Err(status::etag_mismatch(id)),
        }
        let deadline = Instant::now() + CANCEL_MAX;
        let mut canceled_deliveries = 0;
        while Instant::now() < deadline {
            match self.services.store.cancel_deleted(id).await {
                Ok(0) => break,
                Ok(canceled) => canceled_deliveries += canceled,
                // The endpoint is deleted all the same, and the chore goes on.
                Err(error) => {
                    tracing::warn!(
                        endpoint = %id,
                        %error,
                        call = under_way::call(),
                        trace_id = under_way::trace_id(),
                        "a deleted endpoint's deliveries were not all canceled yet"
                    );
                    break;
                }
            }
        }
        Ok(proto::DeleteEndpointResponse { canceled_deliveries })
    }

    /// An endpoint, where it is there for this caller.
    pub(super) async fn stored_endpoint(&self, caller: &Caller, id: EndpointId) -> Result<Endpoint, Status> {
        let found = self.services.store.endpoint(id).await?.filter(|endpoint| caller.owns(&endpoint.tenant));
        found.ok_or_else(|| status::endpoint_not_found(id))
    }

    /// Sees that an endpoint is there for this caller, before something is done to it. An endpoint never changes its
    /// tenant, and who owns all need not look.
    pub(super) async fn see_endpoint(&self, caller: &Caller, id: EndpointId) -> Result<(), Status> {
        if caller.owns_all() {
            return Ok(());
        }
        self.stored_endpoint(caller, id).await.map(|_| ())
    }
}

fn read_filter(
    caller: &Caller,
    request: proto::ListEndpointsRequest,
    binding: &Binding,
) -> Result<(EndpointFilter, u32), Status> {
    let mut v = Violations::new();
    let tenant = caller.tenants("tenant", &request.tenant, &mut v);
    let states = v.take_enums("states", &request.states, EndpointState::from_number);
    let event_type = v.take("event_type", convert::optional_event_type(&request.event_type));
    let labels = v.take("labels", parse_map(request.labels));
    let limit = v.take("page_size", page_size(request.page_size));
    let before = v.take("page_token", binding.parse(&request.page_token));
    match (tenant, states, event_type, labels, limit, before) {
        (Some(tenant), Some(states), Some(event_type), Some(labels), Some(limit), Some(before)) => {
            let before = before.map(EndpointId::from_uuid);
            Ok((EndpointFilter { tenant, states, event_type, labels, before }, limit))
        }
        _ => Err(v.into_status()),
    }
}

fn binding(caller: &Caller, request: &proto::ListEndpointsRequest) -> Binding {
    // In the order of their names: a map's own order differs from request to request.
    let labels: BTreeMap<&String, &String> = request.labels.iter().collect();
    Binding::of("ListEndpoints")
        .with(caller.meant(&request.tenant))
        .with_all(request.states.iter().map(|state| state.to_be_bytes()))
        .with(&request.event_type)
        .with_all(labels.into_iter().flat_map(|(name, value)| [name, value]))
}

fn is_required() -> Problem {
    Problem::new("is unset; it is required")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::auth::admin;
    use super::*;

    #[test]
    fn a_page_token_does_not_mind_the_order_of_labels() {
        let labels =
            |count: u32| -> HashMap<String, String> { (0..count).map(|n| (n.to_string(), "x".into())).collect() };
        let list = |count| proto::ListEndpointsRequest { labels: labels(count), ..Default::default() };
        let token = binding(&admin(), &list(20)).token(uuid::Uuid::nil());
        for _ in 0..5 {
            assert!(binding(&admin(), &list(20)).parse(&token).is_ok());
        }
        assert!(binding(&admin(), &list(19)).parse(&token).is_err());
    }
}
