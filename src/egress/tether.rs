//! Ties a connection in the making to the attempt that asked for it.
//!
//! The pool gives a waiting request whichever connection is free first and lets the one that was begun for it go on
//! unwatched. A receiver that answers on one connection and stalls the TLS handshake on all others would so collect
//! sockets without end: when an attempt is over, what it began has a short time and one of few places to finish in.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use tokio::sync::{Semaphore, watch};
use tower::Service;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

tokio::task_local! {
    /// Lives as long as the attempt; its receivers see it dropped.
    static ATTEMPT: watch::Sender<()>;
}

/// Runs an attempt so that the connections it begins know when it is over.
pub(super) fn attempt<F: Future>(work: F) -> impl Future<Output = F::Output> {
    ATTEMPT.scope(watch::Sender::new(()), work)
}

/// How many connections may be in the making without an attempt: enough for lanes that warm up, few for a process that
/// may hold thousands.
const SPARES_MAX: usize = 256;

/// How long each of them may take.
const SPARE_TIME: Duration = Duration::from_secs(5);

/// The connection was given up: its attempt is over. Nobody waits for this error.
#[derive(Debug, thiserror::Error)]
#[error("the attempt is over")]
struct Abandoned;

/// A connector whose connections know their attempt.
#[derive(Clone)]
pub(super) struct Tether<C> {
    connector: C,
    spares: Arc<Semaphore>,
    spare_time: Duration,
}

impl<C> Tether<C> {
    pub(super) fn new(connector: C) -> Self {
        Self { connector, spares: Arc::new(Semaphore::new(SPARES_MAX)), spare_time: SPARE_TIME }
    }
}

impl<C> Service<Uri> for Tether<C>
where
    C: Service<Uri, Error = BoxError>,
    C::Response: 'static,
    C::Future: Send + Unpin + 'static,
{
    type Response = C::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<C::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.connector.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let mut connecting = self.connector.call(uri);
        let (spares, spare_time) = (Arc::clone(&self.spares), self.spare_time);
        // The pool calls from within the attempt's own task, so the attempt is always there.
        let attempt = ATTEMPT.try_with(watch::Sender::subscribe).ok();
        Box::pin(async move {
            if let Some(mut attempt) = attempt {
                tokio::select! {
                    biased;
                    connected = &mut connecting => return connected,
                    _over = attempt.changed() => {}
                }
            }
            let _place = spares.try_acquire().map_err(|_| Abandoned)?;
            tokio::time::timeout(spare_time, connecting).await.map_err(|_| Abandoned)?
        })
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tower::service_fn;

    use super::*;

    type Connecting = Pin<Box<dyn Future<Output = Result<u8, BoxError>> + Send>>;

    fn tether(
        places: usize,
        connecting: fn() -> Connecting,
    ) -> Tether<impl Service<Uri, Response = u8, Error = BoxError, Future = Connecting>> {
        Tether {
            connector: service_fn(move |_| connecting()),
            spares: Arc::new(Semaphore::new(places)),
            spare_time: Duration::from_millis(20),
        }
    }

    #[tokio::test]
    async fn a_connection_has_all_the_time_of_its_attempt() {
        let mut stalled = tether(0, || Box::pin(pending()));
        let waited = attempt(async {
            let connecting = stalled.call(Uri::default());
            tokio::time::timeout(Duration::from_millis(100), connecting).await
        });
        assert!(waited.await.is_err(), "given up before the attempt was over");
    }

    /// A connection begun by an attempt that is already over.
    fn orphan<S: Service<Uri>>(mut tether: S) -> S::Future {
        ATTEMPT.sync_scope(watch::Sender::new(()), || tether.call(Uri::default()))
    }

    #[tokio::test]
    async fn a_connection_that_outlives_its_attempt_is_given_up_after_a_while() {
        let stalled = tether(1, || Box::pin(pending()));
        assert!(orphan(stalled).await.is_err_and(|error| error.is::<Abandoned>()));
    }

    #[tokio::test]
    async fn one_that_finishes_is_kept_while_there_is_a_place() {
        let later = || -> Connecting {
            Box::pin(async {
                tokio::task::yield_now().await;
                Ok(7)
            })
        };
        assert!(orphan(tether(1, later)).await.is_ok());
        assert!(orphan(tether(0, later)).await.is_err_and(|error| error.is::<Abandoned>()));
        assert!(orphan(tether(0, || Box::pin(ready(Ok(7))))).await.is_ok());
    }
}
