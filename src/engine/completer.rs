//! Puts results on record, whatever has gathered in one commit. A batch that a row spoils is halved until the row stands
//! alone; while the database is away, results wait here and nothing further is claimed.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::judge::{Judgement, judge};
use super::{Ending, Shared};
use crate::store::{Completion, Error, Failing, Settlement};
use crate::telemetry::log::few;

/// Results of one batch.
const BATCH_MAX: usize = 400;
/// How long results are gathered for a batch. Nobody waits for them (the lane has its room back since the request
/// ended), and a statement with its commit costs as much as thirty of its rows.
const GATHER: Duration = Duration::from_millis(10);
/// The wait after a failed commit, doubled up to the second.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// A batch that takes longer is stuck behind somebody's lock, or the database is away.
const SLOW: Duration = Duration::from_millis(500);

/// How many complete at once. The first has the successes while it keeps up, in the largest batches that there can be. All
/// else, and what it has no time for, falls to the others, by endpoint: those that meet at the row of an endpoint's health
/// wait for each other's commit. So an endpoint's successes and failures of the same few milliseconds may be counted in
/// another order.
pub(super) const COMPLETERS: usize = 3;

/// Where a completer's results are handed in.
#[derive(Debug)]
pub(super) struct Desk {
    results: mpsc::Sender<Ending>,
    /// Somebody waits for the end of what was handed in.
    hurry: Notify,
    /// Whether its batch has been under way for long.
    is_slow: AtomicBool,
}

impl Desk {
    /// One for each completer, and what it reads from; so many results wait at all of them together at most.
    pub(super) fn all(results_max: usize) -> ([Self; COMPLETERS], Vec<mpsc::Receiver<Ending>>) {
        let mut receivers = Vec::with_capacity(COMPLETERS);
        let desks = std::array::from_fn(|_| {
            let (results, receiver) = mpsc::channel(results_max / COMPLETERS);
            receivers.push(receiver);
            Self { results, hurry: Notify::new(), is_slow: AtomicBool::new(false) }
        });
        (desks, receivers)
    }

    /// Whether what waits here is less than a batch, and not behind one that is stuck.
    fn keeps_up(&self) -> bool {
        !self.is_slow.load(Relaxed) && self.results.max_capacity() - self.results.capacity() < BATCH_MAX
    }

    /// Hands a result in; waits while there are more than enough. Once the completer has ended, nothing becomes of it.
    async fn hand_in(&self, ending: Ending) {
        let is_waited_for = is_waited_for(&ending);
        let _ = self.results.send(ending).await;
        if is_waited_for {
            self.hurry.notify_one();
        }
    }
}

/// Hands a result in at one of the desks; waits while there are more than enough at it.
pub(super) async fn hand_in(desks: &[Desk; COMPLETERS], ending: Ending) {
    let [first, others @ ..] = desks;
    // A batch of nothing but successes is written for less, and nobody is in a hurry for it.
    let is_common = ending.0.settlement == Settlement::Succeeded && ending.1.is_none() && !is_waited_for(&ending);
    let desk = if is_common && first.keeps_up() {
        first
    } else {
        // The last bits of an id are random.
        &others[ending.0.endpoint.uuid().as_u128() as usize % others.len()]
    };
    desk.hand_in(ending).await;
}

/// The running completers.
pub(super) struct Completer {
    work: JoinSet<()>,
    /// Says that no further result will come.
    closing: CancellationToken,
}

/// Starts a completer for each receiver.
pub(super) fn start(shared: &Arc<Shared>, results: Vec<mpsc::Receiver<Ending>>) -> Completer {
    let closing = CancellationToken::new();
    let mut work = JoinSet::new();
    for (place, results) in results.into_iter().enumerate() {
        work.spawn(complete_all(Arc::clone(shared), place, results, closing.clone()));
    }
    Completer { work, closing }
}

impl Completer {
    /// Puts what is here on record, for `limit` at most, and ends.
    pub(super) async fn flush(self, limit: Duration) {
        self.closing.cancel();
        // What is left then is still held.
        let _ = tokio::time::timeout(limit, self.work.join_all()).await;
    }
}

/// Completes what is handed in at the desk of that `place`.
async fn complete_all(
    shared: Arc<Shared>,
    place: usize,
    mut results: mpsc::Receiver<Ending>,
    closing: CancellationToken,
) {
    loop {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        tokio::select! {
            biased;
            _ = results.recv_many(&mut batch, BATCH_MAX) => {}
            () = closing.cancelled() => return,
        }
        let desk = &shared.desks[place];
        gather(&mut results, &mut batch, &desk.hurry, &closing).await;
        let (batch, judgements): (Vec<Completion>, Vec<Option<Judgement>>) = batch.into_iter().unzip();
        let mut completing = pin!(complete(&shared, batch));
        let failing = match tokio::time::timeout(SLOW, completing.as_mut()).await {
            Ok(failing) => failing,
            Err(_) => {
                desk.is_slow.store(true, Relaxed);
                let failing = completing.await;
                desk.is_slow.store(false, Relaxed);
                failing
            }
        };
        judge(&shared, judgements.into_iter().flatten().collect(), &failing).await;
    }
}

/// Fills up a batch until it is full, [`GATHER`] is over, or somebody waits for what is in it. No result wakes this task:
/// what has come is taken at the end.
async fn gather(
    results: &mut mpsc::Receiver<Ending>,
    batch: &mut Vec<Ending>,
    hurry: &Notify,
    closing: &CancellationToken,
) {
    let mut is_over = false;
    let enough = tokio::time::sleep(GATHER);
    tokio::pin!(enough);
    while !is_over && batch.len() < BATCH_MAX && !batch.iter().any(is_waited_for) {
        tokio::select! {
            () = &mut enough => is_over = true,
            () = closing.cancelled() => is_over = true,
            // It may be of a result that went with the batch before.
            () = hurry.notified() => {}
        }
        let room = BATCH_MAX - batch.len();
        let _ = results.recv_many(batch, room).now_or_never();
    }
}

/// Whether the next delivery of an order waits for this one's end.
const fn is_waited_for((completion, _): &Ending) -> bool {
    completion.order_key.is_some()
}

/// Puts one batch on record, trying until the database takes it; answers the endpoints that are failing.
async fn complete(shared: &Shared, batch: Vec<Completion>) -> Vec<Failing> {
    let mut failing = Vec::new();
    let mut batches = vec![batch];
    let mut wait = RETRY_FIRST;
    while let Some(mut batch) = batches.pop() {
        match shared.store.complete(&batch).await {
            Ok(settled) => {
                let stale = batch.len() - settled.won.len();
                if stale > 0 {
                    let deliveries = batch.iter().map(|one| one.id).filter(|id| !settled.won.contains(id));
                    let deliveries = few(deliveries);
                    tracing::info!(stale, %deliveries, "results came after their claim was over and changed nothing");
                }
                shared.leases.drop_all(batch.iter().map(|one| one.id));
                // A later part of the batch knows better.
                failing.retain(|one: &Failing| settled.failing.iter().all(|newer| newer.endpoint != one.endpoint));
                failing.extend(settled.failing);
                wait = RETRY_FIRST;
            }
            Err(Error::Data(error)) if batch.len() > 1 => {
                tracing::debug!(%error, results = batch.len(), "the database refused a batch; halving it");
                let rest = batch.split_off(batch.len() / 2);
                batches.extend([batch, rest]);
            }
            Err(Error::Data(error)) if strip(&mut batch[0]) => {
                tracing::warn!(
                    %error,
                    delivery = %batch[0].id,
                    endpoint = %batch[0].endpoint,
                    trace_id = batch[0].trace_id().map(tracing::field::display),
                    "the database refused what a receiver answered; it is left out"
                );
                batches.push(batch);
            }
            Err(Error::Data(error)) => {
                tracing::error!(
                    %error,
                    delivery = %batch[0].id,
                    endpoint = %batch[0].endpoint,
                    trace_id = batch[0].trace_id().map(tracing::field::display),
                    "the database refused a result"
                );
                // Its lease lapses and the attempt shows as LOST; ten of those end the delivery.
                shared.leases.drop_all(batch.iter().map(|one| one.id));
            }
            Err(error) => {
                tracing::warn!(
                    %error,
                    results = batch.len(),
                    deliveries = %few(batch.iter().map(|one| one.id)),
                    trace_ids = %few(batch.iter().filter_map(Completion::trace_id)),
                    "results wait for the database"
                );
                batches.push(batch);
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RETRY_MAX);
            }
        }
    }
    failing
}

/// Takes from a result whatever the receiver had a say in; `false` where nothing of it is left.
fn strip(completion: &mut Completion) -> bool {
    let Some(attempt) = &mut completion.attempt else { return false };
    let result = &mut attempt.result;
    let had_any = !result.response_headers.is_empty() || !result.response_body.is_empty();
    result.response_headers.clear();
    result.response_body = Bytes::new();
    result.response_truncated = true;
    had_any
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::{DeliveryId, EndpointId};

    fn ending(id: usize, settlement: Settlement, order_key: Option<&str>) -> Ending {
        let completion = Completion {
            id: DeliveryId::from_uuid(uuid::Uuid::from_u128(id as u128)),
            endpoint: EndpointId::from_uuid(uuid::Uuid::from_u128(id as u128)),
            claim_gen: 1,
            attempt_count: 1,
            attempt: None,
            trace: None,
            settlement,
            order_key: order_key.map(Into::into),
        };
        (completion, None)
    }

    #[tokio::test]
    async fn successes_go_to_the_first_while_it_keeps_up_and_all_else_by_endpoint() {
        let (desks, mut results) = Desk::all(4_096);
        for id in 0..BATCH_MAX {
            hand_in(&desks, ending(id, Settlement::Succeeded, None)).await;
        }
        let waiting = |results: &[mpsc::Receiver<Ending>]| results.iter().map(mpsc::Receiver::len).collect::<Vec<_>>();
        assert_eq!(waiting(&results), [BATCH_MAX, 0, 0]);
        // It is behind.
        hand_in(&desks, ending(0, Settlement::Succeeded, None)).await;
        hand_in(&desks, ending(1, Settlement::Succeeded, None)).await;
        assert_eq!(waiting(&results), [BATCH_MAX, 1, 1]);
        let mut done = Vec::new();
        results[0].recv_many(&mut done, BATCH_MAX).await;
        hand_in(&desks, ending(0, Settlement::Failed("HTTP 404".to_owned()), None)).await;
        hand_in(&desks, ending(0, Settlement::Succeeded, Some("key"))).await;
        assert_eq!(waiting(&results), [0, 3, 1]);
        hand_in(&desks, ending(0, Settlement::Succeeded, None)).await;
        assert_eq!(waiting(&results), [1, 3, 1]);
        // Its batch is stuck.
        desks[0].is_slow.store(true, Relaxed);
        hand_in(&desks, ending(0, Settlement::Succeeded, None)).await;
        assert_eq!(waiting(&results), [1, 4, 1]);
    }
}
