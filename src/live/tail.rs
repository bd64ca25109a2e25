//! The tailer: idle without subscribers, else reads what is new and puts it into the ring.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;

use super::Joining;
use crate::store::{Cursor, Store, TimelineEvent};

/// How long the timeline goes unread when no hint comes: other replicas' transitions show within this.
const POLL: Duration = Duration::from_millis(200);
/// How long hints are gathered before the timeline is read: at full load, hundreds of rows a read.
const GATHER: Duration = Duration::from_millis(10);

/// Runs until `shutdown`, or nobody can subscribe any more.
pub(super) async fn run(
    store: Arc<Store>,
    ring: broadcast::Sender<Arc<TimelineEvent>>,
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
}

/// Takes the first subscriber in: what is committed after the cursor read here, it will see.
async fn start(store: &Store, ring: &broadcast::Sender<Arc<TimelineEvent>>, first: Joining) -> Option<Cursor> {
    // Subscribed before the cursor is read, so that nothing can fall between.
    let events = ring.subscribe();
    match store.timeline_cursor().await {
        Ok(cursor) => first.send(Ok(events)).is_ok().then_some(cursor),
        Err(error) => {
            let _ = first.send(Err(error));
            None
        }
    }
}

/// Reads what is new, again and again, until the last subscriber has gone.
async fn follow(
    store: &Store,
    ring: &broadcast::Sender<Arc<TimelineEvent>>,
    joiners: &mut mpsc::Receiver<Joining>,
    mut cursor: Cursor,
) {
    let mut hints = store.growth_hints();
    let mut newcomers: Vec<Joining> = Vec::new();
    // Nobody can join any more once whoever hands out subscriptions is gone; those who are here go on.
    let mut is_open = true;
    while ring.receiver_count() > 0 || !newcomers.is_empty() {
        hints.mark_unchanged();
        match store.timeline_since(&cursor).await {
            Ok((events, next)) => {
                cursor = next;
                for event in events {
                    // No receiver left is no error: the loop ends.
                    let _ = ring.send(Arc::new(event));
                }
                // After the read: they see what is committed from here on, and nothing older.
                for newcomer in newcomers.drain(..) {
                    let _ = newcomer.send(Ok(ring.subscribe()));
                }
            }
            Err(error) => tracing::warn!(%error, "the timeline could not be read; trying again"),
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
            }
            () = tokio::time::sleep(POLL) => {}
        }
    }
}
