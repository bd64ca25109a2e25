//! What is counted of the store's own work: by batch, and off handles that were made at the start.

use super::connections::Connections;
use super::{Completion, Settlement};
use crate::domain::id::{DeliveryId, IdSet};
use crate::domain::time::Timestamp;
use crate::telemetry::metrics::Metrics;

/// Has the pools' connections counted whenever somebody reads the metrics.
pub(super) fn watch_pools(metrics: &Metrics, pools: [(&'static str, &Connections); 3]) {
    for (name, pool) in pools {
        let ((busy, idle), pool) = (metrics.connections(name), pool.clone());
        metrics.on_read(move || {
            let (open, unused) = pool.counts();
            busy.set((open - unused) as i64);
            idle.set(unused as i64);
        });
    }
}

/// Counts those of a batch whose claim was current. One that somebody canceled while its last attempt was under way is
/// counted as failed, as in the figures.
pub(super) fn count_completed(metrics: &Metrics, batch: &[Completion], won: &IdSet<DeliveryId>, now: Timestamp) {
    for one in batch.iter().filter(|one| won.contains(&one.id)) {
        if let Some(attempt) = &one.attempt {
            metrics.attempts(attempt.result.outcome).inc();
            metrics.delivery_duration.observe(attempt.result.duration.as_secs_f64());
        }
        match &one.settlement {
            Settlement::Succeeded => {
                metrics.deliveries.succeeded.inc();
                metrics.end_to_end.observe(now.since(one.id.time()).as_secs_f64());
            }
            Settlement::Failed(_) => metrics.deliveries.failed.inc(),
            Settlement::Canceled(_) => metrics.deliveries.canceled.inc(),
            Settlement::Expired => metrics.deliveries.expired.inc(),
            Settlement::Retry { .. } => {}
        }
    }
}
