//! The settings of alerts: thresholds and how far back they look.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::source::Reader;
use super::{parse_span, parse_within};
use crate::domain::alert::AlertRules;

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(24 * 3_600);
/// Levels of consecutive failures.
const LEVELS_MAX: usize = 10;
const FAILURES_MAX: u32 = 1_000_000;

/// Reads them all, so that every problem shows.
pub(super) fn read(reader: &mut Reader) -> Option<AlertRules> {
    let seconds = |count| Duration::from_secs(count);
    let failing = reader.get("alerts.failing", "3,5,10", parse_levels);
    let backlog_outstanding =
        reader.get("alerts.backlog_outstanding", "10000", |text| parse_within(text, 1, 1_000_000_000));
    let backlog_age =
        reader.get("alerts.backlog_age", "15m", |text| parse_between(text, seconds(1)..=DAY * 7, "1s to 7d"));
    let failure_rate = reader.get("alerts.failure_rate", "0.5", parse_share);
    let attempts = reader.get("alerts.failure_rate_attempts", "20", |text| parse_within(text, 1, 1_000_000));
    let dead_letters = reader.get("alerts.dead_letters", "10", |text| parse_within(text, 1, 1_000_000_000));
    let window = reader.get("alerts.window", "10m", |text| parse_between(text, seconds(60)..=HOUR, "1m to 1h"));
    let retention =
        reader.get("alerts.retention", "30d", |text| parse_between(text, HOUR..=DAY * 3_650, "1h to 3650d"));
    Some(AlertRules {
        failing: failing?,
        backlog_outstanding: backlog_outstanding?,
        backlog_age: backlog_age?,
        failure_rate: failure_rate?,
        failure_rate_attempts: attempts?,
        dead_letters: dead_letters?,
        window: window?,
        retention: retention?,
    })
}

/// `3,5,10`: ascending.
fn parse_levels(text: &str) -> Result<Vec<u32>, String> {
    let levels: Option<Vec<u32>> = text
        .split(',')
        .map(|part| part.trim().parse().ok().filter(|level| (1..=FAILURES_MAX).contains(level)))
        .collect();
    levels.filter(|levels| levels.len() <= LEVELS_MAX && levels.is_sorted_by(|one, next| one < next)).ok_or_else(|| {
        format!("is no list of failures in a row; allowed are 1 to {LEVELS_MAX} ascending numbers from 1 to {FAILURES_MAX}, such as 3,5,10")
    })
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| *share > 0.0 && *share <= 1.0);
    share.ok_or_else(|| "is no share; allowed is a number above 0 and up to 1, such as 0.5".to_owned())
}

fn parse_between(text: &str, allowed: RangeInclusive<Duration>, words: &str) -> Result<Duration, String> {
    let span = parse_span(text)?;
    if allowed.contains(&span) { Ok(span) } else { Err(format!("is out of range; allowed is {words}")) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::{Config, Flags, Profile, SettingProblems};
    use super::*;

    fn load(variables: &[(&str, &str)]) -> Result<AlertRules, SettingProblems> {
        let environment: BTreeMap<_, _> =
            variables.iter().map(|(name, value)| (format!("HOOKLANE_ALERTS_{name}"), (*value).to_owned())).collect();
        Config::load(Profile::Dev, &Flags::default(), environment).map(|config| config.alerts)
    }

    #[test]
    fn the_defaults_are_those_of_the_rules() {
        assert_eq!(load(&[]), Ok(AlertRules::default()));
    }

    #[test]
    fn thresholds_are_set() {
        let rules = load(&[
            ("FAILING", "2, 4"),
            ("BACKLOG_OUTSTANDING", "7"),
            ("BACKLOG_AGE", "1s"),
            ("FAILURE_RATE", "1"),
            ("FAILURE_RATE_ATTEMPTS", "3"),
            ("DEAD_LETTERS", "5"),
            ("WINDOW", "1h"),
            ("RETENTION", "7d"),
        ]);
        let expected = AlertRules {
            failing: vec![2, 4],
            backlog_outstanding: 7,
            backlog_age: Duration::from_secs(1),
            failure_rate: 1.0,
            failure_rate_attempts: 3,
            dead_letters: 5,
            window: HOUR,
            retention: DAY * 7,
        };
        assert_eq!(rules, Ok(expected));
    }

    #[test]
    fn a_bad_threshold_is_named_with_its_value_and_what_is_allowed() {
        for (name, bad, allowed) in [
            ("FAILING", "5,3", "ascending"),
            ("FAILING", "0,3", "from 1 to"),
            ("FAILING", "", "such as 3,5,10"),
            ("FAILING", "1,2,3,4,5,6,7,8,9,10,11", "1 to 10"),
            ("BACKLOG_OUTSTANDING", "0", "from 1 to"),
            ("BACKLOG_AGE", "999ms", "1s to 7d"),
            ("BACKLOG_AGE", "long", "span of time"),
            ("FAILURE_RATE", "0", "above 0"),
            ("FAILURE_RATE", "50%", "above 0"),
            ("FAILURE_RATE", "NaN", "above 0"),
            ("FAILURE_RATE_ATTEMPTS", "-1", "from 1 to"),
            ("DEAD_LETTERS", "1.5", "from 1 to"),
            ("WINDOW", "59s", "1m to 1h"),
            ("RETENTION", "1m", "1h to 3650d"),
        ] {
            let problem = load(&[(name, bad)]).expect_err(bad).to_string();
            let is_shown = problem.contains(bad) && problem.contains(allowed);
            assert!(problem.contains(&format!("HOOKLANE_ALERTS_{name}")) && is_shown, "{problem}");
        }
    }
}
