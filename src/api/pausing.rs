//! PauseEndpoint and ResumeEndpoint.

use tonic::Status;

use super::auth::Caller;
use super::convert::Violations;
use super::convert::endpoint::to_proto;
use super::proto;
use super::service::Webhooks;
use crate::domain::id::EndpointId;

impl Webhooks {
    /// Stops deliveries to an endpoint; they wait. Nothing changes where it is paused or disabled already.
    pub(super) async fn pause(
        &self,
        caller: &Caller,
        request: proto::PauseEndpointRequest,
    ) -> Result<proto::PauseEndpointResponse, Status> {
        let id = parse_id(&request.endpoint_id)?;
        self.see_endpoint(caller, id).await?;
        self.services.store.pause_endpoint(id).await?;
        Ok(proto::PauseEndpointResponse { endpoint: Some(to_proto(self.stored_endpoint(caller, id).await?, caller)) })
    }

    /// Lets deliveries go on to an endpoint that was paused or disabled.
    pub(super) async fn resume(
        &self,
        caller: &Caller,
        request: proto::ResumeEndpointRequest,
    ) -> Result<proto::ResumeEndpointResponse, Status> {
        let id = parse_id(&request.endpoint_id)?;
        self.see_endpoint(caller, id).await?;
        self.services.store.resume_endpoint(id).await?;
        Ok(proto::ResumeEndpointResponse { endpoint: Some(to_proto(self.stored_endpoint(caller, id).await?, caller)) })
    }
}

fn parse_id(text: &str) -> Result<EndpointId, Status> {
    let mut v = Violations::new();
    v.take("endpoint_id", text.parse()).ok_or_else(|| v.into_status())
}
