//! What comes of attempts, counted in memory: by this the conditions that alerts are about are found without a write for
//! each delivery. Lost with the process; what still holds then is found by a look at every endpoint now and then.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::domain::alert::Counts;
use crate::domain::attempt::AttemptOutcome;
use crate::domain::delivery::is_endpoints_doing;
use crate::domain::id::{DeliveryId, EndpointId, IdMap, IdSet};
use crate::store::{Completion, Settlement};

/// What has come since it was last taken.
#[derive(Debug, Default)]
pub(super) struct Tallies(Mutex<Noted>);

#[derive(Debug, Default)]
struct Noted {
    counts: IdMap<EndpointId, Counts>,
    streaks: IdMap<EndpointId, Streak>,
}

/// Failures in a row at an endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Streak {
    /// Up to now, as far as this process has seen.
    current: u32,
    /// Whether one of them is new since the last look.
    has_grown: bool,
    /// Whether one of them was of another event than an operational one.
    is_ordinary: bool,
    /// The longest that grew since the last look and that a success ended.
    ended: u32,
    /// Whether one that ended was ordinary.
    ended_ordinary: bool,
}

impl Streak {
    fn add(&mut self, is_success: bool, is_operational: bool) {
        if !is_success {
            self.current = self.current.saturating_add(1);
            self.has_grown = true;
            self.is_ordinary |= !is_operational;
            return;
        }
        if self.has_grown {
            self.ended = self.ended.max(self.current);
            self.ended_ordinary |= self.is_ordinary;
        }
        *self = Self { ended: self.ended, ended_ordinary: self.ended_ordinary, ..Self::default() };
    }
}

/// An endpoint that has failed since it was last looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Faltering {
    /// Which.
    pub endpoint: EndpointId,
    /// Its longest run of failures that a success has ended meanwhile, 0 for none: the database does not tell of it any
    /// more.
    pub ended: u32,
    /// Whether others than operational events failed in it.
    pub is_ordinary: bool,
}

impl Tallies {
    /// Counts those of a batch whose claim was current. The deliveries of operational events count for the endpoint's
    /// failures in a row, which they are, and for nothing else.
    pub(super) fn note(&self, batch: &[Completion], won: &IdSet<DeliveryId>) {
        let mut noted = self.lock();
        for one in batch.iter().filter(|one| won.contains(&one.id)) {
            let spoke = one.attempt.as_ref().filter(|attempt| is_endpoints_doing(attempt.result.outcome));
            let is_success = spoke.map(|attempt| attempt.result.outcome == AttemptOutcome::Succeeded);
            let is_operational = one.attempt.as_ref().is_some_and(|attempt| attempt.is_operational);
            match is_success {
                // The common case: nothing to be ended by it.
                Some(true) if !noted.streaks.contains_key(&one.endpoint) => {}
                Some(is_success) => noted.streaks.entry(one.endpoint).or_default().add(is_success, is_operational),
                None => {}
            }
            if is_operational {
                continue;
            }
            let counts = noted.counts.entry(one.endpoint).or_default();
            counts.attempts += u64::from(is_success.is_some());
            counts.failed_attempts += u64::from(is_success == Some(false));
            counts.failed_deliveries += u64::from(matches!(one.settlement, Settlement::Failed(_)));
        }
    }

    /// Counts deliveries that failed without an attempt.
    pub(super) fn note_refused(&self, endpoints: impl IntoIterator<Item = EndpointId>) {
        let mut noted = self.lock();
        for endpoint in endpoints {
            noted.counts.entry(endpoint).or_default().failed_deliveries += 1;
        }
    }

    /// Counts events on which filters failed.
    pub(super) fn note_filter_errors(&self, errors: impl IntoIterator<Item = (EndpointId, u64)>) {
        let mut noted = self.lock();
        for (endpoint, count) in errors {
            noted.counts.entry(endpoint).or_default().filter_errors += count;
        }
    }

    /// The endpoints that failed since the last time, once each.
    pub(super) fn take_faltering(&self) -> Vec<Faltering> {
        let mut taken = Vec::new();
        self.lock().streaks.retain(|endpoint, streak| {
            if streak.has_grown || streak.ended > 0 {
                taken.push(Faltering { endpoint: *endpoint, ended: streak.ended, is_ordinary: streak.ended_ordinary });
            }
            *streak = Streak { current: streak.current, is_ordinary: streak.is_ordinary, ..Streak::default() };
            streak.current > 0
        });
        taken
    }

    pub(super) fn take_counts(&self) -> IdMap<EndpointId, Counts> {
        std::mem::take(&mut self.lock().counts)
    }

    pub(super) fn give_back(&self, counts: IdMap<EndpointId, Counts>) {
        let mut noted = self.lock();
        for (endpoint, more) in counts {
            let kept = noted.counts.entry(endpoint).or_default();
            *kept = kept.plus(more);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn streak(results: &str) -> Streak {
        let mut streak = Streak::default();
        for result in results.chars() {
            streak.add(result == 'S', false);
        }
        streak
    }

    #[test]
    fn a_success_ends_a_streak_and_its_length_is_kept() {
        let check = |results, current, ended| {
            let streak = streak(results);
            assert_eq!((streak.current, streak.ended), (current, ended), "{results}");
        };
        check("", 0, 0);
        check("FF", 2, 0);
        check("FFFS", 0, 3);
        check("FFFSFFS", 0, 3);
        check("FSFFFFSF", 1, 4);
    }

    #[test]
    fn who_failed_is_told_once_and_a_streak_goes_on_from_look_to_look() {
        let tallies = Tallies::default();
        let endpoint = EndpointId::from_uuid(Uuid::from_u128(1));
        let look = |results: &str| {
            for result in results.chars() {
                tallies.lock().streaks.entry(endpoint).or_default().add(result == 'S', false);
            }
            tallies.take_faltering().iter().map(|one| one.ended).collect::<Vec<_>>()
        };
        assert_eq!(look("FF"), [0]);
        assert!(look("").is_empty(), "nothing new");
        assert_eq!(look("FS"), [3], "two of before and one");
        assert!(look("").is_empty());
        assert_eq!(look("F"), [0]);
        assert!(look("S").is_empty(), "what had been seen before it ended");
    }
}
