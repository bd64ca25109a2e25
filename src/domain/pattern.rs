//! Event types and the patterns by which endpoints choose among them.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Problem;
use super::fields::is_name_byte;

/// The prefix of operational events; only patterns that begin with it match them.
pub const RESERVED_PREFIX: &str = "hooklane.";

/// An event's type: 1–128 characters of `[a-zA-Z0-9._-]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventType(String);

impl EventType {
    /// Parses a caller's event type; `hooklane.` is reserved.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        if !is_type(text) {
            return Err(Problem::new("is not an event type; allowed are 1 to 128 characters of [a-zA-Z0-9._-]"));
        }
        if text.starts_with(RESERVED_PREFIX) {
            return Err(Problem::new("begins with hooklane., which is reserved for operational events"));
        }
        Ok(Self(text.to_owned()))
    }

    /// Trusts a value that the database holds.
    pub fn from_stored(text: String) -> Self {
        Self(text)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is one of ours, about deliveries themselves.
    pub fn is_operational(&self) -> bool {
        self.0.starts_with(RESERVED_PREFIX)
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An exact event type, `*` (all but operational ones), or a prefix such as `order.*` (anything below `order.`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum EventPattern {
    /// Every event that is not operational.
    All,
    /// Everything that begins with this prefix, which ends in a dot.
    Below(String),
    /// This type alone.
    Exactly(String),
}

impl EventPattern {
    /// Parses a caller's pattern.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        if text == "*" {
            return Ok(Self::All);
        }
        let pattern = match text.strip_suffix('*') {
            Some(prefix) if prefix.ends_with('.') && is_type(prefix) => Self::Below(prefix.to_owned()),
            None if is_type(text) => Self::Exactly(text.to_owned()),
            _ => {
                return Err(Problem::new(
                    "is not a pattern; allowed are an event type, a prefix that ends in .* (order.*), or *",
                ));
            }
        };
        Ok(pattern)
    }

    /// Whether an event of this type is wanted.
    pub fn matches(&self, event_type: &str) -> bool {
        match self {
            Self::All => !event_type.starts_with(RESERVED_PREFIX),
            Self::Below(prefix) => event_type.len() > prefix.len() && event_type.starts_with(prefix.as_str()),
            Self::Exactly(wanted) => wanted == event_type,
        }
    }
}

impl fmt::Display for EventPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Below(prefix) => write!(f, "{prefix}*"),
            Self::Exactly(event_type) => f.write_str(event_type),
        }
    }
}

impl From<EventPattern> for String {
    fn from(pattern: EventPattern) -> Self {
        pattern.to_string()
    }
}

impl TryFrom<String> for EventPattern {
    type Error = Problem;

    fn try_from(text: String) -> Result<Self, Problem> {
        Self::parse(&text)
    }
}

/// Whether a list of patterns wants an event; an empty list means all but operational ones.
pub fn any_matches(patterns: &[EventPattern], event_type: &str) -> bool {
    if patterns.is_empty() {
        return EventPattern::All.matches(event_type);
    }
    patterns.iter().any(|pattern| pattern.matches(event_type))
}

fn is_type(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(is_name_byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, event_type: &str, wanted: bool) {
        let parsed = EventPattern::parse(pattern).expect(pattern);
        assert_eq!(parsed.matches(event_type), wanted, "{pattern} on {event_type}");
        assert_eq!(parsed.to_string(), pattern);
    }

    #[test]
    fn patterns_match_what_the_contract_says() {
        check("*", "order.created", true);
        check("*", "hooklane.endpoint.failing", false);
        check("order.*", "order.created", true);
        check("order.*", "order.line.added", true);
        check("order.*", "order.", false);
        check("order.*", "orders.created", false);
        check("order.created", "order.created", true);
        check("order.created", "order.created.again", false);
        check("hooklane.*", "hooklane.endpoint.failing", true);
        assert!(any_matches(&[], "order.created"));
        assert!(!any_matches(&[], "hooklane.endpoint.failing"));
    }

    #[test]
    fn malformed_patterns_and_types_are_refused() {
        for bad in ["", "**", "order*", "*.created", "a.*.b", "a b", ".*x"] {
            assert!(EventPattern::parse(bad).is_err(), "{bad}");
        }
        for bad in ["", "a b", "hooklane.x", "order.*", &"x".repeat(129)] {
            assert!(EventType::parse(bad).is_err(), "{bad}");
        }
    }
}
