//! CloudEvents 1.0: what an event is called in it, and how its attributes look in JSON and in HTTP headers.
//!
//! Sources: the CloudEvents specification, its JSON event format and its HTTP protocol binding, all 1.0.2.

use std::fmt;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::Problem;
use super::event::Event;
use super::fields::Tenant;

/// The media type of the structured mode.
pub const STRUCTURED_TYPE: &str = "application/cloudevents+json";
/// The version of the specification that every event names.
const SPEC_VERSION: &str = "1.0";

/// Where an event comes from: a URI reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source(String);

impl Source {
    /// Trusts a value that the database holds.
    pub fn from_stored(text: String) -> Self {
        Self(text)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What the server calls itself as a source: a URI reference in which `{tenant}` stands for the event's tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceTemplate(String);

const TENANT: &str = "{tenant}";
const TEMPLATE_BYTES_MAX: usize = 1_024;

impl SourceTemplate {
    /// What holds unless a setting says otherwise.
    pub const DEFAULT: &str = "/hooklane/{tenant}";

    /// Parses the setting.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        // Whatever a tenant is made of may stand anywhere in a URI reference.
        let is_good = (1..=TEMPLATE_BYTES_MAX).contains(&text.len()) && is_uri_reference(&text.replace(TENANT, "t"));
        if !is_good {
            return Err(Problem::new(format!(
                "is not a source; allowed is a URI reference of 1 to {TEMPLATE_BYTES_MAX} characters, \
                 in which {TENANT} stands for the event's tenant"
            )));
        }
        Ok(Self(text.to_owned()))
    }

    /// The source of a tenant's events; `None` where it is the one that holds without a setting.
    pub fn source(&self, tenant: &Tenant) -> Option<Source> {
        (self.0 != Self::DEFAULT).then(|| Source(self.0.replace(TENANT, tenant.as_str())))
    }
}

impl Default for SourceTemplate {
    fn default() -> Self {
        Self(Self::DEFAULT.to_owned())
    }
}

/// Whether the text is made of what RFC 3986 admits in a URI reference, escapes complete and at most one `#`.
fn is_uri_reference(text: &str) -> bool {
    let bytes = text.as_bytes();
    let is_hex = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
    let is_allowed = |(at, byte): (usize, &u8)| match byte {
        b'%' => is_hex(at + 1) && is_hex(at + 2),
        b'-' | b'.' | b'_' | b'~' | b':' | b'/' | b'?' | b'#' | b'[' | b']' | b'@' => true,
        b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' => true,
        _ => byte.is_ascii_alphanumeric(),
    };
    bytes.iter().enumerate().all(is_allowed) && text.matches('#').count() <= 1
}

/// The attributes of an event but for its content type: names in the order they are written, and values.
pub fn attributes(event: &Event) -> [(&'static str, String); 5] {
    let source = match &event.source {
        Some(source) => source.as_str().to_owned(),
        None => SourceTemplate::DEFAULT.replace(TENANT, event.tenant.as_str()),
    };
    [
        ("specversion", SPEC_VERSION.to_owned()),
        ("id", event.id.to_string()),
        ("source", source),
        ("type", event.event_type.to_string()),
        ("time", event.id.time().to_string()),
    ]
}

/// The attributes as headers of the binary mode: names in lower case.
pub fn headers(event: &Event) -> Vec<(&'static str, String)> {
    const NAMES: [&str; 5] = ["ce-specversion", "ce-id", "ce-source", "ce-type", "ce-time"];
    let values = attributes(event).map(|(_, value)| HeaderText(&value).to_string());
    NAMES.into_iter().zip(values).collect()
}

/// An attribute's value as the HTTP binding writes it: space, double quote, percent and what is not printable ASCII are
/// percent-encoded (section 3.1.3.2).
struct HeaderText<'a>(&'a str);

const ESCAPED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

impl fmt::Display for HeaderText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        utf8_percent_encode(self.0, ESCAPED).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event::tests::event;

    #[test]
    fn a_source_is_a_uri_reference_with_the_tenant_in_it() {
        let tenant = Tenant::parse("acme.eu-1_x").expect("a tenant");
        for (template, source) in [
            ("https://hooks.example.com/t/{tenant}?v=%41#top", "https://hooks.example.com/t/acme.eu-1_x?v=%41#top"),
            ("urn:example:{tenant}", "urn:example:acme.eu-1_x"),
            ("//[::1]/{tenant}/{tenant}", "//[::1]/acme.eu-1_x/acme.eu-1_x"),
            ("shop", "shop"),
        ] {
            let source_of = SourceTemplate::parse(template).expect(template).source(&tenant);
            assert_eq!(source_of.as_ref().map(Source::as_str), Some(source));
        }
        assert_eq!(SourceTemplate::parse(SourceTemplate::DEFAULT).map(|known| known.source(&tenant)), Ok(None));
        for bad in ["", "a b", "/{name}", "/%4", "/%zz", "a#b#c", "/ä", "/a\"b", "a\n", &"x".repeat(1_025)] {
            assert!(SourceTemplate::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn headers_escape_what_the_binding_names() {
        let mut event = event("order.created", "{}", "");
        event.source = Some(Source::from_stored("/a b%20\"\u{e9}~".to_owned()));
        assert_eq!(
            headers(&event),
            [
                ("ce-specversion", "1.0"),
                ("ce-id", "evt_01h455vb4pex5vsknk084sn02q"),
                ("ce-source", "/a%20b%2520%22%C3%A9~"),
                ("ce-type", "order.created"),
                ("ce-time", "2023-06-30T03:34:18.518Z"),
            ]
            .map(|(name, value)| (name, value.to_owned()))
        );
    }
}
