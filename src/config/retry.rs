//! Retry policies as settings write them: `exponential`, `long`, or delays, and what differs from their defaults.
//!
//! ```text
//! long retries=12
//! exponential initial=10s multiplier=3 max=6h
//! 1m 5m 30m 2h 24h jitter=0.1
//! ```

use std::time::Duration;

use super::parse_span;
use crate::domain::endpoint::EVENT_TYPES_MAX;
use crate::domain::pattern::EventPattern;
use crate::domain::retry::{
    Backoff, EVENT_POLICIES_MAX, EventRetryPolicy, INITIAL_DELAY_DEFAULT, MAX_DELAY_DEFAULT, MULTIPLIER_DEFAULT,
    RETRIES_MAX, RetryPolicy,
};

const ALLOWED: &str = "allowed are exponential (with initial=1s multiplier=2 max=5m), long, or delays such as \
                       1m 5m 30m 2h 24h, each with jitter=0.3 and retries=5";

/// One policy: words with spaces or commas between.
pub(super) fn parse_policy(text: &str) -> Result<RetryPolicy, String> {
    let mut words = Words::default();
    for word in text.split([' ', ',']).filter(|word| !word.is_empty()) {
        words.take(word)?;
    }
    words.policy()
}

/// Policies for event types, with commas between: patterns, a colon, a policy whose words have spaces between.
pub(super) fn parse_event_policies(text: &str) -> Result<Vec<EventRetryPolicy>, String> {
    let entries: Vec<&str> = text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).collect();
    if entries.len() > EVENT_POLICIES_MAX {
        return Err(format!("has {} policies; allowed are {EVENT_POLICIES_MAX}", entries.len()));
    }
    entries.into_iter().map(parse_event_policy).collect()
}

fn parse_event_policy(entry: &str) -> Result<EventRetryPolicy, String> {
    let of_entry = |problem: String| format!("has \"{entry}\", which {problem}");
    let (patterns, policy) = entry.split_once(':').ok_or_else(|| {
        of_entry(
            "has no colon; allowed is such as order.* invoice.*: 1m 5m 30m, with commas between policies".to_owned(),
        )
    })?;
    let patterns: Vec<&str> = patterns.split_whitespace().collect();
    if !(1..=EVENT_TYPES_MAX).contains(&patterns.len()) {
        let count = patterns.len();
        return Err(of_entry(format!("has {count} event types before its colon; allowed are 1 to {EVENT_TYPES_MAX}")));
    }
    let parse =
        |text: &&str| EventPattern::parse(text).map_err(|problem| of_entry(format!("has {text}, which {problem}")));
    let event_types = patterns.iter().map(parse).collect::<Result<_, _>>()?;
    Ok(EventRetryPolicy { event_types, policy: parse_policy(policy).map_err(of_entry)? })
}

/// What the words of a policy say.
#[derive(Default)]
struct Words {
    preset: Option<Preset>,
    delays: Vec<Duration>,
    initial_delay: Option<Duration>,
    multiplier: Option<f64>,
    max_delay: Option<Duration>,
    jitter: Option<f64>,
    max_retries: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Preset {
    Exponential,
    Long,
}

impl Words {
    fn take(&mut self, word: &str) -> Result<(), String> {
        let unknown = || format!("has {word:?}, which is none of its words; {ALLOWED}");
        match word.split_once('=') {
            Some(("initial", span)) => set(&mut self.initial_delay, word, parse_span(span).ok()),
            Some(("multiplier", number)) => set(&mut self.multiplier, word, number.parse().ok()),
            Some(("max", span)) => set(&mut self.max_delay, word, parse_span(span).ok()),
            Some(("jitter", number)) => {
                let share = number.parse().ok().filter(|share| (0.0..=1.0).contains(share));
                set(&mut self.jitter, word, share)
            }
            Some(("retries", number)) => {
                let count = number.parse().ok().filter(|count| *count <= RETRIES_MAX);
                set(&mut self.max_retries, word, count)
            }
            Some(_) => Err(unknown()),
            None if word == "exponential" => set(&mut self.preset, word, Some(Preset::Exponential)),
            None if word == "long" => set(&mut self.preset, word, Some(Preset::Long)),
            None => {
                self.delays.push(parse_span(word).map_err(|_| unknown())?);
                Ok(())
            }
        }
    }

    fn policy(self) -> Result<RetryPolicy, String> {
        let of_exponential = self.initial_delay.is_some() || self.multiplier.is_some() || self.max_delay.is_some();
        let mut policy = match (self.preset, self.delays.is_empty()) {
            (Some(Preset::Exponential), true) => {
                let backoff = Backoff::exponential(
                    self.initial_delay.unwrap_or(INITIAL_DELAY_DEFAULT),
                    self.multiplier.unwrap_or(MULTIPLIER_DEFAULT),
                    self.max_delay.unwrap_or(MAX_DELAY_DEFAULT),
                );
                RetryPolicy::with_defaults(backoff.map_err(|(part, problem)| format!("has a {part} that {problem}"))?)
            }
            _ if of_exponential => {
                return Err(format!("has initial, multiplier or max without exponential; {ALLOWED}"));
            }
            (Some(Preset::Long), true) => RetryPolicy::long(),
            (None, false) => {
                let backoff = Backoff::schedule(self.delays).map_err(|(place, problem)| match place {
                    Some(place) => format!("has a delay, the {}., that {problem}", place + 1),
                    None => problem.to_string(),
                });
                RetryPolicy::with_defaults(backoff?)
            }
            (None, true) => return Err(format!("names no policy; {ALLOWED}")),
            (Some(_), false) => return Err(format!("has a preset and delays beside it; {ALLOWED}")),
        };
        policy.jitter = self.jitter.unwrap_or(policy.jitter);
        policy.max_retries = self.max_retries.unwrap_or(policy.max_retries);
        Ok(policy)
    }
}

/// Takes in a word's value, unless it is bad or the second one of its kind.
fn set<T>(into: &mut Option<T>, word: &str, value: Option<T>) -> Result<(), String> {
    let value = value.ok_or_else(|| format!("has {word:?}, whose value is out of range; {ALLOWED}"))?;
    match into.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("has {word:?}, which was said before; {ALLOWED}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_written_in_words() {
        let seconds = Duration::from_secs;
        let schedule = |delays: &[u64]| Backoff::schedule(delays.iter().copied().map(seconds).collect()).expect("good");
        for (text, expected) in [
            ("exponential", RetryPolicy::default()),
            ("long", RetryPolicy::long()),
            ("long retries=12 jitter=0", RetryPolicy { max_retries: 12, jitter: 0.0, ..RetryPolicy::long() }),
            ("1m,5m", RetryPolicy::with_defaults(schedule(&[60, 300]))),
            (" 1m  5m , 30m ", RetryPolicy::with_defaults(schedule(&[60, 300, 1_800]))),
            ("exponential retries=0", RetryPolicy { max_retries: 0, ..RetryPolicy::default() }),
            (
                "max=6h exponential initial=10s multiplier=3",
                RetryPolicy::with_defaults(Backoff::exponential(seconds(10), 3.0, seconds(21_600)).expect("good")),
            ),
        ] {
            assert_eq!(parse_policy(text), Ok(expected), "{text}");
        }
        for bad in [
            "",
            "short",
            "long 5m",
            "long exponential",
            "initial=1s",
            "1m max=5m",
            "exponential initial=0s",
            "exponential multiplier=nan",
            "exponential max=8d",
            "1m jitter=1.1",
            "1m jitter=0.1 jitter=0.2",
            "1m retries=101",
            "1m retries=-1",
            "1m tries=5",
            "8d",
            &"1s ".repeat(101),
        ] {
            let problem = parse_policy(bad).expect_err(bad);
            assert!(problem.contains("allowed"), "{bad}: {problem}");
        }
    }

    #[test]
    fn event_policies_keep_their_order() {
        let policies = parse_event_policies("order.paid user.*: long, order.*: 1m 5m jitter=0.1").expect("good");
        let shown: Vec<_> = policies
            .iter()
            .map(|one| (one.event_types.iter().map(ToString::to_string).collect::<Vec<_>>(), one.policy.max_retries))
            .collect();
        assert_eq!(shown, [(vec!["order.paid".to_owned(), "user.*".to_owned()], 9), (vec!["order.*".to_owned()], 2)]);
        assert_eq!(parse_event_policies(""), Ok(Vec::new()));
        for bad in ["order.*", ": long", "order*: long", "a: long, b", "a:", "a: 1m: 2m", &"a: long,".repeat(33)] {
            assert!(parse_event_policies(bad).is_err(), "{bad}");
        }
    }
}
