//! The live stream: every transition of every delivery, pushed to whoever subscribed, from any time that is kept.
//!
//! One tailer reads the timeline for all subscribers of this process, and only while there are any. It is woken by
//! hints and polls otherwise; what it reads goes into one bounded ring, from which each subscriber filters. The past, and
//! what a slow subscriber missed in the ring, is read from the table.

mod audience;
mod filter;
#[doc(hidden)]
pub mod fuzzing;
mod ring;
mod subscription;
mod tail;
mod token;

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

pub use self::filter::Filter;
use self::ring::Ring;
pub use self::subscription::{News, Subscription};
use self::subscription::{PastReaders, Source};
use self::tail::{Joined, Joining};
use self::token::Tokens;
use crate::domain::time::Timestamp;
use crate::store::{self, Position, Store};

/// Subscribers that wait for the tailer; more wait to be taken in.
const JOINING_MAX: usize = 1_024;

/// Hands out subscriptions to the timeline.
#[derive(Debug)]
pub struct Live {
    store: Arc<Store>,
    ring: Arc<Ring>,
    joining: mpsc::Sender<Joining>,
    readers: PastReaders,
    tokens: Tokens,
}

/// Where a subscription begins.
#[derive(Debug, Clone)]
pub enum Start {
    /// With what is committed from now on.
    Now,
    /// With what happened from this time on, as far back as every transition is kept.
    Time(Timestamp),
    /// After what a token was given with.
    Token(String),
}

/// Why there is no further transition to hand out.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// What the subscriber has to read next is no longer kept.
    #[error("the subscriber is too slow")]
    Lagged,
    /// The process is shutting down.
    #[error("the process is shutting down")]
    Draining,
    /// The token is not one of ours, or not for this tenant.
    #[error("the resume token is not valid")]
    TokenInvalid,
    /// What follows the token, or what was read, is no longer kept, or the database is another.
    #[error("the resume token is too old")]
    Expired,
    /// The timeline could not be read.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Live {
    /// Starts the tailer; it ends with `shutdown`.
    pub fn start(store: Arc<Store>, shutdown: CancellationToken) -> Arc<Self> {
        let ring = Ring::new();
        let (metrics, watched) = (store.metrics(), Arc::clone(&ring));
        let (subscribers, lag) = (metrics.stream_subscribers.clone(), metrics.stream_lag.clone());
        metrics.on_read(move || {
            subscribers.set(watched.subscribers() as i64);
            lag.set(watched.lag().as_secs_f64());
        });
        let (joining, joiners) = mpsc::channel(JOINING_MAX);
        tokio::spawn(tail::run(Arc::clone(&store), Arc::clone(&ring), joiners, shutdown));
        let tokens = Tokens::new(store.stream_key().bytes());
        Arc::new(Self { store, ring, joining, readers: PastReaders::none(), tokens })
    }

    /// Subscribes: once this answers, no transition from the start on that passes `filter` is missed.
    pub async fn subscribe(&self, filter: Filter, start: Start) -> Result<Subscription, Ended> {
        let start = match start {
            Start::Now => None,
            Start::Time(time) => Some(Position::At(Arc::new(self.store.timeline_beginning(time).await?))),
            Start::Token(token) => {
                let position = self.tokens.open(&token, filter.scope()).ok_or(Ended::TokenInvalid)?;
                if !self.store.is_cursor_kept(position.lower()).await? {
                    return Err(Ended::Expired);
                }
                Some(position)
            }
        };
        // After that: where the tailer stands then is not before anything that a start may have seen.
        let (reply, joined) = oneshot::channel();
        self.joining.send(reply).await.map_err(|_| Ended::Draining)?;
        let Joined { boundary, presence } = joined.await.map_err(|_| Ended::Draining)??;
        let source = Source {
            store: Arc::clone(&self.store),
            presence,
            readers: self.readers.clone(),
            tokens: self.tokens.clone(),
        };
        Ok(Subscription::new(filter, source, start, boundary))
    }

    /// How many subscribers there are.
    pub fn subscribers(&self) -> usize {
        self.ring.subscribers()
    }
}
