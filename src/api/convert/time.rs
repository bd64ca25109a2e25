//! Times and spans between protobuf's form and ours.

use std::time::Duration;

use prost_types::{Duration as ProtoDuration, Timestamp as ProtoTimestamp};

use crate::domain::Problem;
use crate::domain::time::Timestamp;

/// A time for an answer.
pub(in crate::api) fn to_timestamp(time: Timestamp) -> ProtoTimestamp {
    ProtoTimestamp { seconds: time.seconds(), nanos: time.subsec_nanos() }
}

/// A caller's time.
pub(in crate::api) fn from_timestamp(time: &ProtoTimestamp) -> Result<Timestamp, Problem> {
    Timestamp::from_parts(time.seconds, time.nanos)
}

/// A span for an answer. Ours are hours at most.
pub(in crate::api) fn to_duration(span: Duration) -> ProtoDuration {
    ProtoDuration {
        seconds: i64::try_from(span.as_secs()).unwrap_or(i64::MAX),
        nanos: span.subsec_nanos().cast_signed(),
    }
}

/// A caller's span, which may not be negative.
pub(in crate::api) fn from_duration(span: &ProtoDuration) -> Result<Duration, Problem> {
    match (u64::try_from(span.seconds), u32::try_from(span.nanos)) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Ok(Duration::new(seconds, nanos)),
        _ => Err(Problem::new("is not a span of time; allowed are seconds from 0 on and nanos from 0 to 999999999")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_survive_the_round_trip_and_malformed_ones_are_refused() {
        for span in [Duration::ZERO, Duration::from_millis(1_500), Duration::from_secs(300)] {
            assert_eq!(from_duration(&to_duration(span)), Ok(span));
        }
        for (seconds, nanos) in [(-1, 0), (0, -1), (1, 1_000_000_000)] {
            assert!(from_duration(&ProtoDuration { seconds, nanos }).is_err());
        }
    }
}
