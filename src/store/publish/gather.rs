//! What waits for a commit, gathered into batches.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout_at;

use super::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX, Waiting};

/// The queue's end.
pub(super) struct Gatherer {
    queue: mpsc::Receiver<Waiting>,
    carried: VecDeque<Waiting>,
    /// How many the batch before had.
    answered: usize,
}

/// From this many on, a batch's callers are waited for: they are likely to come back at once.
const BUSY_FROM: usize = 8;
/// How long they are waited for.
const RETURN_MAX: Duration = Duration::from_millis(1);

impl Gatherer {
    pub(super) const fn of(queue: mpsc::Receiver<Waiting>) -> Self {
        Self { queue, carried: VecDeque::new(), answered: 0 }
    }

    /// Everything that waits, up to the bounds of a batch; waits for the first. Empty when there will be no more.
    pub(super) async fn next_batch(&mut self) -> Vec<Waiting> {
        if self.carried.is_empty() {
            let mut received = Vec::with_capacity(BATCH_EVENTS_MAX);
            self.queue.recv_many(&mut received, BATCH_EVENTS_MAX).await;
            if self.answered >= BUSY_FROM {
                self.wait_for_return(&mut received).await;
            }
            self.answered = received.len();
            self.carried.extend(received);
        }
        let mut bytes = 0;
        let mut batch = Vec::with_capacity(self.carried.len());
        while bytes < BATCH_BYTES_MAX
            && let Some(next) = self.carried.pop_front()
        {
            bytes += next.event.payload.len();
            batch.push(next);
        }
        batch
    }

    /// Under load, gathers those who were just answered into the next batch: full batches cost the database a third less
    /// for each event than the halves that would go out otherwise. A caller alone never waits.
    async fn wait_for_return(&mut self, received: &mut Vec<Waiting>) {
        let enough = (received.len() + self.answered * 3 / 4).min(BATCH_EVENTS_MAX);
        let until = tokio::time::Instant::now() + RETURN_MAX;
        while received.len() < enough {
            let room = BATCH_EVENTS_MAX - received.len();
            match timeout_at(until, self.queue.recv_many(received, room)).await {
                Ok(count) if count > 0 => {}
                _ => return,
            }
        }
    }
}
