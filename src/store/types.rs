//! How domain values look in PostgreSQL's binary protocol and back.

use std::time::Duration;

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueFormat, PgValueRef};
use sqlx::{Decode, Encode, Postgres, Type};

use super::error::Error;
use crate::domain::pattern::{EventPattern, RESERVED_PREFIX};
use crate::domain::time::Timestamp;

/// A `timestamptz`: on the wire, microseconds since 2000-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PgTime(pub(super) Timestamp);

/// 2000-01-01T00:00:00Z in microseconds since 1970.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

impl Type<Postgres> for PgTime {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(1184))
    }
}

impl PgHasArrayType for PgTime {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(1185))
    }
}

impl Encode<'_, Postgres> for PgTime {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        Encode::<Postgres>::encode_by_ref(&(self.0.micros() - POSTGRES_EPOCH_MICROS), buffer)
    }
}

impl Decode<'_, Postgres> for PgTime {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        match value.format() {
            PgValueFormat::Binary => {
                let micros = i64::from_be_bytes(value.as_bytes()?.try_into()?);
                Ok(Self(Timestamp::from_micros(micros.saturating_add(POSTGRES_EPOCH_MICROS))))
            }
            PgValueFormat::Text => Err("times are read in the binary format alone".into()),
        }
    }
}

/// Response headers as the timeline keeps them: `name: value` lines. Neither part can hold a line break.
pub(super) fn headers_to_text(headers: &[(String, String)]) -> String {
    let mut text = String::with_capacity(headers.iter().map(|(name, value)| name.len() + value.len() + 3).sum());
    for (name, value) in headers {
        text.push_str(name);
        text.push_str(": ");
        // PostgreSQL's text holds no NUL; hyper lets none through, but a row must never fail for one.
        text.extend(value.chars().filter(|c| !matches!(c, '\0' | '\n')));
        text.push('\n');
    }
    text
}

/// The inverse of [`headers_to_text`].
pub(super) fn headers_from_text(text: &str) -> Vec<(String, String)> {
    text.lines().filter_map(|line| line.split_once(": ")).map(|(n, v)| (n.to_owned(), v.to_owned())).collect()
}

/// A stored number as one of the contract's enums.
pub(super) fn stored<T>(what: &str, number: i16, from: impl Fn(i16) -> Option<T>) -> Result<T, Error> {
    from(number).ok_or_else(|| Error::Unreadable(format!("{what} {number}")))
}

/// A span in microseconds, the grain of the database's times.
pub(super) fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

/// A count that the database holds as a signed integer and a CHECK keeps from being negative.
pub(super) fn count(number: i32) -> u32 {
    u32::try_from(number).unwrap_or_default()
}

/// Patterns of event types as one regular expression of PostgreSQL's; `None` where there are none, and any type is meant.
pub(super) fn regex_of(patterns: &[EventPattern]) -> Option<String> {
    // Of what a type may contain, the dot alone means something in an expression.
    let literal = |text: &str| text.replace('.', r"\.");
    let of = |pattern: &EventPattern| match pattern {
        EventPattern::All => format!("(?!{}).*", literal(RESERVED_PREFIX)),
        EventPattern::Below(prefix) => format!("{}.*", literal(prefix)),
        EventPattern::Exactly(event_type) => literal(event_type),
    };
    (!patterns.is_empty()).then(|| format!("^(?:{})$", patterns.iter().map(of).collect::<Vec<_>>().join("|")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_become_one_expression() {
        let patterns =
            |texts: &[&str]| texts.iter().map(|text| EventPattern::parse(text).expect("a pattern")).collect::<Vec<_>>();
        assert_eq!(regex_of(&[]), None);
        let expression = regex_of(&patterns(&["order.*", "user.created", "*"]));
        assert_eq!(expression.as_deref(), Some(r"^(?:order\..*|user\.created|(?!hooklane\.).*)$"));
    }

    #[test]
    fn headers_survive_the_round_trip() {
        let headers = vec![("a".to_owned(), "1: 2".to_owned()), ("b".to_owned(), String::new())];
        assert_eq!(headers_from_text(&headers_to_text(&headers)), headers);
    }
}
