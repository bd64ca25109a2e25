//! Headers of an endpoint's own, sent with every request beside ours.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use super::fields::is_token;
use super::{Problem, counted};

/// Names as the owner wrote them, and values, which are secrets: `Debug` shows none.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct OwnHeaders(BTreeMap<String, String>);

const ENTRIES_MAX: usize = 32;
const BYTES_MAX: usize = 4 * 1024;

/// What belongs to the connection, not to the request (RFC 9110, section 7.6.1), or says how the body is sent.
const OF_THE_CONNECTION: [&str; 13] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// What every request has from us.
const OURS: [&str; 5] = ["content-type", "idempotency-key", "traceparent", "tracestate", "user-agent"];
const OUR_PREFIXES: [&str; 3] = ["x-webhook-", "webhook-", "ce-"];

impl OwnHeaders {
    /// Checks an owner's headers: at most 32, 4 KiB together, none of ours and none of the connection's.
    pub fn parse(entries: impl IntoIterator<Item = (String, String)>) -> Result<Self, Problem> {
        let headers: BTreeMap<String, String> = entries.into_iter().collect();
        let bytes: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        if headers.len() > ENTRIES_MAX || bytes > BYTES_MAX {
            let count = counted(headers.len(), "header", "headers");
            return Err(Problem::new(format!(
                "has {count} of {bytes} bytes together; allowed are {ENTRIES_MAX} headers and {BYTES_MAX} bytes"
            )));
        }
        let mut names = HashSet::with_capacity(headers.len());
        for (name, value) in &headers {
            check(name, value)?;
            if !names.insert(name.to_ascii_lowercase()) {
                return Err(Problem::new("has a name twice: upper and lower case make no difference"));
            }
        }
        Ok(Self(headers))
    }

    /// Trusts a value that the database holds.
    pub fn from_stored(headers: BTreeMap<String, String>) -> Self {
        Self(headers)
    }

    /// Whether one of that name is among them; names have no case.
    pub fn has(&self, name: &str) -> bool {
        self.0.keys().any(|own| own.eq_ignore_ascii_case(name))
    }

    /// Names and values.
    pub const fn entries(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

/// The name may be shown, the value not.
fn check(name: &str, value: &str) -> Result<(), Problem> {
    // A name may be as long as all of them together; problems travel in a header.
    let shown: String = name.chars().take(64).collect();
    if !is_token(name) {
        return Err(Problem::new(format!("has {shown:?}, which is no header name; allowed are letters, digits and -")));
    }
    let lower = name.to_ascii_lowercase();
    if OF_THE_CONNECTION.contains(&lower.as_str()) {
        return Err(Problem::new(format!("has {shown}, which belongs to the connection; leave it out")));
    }
    if OURS.contains(&lower.as_str()) || OUR_PREFIXES.iter().any(|prefix| lower.starts_with(prefix)) {
        return Err(Problem::new(format!("has {shown}, which Hooklane itself sends; leave it out")));
    }
    let is_text = value.bytes().all(|byte| (b' '..=b'~').contains(&byte)) && value.trim_matches(' ') == value;
    if !is_text {
        return Err(Problem::new(format!(
            "has {shown} with a value that no header can carry; allowed is printable ASCII without spaces around it"
        )));
    }
    Ok(())
}

impl fmt::Debug for OwnHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(entries: &[(&str, &str)]) -> Result<OwnHeaders, Problem> {
        OwnHeaders::parse(entries.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    #[test]
    fn names_and_values_of_a_request_are_taken_as_they_are() {
        let given = [("Authorization", "Bearer a b=="), ("X-Tenant", ""), ("x_odd!", "\"quoted\", ~")];
        let headers = parse(&given).expect("good");
        assert_eq!(headers.entries().get("Authorization").map(String::as_str), Some("Bearer a b=="));
        assert_eq!(headers.entries().len(), 3);
    }

    #[test]
    fn what_would_break_the_request_or_ours_is_refused() {
        for name in OF_THE_CONNECTION.into_iter().chain(OURS) {
            assert!(parse(&[(name, "x")]).is_err(), "{name}");
            assert!(parse(&[(&name.to_uppercase(), "x")]).is_err(), "{name}");
        }
        for name in ["X-Webhook-Anything", "webhook-id", "Ce-Extension", "", "a b", "a:", "a\n", "ä"] {
            assert!(parse(&[(name, "x")]).is_err(), "{name:?}");
        }
        for value in ["key\r\nx: y", "key\0", "\tkey", "key\u{7f}", "kéy", " key", "key "] {
            let problem = parse(&[("x-a", value)]).expect_err("no header value").to_string();
            assert!(!problem.contains("key"), "values are not repeated");
        }
        assert!(parse(&[("X-A", "1"), ("x-a", "2")]).is_err());
    }

    #[test]
    fn number_and_size_are_bounded() {
        let many: Vec<String> = (0..33).map(|n| format!("x-{n}")).collect();
        let entries: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "")).collect();
        assert!(parse(&entries[..32]).is_ok() && parse(&entries).is_err());
        let long = "x".repeat(BYTES_MAX - 3);
        assert!(parse(&[("x-a", &long)]).is_ok() && parse(&[("x-ab", &long)]).is_err());
    }

    #[test]
    fn debug_shows_no_value() {
        assert_eq!(format!("{:?}", parse(&[("x-a", "secret")])), "Ok({\"x-a\"})");
    }
}
