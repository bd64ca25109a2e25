//! The look for work that no hint told of, again and again: so that nothing is ever needed but the database.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::engine::Shared;
use crate::store::Swept;

/// The sweep runs at least this often, so that work is found within 5 s when every hint is lost, and at most that
/// often; in between, so that it takes a twentieth of the time.
const SWEEP_EVERY_MAX: Duration = Duration::from_secs(4);
pub(super) const SWEEP_EVERY_MIN: Duration = Duration::from_secs(1);
/// However much in a hurry, the sweep takes no more than a fifth of the time.
const SWEEP_HURRIED: Duration = Duration::from_millis(20);

/// How long to pause after a sweep that took so long: the least, and how much more unless there is a hurry.
pub(super) fn pauses(took: Duration) -> (Duration, Duration) {
    let pause = (took * 20).clamp(SWEEP_EVERY_MIN, SWEEP_EVERY_MAX);
    let least = (took * 4).clamp(SWEEP_HURRIED, pause);
    (least, pause - least)
}

/// Looks for work, not before `least` and at most `more` later, unless there is a hurry; answers how long the look took.
pub(super) async fn sweep(
    shared: Arc<Shared>,
    least: Duration,
    more: Duration,
    hurry: Arc<Notify>,
) -> (Vec<Swept>, Duration) {
    tokio::time::sleep(least).await;
    let _ = tokio::time::timeout(more, hurry.notified()).await;
    let began = Instant::now();
    let found = shared.store.sweep().await.unwrap_or_else(|error| {
        tracing::warn!(%error, "the sweep for waiting work failed; the next one follows");
        Vec::new()
    });
    (found, began.elapsed())
}
