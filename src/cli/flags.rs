//! What flags of several commands are made of: times, spans, pairs, names of enums, contents of files, how much of a list.

use std::io::Read as _;
use std::path::Path;

use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::client::{Typed, from_json};
use super::{Failure, parse_duration};
use crate::config::parse_span;

/// What lists, streams and figures are narrowed by.
pub(super) const FILTERS: Typed = &[
    ("tenant", "--tenant"),
    ("endpoint_id", "--endpoint"),
    ("endpoint_ids", "--endpoint"),
    ("event_id", "--event"),
    ("event_type", "--event-type"),
    ("event_types", "--event-type"),
    ("delivery_id", "--delivery"),
    ("states", "--state"),
    ("kinds", "--kind"),
    ("labels", "--label"),
    ("create_after", "--since"),
    ("create_before", "--until"),
    ("dead_after", "--since"),
    ("dead_before", "--until"),
    ("start_time", "--since"),
    ("window", "--window"),
];

/// The one thing that a command is about.
pub(super) const ID: Typed =
    &[("event_id", "ID"), ("delivery_id", "ID"), ("endpoint_id", "ID"), ("endpoint.id", "ID"), ("alert_id", "ID")];

/// A number of things, of which at least one is wanted.
pub(super) fn some(text: &str) -> Result<u64, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| "is not a whole number of 1 or more".to_owned())
}

/// A time in RFC 3339, or a span before now: `90m`, `7d`.
pub(super) fn past(text: &str) -> Result<prost_types::Timestamp, String> {
    moment(text, "before").ok_or_else(|| {
        "is no time; allowed are such as 2026-01-21T12:00:00Z, or a span before now: 90m, 2h, 7d".to_owned()
    })
}

/// A time in RFC 3339, or a span from now: `90m`, `7d`.
pub(super) fn future(text: &str) -> Result<prost_types::Timestamp, String> {
    moment(text, "after").ok_or_else(|| {
        "is no time; allowed are such as 2026-01-21T12:00:00Z, or a span from now: 90m, 2h, 7d".to_owned()
    })
}

fn moment(text: &str, side: &str) -> Option<prost_types::Timestamp> {
    let time = match text.parse::<jiff::Timestamp>() {
        Ok(time) => time,
        Err(_) => {
            let span = parse_span(text).or_else(|_| parse_duration(text)).ok()?;
            let span = jiff::SignedDuration::try_from(span).ok()?;
            let now = jiff::Timestamp::now();
            if side == "before" { now.checked_sub(span).ok()? } else { now.checked_add(span).ok()? }
        }
    };
    Some(prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() })
}

/// `250ms`, `30s`, `5m`, `24h`, `7d`.
pub(super) fn span(text: &str) -> Result<prost_types::Duration, String> {
    let span = parse_span(text)?;
    prost_types::Duration::try_from(span).map_err(|_| "is too long".to_owned())
}

/// `name=value`.
pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    let split = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, value) = split.ok_or("is no pair; allowed is NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// `Name: value`.
pub(super) fn header(text: &str) -> Result<(String, String), String> {
    let split = text.split_once(':').filter(|(name, _)| !name.trim().is_empty());
    let (name, value) = split.ok_or("is no header; allowed is 'Name: value'")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

/// One of the names of an enum of the contract, without its prefix and in lower case.
pub(super) fn one_of<E: Clone + Send + Sync + 'static>(
    prefix: &'static str,
    names: &'static [&'static str],
    parse: fn(&str) -> Option<E>,
) -> impl TypedValueParser<Value = E> {
    PossibleValuesParser::new(names).try_map(move |text| {
        let name = format!("{prefix}_{}", text.replace('-', "_").to_uppercase());
        parse(&name).ok_or_else(|| format!("there is no {name}"))
    })
}

/// A file, or standard input where it is `-`.
pub(super) fn read(path: &str) -> Result<Vec<u8>, Failure> {
    let cannot = |error| Failure::usage(format!("{} cannot be read: {error}", shown(path)));
    let mut content = Vec::new();
    match path {
        "-" => std::io::stdin().lock().read_to_end(&mut content).map(|_| ()).map_err(cannot)?,
        _ => content = std::fs::read(Path::new(path)).map_err(cannot)?,
    }
    Ok(content)
}

/// A message of the contract as JSON in a file, or on standard input where it is `-`.
pub(super) fn read_message<M: prost::Name + Default>(path: &str) -> Result<M, Failure> {
    let text =
        String::from_utf8(read(path)?).map_err(|_| Failure::usage(format!("{} is no text in UTF-8", shown(path))))?;
    from_json(&shown(path), &text)
}

fn shown(path: &str) -> String {
    if path == "-" { "standard input".to_owned() } else { path.to_owned() }
}

/// A secret alone in a file, or on standard input where it is `-`; empty where none is given.
pub(super) fn read_secret(path: Option<&str>) -> Result<String, Failure> {
    let Some(path) = path else { return Ok(String::new()) };
    let wrong = |words: &str| Failure::usage(format!("--secret-file {path} {words}"));
    let text = String::from_utf8(read(path)?).map_err(|_| wrong("holds no text"))?;
    // An empty file is a mistake in a script, not a wish for a generated secret.
    let secret = text.trim();
    if secret.is_empty() { Err(wrong("is empty")) } else { Ok(secret.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_given_or_so_long_from_now() {
        for text in ["2026-01-21T12:00:00Z", "90m", "2h", "1.5h", "7d", "0"] {
            assert!(past(text).is_ok() && future(text).is_ok(), "{text}");
        }
        for text in ["", "yesterday", "5", "-2h", "99999999999999h"] {
            assert!(past(text).is_err() && future(text).is_err(), "{text}");
        }
        assert_eq!(past("2026-01-21T12:00:00Z").map(|time| time.seconds), Ok(1_768_996_800));
        assert!(past("1h").unwrap().seconds < future("1h").unwrap().seconds - 7_000);
    }

    #[test]
    fn pairs_and_headers_have_both_parts() {
        let two = |name: &str, value: &str| Ok((name.to_owned(), value.to_owned()));
        assert_eq!(pair("team=a=b"), two("team", "a=b"));
        assert_eq!(header("X-Team:  a:b "), two("X-Team", "a:b"));
        assert!(pair("team").is_err() && pair("=b").is_err() && header("X-Team").is_err() && header(": b").is_err());
    }
}
