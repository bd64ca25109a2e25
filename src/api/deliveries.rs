//! GetEvent, GetDelivery, ListDeliveries, RetryDelivery and CancelDelivery.

use tonic::Status;

use super::auth::Caller;
use super::convert::time::from_timestamp;
use super::convert::{self, FILTER_PATTERNS_MAX, Violations, delivery, sole};
use super::paging::{Binding, cut, page_size};
use super::service::Webhooks;
use super::{proto, status};
use crate::domain::delivery::DeliveryState;
use crate::domain::id::{DeliveryId, EventId};
use crate::domain::pattern::EventPattern;
use crate::store::{DeliveryFilter, DeliveryRow, EventRecord};

/// Deliveries read at a time for one event.
const EVENT_PAGE: u32 = 500;

impl Webhooks {
    /// One event with its deliveries.
    pub(super) async fn event(
        &self,
        caller: &Caller,
        request: proto::GetEventRequest,
    ) -> Result<proto::GetEventResponse, Status> {
        let id: EventId = sole("event_id", request.event_id.parse())?;
        let record = self.services.store.event(id).await?.filter(|record| caller.owns(&record.event.tenant));
        let EventRecord { event, routing_note } = record.ok_or_else(|| status::event_not_found(id))?;
        // As many as endpoints matched: each was acknowledged to the publisher in one answer as well.
        let mut filter = DeliveryFilter { event: Some(id), ..DeliveryFilter::default() };
        let mut deliveries = Vec::new();
        loop {
            let (page, end) = self.services.store.list_deliveries(&filter, EVENT_PAGE).await?;
            deliveries.extend(page.into_iter().map(delivery::to_proto));
            match end {
                Some(last) => filter.before = Some(last),
                None => break,
            }
        }
        let routing_note = routing_note.unwrap_or_default();
        let event = proto::Event { routing_note, ..convert::event::to_proto(event) };
        Ok(proto::GetEventResponse { event: Some(event), deliveries })
    }

    /// One delivery with its attempts and event.
    pub(super) async fn delivery(
        &self,
        caller: &Caller,
        request: proto::GetDeliveryRequest,
    ) -> Result<proto::GetDeliveryResponse, Status> {
        let id: DeliveryId = sole("delivery_id", request.delivery_id.parse())?;
        let record = self.services.store.delivery(id).await?.filter(|record| caller.owns(&record.row.tenant));
        let record = record.ok_or_else(|| status::delivery_not_found(id))?;
        Ok(proto::GetDeliveryResponse { delivery: Some(delivery::record_to_proto(record)) })
    }

    /// A page of deliveries.
    pub(super) async fn list_deliveries_page(
        &self,
        caller: &Caller,
        request: proto::ListDeliveriesRequest,
    ) -> Result<proto::ListDeliveriesResponse, Status> {
        let binding = binding(caller, &request);
        let (filter, limit) = read_filter(caller, &request, &binding)?;
        let (rows, end) = self.services.store.list_deliveries(&filter, limit + 1).await?;
        let (rows, end) = cut(rows, end, limit, |row| row.id);
        Ok(proto::ListDeliveriesResponse {
            deliveries: rows.into_iter().map(delivery::to_proto).collect(),
            next_page_token: end.map(|last| binding.token(last.uuid())).unwrap_or_default(),
        })
    }

    /// Makes a delivery due now.
    pub(super) async fn retry(
        &self,
        caller: &Caller,
        request: proto::RetryDeliveryRequest,
    ) -> Result<proto::RetryDeliveryResponse, Status> {
        let id: DeliveryId = sole("delivery_id", request.delivery_id.parse())?;
        self.see_delivery(caller, id).await?;
        self.services.store.retry(id).await.map_err(|error| status::retry_refused(error, id))?;
        Ok(proto::RetryDeliveryResponse { delivery: Some(delivery::to_proto(self.row(id).await?)) })
    }

    /// Cancels a delivery.
    pub(super) async fn cancel(
        &self,
        caller: &Caller,
        request: proto::CancelDeliveryRequest,
    ) -> Result<proto::CancelDeliveryResponse, Status> {
        let id: DeliveryId = sole("delivery_id", request.delivery_id.parse())?;
        self.see_delivery(caller, id).await?;
        self.services.store.cancel(id).await.map_err(|error| status::cancel_refused(error, id))?;
        Ok(proto::CancelDeliveryResponse { delivery: Some(delivery::to_proto(self.row(id).await?)) })
    }

    /// Sees that a delivery is there for this caller, before something is done to it. A delivery never changes its
    /// tenant, and who owns all need not look.
    pub(super) async fn see_delivery(&self, caller: &Caller, id: DeliveryId) -> Result<(), Status> {
        if caller.owns_all() || caller.owns(&self.row(id).await?.tenant) {
            return Ok(());
        }
        Err(status::delivery_not_found(id))
    }

    async fn row(&self, id: DeliveryId) -> Result<DeliveryRow, Status> {
        self.services.store.delivery_row(id).await?.ok_or_else(|| status::delivery_not_found(id))
    }
}

fn read_filter(
    caller: &Caller,
    request: &proto::ListDeliveriesRequest,
    binding: &Binding,
) -> Result<(DeliveryFilter, u32), Status> {
    let mut v = Violations::new();
    let tenant = caller.tenants("tenant", &request.tenant, &mut v);
    let endpoint = v.take("endpoint_id", convert::optional_id(&request.endpoint_id));
    let event = v.take("event_id", convert::optional_id(&request.event_id));
    let event_types = v.take_all("event_types", &request.event_types, FILTER_PATTERNS_MAX, EventPattern::parse);
    let states = v.take_enums("states", &request.states, DeliveryState::from_number);
    let create_after = v.take("create_after", request.create_after.as_ref().map(from_timestamp).transpose());
    let create_before = v.take("create_before", request.create_before.as_ref().map(from_timestamp).transpose());
    let limit = v.take("page_size", page_size(request.page_size));
    let before = v.take("page_token", binding.parse(&request.page_token));
    match (tenant, endpoint, event, event_types, states, create_after, create_before, limit, before) {
        (
            Some(tenant),
            Some(endpoint),
            Some(event),
            Some(event_types),
            Some(states),
            Some(create_after),
            Some(create_before),
            Some(limit),
            Some(before),
        ) => {
            let before = before.map(DeliveryId::from_uuid);
            let filter =
                DeliveryFilter { tenant, endpoint, event, event_types, states, create_after, create_before, before };
            Ok((filter, limit))
        }
        _ => Err(v.into_status()),
    }
}

fn binding(caller: &Caller, request: &proto::ListDeliveriesRequest) -> Binding {
    let time = |time: &Option<prost_types::Timestamp>| {
        time.map(|time| format!("{}.{}", time.seconds, time.nanos)).unwrap_or_default()
    };
    Binding::of("ListDeliveries")
        .with(caller.meant(&request.tenant))
        .with(&request.endpoint_id)
        .with(&request.event_id)
        .with_all(&request.event_types)
        .with_all(request.states.iter().map(|state| state.to_be_bytes()))
        .with(time(&request.create_after))
        .with(time(&request.create_before))
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::super::auth::admin;
    use super::super::convert::tests::refused;
    use super::*;

    #[test]
    fn every_bad_filter_is_named() {
        let bad = proto::ListDeliveriesRequest {
            tenant: "a b".to_owned(),
            endpoint_id: "dlv_01h455vb4pex5vsknk084sn02q".to_owned(),
            event_id: "x".to_owned(),
            event_types: vec!["*".to_owned(), "*x".to_owned()],
            states: vec![0, 4, 99],
            create_after: Some(prost_types::Timestamp { seconds: 0, nanos: -1 }),
            page_size: -1,
            page_token: "x".to_owned(),
            ..proto::ListDeliveriesRequest::default()
        };
        let (code, paths) = refused(&read_filter(&admin(), &bad, &binding(&admin(), &bad)).expect_err("bad"));
        assert_eq!(code, Code::InvalidArgument);
        let expected = [
            "tenant",
            "endpoint_id",
            "event_id",
            "event_types[1]",
            "states[0]",
            "states[2]",
            "create_after",
            "page_size",
            "page_token",
        ];
        assert_eq!(paths, expected);
    }

    #[test]
    fn a_page_token_is_bound_to_the_filters() {
        let list = |states: &[i32]| proto::ListDeliveriesRequest { states: states.to_vec(), ..Default::default() };
        let token = binding(&admin(), &list(&[5])).token(uuid::Uuid::nil());
        let next = |states| proto::ListDeliveriesRequest { page_token: token.clone(), ..list(states) };
        let read = |request: proto::ListDeliveriesRequest| {
            read_filter(&admin(), &request, &binding(&admin(), &request)).is_ok()
        };
        assert!(read(next(&[5])));
        assert!(!read(next(&[4])) && !read(next(&[])));
    }
}
