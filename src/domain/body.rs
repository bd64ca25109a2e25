//! The bytes an endpoint receives: one event in the format the endpoint had when the event was published.
//!
//! A body depends on the event alone, so every attempt sends the same bytes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;

use super::endpoint::PayloadFormat;
use super::event::Event;

/// A request body and the media type it is sent with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    /// The bytes to send and sign.
    pub bytes: Bytes,
    /// The `Content-Type` header.
    pub content_type: String,
}

/// Renders `event` in `format`.
pub fn render(event: &Event, format: PayloadFormat) -> Body {
    match format {
        PayloadFormat::Raw => {
            Body { bytes: event.payload.clone(), content_type: event.content_type.as_str().to_owned() }
        }
        PayloadFormat::Envelope => Body { bytes: envelope(event), content_type: "application/json".to_owned() },
    }
}

/// `{"id":…,"event":…,"timestamp":…,"data":<the payload's own bytes>}`; what is not JSON stands in `data_base64`.
///
/// Ids, event types and times hold no character that JSON would escape.
fn envelope(event: &Event) -> Bytes {
    let head = format!(r#"{{"id":"{}","event":"{}","timestamp":"{}","#, event.id, event.event_type, event.id.time());
    let mut bytes = Vec::with_capacity(head.len() + event.payload.len() * 4 / 3 + 24);
    bytes.extend_from_slice(head.as_bytes());
    if event.content_type.is_json() {
        bytes.extend_from_slice(br#""data":"#);
        bytes.extend_from_slice(&event.payload);
    } else {
        bytes.extend_from_slice(br#""data_base64":""#);
        bytes.extend_from_slice(BASE64.encode(&event.payload).as_bytes());
        bytes.push(b'"');
    }
    bytes.push(b'}');
    bytes.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event::tests::event;

    #[test]
    fn an_envelope_keeps_the_payloads_own_bytes() {
        let body = render(&event("order.created", r#"{ "a" : 1.0 }"#, ""), PayloadFormat::Envelope);
        assert_eq!(
            std::str::from_utf8(&body.bytes),
            Ok(
                r#"{"id":"evt_01h455vb4pex5vsknk084sn02q","event":"order.created","timestamp":"2023-06-30T03:34:18.518Z","data":{ "a" : 1.0 }}"#
            )
        );
        assert_eq!(body.content_type, "application/json");
    }

    #[test]
    fn what_is_not_json_is_carried_as_base64_or_raw() {
        let event = event("a", "hello", "text/plain");
        assert!(render(&event, PayloadFormat::Envelope).bytes.ends_with(br#""data_base64":"aGVsbG8="}"#));
        let raw = render(&event, PayloadFormat::Raw);
        assert_eq!((raw.bytes.as_ref(), raw.content_type.as_str()), (b"hello".as_slice(), "text/plain"));
    }
}
