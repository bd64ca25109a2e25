//! CloudEvents as the library of the CloudEvents project reads them, in both modes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hooklane::api::proto::{PayloadFormat, PublishRequest};
use hooklane::cli::listen::Behaviour;
use hooklane::domain::id::EventId;
use serde_json::{Value, json};

use super::super::{endpoint, event_of, receiver, service};
use super::{answers, captured, python};

/// Content types and payloads, and the data that is read from them in the structured and in the binary mode.
fn contents() -> [(&'static str, &'static [u8], Value, Value); 6] {
    let bytes = |payload: &[u8]| json!({"data_base64": BASE64.encode(payload)});
    let text = "Zoë, 17 €\r\n";
    let binary = b"\x00\xff\xfe\n{}";
    let object = json!({"data": {"name": "Zoë", "n": [1.5, null]}});
    let json = "{ \"name\":\"Zo\\u00eb\",\n \"n\":[1.5,null] }".as_bytes();
    [
        ("application/json", json, object.clone(), object.clone()),
        ("application/json; charset=utf-8", json, object.clone(), object),
        ("application/vnd.shop+json", b"[7]", json!({"data": [7]}), json!({"data": [7]})),
        ("text/plain; charset=\"utf-8\"", text.as_bytes(), bytes(text.as_bytes()), json!({"data": text})),
        ("application/octet-stream", binary, bytes(binary), bytes(binary)),
        ("application/xml", b"<a/>", bytes(b"<a/>"), json!({"data": "<a/>"})),
    ]
}

#[tokio::test]
async fn the_projects_own_library_reads_the_event_that_was_published() {
    let service = service().await;
    let receiver = receiver(Behaviour::default()).await;
    let (mut lines, mut expected) = (Vec::new(), Vec::new());
    for format in [PayloadFormat::CloudeventsStructured, PayloadFormat::CloudeventsBinary] {
        let mut wanted = endpoint(&receiver.url());
        wanted.set_payload_format(format);
        let id = service.register(wanted).await.id;
        for (content_type, payload, structured, binary) in contents() {
            let request = PublishRequest {
                endpoint_ids: vec![id.clone()],
                content_type: content_type.to_owned(),
                ..event_of(payload)
            };
            let event_id: EventId = service.publish(request).await.event_id.parse().expect("an event id");
            lines.push(captured(&receiver.next().await.expect("a request")));
            let is_structured = format == PayloadFormat::CloudeventsStructured;
            expected.push((event_id, content_type, if is_structured { structured } else { binary }));
        }
    }
    let read = answers(python("events.py"), &lines).await;
    assert_eq!(read.len(), expected.len());
    for (mut event, (event_id, content_type, data)) in read.into_iter().zip(expected) {
        let mut attributes = event["attributes"].take();
        let time: jiff::Timestamp = attributes["time"].take().as_str().expect("text").parse().expect("a time");
        assert_eq!(time.to_string(), event_id.time().to_string());
        assert_eq!(
            attributes,
            json!({
                "specversion": "1.0", "id": event_id.to_string(), "source": "/hooklane/default",
                "type": "order.created", "time": null, "datacontenttype": content_type,
            })
        );
        event.as_object_mut().expect("an object").remove("attributes");
        assert_eq!(event, data, "{content_type}");
    }
}
