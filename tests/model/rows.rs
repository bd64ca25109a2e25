//! What a delivery is in the database, and what each statement does to it: the model's half of `store`.
//!
//! A function here is one statement, which is one step: PostgreSQL locks the row and checks the statement's conditions
//! again under that lock. [`Rule`] names what a wrong protocol would leave out. What follows from an attempt is not
//! modelled but asked of `domain::delivery`.

use std::time::Duration;

use bytes::Bytes;
use hooklane::domain::attempt::{AttemptOutcome, AttemptResult};
use hooklane::domain::delivery::{Decision, DeliveryState, Unsent, settle, unsent};
use hooklane::domain::retry::RetryPolicy;

/// The protocol as it is, and wrong ones that lack one rule of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// The protocol as it is built.
    AsBuilt,
    /// A completion does not name its claim.
    CompletionWithoutFence,
    /// A renewal does not name its claim.
    RenewalWithoutFence,
    /// A release does not name its claim.
    ReleaseWithoutFence,
    /// A claim takes what it read before it had the lock.
    ClaimWithoutRecheck,
    /// A cancel takes what it read as waiting.
    CancelWithoutRecheck,
    /// A retry takes what it read as waiting.
    RetryWithoutRecheck,
    /// A completion does not look whether its claim still runs: it may have ended it itself.
    CompletionWithoutStateCheck,
    /// A completion sets a retry due without looking for a cancel.
    CompletionWithoutCancelCheck,
    /// A release hands back what was canceled meanwhile.
    ReleaseWithoutCancelCheck,
    /// A completion leaves its row where it was.
    CompletionWithoutDelete,
    /// A retry of a settled delivery counts its claims from the beginning.
    RetryWithoutGeneration,
    /// A claim does not record the attempt that was lost.
    LossWithoutRecord,
    /// A lost attempt spends a retry.
    LossSpendsRetry,
    /// A delivery is sent however many attempts were lost.
    LossWithoutCap,
    /// A request leaves before its claim is committed.
    RequestBeforeClaim,
}

/// What stands in `outstanding`. Instants are what they mean now: a lease holds or has lapsed, a row is due or waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Row {
    pub(crate) state: DeliveryState,
    pub(crate) claim_gen: i32,
    pub(crate) attempt_count: u32,
    pub(crate) retries_spent: u32,
    pub(crate) lost_count: u32,
    pub(crate) cancel_requested: bool,
    pub(crate) lease: Lease,
    pub(crate) is_due: bool,
    /// Counts claims, whatever the protocol makes of `claim_gen`: by it the properties know whose claim is current.
    pub(crate) claims: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Lease {
    None,
    Holds,
    Lapsed,
}

/// What stands in `settled_succeeded` or `settled_failed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Settled {
    pub(crate) state: DeliveryState,
    pub(crate) claim_gen: i32,
    pub(crate) attempt_count: u32,
    pub(crate) reason: Option<Reason>,
    pub(crate) claims: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Reason {
    /// What the last answer was.
    Answer,
    LostTooOften,
    Canceled,
}

/// A row of `timeline`: its kind, and the attempt it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Entry {
    pub(crate) kind: i16,
    /// The attempt's number and outcome.
    pub(crate) attempt: Option<(u32, i16)>,
}

/// The contract's kinds of transitions, as far as they are modelled.
pub(crate) mod kind {
    pub(crate) const QUEUED: i16 = 1;
    pub(crate) const RETRYING: i16 = 2;
    pub(crate) const LOST: i16 = 3;
    pub(crate) const RETRIED: i16 = 8;
}

/// One delivery, in all tables.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Tables {
    pub(crate) outstanding: Option<Row>,
    pub(crate) settled: Vec<Settled>,
    pub(crate) timeline: Vec<Entry>,
}

/// What a worker knows of its claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Claim {
    pub(crate) claim_gen: i32,
    pub(crate) attempt: u32,
    pub(crate) retries_spent: u32,
    pub(crate) lost_count: u32,
    pub(crate) cancel_requested: bool,
    /// [`Row::claims`] at this claim.
    pub(crate) serial: u32,
}

/// What a receiver answers, one for each thing that can follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Answer {
    Ok,
    Unavailable,
    NotFound,
}

impl Answer {
    pub(crate) const ALL: [Self; 3] = [Self::Ok, Self::Unavailable, Self::NotFound];

    /// The answer as the egress reports it.
    pub(crate) fn result(self) -> AttemptResult {
        let (outcome, status, error) = match self {
            Self::Ok => (AttemptOutcome::Succeeded, 200, ""),
            Self::Unavailable => (AttemptOutcome::HttpError, 503, "HTTP 503: Service Unavailable"),
            Self::NotFound => (AttemptOutcome::HttpError, 404, "HTTP 404: Not Found"),
        };
        AttemptResult {
            outcome,
            duration: Duration::from_millis(5),
            status,
            response_headers: Vec::new(),
            response_body: Bytes::new(),
            response_truncated: false,
            error: error.to_owned(),
            retry_after: None,
        }
    }
}

/// What a worker completes its claim with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Settles(DeliveryState, Option<Reason>),
    Retries(Duration),
}

impl Claim {
    /// Whether the request of this claim leaves; what ends it where it does not.
    pub(crate) fn unsent(&self, rule: Rule) -> Option<Ending> {
        let lost_count = if rule == Rule::LossWithoutCap { 0 } else { self.lost_count };
        Some(match unsent(self.cancel_requested, lost_count, false)? {
            Unsent::Canceled => Ending::Settles(DeliveryState::Canceled, Some(Reason::Canceled)),
            Unsent::Expired => unreachable!("nothing here has an expire_time"),
            Unsent::LostTooOften => Ending::Settles(DeliveryState::Failed, Some(Reason::LostTooOften)),
        })
    }

    /// What follows from an answer.
    pub(crate) fn settle(&self, answer: Answer, policy: &RetryPolicy) -> Ending {
        match settle(self.retries_spent, &answer.result(), policy, 0.5) {
            Decision::Succeed => Ending::Settles(DeliveryState::Succeeded, None),
            Decision::Fail => Ending::Settles(DeliveryState::Failed, Some(Reason::Answer)),
            Decision::Retry { delay } => Ending::Retries(delay),
        }
    }
}

impl Row {
    pub(crate) fn is_claimable(&self) -> bool {
        self.is_due && self.lease != Lease::Holds
    }
}

impl Tables {
    /// A published delivery.
    pub(crate) fn published() -> Self {
        let row = Row {
            state: DeliveryState::Pending,
            claim_gen: 0,
            attempt_count: 0,
            retries_spent: 0,
            lost_count: 0,
            cancel_requested: false,
            lease: Lease::None,
            is_due: true,
            claims: 0,
        };
        Self {
            outstanding: Some(row),
            settled: Vec::new(),
            timeline: vec![Entry { kind: kind::QUEUED, attempt: None }],
        }
    }

    /// `CLAIM`. `seen` is what a claim goes by that checks nothing under the lock.
    pub(crate) fn claim(&mut self, rule: Rule, seen: Option<Row>) -> Option<Claim> {
        let row = seen.or(self.outstanding).filter(Row::is_claimable)?;
        let was_lost = row.state == DeliveryState::InFlight;
        if was_lost && rule != Rule::LossWithoutRecord {
            let attempt = Some((row.attempt_count, AttemptOutcome::Lost.number()));
            self.timeline.push(Entry { kind: kind::LOST, attempt });
        }
        let mut serial = row.claims + 1;
        if let Some(current) = &mut self.outstanding {
            current.state = DeliveryState::InFlight;
            current.lease = Lease::Holds;
            current.claim_gen += 1;
            current.attempt_count += 1;
            current.lost_count += u32::from(was_lost);
            current.retries_spent += u32::from(was_lost && rule == Rule::LossSpendsRetry);
            current.claims += 1;
            serial = current.claims;
        }
        Some(Claim {
            claim_gen: row.claim_gen + 1,
            attempt: row.attempt_count + 1,
            retries_spent: row.retries_spent,
            lost_count: row.lost_count + u32::from(was_lost),
            cancel_requested: row.cancel_requested,
            serial,
        })
    }

    /// `COMPLETE`; a retry that finds a cancel becomes one. `answer` is the one that ended the attempt, if one was made.
    pub(crate) fn complete(&mut self, rule: Rule, claim: &Claim, ending: Ending, answer: Option<Answer>) {
        let Some(row) = self.outstanding else { return };
        let is_named = row.claim_gen == claim.claim_gen || rule == Rule::CompletionWithoutFence;
        let runs = row.state == DeliveryState::InFlight || rule == Rule::CompletionWithoutStateCheck;
        if !is_named || !runs {
            return;
        }
        let attempt_count = if answer.is_some() { claim.attempt } else { claim.attempt - 1 };
        let attempt = answer.map(|answer| (claim.attempt, answer.result().outcome.number()));
        let is_canceled = row.cancel_requested;
        let (state, reason) = match ending {
            Ending::Retries(_) if !is_canceled || rule == Rule::CompletionWithoutCancelCheck => {
                self.outstanding = Some(Row {
                    state: DeliveryState::Retrying,
                    attempt_count,
                    retries_spent: row.retries_spent + 1,
                    cancel_requested: false,
                    lease: Lease::None,
                    is_due: false,
                    ..row
                });
                return self.timeline.push(Entry { kind: kind::RETRYING, attempt });
            }
            Ending::Retries(_) => (DeliveryState::Canceled, Some(Reason::Canceled)),
            Ending::Settles(DeliveryState::Failed, _) if is_canceled => {
                (DeliveryState::Canceled, Some(Reason::Canceled))
            }
            Ending::Settles(state, reason) => (state, reason),
        };
        if rule != Rule::CompletionWithoutDelete {
            self.outstanding = None;
        }
        self.settled.push(Settled { state, claim_gen: row.claim_gen, attempt_count, reason, claims: row.claims });
        self.timeline.push(Entry { kind: state.number(), attempt });
    }

    /// `RENEW`.
    pub(crate) fn renew(&mut self, rule: Rule, claim: &Claim) {
        if let Some(row) = &mut self.outstanding
            && row.state == DeliveryState::InFlight
            && (row.claim_gen == claim.claim_gen || rule == Rule::RenewalWithoutFence)
        {
            row.lease = Lease::Holds;
        }
    }

    /// `RELEASE`.
    pub(crate) fn release(&mut self, rule: Rule, claim: &Claim) {
        if let Some(row) = &mut self.outstanding
            && row.state == DeliveryState::InFlight
            && (row.claim_gen == claim.claim_gen || rule == Rule::ReleaseWithoutFence)
            && (!row.cancel_requested || rule == Rule::ReleaseWithoutCancelCheck)
        {
            row.state = if row.attempt_count > 1 { DeliveryState::Retrying } else { DeliveryState::Pending };
            row.attempt_count -= 1;
            row.lease = Lease::None;
            row.cancel_requested = false;
            row.claim_gen += 1;
        }
    }

    /// `CANCEL_WAITING`, or else `CANCEL_IN_FLIGHT`; whether either found its row. `seen_waiting`: what a cancel goes by
    /// that checks nothing under the lock.
    pub(crate) fn cancel(&mut self, seen_waiting: bool) -> bool {
        let Some(row) = &mut self.outstanding else { return false };
        if row.state == DeliveryState::InFlight && !seen_waiting {
            row.cancel_requested = true;
            return true;
        }
        self.settled.push(Settled {
            state: DeliveryState::Canceled,
            claim_gen: row.claim_gen + 1,
            attempt_count: row.attempt_count,
            reason: Some(Reason::Canceled),
            claims: row.claims,
        });
        self.outstanding = None;
        self.timeline.push(Entry { kind: DeliveryState::Canceled.number(), attempt: None });
        true
    }

    /// `RETRY_WAITING`, or else `RESTORE`; whether either found its row. `seen_waiting` as above.
    pub(crate) fn retry(&mut self, rule: Rule, seen_waiting: bool) -> bool {
        if let Some(row) = &mut self.outstanding {
            if row.state != DeliveryState::Retrying && !seen_waiting {
                return false;
            }
            row.is_due = true;
            row.claim_gen += 1;
            row.retries_spent = 0;
            row.lost_count = 0;
        } else {
            let Some(settled) = self.settled.pop_if(|settled| settled.state != DeliveryState::Succeeded) else {
                return false;
            };
            let was_attempted = settled.attempt_count > 0;
            self.outstanding = Some(Row {
                state: if was_attempted { DeliveryState::Retrying } else { DeliveryState::Pending },
                claim_gen: if rule == Rule::RetryWithoutGeneration { 0 } else { settled.claim_gen + 1 },
                attempt_count: settled.attempt_count,
                retries_spent: 0,
                lost_count: 0,
                cancel_requested: false,
                lease: Lease::None,
                is_due: true,
                claims: settled.claims,
            });
        }
        self.timeline.push(Entry { kind: kind::RETRIED, attempt: None });
        true
    }

    /// Where it stands: the state that a reader sees.
    pub(crate) fn state(&self) -> Option<DeliveryState> {
        self.outstanding.map(|row| row.state).or_else(|| self.settled.last().map(|settled| settled.state))
    }

    /// [`Row::claims`], wherever the delivery stands.
    pub(crate) fn claims(&self) -> u32 {
        self.outstanding
            .map(|row| row.claims)
            .or_else(|| self.settled.last().map(|settled| settled.claims))
            .unwrap_or(0)
    }

    /// The fence, wherever the delivery stands.
    pub(crate) fn claim_gen(&self) -> Option<i32> {
        self.outstanding.map(|row| row.claim_gen).or_else(|| self.settled.last().map(|settled| settled.claim_gen))
    }
}
