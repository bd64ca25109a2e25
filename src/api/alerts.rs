//! ListAlerts and AcknowledgeAlert.

use tonic::Status;

use super::convert::{self, Violations, alert, sole};
use super::paging::{Binding, cut, page_size};
use super::service::Webhooks;
use super::{proto, status};
use crate::domain::alert::AlertKind;
use crate::domain::id::AlertId;
use crate::store::AlertFilter;

impl Webhooks {
    /// A page of alerts.
    pub(super) async fn list_alerts_page(
        &self,
        request: proto::ListAlertsRequest,
    ) -> Result<proto::ListAlertsResponse, Status> {
        let binding = binding(&request);
        let (filter, limit) = read_filter(&request, &binding)?;
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
        request: proto::AcknowledgeAlertRequest,
    ) -> Result<proto::AcknowledgeAlertResponse, Status> {
        let id: AlertId = sole("alert_id", request.alert_id.parse())?;
        // Callers are not authenticated: nobody's name is known.
        self.services.store.acknowledge_alert(id, "").await?;
        let found = self.services.store.alert(id).await?.ok_or_else(|| status::alert_not_found(id))?;
        Ok(proto::AcknowledgeAlertResponse { alert: Some(alert::to_proto(found)) })
    }
}

fn read_filter(request: &proto::ListAlertsRequest, binding: &Binding) -> Result<(AlertFilter, u32), Status> {
    let mut v = Violations::new();
    let tenant = v.take("tenant", convert::tenants(&request.tenant));
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

fn binding(request: &proto::ListAlertsRequest) -> Binding {
    let tenant = if request.tenant.is_empty() { "default" } else { &request.tenant };
    Binding::of("ListAlerts")
        .with(tenant)
        .with(&request.endpoint_id)
        .with_all(request.kinds.iter().map(|kind| kind.to_be_bytes()))
        .with([u8::from(request.open_only)])
}

#[cfg(test)]
mod tests {
    use tonic::Code;

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
        let (code, paths) = refused(&read_filter(&bad, &binding(&bad)).expect_err("bad"));
        assert_eq!(code, Code::InvalidArgument);
        assert_eq!(paths, ["tenant", "endpoint_id", "kinds[1]", "kinds[2]", "page_size", "page_token"]);
    }

    #[test]
    fn a_page_token_is_bound_to_the_filters() {
        let list = |open_only| proto::ListAlertsRequest { open_only, ..Default::default() };
        let token = binding(&list(true)).token(uuid::Uuid::nil());
        let read = |request: proto::ListAlertsRequest| read_filter(&request, &binding(&request)).is_ok();
        let next = |open_only| proto::ListAlertsRequest { page_token: token.clone(), ..list(open_only) };
        assert!(read(next(true)) && !read(next(false)));
    }
}
