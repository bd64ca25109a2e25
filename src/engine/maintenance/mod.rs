//! Chores beside the deliveries, a file each. Every replica runs them all: each is safe to run anywhere at any time.

mod alerts;
mod backlog;
mod clock;
mod expiry;
mod filters;
mod gauges;
mod idempotency;
mod lapsed;
mod order;
mod partitions;
mod replays;
mod retention;
mod stats;
mod tombstones;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::domain::alert::AlertRules;
use crate::store::{Publisher, Store};

/// Runs the chores until `end`; a chore that fails is logged and comes again.
pub async fn run(store: Arc<Store>, publisher: Publisher, rules: AlertRules, end: CancellationToken) {
    let chores = async {
        tokio::join!(
            alerts::run(&store, &publisher, &rules),
            backlog::run(&store),
            clock::run(&store),
            expiry::run(&store),
            filters::run(&store),
            gauges::run(&store),
            idempotency::run(&store),
            lapsed::run(&store),
            order::run(&store),
            partitions::run(&store),
            replays::run(&store),
            retention::run(&store),
            stats::run(&store),
            tombstones::run(&store),
        )
    };
    end.run_until_cancelled(chores).await;
    filters::record(&store).await;
    alerts::record(&store).await;
    stats::record(&store).await;
}
