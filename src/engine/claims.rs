//! A claim from the database's side to the engine's: the rows, then the endpoints and events that their requests need.

use std::sync::Arc;

use super::Shared;
use super::attempt::{self, Ready};
use crate::store::{self, Claimed, LaneRequest};

/// What a claim gave.
#[derive(Default)]
pub(super) struct Done {
    /// Everything that was claimed.
    pub(super) claimed: Vec<Claimed>,
    /// What of it can be sent.
    pub(super) ready: Vec<Ready>,
}

/// Claims for the lanes and reads what their requests need.
pub(super) async fn claim(shared: &Shared, asked: &[LaneRequest]) -> store::Result<Done> {
    let claimed = shared.store.claim(asked).await?;
    if claimed.is_empty() {
        return Ok(Done::default());
    }
    match prepare(shared, &claimed).await {
        Ok(ready) => Ok(Done { claimed, ready }),
        Err(error) => {
            // Claimed but not to be sent now: better handed back than left to lapse.
            release(shared, claimed).await;
            Err(error)
        }
    }
}

async fn prepare(shared: &Shared, claimed: &[Claimed]) -> store::Result<Vec<Ready>> {
    let sendable = || claimed.iter().filter(|one| attempt::without_request(one).is_none());
    let versions = sendable().map(|one| (one.endpoint, one.endpoint_version)).collect();
    let endpoints = shared.roster.current(&shared.store, &versions).await?;
    let events = shared.store.payloads(&sendable().map(|one| one.event).collect::<Vec<_>>()).await?;
    let ready = |one: &Claimed| {
        Some(Ready {
            claimed: one.clone(),
            endpoint: Arc::clone(endpoints.get(&one.endpoint)?),
            event: Arc::clone(events.get(&one.event)?),
        })
    };
    Ok(sendable().filter_map(ready).collect())
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
