//! The settings of how long what is done is kept, and what they demand of each other.

use std::time::Duration;

use super::parse_span;
use super::source::Reader;
use crate::store::Retention;

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3_600);
const MAX: Duration = Duration::from_secs(3_650 * 24 * 3_600);

/// Reads them all, so that every problem shows.
pub(super) fn read(reader: &mut Reader) -> Option<Retention> {
    // What leaves by the day is kept for a day at least: until then repeats of an event may add deliveries to it.
    let days = |text: &str| parse_kept(text, DAY, "1d");
    let or_longest = |text: &str| if text == "longest" { Ok(None) } else { days(text).map(Some) };
    let succeeded = reader.get("retention.succeeded", "30d", days);
    let failed = reader.get("retention.failed", "30d", days);
    let dead_letters = reader.get("retention.dead_letters", "7d", |text| parse_kept(text, MINUTE, "1m"));
    let timeline = reader.get("retention.timeline", "longest", or_longest);
    let payloads = reader.get("retention.payloads", "longest", or_longest);
    let (succeeded, failed, dead_letters) = (succeeded?, failed?, dead_letters?);
    let deliveries = [("retention.succeeded", succeeded), ("retention.failed", failed)];
    let longest = succeeded.max(failed);
    let (timeline, payloads) = (timeline?.unwrap_or(longest), payloads?.unwrap_or(longest));
    let shortest = |reader: &mut Reader, key: &'static str, span: Duration, other: (&str, Duration), why: &str| {
        if span < other.1 {
            let problem = format!("is shorter than {}, which is {}: {why}", other.0, written(other.1));
            reader.refuse(key, &written(span), &problem);
        }
    };
    shortest(
        reader,
        "retention.failed",
        failed,
        ("retention.dead_letters", dead_letters),
        "a dead letter is a failed delivery",
    );
    for delivery in deliveries {
        shortest(reader, "retention.timeline", timeline, delivery, "a delivery is read with its attempts");
        shortest(
            reader,
            "retention.payloads",
            payloads,
            delivery,
            "a delivery can be sent again as long as it is kept",
        );
    }
    Some(Retention { succeeded, failed, dead_letters, timeline, payloads })
}

fn parse_kept(text: &str, min: Duration, words: &str) -> Result<Duration, String> {
    let span = parse_span(text)?;
    if (min..=MAX).contains(&span) { Ok(span) } else { Err(format!("is not from {words} to 3650d")) }
}

/// A span as settings write it, in the largest unit that has no rest.
fn written(span: Duration) -> String {
    let millis = span.as_millis();
    let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
    let whole = units.into_iter().find(|(_, unit)| millis.is_multiple_of(*unit));
    whole.map_or_else(|| format!("{millis}ms"), |(name, unit)| format!("{}{name}", millis / unit))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::{Config, Flags, Profile, SettingProblems};
    use super::*;

    fn load(variables: &[(&str, &str)]) -> Result<Retention, SettingProblems> {
        let environment: BTreeMap<_, _> =
            variables.iter().map(|(name, value)| (format!("HOOKLANE_RETENTION_{name}"), (*value).to_owned())).collect();
        Config::load(Profile::Dev, &Flags::default(), environment).map(|config| config.store.retention)
    }

    #[test]
    fn timeline_and_payloads_are_kept_as_long_as_what_needs_them_longest() {
        assert_eq!(load(&[]), Ok(Retention::default()));
        let kept = load(&[("SUCCEEDED", "36h"), ("FAILED", "90d"), ("DEAD_LETTERS", "90d")]).expect("settings");
        assert_eq!((kept.succeeded, kept.failed, kept.dead_letters), (DAY * 3 / 2, DAY * 90, DAY * 90));
        assert_eq!((kept.timeline, kept.payloads), (DAY * 90, DAY * 90));
        let longer = load(&[("TIMELINE", "31d"), ("PAYLOADS", "365d")]).expect("settings");
        assert_eq!((longer.timeline, longer.payloads), (DAY * 31, DAY * 365));
    }

    #[test]
    fn what_would_leave_before_what_needs_it_is_named_with_both_settings() {
        for (set, named) in [
            (
                &[("TIMELINE", "29d")][..],
                ["TIMELINE: \"29d\" is shorter than retention.succeeded, which is 30d", "FAILED"],
            ),
            (
                &[("PAYLOADS", "36h"), ("SUCCEEDED", "1d")],
                ["PAYLOADS: \"36h\" is shorter than retention.failed", "30d"],
            ),
            (&[("FAILED", "6d")], ["FAILED: \"6d\" is shorter than retention.dead_letters", "7d"]),
        ] {
            let problems = load(set).expect_err("refused").to_string();
            assert!(named.iter().all(|part| problems.to_uppercase().contains(&part.to_uppercase())), "{problems}");
        }
    }

    #[test]
    fn spans_are_from_a_day_on_and_dead_letters_from_a_minute() {
        for (name, bad, allowed) in [
            ("SUCCEEDED", "23h", "from 1d to 3650d"),
            ("FAILED", "3651d", "from 1d to 3650d"),
            ("TIMELINE", "long", "span of time"),
            ("PAYLOADS", "0d", "from 1d to 3650d"),
            ("DEAD_LETTERS", "59s", "from 1m to 3650d"),
        ] {
            let problem = load(&[(name, bad)]).expect_err(bad).to_string();
            let is_named = problem.contains(&format!("HOOKLANE_RETENTION_{name}")) && problem.contains(bad);
            assert!(is_named && problem.contains(allowed), "{problem}");
        }
    }
}
