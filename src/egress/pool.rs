//! Connections between requests: kept for a while after one, handed to the next that goes to the same origin.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::{Request, Response, Uri};
use hyper::body::Incoming;
use tower::Service;

use super::connection::{Body, Connection};
use super::outcome::Failure;
use super::tls::{Connectors, Own};
use crate::domain::tls::TlsOptions;

/// How long an unused connection is kept: less than the 60 s after which common receivers and balancers close theirs, so
/// that few requests meet a connection that is just being closed.
const IDLE_TIME: Duration = Duration::from_secs(20);
/// How often those that were kept long enough are closed.
const REAP_EVERY: Duration = Duration::from_secs(5);
/// As many as an endpoint may have in flight: a lane at its cap finds every connection again.
const IDLE_PER_ORIGIN_MAX: usize = 1_024;

/// Where connections lead: scheme and authority, and what they are secured with.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    uri: Uri,
    name: Arc<str>,
    /// An endpoint's own certificates: its connections serve nobody who has others.
    own: Option<Arc<Own>>,
}

impl Origin {
    /// The origin of an absolute `uri`.
    pub(super) fn of(uri: &Uri) -> Option<Self> {
        let name = format!("{}://{}", uri.scheme_str()?, uri.authority()?);
        Some(Self { uri: uri.clone(), name: name.into(), own: None })
    }

    /// The same, secured with an endpoint's own certificates.
    pub(super) fn with_tls(&self, options: &TlsOptions) -> Self {
        let own = Own::new(options.clone());
        let name = format!("{} {}", self.name, own.name());
        Self { uri: self.uri.clone(), name: name.into(), own: Some(Arc::new(own)) }
    }
}

/// Makes connections and keeps those that can be used again.
pub(super) struct Pool {
    connectors: Connectors,
    /// By origin, the longest unused first.
    idle: Mutex<HashMap<Arc<str>, Vec<Idle>>>,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

impl Pool {
    /// A pool that closes what was unused for long, as long as it lives itself.
    pub(super) fn new(connectors: Connectors) -> Arc<Self> {
        let pool = Arc::new(Self { connectors, idle: Mutex::default() });
        let reaped = Arc::downgrade(&pool);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(REAP_EVERY).await;
                let Some(pool) = reaped.upgrade() else { return };
                pool.close_unused(Instant::now());
            }
        });
        pool
    }

    /// Sends a request and reads the head of its answer: on a connection that is unused, else on a new one.
    pub(super) async fn send(
        &self,
        origin: &Origin,
        mut request: Request<Body>,
    ) -> Result<(Connection, Response<Incoming>), Failure> {
        while let Some(mut connection) = self.take(origin).await {
            match connection.send(request).await {
                Ok(response) => return Ok((connection, response)),
                // The receiver was just closing it, and nothing was written: another one serves as well.
                Err(mut refused) => match refused.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(Failure::of_exchange(refused.error())),
                },
            }
        }
        // Boxed, for it is large and seldom: every attempt would carry room for it.
        let mut connection = Box::pin(self.connect(origin)).await?;
        match connection.send(request).await {
            Ok(response) => Ok((connection, response)),
            Err(refused) => Err(Failure::of_exchange(refused.error())),
        }
    }

    /// Takes a connection back after its answer was read to the end.
    pub(super) async fn keep(&self, origin: &Origin, mut connection: Connection) {
        // One that is not free still writes a request whose answer came early, or was asked to close.
        if !connection.is_free().await {
            return;
        }
        let mut idle = self.idle();
        let kept = match idle.get_mut(&origin.name) {
            Some(kept) => kept,
            None => idle.entry(Arc::clone(&origin.name)).or_default(),
        };
        if kept.len() < IDLE_PER_ORIGIN_MAX {
            kept.push(Idle { connection, since: Instant::now() });
        }
    }

    /// The unused connection that was used last.
    async fn take(&self, origin: &Origin) -> Option<Connection> {
        loop {
            let mut connection = self.idle().get_mut(&origin.name)?.pop()?.connection;
            if connection.is_free().await {
                return Some(connection);
            }
        }
    }

    async fn connect(&self, origin: &Origin) -> Result<Connection, Failure> {
        let mut connector = match &origin.own {
            None => self.connectors.common(),
            Some(own) => self.connectors.own(own).ok_or_else(Failure::of_options)?,
        };
        let io = connector.call(origin.uri.clone()).await;
        let io = io.map_err(|error| Failure::of_connecting(error.as_ref()))?;
        Connection::open(io).await.map_err(|error| Failure::of_exchange(&error))
    }

    fn close_unused(&self, now: Instant) {
        let mut closing = Vec::new();
        self.idle().retain(|_, kept| {
            let unused = kept.partition_point(|idle| now.duration_since(idle.since) >= IDLE_TIME);
            closing.extend(kept.drain(..unused));
            !kept.is_empty()
        });
        // Closed here, where nobody waits for the lock.
        drop(closing);
    }

    fn idle(&self) -> MutexGuard<'_, HashMap<Arc<str>, Vec<Idle>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::tests::{egress, receiver::Receiver, send};
    use super::*;

    #[tokio::test]
    async fn what_is_unused_for_long_is_closed() {
        let receiver = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        let (egress, patient) = (egress(), Duration::from_secs(20));
        send(&egress, &receiver.url("/"), patient).await;
        let now = Instant::now();
        egress.pool.close_unused(now);
        send(&egress, &receiver.url("/"), patient).await;
        assert_eq!(receiver.connections(), 1, "kept while it may be used again");
        egress.pool.close_unused(Instant::now() + IDLE_TIME);
        assert!(egress.pool.idle().is_empty());
        send(&egress, &receiver.url("/"), patient).await;
        assert_eq!(receiver.connections(), 2);
    }
}
