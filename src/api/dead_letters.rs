//! ListDeadLetters and DeleteDeadLetters.

use tonic::Status;

use super::auth::Caller;
use super::convert::time::from_timestamp;
use super::convert::{self, FILTER_PATTERNS_MAX, FILTER_VALUES_MAX, Violations, dead_letter};
use super::paging::{Binding, page_size};
use super::proto;
use super::service::Webhooks;
use crate::domain::Problem;
use crate::domain::id::DeliveryId;
use crate::domain::pattern::EventPattern;
use crate::domain::time::Timestamp;
use crate::store::{DeadLetterFilter, DeadLetterPlace};

impl Webhooks {
    /// A page of dead letters.
    pub(super) async fn list_dead_letters_page(
        &self,
        caller: &Caller,
        request: proto::ListDeadLettersRequest,
    ) -> Result<proto::ListDeadLettersResponse, Status> {
        let binding = binding(caller, &request);
        let (filter, before, limit) = read_list(caller, &request, &binding)?;
        let (letters, end) = self.services.store.list_dead_letters(&filter, before, limit).await?;
        Ok(proto::ListDeadLettersResponse {
            dead_letters: letters.into_iter().map(dead_letter::to_proto).collect(),
            next_page_token: end.map(|place| binding.token_at(&place_to_bytes(place))).unwrap_or_default(),
        })
    }

    /// Counts dead letters, and with `force` dismisses them.
    pub(super) async fn delete_dead_letters_of(
        &self,
        caller: &Caller,
        request: proto::DeleteDeadLettersRequest,
    ) -> Result<proto::DeleteDeadLettersResponse, Status> {
        let filter = read_deletion(caller, &request)?;
        let done = self.services.store.dismiss_dead_letters(&filter, request.force).await?;
        Ok(proto::DeleteDeadLettersResponse { matched: done.matched, deleted: done.dismissed })
    }
}

type List = (DeadLetterFilter, Option<DeadLetterPlace>, u32);

fn read_list(caller: &Caller, request: &proto::ListDeadLettersRequest, binding: &Binding) -> Result<List, Status> {
    let mut v = Violations::new();
    let tenant = caller.tenants("tenant", &request.tenant, &mut v);
    let endpoint = v.take("endpoint_id", convert::optional_id(&request.endpoint_id));
    let event_types = v.take_all("event_types", &request.event_types, FILTER_PATTERNS_MAX, EventPattern::parse);
    let dead_after = v.take("dead_after", request.dead_after.as_ref().map(from_timestamp).transpose());
    let dead_before = v.take("dead_before", request.dead_before.as_ref().map(from_timestamp).transpose());
    let limit = v.take("page_size", page_size(request.page_size));
    let before = v.take("page_token", binding.parse_at::<PLACE_BYTES>(&request.page_token));
    match (tenant, endpoint, event_types, dead_after, dead_before, limit, before) {
        (
            Some(tenant),
            Some(endpoint),
            Some(event_types),
            Some(dead_after),
            Some(dead_before),
            Some(limit),
            Some(before),
        ) => {
            let deliveries = Vec::new();
            let filter = DeadLetterFilter { tenant, endpoint, event_types, dead_after, dead_before, deliveries };
            Ok((filter, before.map(place_from_bytes), limit))
        }
        _ => Err(v.into_status()),
    }
}

fn read_deletion(caller: &Caller, request: &proto::DeleteDeadLettersRequest) -> Result<DeadLetterFilter, Status> {
    let mut v = Violations::new();
    let names_nothing = request.delivery_ids.is_empty()
        && request.tenant.is_empty()
        && request.endpoint_id.is_empty()
        && request.event_types.is_empty()
        && request.dead_before.is_none();
    if names_nothing {
        let words = "is empty, and so is the filter; allowed are deliveries, or a filter: at least the tenant by name";
        v.invalid("delivery_ids", Problem::new(words));
    }
    let deliveries = v.take_all("delivery_ids", &request.delivery_ids, FILTER_VALUES_MAX, str::parse::<DeliveryId>);
    let tenant = caller.tenant("tenant", &request.tenant, &mut v);
    let endpoint = v.take("endpoint_id", convert::optional_id(&request.endpoint_id));
    let event_types = v.take_all("event_types", &request.event_types, FILTER_PATTERNS_MAX, EventPattern::parse);
    let dead_before = v.take("dead_before", request.dead_before.as_ref().map(from_timestamp).transpose());
    match (deliveries, tenant, endpoint, event_types, dead_before) {
        (Some(deliveries), Some(tenant), Some(endpoint), Some(event_types), Some(dead_before)) if v.is_empty() => {
            let (tenant, dead_after) = (Some(tenant), None);
            Ok(DeadLetterFilter { tenant, endpoint, event_types, dead_after, dead_before, deliveries })
        }
        _ => Err(v.into_status()),
    }
}

/// A time in microseconds and an id, big-endian.
const PLACE_BYTES: usize = 24;

fn place_to_bytes(place: DeadLetterPlace) -> [u8; PLACE_BYTES] {
    let mut bytes = [0; PLACE_BYTES];
    bytes[..8].copy_from_slice(&place.dead_time.micros().to_be_bytes());
    bytes[8..].copy_from_slice(place.id.uuid().as_bytes());
    bytes
}

fn place_from_bytes(bytes: [u8; PLACE_BYTES]) -> DeadLetterPlace {
    let whole = u128::from_be_bytes(std::array::from_fn(|place| bytes[place + 8]));
    let micros = i64::from_be_bytes(std::array::from_fn(|place| bytes[place]));
    DeadLetterPlace {
        dead_time: Timestamp::from_micros(micros),
        id: DeliveryId::from_uuid(uuid::Uuid::from_u128(whole)),
    }
}

fn binding(caller: &Caller, request: &proto::ListDeadLettersRequest) -> Binding {
    let time = |time: &Option<prost_types::Timestamp>| {
        time.map(|time| format!("{}.{}", time.seconds, time.nanos)).unwrap_or_default()
    };
    Binding::of("ListDeadLetters")
        .with(caller.meant(&request.tenant))
        .with(&request.endpoint_id)
        .with_all(&request.event_types)
        .with(time(&request.dead_after))
        .with(time(&request.dead_before))
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::super::auth::admin;
    use super::super::convert::tests::refused;
    use super::*;

    #[test]
    fn every_bad_filter_is_named() {
        let bad = proto::ListDeadLettersRequest {
            tenant: "a b".to_owned(),
            endpoint_id: "x".to_owned(),
            event_types: vec!["*x".to_owned()],
            dead_after: Some(prost_types::Timestamp { seconds: 0, nanos: -1 }),
            dead_before: Some(prost_types::Timestamp { seconds: i64::MAX, nanos: 0 }),
            page_size: -1,
            page_token: "x".to_owned(),
        };
        let (code, paths) = refused(&read_list(&admin(), &bad, &binding(&admin(), &bad)).expect_err("bad"));
        assert_eq!(code, Code::InvalidArgument);
        let expected =
            ["tenant", "endpoint_id", "event_types[0]", "dead_after", "dead_before", "page_size", "page_token"];
        assert_eq!(paths, expected);
    }

    #[test]
    fn a_deletion_says_what_it_is_about() {
        let refusal = read_deletion(&admin(), &proto::DeleteDeadLettersRequest { force: true, ..Default::default() });
        assert_eq!(refused(&refusal.expect_err("nothing")), (Code::InvalidArgument, vec!["delivery_ids".to_owned()]));
        let everybody = proto::DeleteDeadLettersRequest { tenant: "*".to_owned(), ..Default::default() };
        assert_eq!(refused(&read_deletion(&admin(), &everybody).expect_err("all")).1, ["tenant"]);
        let named = proto::DeleteDeadLettersRequest { tenant: "default".to_owned(), ..Default::default() };
        assert!(read_deletion(&admin(), &named).is_ok());
    }

    #[test]
    fn a_place_survives_its_token() {
        let place = DeadLetterPlace {
            dead_time: Timestamp::from_micros(1_768_996_800_250_001),
            id: DeliveryId::from_uuid(uuid::Uuid::from_u128(0x0189_0a5d_ac96_774b_bcce_b302_099a_8057)),
        };
        assert_eq!(place_from_bytes(place_to_bytes(place)), place);
        let binding = Binding::of("ListDeadLetters");
        let token = binding.token_at(&place_to_bytes(place));
        assert_eq!(binding.parse_at(&token), Ok(Some(place_to_bytes(place))));
        assert!(binding.parse(&token).is_err(), "a place of another form");
    }
}
