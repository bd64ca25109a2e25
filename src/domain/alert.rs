//! Alerts: when a condition begins and ceases to hold, and what is said of it.
//!
//! A condition begins at a threshold and ceases at half of it, so that one which hovers there is not told of again and
//! again. Consecutive failures cease with a success.

mod telling;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

pub use self::telling::{Alert, FailedDelivery};
use super::counted;
use super::endpoint::stored_enum;
use super::id::EndpointId;

/// What an alert is about. The discriminants are the contract's and the database's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AlertKind {
    /// An endpoint failed several times in a row.
    EndpointFailing = 1,
    /// An endpoint became DISABLED.
    EndpointDisabled = 2,
    /// Too large a share of an endpoint's attempts fails.
    FailureRateHigh = 3,
    /// Too many deliveries wait for an endpoint, or for too long.
    QueueBacklog = 4,
    /// Many of an endpoint's deliveries have failed for good lately.
    DeadLettersGrowing = 5,
    /// An endpoint's filter failed on an event lately.
    FilterError = 6,
}

stored_enum!(AlertKind {
    EndpointFailing,
    EndpointDisabled,
    FailureRateHigh,
    QueueBacklog,
    DeadLettersGrowing,
    FilterError
});

impl AlertKind {
    /// The operational event that tells of it; `None` where none does.
    pub const fn event_type(self) -> Option<&'static str> {
        match self {
            Self::EndpointFailing => Some("hooklane.endpoint.failing"),
            Self::EndpointDisabled => Some("hooklane.endpoint.disabled"),
            Self::FailureRateHigh => Some("hooklane.failure_rate.high"),
            Self::QueueBacklog => Some("hooklane.queue.backlog"),
            Self::DeadLettersGrowing | Self::FilterError => None,
        }
    }

    /// Whether an operational event tells of its end as well.
    pub const fn tells_recovery(self) -> bool {
        matches!(self, Self::EndpointFailing | Self::EndpointDisabled)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::EndpointFailing => "ENDPOINT_FAILING",
            Self::EndpointDisabled => "ENDPOINT_DISABLED",
            Self::FailureRateHigh => "FAILURE_RATE_HIGH",
            Self::QueueBacklog => "QUEUE_BACKLOG",
            Self::DeadLettersGrowing => "DEAD_LETTERS_GROWING",
            Self::FilterError => "FILTER_ERROR",
        }
    }
}

/// The thresholds.
#[derive(Debug, Clone, PartialEq)]
pub struct AlertRules {
    /// Consecutive failures, ascending: the first opens the alert, each raises it. Not empty.
    pub failing: Vec<u32>,
    /// Outstanding deliveries of an endpoint.
    pub backlog_outstanding: u64,
    /// For how long an endpoint's oldest due delivery has been waiting.
    pub backlog_age: Duration,
    /// The share of an endpoint's attempts in the window that failed, in (0, 1].
    pub failure_rate: f64,
    /// With fewer attempts in the window a share says nothing.
    pub failure_rate_attempts: u64,
    /// An endpoint's deliveries that failed for good in the window.
    pub dead_letters: u64,
    /// How far back attempts, dead letters and filter errors count.
    pub window: Duration,
    /// How long closed alerts are kept.
    pub retention: Duration,
}

impl Default for AlertRules {
    fn default() -> Self {
        Self {
            failing: vec![3, 5, 10],
            backlog_outstanding: 10_000,
            backlog_age: Duration::from_secs(15 * 60),
            failure_rate: 0.5,
            failure_rate_attempts: 20,
            dead_letters: 10,
            window: Duration::from_secs(10 * 60),
            retention: Duration::from_secs(30 * 24 * 3600),
        }
    }
}

/// What is known of an endpoint, as far as conditions go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Failures since the last success.
    pub consecutive_failures: u32,
    /// Whether it is DISABLED.
    pub is_disabled: bool,
    /// Whether it was deleted.
    pub is_gone: bool,
    /// In the window.
    pub counts: Counts,
    /// Deliveries that wait or are under way.
    pub outstanding: u64,
    /// For how long the oldest due delivery has been waiting.
    pub oldest_due_age: Option<Duration>,
}

/// What happened at an endpoint, without operational events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Attempts that speak for or against the endpoint.
    pub attempts: u64,
    /// Those that failed.
    pub failed_attempts: u64,
    /// Deliveries that became FAILED.
    pub failed_deliveries: u64,
    /// Events on which its filter failed.
    pub filter_errors: u64,
}

impl Counts {
    /// Whether nothing happened.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Both together.
    pub const fn plus(self, other: Self) -> Self {
        Self {
            attempts: self.attempts + other.attempts,
            failed_attempts: self.failed_attempts + other.failed_attempts,
            failed_deliveries: self.failed_deliveries + other.failed_deliveries,
            filter_errors: self.filter_errors + other.filter_errors,
        }
    }
}

/// A condition that holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// Where.
    pub endpoint: EndpointId,
    /// Which.
    pub kind: AlertKind,
    /// For ENDPOINT_FAILING the highest threshold reached; 1 otherwise.
    pub level: u32,
    /// In words.
    pub message: String,
    /// The figures behind it.
    pub details: BTreeMap<String, Value>,
}

impl Finding {
    fn new(endpoint: EndpointId, kind: AlertKind, message: String, details: Value) -> Self {
        let details = match details {
            Value::Object(map) => map.into_iter().collect(),
            _ => BTreeMap::new(),
        };
        Self { endpoint, kind, level: 1, message, details }
    }

    /// ENDPOINT_DISABLED, for that reason where one is known.
    pub fn disabled(endpoint: EndpointId, reason: &str) -> Self {
        let colon = if reason.is_empty() { "" } else { ": " };
        let message = format!("the endpoint was disabled{colon}{reason}");
        Self::new(endpoint, AlertKind::EndpointDisabled, message, json!({ "reason": reason }))
    }
}

impl AlertRules {
    /// ENDPOINT_FAILING after that many failures in a row, if they reach a threshold.
    pub fn failing(&self, endpoint: EndpointId, failures: u32) -> Option<Finding> {
        let level = self.failing.iter().copied().rfind(|threshold| *threshold <= failures)?;
        let message = format!("{} in a row failed", counted(failures, "attempt", "attempts"));
        let details = json!({ "consecutive_failures": failures, "threshold": level });
        let finding = Finding::new(endpoint, AlertKind::EndpointFailing, message, details);
        Some(Finding { level, ..finding })
    }

    /// The levels between `told`, which is told of, and `reached`, each of which is to be told of in turn.
    pub fn levels(&self, kind: AlertKind, told: u32, reached: u32) -> Vec<u32> {
        let mut levels = match kind {
            AlertKind::EndpointFailing => self.failing.clone(),
            _ => Vec::new(),
        };
        levels.retain(|level| *level > told && *level < reached);
        // Whatever another replica's settings call a level.
        levels.extend(Some(reached).filter(|reached| *reached > told));
        levels
    }

    /// The first threshold of consecutive failures.
    pub fn failing_min(&self) -> u32 {
        self.failing.first().copied().unwrap_or(u32::MAX)
    }

    /// What has begun to hold by what happened in the window.
    pub fn by_counts(&self, endpoint: EndpointId, counts: &Counts) -> Vec<Finding> {
        let window = self.window.as_secs();
        let mut findings = Vec::new();
        let Counts { attempts, failed_attempts, failed_deliveries, filter_errors } = *counts;
        if attempts >= self.failure_rate_attempts && failure_rate(counts) >= self.failure_rate {
            let message =
                format!("{failed_attempts} of {} in {window} s failed", counted(attempts, "attempt", "attempts"));
            let details = json!({
                "attempts": attempts, "failed_attempts": failed_attempts, "failure_rate": rounded(failure_rate(counts)),
                "window_seconds": window,
            });
            findings.push(Finding::new(endpoint, AlertKind::FailureRateHigh, message, details));
        }
        if failed_deliveries >= self.dead_letters {
            let deliveries = counted(failed_deliveries, "delivery", "deliveries");
            let message = format!("{deliveries} failed for good in {window} s");
            let details = json!({ "failed_deliveries": failed_deliveries, "window_seconds": window });
            findings.push(Finding::new(endpoint, AlertKind::DeadLettersGrowing, message, details));
        }
        if filter_errors > 0 {
            let (events, they) =
                (counted(filter_errors, "event", "events"), if filter_errors == 1 { "it" } else { "they" });
            let message = format!("the filter failed on {events} in {window} s: {they} counted as no match");
            let details = json!({ "filter_errors": filter_errors, "window_seconds": window });
            findings.push(Finding::new(endpoint, AlertKind::FilterError, message, details));
        }
        findings
    }

    /// QUEUE_BACKLOG, if so many outstanding deliveries or such a wait are too much.
    pub fn backlog(&self, endpoint: EndpointId, outstanding: u64, oldest_due_age: Duration) -> Option<Finding> {
        if outstanding < self.backlog_outstanding && oldest_due_age < self.backlog_age {
            return None;
        }
        let age = oldest_due_age.as_secs();
        let outstanding_words = counted(outstanding, "delivery is", "deliveries are");
        let message = format!("{outstanding_words} outstanding, the oldest due one for {age} s");
        let details = json!({ "outstanding": outstanding, "oldest_due_age_seconds": age });
        Some(Finding::new(endpoint, AlertKind::QueueBacklog, message, details))
    }

    /// Whether an open alert's condition has ceased to hold.
    pub fn is_over(&self, kind: AlertKind, now: &Figures) -> bool {
        now.is_gone
            || match kind {
                AlertKind::EndpointFailing => now.consecutive_failures < self.failing_min(),
                AlertKind::EndpointDisabled => !now.is_disabled,
                AlertKind::FailureRateHigh => {
                    now.counts.attempts < self.failure_rate_attempts.div_ceil(2)
                        || failure_rate(&now.counts) < self.failure_rate / 2.0
                }
                AlertKind::QueueBacklog => {
                    now.outstanding < self.backlog_outstanding.div_ceil(2)
                        && now.oldest_due_age.unwrap_or_default() < self.backlog_age / 2
                }
                AlertKind::DeadLettersGrowing => now.counts.failed_deliveries < self.dead_letters.div_ceil(2),
                AlertKind::FilterError => now.counts.filter_errors == 0,
            }
    }
}

fn failure_rate(counts: &Counts) -> f64 {
    if counts.attempts == 0 { 0.0 } else { counts.failed_attempts as f64 / counts.attempts as f64 }
}

/// To four digits: more would be noise.
fn rounded(share: f64) -> f64 {
    (share * 10_000.0).round() / 10_000.0
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn endpoint() -> EndpointId {
        EndpointId::from_uuid(Uuid::from_u128(7))
    }

    #[test]
    fn failures_in_a_row_reach_one_threshold_after_the_other() {
        let rules = AlertRules::default();
        let level = |failures| rules.failing(endpoint(), failures).map(|finding| finding.level);
        let levels: Vec<_> = [2, 3, 4, 5, 9, 10, 1_000].map(level).into();
        assert_eq!(levels, [None, Some(3), Some(3), Some(5), Some(5), Some(10), Some(10)]);
        let is_over = |consecutive_failures| {
            rules.is_over(AlertKind::EndpointFailing, &Figures { consecutive_failures, ..Figures::default() })
        };
        assert_eq!([0, 2, 3].map(is_over), [true, true, false]);
    }

    #[test]
    fn conditions_of_the_window_begin_at_their_thresholds_and_end_at_half() {
        let rules = AlertRules::default();
        let kinds = |attempts, failed_attempts, failed_deliveries, filter_errors| {
            let counts = Counts { attempts, failed_attempts, failed_deliveries, filter_errors };
            let findings = rules.by_counts(endpoint(), &counts);
            let begun: Vec<_> = findings.iter().map(|finding| finding.kind.number()).collect();
            let over = [3, 5, 6].map(|number| {
                let kind = AlertKind::from_number(number).expect("a kind");
                rules.is_over(kind, &Figures { counts, ..Figures::default() })
            });
            (begun, over)
        };
        assert_eq!(kinds(19, 19, 0, 0), (vec![], [false, true, true]));
        assert_eq!(kinds(20, 10, 10, 1), (vec![3, 5, 6], [false, false, false]));
        assert_eq!(kinds(20, 9, 9, 0), (vec![], [false, false, true]));
        assert_eq!(kinds(20, 4, 4, 0), (vec![], [true, true, true]));
        assert_eq!(kinds(9, 9, 5, 0), (vec![], [true, false, true]));
    }

    #[test]
    fn a_backlog_is_a_number_or_a_wait_and_over_when_both_are_half() {
        let rules = AlertRules::default();
        let begins =
            |outstanding, seconds| rules.backlog(endpoint(), outstanding, Duration::from_secs(seconds)).is_some();
        assert!(begins(10_000, 0) && begins(1, 900) && !begins(9_999, 899));
        let is_over = |outstanding, seconds| {
            let oldest_due_age = Some(Duration::from_secs(seconds));
            rules.is_over(AlertKind::QueueBacklog, &Figures { outstanding, oldest_due_age, ..Figures::default() })
        };
        assert!(is_over(4_999, 449) && !is_over(5_000, 0) && !is_over(0, 450));
    }

    #[test]
    fn one_of_a_kind_is_not_called_many() {
        let rules = AlertRules { dead_letters: 1, failure_rate_attempts: 1, failing: vec![1], ..AlertRules::default() };
        let counts = Counts { attempts: 1, failed_attempts: 1, failed_deliveries: 1, filter_errors: 1 };
        let found = rules.by_counts(endpoint(), &counts).into_iter();
        let found =
            found.chain(rules.failing(endpoint(), 1)).chain(rules.backlog(endpoint(), 1, Duration::from_secs(900)));
        let messages: Vec<_> = found.map(|finding| finding.message).collect();
        let expected = [
            "1 of 1 attempt in 600 s failed",
            "1 delivery failed for good in 600 s",
            "the filter failed on 1 event in 600 s: it counted as no match",
            "1 attempt in a row failed",
            "1 delivery is outstanding, the oldest due one for 900 s",
        ];
        assert_eq!(messages, expected);
    }

    #[test]
    fn every_condition_ends_with_its_endpoint() {
        let holds = Figures {
            consecutive_failures: 99,
            is_disabled: true,
            counts: Counts { attempts: 99, failed_attempts: 99, failed_deliveries: 99, filter_errors: 99 },
            outstanding: 99_999,
            ..Figures::default()
        };
        let rules = AlertRules::default();
        for kind in (1..=6).filter_map(AlertKind::from_number) {
            assert!(!rules.is_over(kind, &holds), "{kind:?}");
            assert!(rules.is_over(kind, &Figures { is_gone: true, ..holds }), "{kind:?}");
        }
    }
}
