//! When and in what order a published event is to be delivered: priority, ordering key and times, checked.

use super::time::from_timestamp;
use super::{Violations, undefined};
use crate::api::proto;
use crate::domain::fields::parse_key;
use crate::domain::schedule::{Priority, Schedule, parse_deliver_time, parse_expire_time};
use crate::domain::time::Timestamp;

/// Checks what an event says of it, at `now` by the database's clock.
pub(in crate::api) fn from_proto(
    request: &proto::PublishRequest,
    now: Timestamp,
    v: &mut Violations,
) -> Option<Schedule> {
    let priority = match proto::Priority::try_from(request.priority) {
        Ok(proto::Priority::Unspecified | proto::Priority::Normal) => Ok(Priority::Normal),
        Ok(proto::Priority::High) => Ok(Priority::High),
        Ok(proto::Priority::Low) => Ok(Priority::Low),
        Err(_) => Err(undefined(request.priority)),
    };
    let priority = v.take("priority", priority);
    let ordering_key = v.take("ordering_key", parse_key(&request.ordering_key));
    let deliver_time = request.deliver_time.as_ref().map(from_timestamp).transpose();
    let deliver_time = v
        .take("deliver_time", deliver_time.and_then(|time| time.map(|time| parse_deliver_time(time, now)).transpose()));
    let expire_time = request
        .expire_time
        .as_ref()
        .map(from_timestamp)
        .transpose()
        .and_then(|time| time.map(|time| parse_expire_time(time, deliver_time.flatten(), now)).transpose());
    let expire_time = v.take("expire_time", expire_time);
    Some(Schedule {
        priority: priority?,
        ordering_key: ordering_key?,
        deliver_time: deliver_time?,
        expire_time: expire_time?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_000_000_000);

    fn parse(request: &proto::PublishRequest) -> Option<Schedule> {
        let mut violations = Violations::new();
        from_proto(request, NOW, &mut violations).filter(|_| violations.is_empty())
    }

    #[test]
    fn a_schedule_is_taken_as_it_is_given() {
        let second = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let asked = proto::PublishRequest {
            priority: proto::Priority::High.into(),
            ordering_key: "k".to_owned(),
            deliver_time: second(1_010),
            expire_time: second(1_020),
            ..proto::PublishRequest::default()
        };
        let schedule = parse(&asked).expect("valid");
        assert_eq!((schedule.priority, schedule.ordering_key.as_deref()), (Priority::High, Some("k")));
        assert_eq!(schedule.deliver_time.map(Timestamp::seconds), Some(1_010));
        assert_eq!(schedule.expire_time.map(Timestamp::seconds), Some(1_020));
        assert_eq!(parse(&proto::PublishRequest::default()), Some(Schedule::default()));
        assert_eq!(parse(&proto::PublishRequest { deliver_time: second(1_020), ..asked }), None);
    }
}
