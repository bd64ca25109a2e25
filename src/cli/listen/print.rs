//! A request as text for people or as a line of JSON for programs.
//!
//! What a stranger sent reaches a terminal here: control characters never pass.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IsTerminal as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::HeaderMap;
use serde::Serialize;

use super::{Received, Verdict};
use crate::cli::show::counted;

/// How much of a body a line shows, in characters.
const PREVIEW_CHARS: usize = 120;

/// Turns requests into lines.
pub(super) struct Printer {
    form: Form,
    show_headers: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Json,
    Plain,
    Coloured,
}

impl Printer {
    /// In colour when standard output is a terminal and `NO_COLOR` is unset (<https://no-color.org>).
    pub(super) fn for_stdout(json: bool, show_headers: bool) -> Self {
        let colour_wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let form = if json {
            Form::Json
        } else if colour_wanted && std::io::stdout().is_terminal() {
            Form::Coloured
        } else {
            Form::Plain
        };
        Self { form, show_headers }
    }

    /// The request's lines, each with its end.
    pub(super) fn print(&self, received: &Received) -> String {
        if self.form == Form::Json {
            return json(received);
        }
        let event_type = received.event_type.as_deref().map_or_else(|| "-".into(), visible);
        let mut line = format!(
            "{}  {}  {:<11} {:<3}  ",
            self.paint(DIM, &received.time.strftime("%H:%M:%S%.3fZ").to_string()),
            self.paint(BOLD, &format!("{event_type:<20}")),
            received.delivery_id.as_deref().map_or_else(|| "-".into(), short),
            received.attempt.map_or_else(String::new, |attempt| format!("#{attempt}")),
        );
        let signature = match received.verdict {
            Verdict::Good => self.paint(GREEN, "signature ok"),
            Verdict::Bad(reason) => self.paint(RED, &format!("signature bad: {reason}")),
            Verdict::Unchecked => self.paint(DIM, "signature unchecked"),
        };
        let answer = match received.status {
            Some(status) if status.is_success() => self.paint(GREEN, status.as_str()),
            Some(status) => self.paint(RED, status.as_str()),
            None => self.paint(RED, "silence"),
        };
        line.push_str(&format!("{signature}  {answer}  {}\n", preview(received)));
        if self.show_headers {
            line.push_str(&format!("    {} {}\n", received.method, visible(&received.path)));
            for (name, value) in &received.headers {
                let value = visible(&String::from_utf8_lossy(value.as_bytes()));
                line.push_str(&format!("    {} {value}\n", self.paint(DIM, &format!("{name}:"))));
            }
        }
        line
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.form == Form::Coloured { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";

/// An id's end: UUIDv7s of the same moment begin alike.
fn short(id: &str) -> String {
    const CHARS: usize = 10;
    let cut = id.char_indices().rev().nth(CHARS - 1).map_or(0, |(at, _)| at);
    if cut == 0 { visible(id) } else { format!("…{}", visible(&id[cut..])) }
}

fn preview(received: &Received) -> String {
    let bytes = received.body.len();
    match str::from_utf8(&received.body) {
        _ if received.oversized => "(over 16 MiB, not read)".to_owned(),
        Ok("") => "(no body)".to_owned(),
        Err(_) => format!("(binary, {})", counted(bytes as u64, "byte", "bytes")),
        Ok(text) => match text.char_indices().nth(PREVIEW_CHARS) {
            Some((cut, _)) => format!("{}… ({bytes} bytes)", visible(&text[..cut])),
            None => visible(text),
        },
    }
}

/// The text with what could move a cursor or reorder a line (control and bidirectional formatting) made a space.
fn visible(text: &str) -> String {
    let harmful = |c: char| {
        c.is_control() || matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if harmful(c) { ' ' } else { c }).collect()
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    method: &'a str,
    path: &'a str,
    event_type: Option<&'a str>,
    delivery_id: Option<&'a str>,
    attempt: Option<u32>,
    signature: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    signature_reason: Option<String>,
    /// Null when it is never answered.
    status: Option<u16>,
    headers: BTreeMap<&'a str, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    /// Instead of `body` where that is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

fn json(received: &Received) -> String {
    let body = str::from_utf8(&received.body).ok();
    let line = Line {
        time: received.time.to_string(),
        method: received.method.as_str(),
        path: &received.path,
        event_type: received.event_type.as_deref(),
        delivery_id: received.delivery_id.as_deref(),
        attempt: received.attempt,
        signature: received.verdict.word(),
        signature_reason: received.verdict.reason().map(|reason| reason.to_string()),
        status: received.status.map(|status| status.as_u16()),
        headers: joined(&received.headers),
        body,
        body_base64: body.is_none().then(|| BASE64.encode(&received.body)),
    };
    // Maps with text keys and no failing parts always serialize.
    let mut text = serde_json::to_string(&line).unwrap_or_default();
    text.push('\n');
    text
}

/// Repeated headers become one with commas (RFC 9110, section 5.3).
fn joined(headers: &HeaderMap) -> BTreeMap<&str, String> {
    let mut joined: BTreeMap<&str, String> = BTreeMap::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        joined
            .entry(name.as_str())
            .and_modify(|present| {
                let _ = write!(present, ", {value}");
            })
            .or_insert_with(|| value.into_owned());
    }
    joined
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{HeaderValue, Method, StatusCode};

    use super::*;
    use crate::domain::verification::Rejected;

    fn received(body: impl Into<Bytes>) -> Received {
        let mut headers = HeaderMap::new();
        headers.append("x-many", HeaderValue::from_static("a"));
        headers.append("x-many", HeaderValue::from_static("b"));
        Received {
            time: jiff::Timestamp::from_millisecond(1_768_996_800_250).unwrap(),
            method: Method::POST,
            path: "/hook?a=1".to_owned(),
            headers,
            body: body.into(),
            oversized: false,
            verdict: Verdict::Good,
            status: Some(StatusCode::OK),
            delivery_id: Some("dlv_01h455vb4pex5vsknk084sn02q".to_owned()),
            attempt: Some(2),
            event_type: Some("order.created".to_owned()),
        }
    }

    #[test]
    fn a_plain_line_reads_from_left_to_right() {
        let printer = Printer { form: Form::Plain, show_headers: true };
        let head = "12:00:00.250Z  order.created         …sk084sn02q #2   signature";
        let mut one = received(r#"{"a":1}"#);
        one.delivery_id = Some("dlv_01h455vb4pex5vsknsk084sn02q".to_owned());
        let lines = "    POST /hook?a=1\n    x-many: a\n    x-many: b\n";
        assert_eq!(printer.print(&one), format!("{head} ok  200  {{\"a\":1}}\n{lines}"));
        (one.verdict, one.status) = (Verdict::Bad(Rejected::Mismatch), None);
        assert_eq!(printer.print(&one), format!("{head} bad: no signature matches  silence  {{\"a\":1}}\n{lines}"));
    }

    #[test]
    fn nothing_a_stranger_sent_controls_the_terminal() {
        let printer = Printer { form: Form::Plain, show_headers: true };
        let mut hostile = received("\x1b[2J\r\n\u{9b}31m\u{202e}x\u{7f}");
        hostile.event_type = Some("\x1b]0;title\x07".to_owned());
        hostile.delivery_id = Some("\x1b\x1bé".to_owned());
        hostile.headers.insert("x-bytes", HeaderValue::from_bytes(b"\x9b31m \xc2\x9b").unwrap());
        let text = printer.print(&hostile);
        assert!(text.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'), "{text:?}");
        assert_eq!(text.lines().count(), 5, "{text:?}");
    }

    #[test]
    fn bodies_are_shown_as_far_as_a_line_carries() {
        let long = "ä".repeat(121);
        for (body, shown) in [
            (b"".as_slice(), "(no body)".to_owned()),
            (b"\xff\x00", "(binary, 2 bytes)".to_owned()),
            (long.as_bytes(), format!("{}… (242 bytes)", "ä".repeat(120))),
        ] {
            assert_eq!(preview(&received(body.to_vec())), shown);
        }
    }

    #[test]
    fn json_holds_everything_and_bytes_as_base64() {
        let printer = Printer { form: Form::Json, show_headers: false };
        let line = printer.print(&received("line\nbreak"));
        assert_eq!(line.lines().count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            value,
            serde_json::json!({
                "time": "2026-01-21T12:00:00.25Z", "method": "POST", "path": "/hook?a=1", "event_type": "order.created",
                "delivery_id": "dlv_01h455vb4pex5vsknk084sn02q", "attempt": 2, "signature": "ok", "status": 200,
                "headers": {"x-many": "a, b"}, "body": "line\nbreak",
            })
        );
        let value: serde_json::Value = serde_json::from_str(&printer.print(&received(vec![0xff]))).unwrap();
        assert_eq!((&value["body"], &value["body_base64"]), (&serde_json::Value::Null, &"/w==".into()));
    }
}
