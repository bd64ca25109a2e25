//! The small texts of the contract that have rules of their own: tenant, keys, labels, content type, description.

use std::collections::BTreeMap;
use std::fmt;

use super::{Problem, counted};

/// Who owns an endpoint or event: 1–64 characters of `[a-zA-Z0-9._-]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tenant(String);

impl Tenant {
    /// The tenant of a caller that names none.
    pub fn default_tenant() -> Self {
        Self("default".to_owned())
    }

    /// Whether it is [`Self::default_tenant`].
    pub fn is_default(&self) -> bool {
        self.0 == "default"
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
            "has {} of {bytes} bytes together; allowed are {ENTRIES_MAX} entries and {BYTES_MAX} bytes",
            counted(map.len(), "entry", "entries")
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

impl Default for ContentType {
    fn default() -> Self {
        Self(Self::DEFAULT.to_owned())
    }
}

impl ContentType {
    /// The type of a payload that names none.
    pub const DEFAULT: &str = "application/json";

    /// Parses a media type; empty means [`Self::DEFAULT`]. At most 255 characters of type, subtype and parameters.
    ///
    /// Source: RFC 9110, section 8.3.1, without its empty parameters, so that RFC 2045 is met too.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        if text.len() > 255 || !is_media_type(text) {
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

    /// Type and subtype without parameters, in lower case.
    pub fn essence(&self) -> String {
        self.essence_as_written().to_ascii_lowercase()
    }

    fn essence_as_written(&self) -> &str {
        self.0.split(';').next().unwrap_or_default().trim()
    }

    /// Whether the payload is JSON: `application/json`, `text/json` or any `+json`.
    pub fn is_json(&self) -> bool {
        let essence = self.essence_as_written();
        let suffix = essence.len().checked_sub("+json".len()).and_then(|start| essence.get(start..));
        essence.eq_ignore_ascii_case("application/json")
            || essence.eq_ignore_ascii_case("text/json")
            || suffix.is_some_and(|suffix| suffix.eq_ignore_ascii_case("+json"))
    }
}

fn is_media_type(text: &str) -> bool {
    let (essence, mut rest) = text.split_at(text.find([';', ' ']).unwrap_or(text.len()));
    let is_essence = essence.split_once('/').is_some_and(|(kind, sub)| is_token(kind) && is_token(sub));
    while is_essence && !rest.is_empty() {
        let Some(parameter) = rest.trim_start_matches(' ').strip_prefix(';') else { return false };
        let Some((name, value)) = parameter.trim_start_matches(' ').split_once('=') else { return false };
        let Some(length) = value_length(value) else { return false };
        if !is_token(name) {
            return false;
        }
        rest = &value[length..];
    }
    is_essence
}

/// How long the token or quoted string is that `text` begins with; `None` where it begins with neither.
fn value_length(text: &str) -> Option<usize> {
    let Some(quoted) = text.strip_prefix('"') else {
        let length = text.find([';', ' ']).unwrap_or(text.len());
        return is_token(&text[..length]).then_some(length);
    };
    let mut is_escaped = false;
    for (at, byte) in quoted.bytes().enumerate() {
        match byte {
            b' '..=b'~' if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return Some(at + 2),
            b' '..=b'~' => {}
            _ => return None,
        }
    }
    None
}

/// A token of RFC 9110, section 5.6.2: what header names and the parts of media types are made of.
pub(super) fn is_token(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_allowed)
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
            ("Application/Problem+JSON ; charset=utf-8", true),
            ("text/JSON", true),
            ("text/plain", false),
            ("application/jsonx", false),
            ("application/x-json", false),
        ] {
            assert_eq!(ContentType::parse(text).map(|t| t.is_json()), Ok(json), "{text}");
        }
    }

    #[test]
    fn media_types_follow_their_grammar() {
        for good in ["a/b", "text/plain;charset=utf-8", "a/b ; c=\"d;\\\" e\" ; f=g", "application/vnd.a+json; v=1"] {
            assert!(ContentType::parse(good).is_ok(), "{good:?}");
        }
        for bad in [
            "json",
            "/",
            "a/",
            "a/b/c",
            "a/b,c/d",
            "a b/c",
            "text/plain;",
            "text/plain; charset",
            "text/plain; charset=",
            "text/plain; charset=\"utf-8",
            "text/plain x=y",
            "a/b\r\nx: y",
            "text/plain\0",
            "a/ä",
        ] {
            assert!(ContentType::parse(bad).is_err(), "{bad:?}");
        }
    }
}
