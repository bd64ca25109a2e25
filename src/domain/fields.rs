//! The small texts of the contract that have rules of their own: tenant, keys, labels, content type, description.

use std::collections::BTreeMap;
use std::fmt;

use super::Problem;

/// Who owns an endpoint or event: 1–64 characters of `[a-zA-Z0-9._-]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tenant(String);

impl Tenant {
    /// The tenant of a caller that names none.
    pub fn default_tenant() -> Self {
        Self("default".to_owned())
    }

    /// Parses a caller's tenant; empty means [`Self::default_tenant`].
    pub fn parse(text: &str) -> Result<Self, Problem> {
        if text.is_empty() {
            return Ok(Self::default_tenant());
        }
        if text.len() > 64 || !text.bytes().all(is_name_byte) {
            return Err(Problem::new("is not a tenant; allowed are 1 to 64 characters of [a-zA-Z0-9._-]"));
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
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a byte may stand in a tenant or an event type.
pub(super) const fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

/// Parses an idempotency key, ordering key or external id: empty means none, else 1–255 visible ASCII characters.
pub fn parse_key(text: &str) -> Result<Option<String>, Problem> {
    if text.is_empty() {
        return Ok(None);
    }
    if text.len() > 255 || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Problem::new("is not a key; allowed are 1 to 255 visible ASCII characters"));
    }
    Ok(Some(text.to_owned()))
}

/// Checks metadata or labels: at most 32 entries, names not empty, 4 KiB together, no NUL.
pub fn parse_map(entries: impl IntoIterator<Item = (String, String)>) -> Result<BTreeMap<String, String>, Problem> {
    const ENTRIES_MAX: usize = 32;
    const BYTES_MAX: usize = 4 * 1024;
    let map: BTreeMap<String, String> = entries.into_iter().collect();
    let bytes: usize = map.iter().map(|(name, value)| name.len() + value.len()).sum();
    if map.len() > ENTRIES_MAX || bytes > BYTES_MAX {
        return Err(Problem::new(format!(
            "has {} entries of {bytes} bytes together; allowed are {ENTRIES_MAX} entries and {BYTES_MAX} bytes",
            map.len()
        )));
    }
    if map.contains_key("") {
        return Err(Problem::new("has an entry with an empty name; every name needs at least one character"));
    }
    if map.iter().any(|(name, value)| name.contains('\0') || value.contains('\0')) {
        return Err(Problem::new("contains a NUL character, which cannot be stored"));
    }
    Ok(map)
}

/// A payload's media type, such as `application/json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentType(String);

impl ContentType {
    /// The type of a payload that names none.
    pub const DEFAULT: &str = "application/json";

    /// Parses a media type; empty means [`Self::DEFAULT`]. At most 255 visible ASCII characters or spaces, with a slash.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        if text.is_empty() {
            return Ok(Self(Self::DEFAULT.to_owned()));
        }
        let essence = essence_of(text);
        let well_formed = essence.split_once('/').is_some_and(|(kind, sub)| {
            !kind.is_empty() && !sub.is_empty() && essence.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',')
        });
        if text.len() > 255 || !well_formed || !text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
            return Err(Problem::new(
                "is not a media type; allowed is type/subtype with optional parameters, at most 255 characters",
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// Trusts a value that the database holds.
    pub fn from_stored(text: String) -> Self {
        Self(text)
    }

    /// The text as published.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the payload is JSON: `application/json`, `text/json` or any `+json`.
    pub fn is_json(&self) -> bool {
        let essence = essence_of(&self.0).to_ascii_lowercase();
        essence == "application/json" || essence == "text/json" || essence.ends_with("+json")
    }
}

fn essence_of(text: &str) -> &str {
    text.split(';').next().unwrap_or_default().trim()
}

/// Checks free text such as a description: at most `max` bytes, no NUL.
pub fn parse_text(text: String, max: usize) -> Result<String, Problem> {
    if text.len() > max {
        return Err(Problem::new(format!("has {} bytes; allowed are {max}", text.len())));
    }
    if text.contains('\0') {
        return Err(Problem::new("contains a NUL character, which cannot be stored"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_follow_the_contract() {
        assert_eq!(Tenant::parse("").map(|t| t.to_string()), Ok("default".to_owned()));
        assert!(Tenant::parse("acme.eu-1_x").is_ok());
        for bad in ["a b", "ä", "*", "a/b", &"x".repeat(65)] {
            assert!(Tenant::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_are_visible_ascii() {
        assert_eq!(parse_key(""), Ok(None));
        assert_eq!(parse_key("a-1"), Ok(Some("a-1".to_owned())));
        for bad in ["a b", "a\n", "é", "\0", &"x".repeat(256)] {
            assert!(parse_key(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn maps_are_bounded_and_free_of_nul() {
        let many = (0..33).map(|n| (n.to_string(), String::new()));
        assert!(parse_map(many).is_err());
        assert!(parse_map([("a".to_owned(), "x".repeat(4096))]).is_err());
        assert!(parse_map([("a".to_owned(), "\0".to_owned())]).is_err());
        assert!(parse_map([(String::new(), "x".to_owned())]).is_err());
        assert_eq!(parse_map([("a".to_owned(), "b".to_owned())]).map(|map| map.len()), Ok(1));
    }

    #[test]
    fn json_is_known_by_its_media_type() {
        for (text, json) in [
            ("", true),
            ("application/json; charset=utf-8", true),
            ("application/cloudevents+json", true),
            ("text/plain", false),
        ] {
            assert_eq!(ContentType::parse(text).map(|t| t.is_json()), Ok(json), "{text}");
        }
        for bad in ["json", "/", "a/", "a/b\r\nx: y", "text/plain\0"] {
            assert!(ContentType::parse(bad).is_err(), "{bad:?}");
        }
    }
}
