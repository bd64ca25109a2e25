//! Instants as the database tells them: microseconds since the Unix epoch, always UTC.

use std::fmt;
use std::time::Duration;

use super::Problem;

/// Microseconds since 1970-01-01T00:00:00Z, between the years 1 and 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// The span protobuf's Timestamp can carry, in microseconds.
const MICROS_MIN: i64 = -62_135_596_800_000_000;
const MICROS_MAX: i64 = 253_402_300_799_999_999;

impl Timestamp {
    /// From microseconds since the epoch; values outside the years 1 to 9999 are moved to the nearest bound.
    pub const fn from_micros(micros: i64) -> Self {
        Self(if micros < MICROS_MIN {
            MICROS_MIN
        } else if micros > MICROS_MAX {
            MICROS_MAX
        } else {
            micros
        })
    }

    /// From a caller's seconds and nanoseconds (0 to 999,999,999).
    pub fn from_parts(seconds: i64, nanos: i32) -> Result<Self, Problem> {
        let in_range = (MICROS_MIN / 1_000_000..=MICROS_MAX / 1_000_000).contains(&seconds);
        if !in_range || !(0..1_000_000_000).contains(&nanos) {
            return Err(Problem::new("is not a time between the years 1 and 9999 with nanos from 0 to 999999999"));
        }
        Ok(Self(seconds * 1_000_000 + i64::from(nanos) / 1_000))
    }

    /// Microseconds since the epoch.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Whole milliseconds since the epoch.
    pub const fn millis(self) -> i64 {
        self.0.div_euclid(1_000)
    }

    /// Whole seconds since the epoch.
    pub const fn seconds(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    /// The nanoseconds beyond [`Self::seconds`].
    pub const fn subsec_nanos(self) -> i32 {
        (self.0.rem_euclid(1_000_000) * 1_000) as i32
    }

    /// This instant moved later; saturates at the end of the range.
    pub fn plus(self, span: Duration) -> Self {
        let micros = i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
        Self::from_micros(self.0.saturating_add(micros))
    }

    /// This instant moved earlier; saturates at the beginning of the range.
    pub fn minus(self, span: Duration) -> Self {
        let micros = i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
        Self::from_micros(self.0.saturating_sub(micros))
    }

    /// How long after `earlier` this is; zero when it is not after.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// RFC 3339 in UTC with as many fraction digits as needed: `2026-01-21T12:00:00.25Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(time) => time.fmt(f),
            Err(_) => write!(f, "{}us", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_rfc_3339_with_the_digits_it_needs() {
        assert_eq!(Timestamp::from_micros(1_768_996_800_000_000).to_string(), "2026-01-21T12:00:00Z");
        assert_eq!(Timestamp::from_micros(1_768_996_800_250_000).to_string(), "2026-01-21T12:00:00.25Z");
    }

    #[test]
    fn refuses_what_protobuf_cannot_carry() {
        assert!(Timestamp::from_parts(253_402_300_800, 0).is_err());
        assert!(Timestamp::from_parts(0, -1).is_err());
        assert_eq!(Timestamp::from_parts(1, 5_000).map(Timestamp::micros), Ok(1_000_005));
    }

    #[test]
    fn arithmetic_saturates() {
        let end = Timestamp::from_micros(i64::MAX);
        assert_eq!(end.plus(Duration::from_secs(1)), end);
        assert_eq!(Timestamp::from_micros(0).since(end), Duration::ZERO);
    }
}
