//! Whether an endpoint's results open or close its circuit, or disable it: by the policies its attempts were made under,
//! and the failures in a row that the database has counted.
//!
//! A success that is no probe says nothing here, so the common case costs nothing.

use std::collections::HashMap;
use std::sync::Arc;

use super::Shared;
use super::roster::Prepared;
use crate::domain::attempt::AttemptResult;
use crate::domain::counted;
use crate::domain::id::EndpointId;
use crate::domain::time::Timestamp;
use crate::store::{self, Claimed, Failing};

/// What an attempt says of its endpoint beyond its own delivery.
#[derive(Clone)]
pub(super) struct Judgement {
    endpoint: EndpointId,
    /// With the policies that hold for it.
    prepared: Arc<Prepared>,
    /// Set where it was a probe, and showed something: how often the circuit had opened, and whether it succeeded.
    probe: Option<(u32, bool)>,
    /// Whether the receiver said that it is gone for good.
    is_gone: bool,
}

/// What a receiver says that wants nothing any more (RFC 9110, section 15.5.11).
const GONE: u16 = 410;

impl Judgement {
    /// What came of an attempt; `None` where nothing follows for the endpoint.
    pub(super) fn of(
        claimed: &Claimed,
        prepared: &Arc<Prepared>,
        result: &AttemptResult,
        is_success: Option<bool>,
    ) -> Option<Self> {
        let is_success = is_success?;
        let probe = (claimed.openings > 0).then_some((claimed.openings, is_success));
        (probe.is_some() || !is_success).then(|| Self {
            endpoint: claimed.endpoint,
            prepared: Arc::clone(prepared),
            probe,
            is_gone: result.status == GONE,
        })
    }
}

/// Judges the endpoints of a batch, of which `failing` are failing now. What the database does not take is judged anew at
/// the next failure, or the next probe.
pub(super) async fn judge(shared: &Shared, judgements: Vec<Judgement>, failing: &[Failing]) {
    let mut by_endpoint: HashMap<EndpointId, Judgement> = HashMap::with_capacity(judgements.len());
    for one in judgements {
        match by_endpoint.get_mut(&one.endpoint) {
            None => {
                by_endpoint.insert(one.endpoint, one);
            }
            // The last one's policies hold; a probe and a 410 are not to be lost.
            Some(before) => {
                *before =
                    Judgement { probe: one.probe.or(before.probe), is_gone: one.is_gone || before.is_gone, ..one };
            }
        }
    }
    for judgement in by_endpoint.into_values() {
        let failing = failing.iter().find(|one| one.endpoint == judgement.endpoint);
        if let Err(error) = judge_one(shared, &judgement, failing).await {
            let endpoint = judgement.endpoint;
            tracing::warn!(%endpoint, %error, "what follows for an endpoint from its results could not be put on record");
        }
    }
}

async fn judge_one(shared: &Shared, judgement: &Judgement, failing: Option<&Failing>) -> store::Result<()> {
    let Judgement { endpoint, prepared, probe, is_gone } = judgement;
    let (store, version, breaker) = (&shared.store, prepared.version, prepared.circuit_breaker);
    if let Some(reason) = disabled_reason(prepared, *is_gone, failing, store.clock().now())
        && store.disable_endpoint(*endpoint, version, &reason).await?
    {
        tracing::warn!(%endpoint, reason, "an endpoint was disabled");
    }
    let failures = failing.map_or(0, |failing| failing.consecutive_failures);
    let (is_changed, now) = match *probe {
        Some((openings, true)) => (store.close_circuit(*endpoint, openings).await?, "closed"),
        Some((openings, false)) => {
            let wait = breaker.wait(openings.saturating_add(1));
            (store.reopen_circuit(*endpoint, version, wait, openings).await?, "open again")
        }
        None if breaker.opens_at(failures) => {
            (store.open_circuit(*endpoint, version, breaker.wait(1), breaker.failure_threshold).await?, "open")
        }
        None => return Ok(()),
    };
    if is_changed {
        tracing::info!(%endpoint, failures, "a circuit is {now}");
    }
    Ok(())
}

/// Why the endpoint is to be disabled, in words for its owner; `None` where it is not.
fn disabled_reason(prepared: &Prepared, is_gone: bool, failing: Option<&Failing>, now: Timestamp) -> Option<String> {
    if is_gone {
        return Some("the receiver answered with HTTP 410: Gone".to_owned());
    }
    let Failing { consecutive_failures, since, .. } = failing?;
    let is_met = prepared.disable_policy.disables(*consecutive_failures, now.since(*since));
    is_met.then(|| {
        let attempts = counted(*consecutive_failures, "attempt", "attempts");
        format!("{attempts} in a row failed, the first at {since}")
    })
}
