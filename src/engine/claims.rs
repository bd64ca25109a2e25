//! A claim from the database's side to the engine's: the rows, then the endpoints and events that their requests need.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::attempt::{self, Ready};
use super::roster::Current;
use super::{Shared, spans};
use crate::domain::event::Event;
use crate::domain::id::{DeliveryId, EndpointId, EventId, IdMap, IdSet};
use crate::domain::time::Timestamp;
use crate::domain::trace::TraceId;
use crate::store::{self, Claimed, Claims, Elsewhere, LEASE, LaneRequest, Settlement, Taken};
use crate::telemetry::log::few;

/// What a claim gave.
#[derive(Default)]
pub(super) struct Done {
    /// Everything that was claimed.
    pub(super) claimed: Vec<Claimed>,
    /// What of it can be sent.
    pub(super) ready: Vec<Ready>,
    /// Events of those that fail without a request.
    pub(super) unsent_events: IdMap<EventId, Arc<Event>>,
    /// What others have in flight at the endpoints that were asked about.
    pub(super) elsewhere: Vec<Elsewhere>,
    /// Lanes that have to learn first what lets their requests through.
    pub(super) refused: Vec<EndpointId>,
    /// Endpoints that cannot be read here: what was claimed for them has gone back.
    pub(super) unreadable: Vec<EndpointId>,
}

/// A claim that was never started, and the trace that it belongs to, where its event was read.
pub(super) struct Unstarted {
    claim: (DeliveryId, i32),
    trace_id: Option<TraceId>,
}

impl From<Claimed> for Unstarted {
    fn from(one: Claimed) -> Self {
        Self { claim: (one.id, one.claim_gen), trace_id: None }
    }
}

impl From<Ready> for Unstarted {
    fn from(ready: Ready) -> Self {
        Self { trace_id: Some(ready.event.trace_id()), ..ready.claimed.into() }
    }
}

impl Done {
    /// Takes out what was claimed and cannot be sent; there is seldom any.
    pub(super) fn take_unsent(&mut self) -> Vec<Claimed> {
        let mut claimed = std::mem::take(&mut self.claimed);
        if claimed.len() == self.ready.len() {
            return Vec::new();
        }
        let ready: IdSet<DeliveryId> = self.ready.iter().map(|one| one.claimed.id).collect();
        claimed.retain(|one| !ready.contains(&one.id));
        claimed
    }

    /// All of it, where nothing of it is to be started.
    pub(super) fn into_unstarted(mut self) -> impl Iterator<Item = Unstarted> {
        let unsent = self.take_unsent();
        self.ready.into_iter().map(Unstarted::from).chain(unsent.into_iter().map(Unstarted::from))
    }
}

/// How long before its lease could lapse a request must have begun: from then on the delivery may be another replica's.
/// It usually begins at once; a process that was stopped goes on where it stood.
const START_MARGIN: Duration = Duration::from_secs(2);

/// Claims for the lanes and reads what their requests need. Of the `unsure` ones it first finds out what others have in
/// flight there, which counts as held.
pub(super) async fn claim(shared: &Shared, asked: &mut [LaneRequest], unsure: &[EndpointId]) -> store::Result<Done> {
    let elsewhere = shared.store.in_flight_elsewhere(unsure).await?;
    let counts: IdMap<EndpointId, usize> = elsewhere.iter().map(|one| (one.endpoint, one.held.len())).collect();
    for request in asked.iter_mut() {
        let held = counts.get(&request.endpoint).copied().unwrap_or_default();
        request.held += u32::try_from(held).unwrap_or(u32::MAX / 2);
    }
    let (began, start_by) = (shared.store.clock().now(), Instant::now() + LEASE - START_MARGIN);
    let Claims { claimed, lost, refused } = shared.store.claim(asked).await?;
    let Some(at) = claimed.first().map(|one| one.claimed_at) else {
        return Ok(Done { elsewhere, refused, ..Done::default() });
    };
    if !lost.is_empty() {
        let store = Arc::clone(&shared.store);
        // What was claimed does not wait for it.
        tokio::spawn(async move { store.tell_of_lost(&lost, at).await });
    }
    let done = make_ready(shared, claimed, began, start_by).await?;
    Ok(Done { elsewhere, refused, ..done })
}

/// Reads what the requests of what was claimed by a publish need.
pub(super) async fn take_up(shared: &Shared, taken: Taken) -> store::Result<Done> {
    make_ready(shared, taken.claimed, taken.began, taken.began_at + LEASE - START_MARGIN).await
}

/// Reads what the requests of claimed deliveries need. Where that fails the claims go back.
async fn make_ready(
    shared: &Shared,
    mut claimed: Vec<Claimed>,
    began: Timestamp,
    start_by: Instant,
) -> store::Result<Done> {
    match prepare(shared, &claimed, start_by).await {
        Ok(Prepared { ready, unsent_events, unreadable }) => {
            if !unreadable.is_empty() {
                let is_back = |one: &mut Claimed| unreadable.contains(&one.endpoint) && is_sendable(one);
                release(shared, claimed.extract_if(.., is_back).collect()).await;
            }
            spans::of_claim(shared, &ready, began);
            Ok(Done { claimed, ready, unsent_events, unreadable, ..Done::default() })
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

/// What a claim needs besides its rows.
struct Prepared {
    ready: Vec<Ready>,
    unsent_events: IdMap<EventId, Arc<Event>>,
    unreadable: Vec<EndpointId>,
}

/// Reads what can be sent.
async fn prepare(shared: &Shared, claimed: &[Claimed], start_by: Instant) -> store::Result<Prepared> {
    let sendable = || claimed.iter().filter(|one| is_sendable(one));
    // Nobody has to be told whose deliveries are canceled or expired.
    let failing = claimed
        .iter()
        .filter(|one| matches!(attempt::without_request(one, one.claimed_at), Some(Settlement::Failed(_))));
    let versions = sendable().map(|one| (one.endpoint, one.endpoint_version)).collect();
    let Current { endpoints, unreadable } = shared.roster.current(&shared.store, &versions).await?;
    let wanted: Vec<EventId> = sendable().chain(failing.clone()).map(|one| one.event).collect();
    let events = shared.store.payloads(&wanted).await?;
    let ready = |one: &Claimed| {
        Some(Ready {
            claimed: one.clone(),
            endpoint: Arc::clone(endpoints.get(&one.endpoint)?),
            event: Arc::clone(events.get(&one.event)?),
            start_by,
        })
    };
    let ready = sendable().filter_map(ready).collect();
    let unsent_events = failing.filter_map(|one| Some((one.event, Arc::clone(events.get(&one.event)?)))).collect();
    Ok(Prepared { ready, unsent_events, unreadable })
}

/// Hands claims back that were never started.
pub(super) async fn release(shared: &Shared, unstarted: Vec<impl Into<Unstarted>>) {
    if unstarted.is_empty() {
        return;
    }
    let (claims, traces): (Vec<_>, Vec<_>) =
        unstarted.into_iter().map(Into::into).map(|one: Unstarted| (one.claim, one.trace_id)).unzip();
    if let Err(error) = shared.store.release(&claims).await {
        tracing::warn!(
            %error,
            claims = claims.len(),
            deliveries = %few(claims.iter().map(|(id, _)| id)),
            trace_ids = %few(traces.iter().flatten()),
            "claims were not handed back; their leases will lapse"
        );
    }
}
