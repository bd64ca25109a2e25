//! What must hold: the invariants as conditions on a state, and the witness who remembers what a state cannot show.
//!
//! The witness goes by what happened to the rows, not by the rules that made it happen. That everything ends is a
//! condition on the last states: every action either spends a budget or brings a claim nearer to its end, so each
//! path has a last state, and none may be one where a delivery still waits.

use hooklane::domain::delivery::{DeliveryState, LOST_ATTEMPTS_MAX};
use stateright::{Model, Property};

use crate::protocol::{Action, Delivery, Operator, Protocol, State, Worker};
use crate::rows::{Claim, Entry, kind};

/// What has happened to one delivery.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Witness {
    /// The numbers of the attempts whose requests left.
    pub(crate) sent: Vec<u32>,
    /// A receiver has answered with 200.
    pub(crate) is_delivered: bool,
    /// A cancel was acknowledged, and no retry since.
    pub(crate) is_canceled: bool,
    stale_took_effect: bool,
    generation_shrank: bool,
    claim_was_broken: bool,
    sent_past_cap: bool,
    sent_although_canceled: bool,
}

impl Witness {
    /// A request of this claim leaves.
    pub(crate) fn see_request(&mut self, claim: &Claim) {
        self.sent_past_cap |= claim.lost_count >= LOST_ATTEMPTS_MAX;
        self.sent_although_canceled |= claim.cancel_requested;
    }
}

/// Notes what an action did that it must not do.
pub(crate) fn witness(before: &State, action: Action, after: &mut State) {
    let acting = match action {
        Action::Complete { worker, .. } | Action::Renew { worker } | Action::Release { worker } => Some(worker),
        _ => None,
    };
    let claim_of = |worker: usize| match before.workers[worker] {
        Worker::Holds { delivery, claim, .. } => Some((delivery, claim)),
        _ => None,
    };
    for (delivery, Delivery { tables, witness }) in after.deliveries.iter_mut().enumerate() {
        let was = &before.deliveries[delivery].tables;
        if *was == *tables {
            continue;
        }
        let current = was.outstanding.filter(|row| row.state == DeliveryState::InFlight);
        let is_current = |claim: Claim| current.is_some_and(|row| row.claims == claim.serial);
        if let Some((held, claim)) = acting.and_then(claim_of) {
            witness.stale_took_effect |= held != delivery || !is_current(claim);
        }
        witness.generation_shrank |= tables.claim_gen() < was.claim_gen();
        // Only its holder ends a claim that holds: whoever else acts leaves number and fence as they are.
        let goes_on = tables.outstanding.is_some_and(|row| current.map(|c| c.claim_gen) == Some(row.claim_gen));
        let is_holders = acting.and_then(claim_of).is_some_and(|(_, claim)| is_current(claim));
        let held = current.is_some_and(|row| row.lease == crate::rows::Lease::Holds);
        witness.claim_was_broken |= held && !goes_on && !is_holders;
    }
}

pub(crate) const ONE_PLACE: &str = "a delivery is in one place";
pub(crate) const REASONED: &str = "what has ended was delivered or says why not";
pub(crate) const NOTHING_LEFT: &str = "nothing that was acknowledged is left behind";
pub(crate) const STALE: &str = "a stale claim changes nothing";
pub(crate) const GROWS: &str = "the fence only grows";
pub(crate) const UNBROKEN: &str = "a claim is ended by its holder or by its lapse";
pub(crate) const ON_RECORD: &str = "a request that left is on record once";
pub(crate) const LOST_APART: &str = "a lost attempt spends no retry";
pub(crate) const CAPPED: &str = "lost attempts have a cap";
pub(crate) const CANCELED: &str = "an acknowledged cancel holds";

/// The properties of every world, and the signs that it is not an empty one.
pub(crate) fn all() -> Vec<Property<Protocol>> {
    type P = Property<Protocol>;
    vec![
        P::always(ONE_PLACE, |_, state| {
            each(state, |one| usize::from(one.tables.outstanding.is_some()) + one.tables.settled.len() == 1)
        }),
        P::always(REASONED, |_, state| each(state, is_reasoned)),
        P::always(NOTHING_LEFT, nothing_is_left),
        P::always(STALE, |_, state| each(state, |one| !one.witness.stale_took_effect)),
        P::always(GROWS, |_, state| each(state, |one| !one.witness.generation_shrank)),
        P::always(UNBROKEN, |_, state| each(state, |one| !one.witness.claim_was_broken)),
        P::always(ON_RECORD, |_, state| each(state, is_on_record)),
        P::always(LOST_APART, |_, state| each(state, counts_are_apart)),
        P::always(CAPPED, |_, state| each(state, |one| !one.witness.sent_past_cap)),
        P::always(CANCELED, |_, state| each(state, holds_canceled)),
        P::sometimes("a delivery succeeds", |_, state| any(state, DeliveryState::Succeeded)),
        P::sometimes("a delivery fails", |_, state| any(state, DeliveryState::Failed)),
        P::sometimes("a worker finds its claim taken over", |_, state| {
            state.workers.iter().any(|worker| match worker {
                Worker::Holds { delivery, claim, .. } => {
                    state.deliveries[*delivery].tables.claim_gen() > Some(claim.claim_gen)
                }
                _ => false,
            })
        }),
        P::sometimes("an attempt is lost", |_, state| {
            state.deliveries.iter().any(|one| one.tables.timeline.iter().any(|entry| entry.kind == kind::LOST))
        }),
    ]
}

fn each(state: &State, condition: fn(&Delivery) -> bool) -> bool {
    state.deliveries.iter().all(condition)
}

fn any(state: &State, wanted: DeliveryState) -> bool {
    state.deliveries.iter().any(|one| one.tables.state() == Some(wanted))
}

fn is_reasoned(one: &Delivery) -> bool {
    one.tables.settled.iter().all(|settled| match settled.state {
        DeliveryState::Succeeded => one.witness.is_delivered,
        _ => settled.reason.is_some(),
    })
}

fn nothing_is_left(model: &Protocol, state: &State) -> bool {
    let is_over = state.operator == Operator::Idle
        && state.workers.iter().all(|worker| *worker == Worker::Idle)
        && model.next_steps(state).is_empty();
    !is_over || each(state, |one| one.tables.state().is_some_and(DeliveryState::is_settled))
}

/// Each number once: as an ended or lost attempt of the timeline, or as the one in flight.
fn is_on_record(one: &Delivery) -> bool {
    let numbers = || one.tables.timeline.iter().filter_map(|entry| entry.attempt).map(|(number, _)| number);
    let in_flight = one.tables.outstanding.filter(|row| row.state == DeliveryState::InFlight);
    let is_in_flight = |number| in_flight.is_some_and(|row| row.attempt_count == number);
    let times = |number| numbers().filter(|&n| n == number).count() + usize::from(is_in_flight(number));
    let left = |number| one.witness.sent.iter().filter(|&&n| n == number).count();
    one.witness.sent.iter().all(|&number| times(number) == 1 && left(number) == 1)
        && numbers().all(|number| times(number) == 1)
}

/// Retries spent are the retried attempts since the last retry by hand, lost ones the LOST.
fn counts_are_apart(one: &Delivery) -> bool {
    let Some(row) = one.tables.outstanding else { return true };
    let since: Vec<&Entry> = one.tables.timeline.iter().rev().take_while(|entry| entry.kind != kind::RETRIED).collect();
    let count = |kind| u32::try_from(since.iter().filter(|entry| entry.kind == kind).count());
    count(kind::RETRYING) == Ok(row.retries_spent) && count(kind::LOST) == Ok(row.lost_count)
}

fn holds_canceled(one: &Delivery) -> bool {
    let is_kept = match one.tables.outstanding {
        Some(row) => row.cancel_requested,
        None => matches!(one.tables.state(), Some(DeliveryState::Canceled | DeliveryState::Succeeded)),
    };
    (!one.witness.is_canceled || is_kept) && !one.witness.sent_although_canceled
}
