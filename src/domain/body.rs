//! The bytes an endpoint receives: one event in the format the endpoint had when the event was published.
//!
//! A body depends on the event alone, so every attempt sends the same bytes.

use std::borrow::Cow;
use std::fmt;
use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;

use super::cloudevents;
use super::endpoint::PayloadFormat;
use super::event::Event;

/// A request body, the media type it is sent with, and the headers that belong to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    /// The bytes to send and sign.
    pub bytes: Bytes,
    /// The `Content-Type` header.
    pub content_type: Cow<'static, str>,
    /// The attributes of the CloudEvents binary mode; empty in every other format. Names in lower case.
    pub headers: Vec<(&'static str, String)>,
}

/// Renders `event` in `format`.
pub fn render(event: &Event, format: PayloadFormat) -> Body {
    match format {
        PayloadFormat::Raw => published(event),
        PayloadFormat::Envelope => json(envelope(event), "application/json"),
        PayloadFormat::StandardWebhooks => json(standard_webhooks(event), "application/json"),
        // Whatever is sent as `application/cloudevents…` is read as the structured mode, so a payload of such a type
        // cannot be sent in the binary mode.
        PayloadFormat::CloudEventsBinary if !event.content_type.essence().starts_with("application/cloudevents") => {
            Body { headers: cloudevents::headers(event), ..published(event) }
        }
        PayloadFormat::CloudEventsStructured | PayloadFormat::CloudEventsBinary => {
            json(structured(event), cloudevents::STRUCTURED_TYPE)
        }
    }
}

fn published(event: &Event) -> Body {
    let content_type = event.content_type.as_str().to_owned().into();
    Body { bytes: event.payload.clone(), content_type, headers: Vec::new() }
}

fn json(bytes: Bytes, content_type: &'static str) -> Body {
    Body { bytes, content_type: content_type.into(), headers: Vec::new() }
}

/// `{"id":…,"event":…,"timestamp":…,"data":<the payload's own bytes>}`.
///
/// Ids, event types and times hold no character that JSON would escape.
fn envelope(event: &Event) -> Bytes {
    let (id, event_type, time) = (event.id, &event.event_type, event.id.time());
    with_data(format_args!(r#"{{"id":"{id}","event":"{event_type}","timestamp":"{time}""#), event)
}

/// `{"type":…,"timestamp":…,"data":<the payload's own bytes>}`.
fn standard_webhooks(event: &Event) -> Bytes {
    with_data(format_args!(r#"{{"type":"{}","timestamp":"{}""#, event.event_type, event.id.time()), event)
}

/// The JSON event format of CloudEvents: the attributes, the payload's media type, the payload.
fn structured(event: &Event) -> Bytes {
    let mut head = String::from("{");
    let content_type = ("datacontenttype", event.content_type.as_str().to_owned());
    for (name, value) in cloudevents::attributes(event).into_iter().chain([content_type]) {
        let separator = if head.len() > 1 { "," } else { "" };
        // As JSON writes a string: a media type's parameters may be quoted.
        head.push_str(&format!("{separator}\"{name}\":{}", serde_json::Value::String(value)));
    }
    with_data(format_args!("{head}"), event)
}

/// Room for what stands before and behind the payload, unless its event's type is long.
const AROUND_DATA_BYTES: usize = 192;

/// Closes an object that is begun in `head` with the payload: as it is where it is JSON, else in `data_base64`.
fn with_data(head: fmt::Arguments<'_>, event: &Event) -> Bytes {
    let (opening, data, closing): (&[u8], Cow<'_, [u8]>, &[u8]) = if event.content_type.is_json() {
        (br#","data":"#, Cow::Borrowed(&event.payload), b"}")
    } else {
        (br#","data_base64":""#, Cow::Owned(BASE64.encode(&event.payload).into_bytes()), br#""}"#)
    };
    let mut bytes = Vec::with_capacity(AROUND_DATA_BYTES + data.len());
    // A vector takes everything.
    let _ = bytes.write_fmt(head);
    for part in [opening, &data, closing] {
        bytes.extend_from_slice(part);
    }
    bytes.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::event::tests::event;

    fn check(format: PayloadFormat, content_type: &str, payload: &str, body: &str, sent_as: &str) {
        let rendered = render(&event("order.created", payload, content_type), format);
        assert_eq!(std::str::from_utf8(&rendered.bytes), Ok(body));
        assert_eq!(rendered.content_type, sent_as);
    }

    #[test]
    fn json_stands_in_a_body_with_its_own_bytes() {
        let payload = r#"{ "a" : 1.0 }"#;
        check(
            PayloadFormat::Envelope,
            "",
            payload,
            r#"{"id":"evt_01h455vb4pex5vsknk084sn02q","event":"order.created","timestamp":"2023-06-30T03:34:18.518Z","data":{ "a" : 1.0 }}"#,
            "application/json",
        );
        check(
            PayloadFormat::StandardWebhooks,
            "",
            payload,
            r#"{"type":"order.created","timestamp":"2023-06-30T03:34:18.518Z","data":{ "a" : 1.0 }}"#,
            "application/json",
        );
        check(
            PayloadFormat::CloudEventsStructured,
            "application/vnd.shop+json; profile=\"a\"",
            payload,
            r#"{"specversion":"1.0","id":"evt_01h455vb4pex5vsknk084sn02q","source":"/hooklane/default","type":"order.created","time":"2023-06-30T03:34:18.518Z","datacontenttype":"application/vnd.shop+json; profile=\"a\"","data":{ "a" : 1.0 }}"#,
            "application/cloudevents+json",
        );
    }

    #[test]
    fn what_is_not_json_is_carried_as_base64_or_as_it_is() {
        check(
            PayloadFormat::StandardWebhooks,
            "text/plain",
            "hello",
            r#"{"type":"order.created","timestamp":"2023-06-30T03:34:18.518Z","data_base64":"aGVsbG8="}"#,
            "application/json",
        );
        let event = event("a", "hello", "text/plain");
        for format in [PayloadFormat::Envelope, PayloadFormat::CloudEventsStructured] {
            assert!(render(&event, format).bytes.ends_with(br#","data_base64":"aGVsbG8="}"#));
        }
        check(PayloadFormat::Raw, "text/plain", "hello", "hello", "text/plain");
        check(PayloadFormat::CloudEventsBinary, "text/plain", "", "", "text/plain");
    }

    #[test]
    fn the_binary_mode_has_its_attributes_in_headers() {
        let event = event("a", "[1]", "");
        let body = render(&event, PayloadFormat::CloudEventsBinary);
        assert_eq!((body.bytes.as_ref(), &*body.content_type), (b"[1]".as_slice(), "application/json"));
        assert_eq!(body.headers, cloudevents::headers(&event));
    }

    #[test]
    fn a_cloudevent_as_payload_is_never_mistaken_for_the_one_around_it() {
        for content_type in ["application/cloudevents+json", "Application/CloudEvents-batch+json; charset=utf-8"] {
            let event = event("a", "{}", content_type);
            let body = render(&event, PayloadFormat::CloudEventsBinary);
            assert_eq!(body, render(&event, PayloadFormat::CloudEventsStructured));
            assert_eq!(body.content_type, "application/cloudevents+json");
        }
    }

    const FORMATS: [PayloadFormat; 5] = [
        PayloadFormat::Envelope,
        PayloadFormat::StandardWebhooks,
        PayloadFormat::Raw,
        PayloadFormat::CloudEventsStructured,
        PayloadFormat::CloudEventsBinary,
    ];

    /// The payload as a receiver reads it out of a body.
    fn payload_of(body: &Body) -> Vec<u8> {
        #[derive(serde::Deserialize)]
        struct Wrapped<'a> {
            #[serde(borrow)]
            data: Option<&'a serde_json::value::RawValue>,
            data_base64: Option<String>,
        }
        let wrapped: Wrapped<'_> = serde_json::from_slice(&body.bytes).expect("JSON");
        match (wrapped.data, wrapped.data_base64) {
            (Some(data), None) => data.get().as_bytes().to_vec(),
            (None, Some(encoded)) => BASE64.decode(encoded).expect("base64"),
            other => panic!("one of both: {other:?}"),
        }
    }

    proptest! {
        #[test]
        fn every_payload_is_read_back_to_the_byte(
            bytes in proptest::collection::vec(any::<u8>(), 0..64),
            text in any::<String>(),
            is_json: bool,
        ) {
            let payload = if is_json { serde_json::Value::from(text).to_string().into_bytes() } else { bytes };
            let content_type = if is_json { "application/json" } else { "application/octet-stream" };
            let event = Event { payload: payload.clone().into(), ..event("a", "", content_type) };
            for format in FORMATS {
                let body = render(&event, format);
                prop_assert_eq!(&body, &render(&event, format), "alike on every attempt");
                let is_bare = matches!(format, PayloadFormat::Raw | PayloadFormat::CloudEventsBinary);
                prop_assert_eq!(if is_bare { body.bytes.to_vec() } else { payload_of(&body) }, &payload[..]);
            }
        }
    }
}
