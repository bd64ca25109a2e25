//! The tailer: idle without subscribers, else reads what is new and puts it into the ring.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::Ended;
use super::ring::{Boundary, Presence, Ring};
use crate::store::{Cursor, Key, Store, TailError};
use crate::telemetry::log::tried_again;

/// How long the timeline goes unread when no hint comes: other replicas' transitions show within this.
const POLL: Duration = Duration::from_millis(200);
/// How long hints are gathered before the timeline is read: at full load, hundreds of rows a read.
const GATHER: Duration = Duration::from_millis(25);
/// Rows of one read.
const PAGE_MAX: usize = 1_024;

/// Somebody who waits for the tailer to stand at the present.
pub(super) type Joining = oneshot::Sender<Result<Joined, Ended>>;

/// From where on the ring has everything.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) boundary: Boundary,
    pub(super) presence: Presence,
}

/// Runs until `shutdown`, or nobody can subscribe any more.
pub(super) async fn run(
    store: Arc<Store>,
    ring: Arc<Ring>,
    mut joiners: mpsc::Receiver<Joining>,
    shutdown: CancellationToken,
) {
    let work = async {
        while let Some(first) = joiners.recv().await {
            let Some(cursor) = start(&store, &ring, first).await else { continue };
            follow(&store, &ring, &mut joiners, cursor).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = shutdown.cancelled() => {}
    }
    ring.close();
}

/// Takes the first subscriber in: what is committed after the cursor read here, it will see.
async fn start(store: &Store, ring: &Arc<Ring>, first: Joining) -> Option<Arc<Cursor>> {
    match store.timeline_cursor().await {
        Ok(cursor) => {
            let cursor = Arc::new(cursor);
            let boundary = ring.begin(Arc::clone(&cursor));
            first.send(Ok(Joined { boundary, presence: Presence::of(ring) })).is_ok().then_some(cursor)
        }
        Err(error) => {
            let _ = first.send(Err(error.into()));
            None
        }
    }
}

/// Reads what is new, again and again, until the last subscriber has gone.
async fn follow(store: &Store, ring: &Arc<Ring>, joiners: &mut mpsc::Receiver<Joining>, mut lower: Arc<Cursor>) {
    let mut hints = store.growth_hints();
    let mut newcomers: Vec<Joining> = Vec::new();
    // In the middle of a batch.
    let mut rest: Option<(Arc<Cursor>, Key)> = None;
    // Nobody can join any more once whoever hands out subscriptions is gone; those who are here go on.
    let mut is_open = true;
    while ring.subscribers() > 0 || !newcomers.is_empty() {
        if rest.is_none() {
            hints.mark_unchanged();
        }
        let began = Instant::now();
        let read = store.timeline_since(&lower, rest.as_ref().map(|(upper, key)| (upper, *key)), PAGE_MAX).await;
        match read {
            Ok(page) => {
                let upper = Arc::clone(&page.batch.upper);
                rest = page.rest.map(|key| (Arc::clone(&upper), key));
                // After the read: they see what is committed from here on, and nothing older.
                if let Some(boundary) = ring.push(page, began) {
                    lower = upper;
                    for newcomer in newcomers.drain(..) {
                        let presence = Presence::of(ring);
                        let _ = newcomer.send(Ok(Joined { boundary: boundary.clone(), presence }));
                    }
                }
            }
            Err(TailError::Expired) => {
                // Another database, or one that lost what it had: nothing follows on what was read.
                tracing::warn!("the database is another than before; streams end");
                match store.timeline_cursor().await {
                    Ok(present) => {
                        (lower, rest) = (Arc::new(present), None);
                        ring.begin(Arc::clone(&lower));
                    }
                    Err(error) => tried_again!(error, "the timeline could not be read; trying again"),
                }
            }
            Err(TailError::Store(error)) => {
                tried_again!(error, "the timeline could not be read; trying again");
                newcomers.retain(|newcomer| !newcomer.is_closed());
                tokio::time::sleep(POLL).await;
            }
        }
        if rest.is_some() {
            continue;
        }
        tokio::select! {
            changed = hints.changed() => {
                if changed.is_err() {
                    return;
                }
                tokio::time::sleep(GATHER).await;
            }
            newcomer = joiners.recv(), if is_open => {
                is_open = newcomer.is_some();
                newcomers.extend(newcomer);
                // Whoever else waits is served by the same read: after a restart, thousands come at once.
                while let Ok(newcomer) = joiners.try_recv() {
                    newcomers.push(newcomer);
                }
            }
            () = tokio::time::sleep(POLL) => {}
        }
    }
}
