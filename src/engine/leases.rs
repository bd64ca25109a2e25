//! The claims this process holds, and their renewal: a lease lasts as long as its attempt runs and its result waits.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::domain::id::{DeliveryId, IdMap};
use crate::domain::trace::TraceId;
use crate::telemetry::log::few;

/// Every claim from its dispatch to the commit of its result.
#[derive(Debug, Default)]
pub(super) struct Leases(Mutex<IdMap<DeliveryId, Held>>);

#[derive(Debug, Clone, Copy)]
struct Held {
    claim_gen: i32,
    renewed_at: Instant,
    /// Where its event was read.
    trace_id: Option<TraceId>,
}

/// A lease is renewed once it is this old: twice before its 12 s are over.
const RENEW_AFTER: Duration = Duration::from_secs(4);
/// How often is looked for such leases.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Leases renewed by one statement.
const BATCH_MAX: usize = 500;

impl Leases {
    /// These claims are held from now on, each with the trace that it belongs to.
    pub(super) fn hold(&self, claims: impl IntoIterator<Item = (DeliveryId, i32, Option<TraceId>)>) {
        let renewed_at = Instant::now();
        let held = |(id, claim_gen, trace_id)| (id, Held { claim_gen, renewed_at, trace_id });
        self.lock().extend(claims.into_iter().map(held));
    }

    /// These are not held any more.
    pub(super) fn drop_all(&self, ids: impl IntoIterator<Item = DeliveryId>) {
        let mut held = self.lock();
        for id in ids {
            held.remove(&id);
        }
    }

    /// Those that are held.
    pub(super) fn ids(&self) -> Vec<DeliveryId> {
        let mut ids: Vec<_> = self.lock().keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// The traces of those that are held, for the log.
    pub(super) fn trace_ids(&self, ids: impl IntoIterator<Item = DeliveryId>) -> Vec<TraceId> {
        let held = self.lock();
        ids.into_iter().filter_map(|id| held.get(&id)?.trace_id).collect()
    }

    /// How many are held.
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Marks those that need it as renewed and answers them.
    fn take_due(&self) -> Vec<(DeliveryId, i32)> {
        let now = Instant::now();
        let mut due = Vec::new();
        for (id, held) in self.lock().iter_mut() {
            if now.duration_since(held.renewed_at) >= RENEW_AFTER {
                held.renewed_at = now;
                due.push((*id, held.claim_gen));
            }
        }
        due.sort_unstable();
        due
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, IdMap<DeliveryId, Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Renews until `end`. A renewal that fails is not repeated at once: the next comes before the lease ends.
pub(super) async fn renew_while_held(shared: Arc<Shared>, end: CancellationToken) {
    while end.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
        for batch in shared.leases.take_due().chunks(BATCH_MAX) {
            match shared.store.renew(batch).await {
                Ok(held) if held.len() < batch.len() => {
                    let lost = few(batch.iter().map(|(id, _)| id).filter(|id| !held.contains(id)));
                    tracing::debug!(claims = batch.len() - held.len(), deliveries = %lost, "claims were taken over or canceled");
                }
                Ok(_) => {}
                Err(error) => {
                    let traces = shared.leases.trace_ids(batch.iter().map(|(id, _)| *id));
                    tracing::warn!(
                        %error,
                        leases = batch.len(),
                        deliveries = %few(batch.iter().map(|(id, _)| id)),
                        trace_ids = %few(traces),
                        "leases were not renewed"
                    );
                }
            }
        }
    }
}
