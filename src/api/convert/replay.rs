//! Replays and their filters between callers and the store.

use super::time::{from_timestamp, to_timestamp};
use super::{FILTER_PATTERNS_MAX, FILTER_VALUES_MAX, Violations};
use crate::api::auth::Caller;
use crate::api::proto;
use crate::domain::Problem;
use crate::domain::delivery::DeliveryState;
use crate::domain::pattern::EventPattern;
use crate::store::{NewReplay, Replay, ReplayFilter};

/// The slowest pace: one delivery in a thousand seconds.
const PER_SECOND_MIN: f64 = 0.001;

/// A caller's replay; `None` with every problem noted.
pub(in crate::api) fn from_proto(
    caller: &Caller,
    request: &proto::StartReplayRequest,
    v: &mut Violations,
) -> Option<NewReplay> {
    let asked = request.filter.clone().unwrap_or_default();
    let filter = v.inside("filter", |v| read_filter(caller, &asked, v));
    let max_per_second = v.take("max_per_second", per_second(request.max_per_second));
    Some(NewReplay { filter: filter?, is_dry_run: request.dry_run, max_per_second: max_per_second? })
}

fn read_filter(caller: &Caller, filter: &proto::ReplayFilter, v: &mut Violations) -> Option<ReplayFilter> {
    let tenant = caller.tenant("tenant", &filter.tenant, v);
    let endpoints = v.take_all("endpoint_ids", &filter.endpoint_ids, FILTER_VALUES_MAX, str::parse);
    let event_types = v.take_all("event_types", &filter.event_types, FILTER_PATTERNS_MAX, EventPattern::parse);
    let settled = |number| DeliveryState::from_number(number).filter(|state| state.is_settled());
    let states = v.take_enums("states", &filter.states, settled);
    let create_after = v.take("create_after", filter.create_after.as_ref().map(from_timestamp).transpose());
    let create_before = v.take("create_before", filter.create_before.as_ref().map(from_timestamp).transpose());
    let deliveries = v.take_all("delivery_ids", &filter.delivery_ids, FILTER_VALUES_MAX, str::parse);
    let mut endpoints = endpoints?;
    // Each endpoint is walked once, however often it is named.
    endpoints.sort_unstable();
    endpoints.dedup();
    Some(ReplayFilter {
        tenant: tenant?,
        endpoints,
        event_types: event_types?,
        states: states?,
        create_after: create_after?,
        create_before: create_before?,
        deliveries: deliveries?,
    })
}

fn per_second(asked: f64) -> Result<f64, Problem> {
    if asked == 0.0 || (asked.is_finite() && asked >= PER_SECOND_MIN) {
        return Ok(asked);
    }
    Err(Problem::new(format!("is {asked}; allowed are 0 (unlimited) and {PER_SECOND_MIN} or more")))
}

/// A replay for an answer.
pub(in crate::api) fn to_proto(replay: Replay) -> proto::Replay {
    let filter = replay.asked.filter;
    proto::Replay {
        id: replay.id.to_string(),
        filter: Some(proto::ReplayFilter {
            tenant: filter.tenant.to_string(),
            endpoint_ids: filter.endpoints.iter().map(ToString::to_string).collect(),
            event_types: filter.event_types.iter().map(ToString::to_string).collect(),
            states: filter.states.iter().map(|state| i32::from(state.number())).collect(),
            create_after: filter.create_after.map(to_timestamp),
            create_before: filter.create_before.map(to_timestamp),
            delivery_ids: filter.deliveries.iter().map(ToString::to_string).collect(),
        }),
        state: i32::from(replay.state.number()),
        dry_run: replay.asked.is_dry_run,
        max_per_second: replay.asked.max_per_second,
        matched: replay.matched,
        replayed: replay.replayed,
        skipped: replay.skipped,
        error: replay.error.unwrap_or_default(),
        create_time: Some(to_timestamp(replay.create_time)),
        end_time: replay.end_time.map(to_timestamp),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::super::tests::refused;
    use super::*;

    #[test]
    fn every_bad_field_is_named_with_its_path() {
        let filter = proto::ReplayFilter {
            tenant: "*".to_owned(),
            endpoint_ids: vec!["x".to_owned()],
            event_types: vec!["*x".to_owned()],
            states: vec![5, 1, 0],
            create_after: Some(prost_types::Timestamp { seconds: 0, nanos: -1 }),
            delivery_ids: vec!["x".to_owned()],
            ..proto::ReplayFilter::default()
        };
        let bad = proto::StartReplayRequest { filter: Some(filter), max_per_second: f64::NAN, dry_run: false };
        let mut v = Violations::new();
        assert_eq!(from_proto(&crate::api::auth::admin(), &bad, &mut v), None);
        let (code, paths) = refused(&v.into_status());
        assert_eq!(code, Code::InvalidArgument);
        let expected = [
            "filter.tenant",
            "filter.endpoint_ids[0]",
            "filter.event_types[0]",
            "filter.states[1]",
            "filter.states[2]",
            "filter.create_after",
            "filter.delivery_ids[0]",
            "max_per_second",
        ];
        assert_eq!(paths, expected);
    }

    #[test]
    fn a_pace_is_none_or_a_rate() {
        for bad in [-1.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1e-9] {
            assert!(per_second(bad).is_err(), "{bad}");
        }
        for good in [0.0, 0.001, 0.5, 1e9] {
            assert_eq!(per_second(good), Ok(good));
        }
    }
}
