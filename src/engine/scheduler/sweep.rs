//! The look for work that no hint told of, again and again: so that nothing is ever needed but the database.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::domain::time::Timestamp;
use crate::engine::Shared;
use crate::store::Swept;
use crate::telemetry::log::tried_again;

/// The sweep runs at least this often, so that work is found within 5 s when every hint is lost, and at most that
/// often; in between, so that it takes a two-hundredth of the time: it meets every delivery that vacuum has not removed
/// yet.
const SWEEP_EVERY_MAX: Duration = Duration::from_secs(4);
pub(super) const SWEEP_EVERY_MIN: Duration = Duration::from_secs(1);
/// However much in a hurry, the sweep takes no more than a fifth of the time.
const SWEEP_HURRIED: Duration = Duration::from_millis(20);

/// How long to pause after a sweep that took so long: the least, and how much more unless there is a hurry.
pub(super) fn pauses(took: Duration) -> (Duration, Duration) {
    let pause = (took * 200).clamp(SWEEP_EVERY_MIN, SWEEP_EVERY_MAX);
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
    let found = match shared.store.sweep().await {
        Ok(found) => {
            let oldest = oldest_wait(&found, shared.store.clock().now());
            shared.store.metrics().queue_oldest.set(oldest.as_secs_f64());
            found
        }
        Err(error) => {
            tried_again!(error, "the sweep for waiting work failed; the next one follows");
            Vec::new()
        }
    };
    (found, began.elapsed())
}

/// How long the one has waited that is due longest. Behind an open circuit they wait for their endpoint, not for us.
fn oldest_wait(found: &[Swept], now: Timestamp) -> Duration {
    let closed = found.iter().filter(|seen| seen.circuit_until.is_none());
    closed.map(|seen| now.since(seen.due.at)).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::EndpointId;
    use crate::store::Due;

    #[test]
    fn the_oldest_wait_is_that_of_what_is_due_behind_closed_circuits() {
        let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000);
        let swept = |due: i64, circuit_until| Swept {
            due: Due { endpoint: EndpointId::from_uuid(uuid::Uuid::nil()), at: at(due), priority: None },
            version: 1,
            circuit_until,
        };
        let found = [swept(10, Some(at(500))), swept(70, None), swept(90, None), swept(200, None)];
        assert_eq!(oldest_wait(&found, at(100)), Duration::from_secs(30));
        assert_eq!(oldest_wait(&found[3..], at(100)), Duration::ZERO, "not due yet");
        assert_eq!(oldest_wait(&[], at(100)), Duration::ZERO);
    }
}
