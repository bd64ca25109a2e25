//! The live stream: every transition of every delivery, pushed to whoever subscribed.
//!
//! One tailer reads the timeline for all subscribers of this process, and only while there are any. It is woken by
//! hints and polls otherwise; what it reads goes into one bounded ring, from which each subscriber filters.

mod filter;
mod tail;

use std::sync::Arc;

use tokio::sync::{broadcast, oneshot};
use tokio_util::sync::CancellationToken;

pub use self::filter::Filter;
use crate::store::{self, Store, TimelineEvent};

/// Transitions kept for slow subscribers; one that falls further behind is cut off rather than skipped over.
const RING_MAX: usize = 16_384;

/// Hands out subscriptions to the timeline.
#[derive(Debug)]
pub struct Live {
    ring: broadcast::Sender<Arc<TimelineEvent>>,
    joining: tokio::sync::mpsc::Sender<Joining>,
}

/// Somebody who waits for the tailer to stand at the present.
type Joining = oneshot::Sender<Result<Subscriber, store::Error>>;
type Subscriber = broadcast::Receiver<Arc<TimelineEvent>>;

/// Why there is no further transition to hand out.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// The subscriber fell behind what is kept.
    #[error("the subscriber is too slow")]
    Lagged,
    /// The process is shutting down.
    #[error("the process is shutting down")]
    Draining,
    /// The timeline could not be read.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Live {
    /// Starts the tailer; it ends with `shutdown`.
    pub fn start(store: Arc<Store>, shutdown: CancellationToken) -> Arc<Self> {
        let ring = broadcast::channel(RING_MAX).0;
        let (joining, joiners) = tokio::sync::mpsc::channel(1_024);
        tokio::spawn(tail::run(store, ring.clone(), joiners, shutdown));
        Arc::new(Self { ring, joining })
    }

    /// Subscribes to what is committed from now on: once this answers, no transition that passes `filter` is missed.
    pub async fn subscribe(&self, filter: Filter) -> Result<Subscription, Ended> {
        let (reply, joined) = oneshot::channel();
        self.joining.send(reply).await.map_err(|_| Ended::Draining)?;
        let events = joined.await.map_err(|_| Ended::Draining)??;
        Ok(Subscription { events, filter })
    }

    /// How many subscribers there are.
    pub fn subscribers(&self) -> usize {
        self.ring.receiver_count()
    }
}

/// A subscriber's end of the stream.
#[derive(Debug)]
pub struct Subscription {
    events: Subscriber,
    filter: Filter,
}

impl Subscription {
    /// The next transition that passes the filter. Safe to drop while it waits.
    pub async fn next(&mut self) -> Result<Arc<TimelineEvent>, Ended> {
        loop {
            match self.events.recv().await {
                Ok(event) if self.filter.matches(&event) => return Ok(event),
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(_)) => return Err(Ended::Lagged),
                Err(broadcast::error::RecvError::Closed) => return Err(Ended::Draining),
            }
        }
    }
}
