//! The searches: the protocol as it is holds in every state of several worlds, and each wrong one is found wrong.
//!
//! `cargo test --test model -- --nocapture` tells how many states there were, and the way to each wrong one.

use std::time::{Duration, Instant};

use hooklane::domain::retry::{Backoff, RetryPolicy};
use stateright::{Checker, HasDiscoveries, Model};

use crate::properties as must;
use crate::protocol::{Action, Budget, Protocol, State};
use crate::rows::Rule;

pub(crate) const NOTHING: Budget = Budget { crashes: 0, stalls: 0, unheard: 0, releases: 0, cancels: 0, retries: 0 };

/// Three workers and two deliveries, which are retried `max_retries` times by themselves.
pub(crate) fn world(budget: Budget, max_retries: u32) -> Protocol {
    // Long enough that no retry comes due by itself in a database that is held against the model.
    let day = Duration::from_secs(86_400);
    let backoff = Backoff::exponential(day, 1.0, day).expect("within bounds");
    let policy = RetryPolicy { backoff, jitter: 0.0, max_retries };
    Protocol { rule: Rule::AsBuilt, workers: 3, deliveries: 2, budget, policy }
}

/// Three workers and a delivery that kills them.
fn deadly() -> Protocol {
    Protocol { deliveries: 1, ..world(Budget { crashes: 11, ..NOTHING }, 0) }
}

#[expect(clippy::print_stdout, reason = "the figures of a search, for who asks with --nocapture")]
fn holds(model: Protocol) {
    let (began, budget) = (Instant::now(), model.budget);
    let checker = model.checker().symmetry_fn(State::representative).spawn_dfs().join();
    checker.assert_properties();
    println!(
        "{} states, {} deep, in {:?}: {budget:?}",
        checker.unique_state_count(),
        checker.max_depth(),
        began.elapsed()
    );
}

#[test]
fn nothing_is_broken_by_a_cancel_around_results_written_twice() {
    holds(world(Budget { stalls: 1, unheard: 1, cancels: 1, ..NOTHING }, 1));
}

#[test]
fn nothing_is_broken_by_retries_and_claims_handed_back() {
    holds(world(Budget { stalls: 1, releases: 1, cancels: 1, retries: 1, ..NOTHING }, 0));
}

#[test]
fn nothing_is_broken_by_a_worker_that_dies_and_one_that_stalls() {
    holds(world(Budget { crashes: 1, stalls: 1, cancels: 1, retries: 1, ..NOTHING }, 0));
}

#[test]
fn nothing_is_broken_by_all_of_it_around_one_delivery() {
    let everything = Budget { stalls: 1, unheard: 1, releases: 1, cancels: 1, retries: 1, ..NOTHING };
    holds(Protocol { deliveries: 1, ..world(everything, 1) });
}

#[test]
fn a_delivery_that_kills_its_workers_ends() {
    let checker = deadly().checker().symmetry_fn(State::representative).spawn_dfs().join();
    checker.assert_no_discovery(must::NOTHING_LEFT);
    checker.assert_no_discovery(must::CAPPED);
    checker.assert_no_discovery(must::LOST_APART);
    checker.assert_any_discovery("an attempt is lost");
}

/// The shortest way to a state in which `property` is broken by a protocol without the rule.
#[expect(clippy::print_stdout, reason = "the figures of a search, for who asks with --nocapture")]
pub(crate) fn way_to_break(property: &'static str, rule: Rule) -> Vec<Action> {
    let budget = Budget { stalls: 1, unheard: 1, releases: 1, cancels: 1, retries: 1, ..NOTHING };
    let model = if rule == Rule::LossWithoutCap { deadly() } else { world(budget, 1) };
    let wanted = HasDiscoveries::AllOf([property].into());
    let checker = Protocol { rule, ..model }.checker().finish_when(wanted).spawn_bfs().join();
    let way = checker.assert_any_discovery(property).into_actions();
    println!("{rule:?}, after {} states: {way:?}", checker.unique_state_count());
    way
}

/// Tests that each wrong protocol is found wrong, and lists them.
macro_rules! wrong_protocols {
    ($($name:ident: $rule:ident breaks $property:ident;)*) => {
        /// Each wrong protocol, and the property that it breaks.
        pub(crate) const WRONG: &[(Rule, &str)] = &[$((Rule::$rule, must::$property)),*];

        $(#[test]
        fn $name() {
            way_to_break(must::$property, Rule::$rule);
        })*
    };
}

wrong_protocols! {
    a_completion_without_the_fence_is_found_wrong: CompletionWithoutFence breaks STALE;
    a_renewal_without_the_fence_is_found_wrong: RenewalWithoutFence breaks STALE;
    a_release_without_the_fence_is_found_wrong: ReleaseWithoutFence breaks STALE;
    a_claim_without_the_recheck_is_found_wrong: ClaimWithoutRecheck breaks ON_RECORD;
    a_cancel_without_the_recheck_is_found_wrong: CancelWithoutRecheck breaks UNBROKEN;
    a_retry_without_the_recheck_is_found_wrong: RetryWithoutRecheck breaks UNBROKEN;
    a_completion_of_what_is_not_in_flight_is_found_wrong: CompletionWithoutStateCheck breaks ON_RECORD;
    a_completion_that_overlooks_a_cancel_is_found_wrong: CompletionWithoutCancelCheck breaks CANCELED;
    a_release_that_overlooks_a_cancel_is_found_wrong: ReleaseWithoutCancelCheck breaks CANCELED;
    a_completion_that_leaves_its_row_is_found_wrong: CompletionWithoutDelete breaks ONE_PLACE;
    a_retry_that_resets_the_fence_is_found_wrong: RetryWithoutGeneration breaks GROWS;
    a_loss_that_is_not_recorded_is_found_wrong: LossWithoutRecord breaks ON_RECORD;
    a_loss_that_spends_a_retry_is_found_wrong: LossSpendsRetry breaks LOST_APART;
    losses_without_a_cap_are_found_wrong: LossWithoutCap breaks CAPPED;
    a_request_before_its_claim_is_found_wrong: RequestBeforeClaim breaks ON_RECORD;
}
