//! ListAlerts and AcknowledgeAlert.

use tonic::Status;

use super::auth::Caller;
use super::convert::{self, Violations, alert, sole};
use super::paging::{Binding, cut, page_size};
use super::service::Webhooks;
use super::{proto, status};
use crate::domain::alert::{Alert, AlertKind};
use crate::domain::id::AlertId;
use crate::store::AlertFilter;

impl Webhooks {
    /// A page of alerts.
    pub(super) async fn list_alerts_page(
        &self,
        caller: &Caller,
        request: proto::ListAlertsRequest,
    ) -> Result<proto::ListAlertsResponse, Status> {
        let binding = binding(caller, &request);
        let (filter, limit) = read_filter(caller, &request, &binding)?;
        let alerts = self.services.store.list_alerts(&filter, limit + 1).await?;
        let (alerts, end) = cut(alerts, None, limit, |alert| alert.id);
        Ok(proto::ListAlertsResponse {
            alerts: alerts.into_iter().map(alert::to_proto).collect(),
            next_page_token: end.map(|last| binding.token(last.uuid())).unwrap_or_default(),
        })
    }

    /// Notes that somebody has seen an alert. The first one stays on record, so that a repeat changes nothing.
    pub(super) async fn acknowledge(
        &self,
        caller: &Caller,
        request: proto::AcknowledgeAlertRequest,
    ) -> Result<proto::AcknowledgeAlertResponse, Status> {
        let id: AlertId = sole("alert_id", request.alert_id.parse())?;
        self.stored_alert(caller, id).await?;
        self.services.store.acknowledge_alert(id, caller.name()).await?;
        let found = self.stored_alert(caller, id).await?;
        Ok(proto::AcknowledgeAlertResponse { alert: Some(alert::to_proto(found)) })
    }

    /// An alert, where it is there for this caller.
    async fn stored_alert(&self, caller: &Caller, id: AlertId) -> Result<Alert, Status> {
        let found = self.services.store.alert(id).await?.filter(|alert| caller.owns(&alert.tenant));
        found.ok_or_else(|| status::alert_not_found(id))
    }
}

fn read_filter(
    caller: &Caller,
    request: &proto::ListAlertsRequest,
    binding: &Binding,
) -> Result<(AlertFilter, u32), Status> {
    let mut v = Violations::new();
    let tenant = caller.tenants("tenant", &request.tenant, &mut v);
    let endpoint = v.take("endpoint_id", convert::optional_id(&request.endpoint_id));
    let kinds = v.take_enums("kinds", &request.kinds, AlertKind::from_number);
    let limit = v.take("page_size", page_size(request.page_size));
    let before = v.take("page_token", binding.parse(&request.page_token));
    match (tenant, endpoint, kinds, limit, before) {
        (Some(tenant), Some(endpoint), Some(kinds), Some(limit), Some(before)) => {
            let before = before.map(AlertId::from_uuid);
            Ok((AlertFilter { tenant, endpoint, kinds, open_only: request.open_only, before }, limit))
        }
        _ => Err(v.into_status()),
    }
}

fn binding(caller: &Caller, request: &proto::ListAlertsRequest) -> Binding {
    Binding::of("ListAlerts")
        .with(caller.meant(&request.tenant))
        .with(&request.endpoint_id)
        .with_all(request.kinds.iter().map(|kind| kind.to_be_bytes()))
        .with([u8::from(request.open_only)])
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::super::auth::admin;
    use super::super::convert::tests::refused;
    use super::*;

    #[test]
    fn every_bad_filter_is_named() {
        let bad = proto::ListAlertsRequest {
            tenant: "a b".to_owned(),
            endpoint_id: "alr_01h455vb4pex5vsknk084sn02q".to_owned(),
            kinds: vec![1, 0, 7],
            page_size: -1,
            page_token: "x".to_owned(),
            ..proto::ListAlertsRequest::default()
        };
        let (code, paths) = refused(&read_filter(&admin(), &bad, &binding(&admin(), &bad)).expect_err("bad"));
        assert_eq!(code, Code::InvalidArgument);
        assert_eq!(paths, ["tenant", "endpoint_id", "kinds[1]", "kinds[2]", "page_size", "page_token"]);
    }

    #[test]
    fn a_page_token_is_bound_to_the_filters() {
        let list = |open_only| proto::ListAlertsRequest { open_only, ..Default::default() };
        let token = binding(&admin(), &list(true)).token(uuid::Uuid::nil());
        let read =
            |request: proto::ListAlertsRequest| read_filter(&admin(), &request, &binding(&admin(), &request)).is_ok();
        let next = |open_only| proto::ListAlertsRequest { page_token: token.clone(), ..list(open_only) };
        assert!(read(next(true)) && !read(next(false)));
    }
}
