//! A claim from the database's side to the engine's: the rows, then the endpoints and events that their requests need.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::attempt::{self, Ready};
use super::roster::Current;
use super::{Shared, spans};
use crate::domain::id::EndpointId;
use crate::store::{self, Claimed, Claims, Elsewhere, LEASE, LaneRequest};

/// What a claim gave.
#[derive(Default)]
pub(super) struct Done {
    /// Everything that was claimed.
    pub(super) claimed: Vec<Claimed>,
    /// What of it can be sent.
    pub(super) ready: Vec<Ready>,
    /// What others have in flight at the endpoints that were asked about.
    pub(super) elsewhere: Vec<Elsewhere>,
    /// Lanes that have to learn first what lets their requests through.
    pub(super) refused: Vec<EndpointId>,
    /// Endpoints that cannot be read here: what was claimed for them has gone back.
    pub(super) unreadable: Vec<EndpointId>,
}

/// How long before its lease could lapse a request must have begun: from then on the delivery may be another replica's.
/// It usually begins at once; a process that was stopped goes on where it stood.
const START_MARGIN: Duration = Duration::from_secs(2);

/// Claims for the lanes and reads what their requests need. Of the `unsure` ones it first finds out what others have in
/// flight there, which counts as held.
pub(super) async fn claim(shared: &Shared, asked: &mut [LaneRequest], unsure: &[EndpointId]) -> store::Result<Done> {
    let elsewhere = shared.store.in_flight_elsewhere(unsure).await?;
    let counts: HashMap<EndpointId, usize> = elsewhere.iter().map(|one| (one.endpoint, one.held.len())).collect();
    for request in asked.iter_mut() {
        let held = counts.get(&request.endpoint).copied().unwrap_or_default();
        request.held += u32::try_from(held).unwrap_or(u32::MAX / 2);
    }
    let (began, start_by) = (shared.store.clock().now(), Instant::now() + LEASE - START_MARGIN);
    let Claims { mut claimed, refused } = shared.store.claim(asked).await?;
    if claimed.is_empty() {
        return Ok(Done { elsewhere, refused, ..Done::default() });
    }
    match prepare(shared, &claimed, start_by).await {
        Ok((ready, unreadable)) => {
            if !unreadable.is_empty() {
                let is_back = |one: &mut Claimed| unreadable.contains(&one.endpoint) && is_sendable(one);
                release(shared, claimed.extract_if(.., is_back).collect()).await;
            }
            spans::of_claim(shared, &ready, began);
            Ok(Done { claimed, ready, elsewhere, refused, unreadable })
        }
        Err(error) => {
            // Claimed but not to be sent now: better handed back than left to lapse.
            release(shared, claimed).await;
            Err(error)
        }
    }
}

/// Whether a request is to be made at all; by the time of the claim, so that the scheduler finds the same.
fn is_sendable(one: &Claimed) -> bool {
    attempt::without_request(one, one.claimed_at).is_none()
}

/// What can be sent, and the endpoints that cannot be read.
async fn prepare(
    shared: &Shared,
    claimed: &[Claimed],
    start_by: Instant,
) -> store::Result<(Vec<Ready>, Vec<EndpointId>)> {
    let sendable = || claimed.iter().filter(|one| is_sendable(one));
    let versions = sendable().map(|one| (one.endpoint, one.endpoint_version)).collect();
    let Current { endpoints, unreadable } = shared.roster.current(&shared.store, &versions).await?;
    let events = shared.store.payloads(&sendable().map(|one| one.event).collect::<Vec<_>>()).await?;
    let ready = |one: &Claimed| {
        Some(Ready {
            claimed: one.clone(),
            endpoint: Arc::clone(endpoints.get(&one.endpoint)?),
            event: Arc::clone(events.get(&one.event)?),
            start_by,
        })
    };
    Ok((sendable().filter_map(ready).collect(), unreadable))
}

/// Hands claims back that were never started.
pub(super) async fn release(shared: &Shared, claimed: Vec<Claimed>) {
    if claimed.is_empty() {
        return;
    }
    let claims: Vec<_> = claimed.iter().map(|one| (one.id, one.claim_gen)).collect();
    if let Err(error) = shared.store.release(&claims).await {
        tracing::warn!(%error, claims = claims.len(), "claims were not handed back; their leases will lapse");
    }
}
