//! The way into the internet: one function, [`Egress::send`], with one guard and one deadline.
//!
//! `request` says what is sent, `guard` where it may go, `outcome` what came of it; `resolver`, `proxy`, `tls`,
//! `connection` and `pool` are the way there. Nothing else in the program opens an outbound HTTP connection.

mod connection;
mod guard;
mod metered;
mod outcome;
mod pool;
mod proxy;
mod request;
mod resolver;
#[cfg(test)]
mod tests;
mod tls;

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderValue, Request};
use prometheus::IntCounter;
use rustls::RootCertStore;
#[cfg(not(test))]
use tokio::net::TcpStream;

use crate::domain::address::EgressRules;
use crate::domain::attempt::{AttemptOutcome, AttemptResult};
use crate::domain::time::Timestamp;

pub use proxy::Proxy;
pub use request::{Outgoing, Target};

use connection::Body;
use guard::Guard;
use outcome::{Answer, BodyEnd, Failure};
use pool::{Origin, Pool};
use resolver::Resolver;
/// A real one, or one of a simulated network where a test runs in it.
#[cfg(test)]
use tests::stream::TcpStream;

/// What the egress is told by the settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where requests may go.
    pub rules: EgressRules,
    /// Through which requests go, where they do not go directly.
    pub proxy: Option<Proxy>,
    /// The `User-Agent` header: `hooklane/<version>`.
    pub user_agent: String,
}

/// Why the egress cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The user agent cannot stand in a header.
    #[error("the user agent is not a header value; allowed is visible ASCII")]
    UserAgent,
    /// The TLS library refused its own defaults.
    #[error("TLS could not be set up")]
    Tls(#[from] rustls::Error),
}

/// The longest response head that is read, in bytes, and the most that hyper buffers of a response.
///
/// A longer head would turn a receiver's 200 into a failure and a repeat, so this is what Node.js admits (16 KiB), not
/// less. It is a bound, not a cost: hyper holds 8 KiB for each direction from the start and grows only for a long head.
const HEAD_BYTES_MAX: usize = 16 * 1_024;

/// Sends requests to endpoints. Clones share one connection pool.
#[derive(Clone)]
pub struct Egress {
    pool: Arc<Pool>,
    user_agent: HeaderValue,
    /// Counts what the guard forbade.
    refusals: Option<IntCounter>,
}

impl Egress {
    /// An egress that trusts the system's certificate authorities. Where the system has none, https ends in TLS_FAILED.
    pub fn new(config: Config) -> Result<Self, SetupError> {
        Self::with(config, tls::system_roots(), Resolver::default())
    }

    fn with(config: Config, roots: RootCertStore, resolver: Resolver) -> Result<Self, SetupError> {
        let user_agent = HeaderValue::try_from(config.user_agent).map_err(|_| SetupError::UserAgent)?;
        let guard = Guard::new(config.rules, config.proxy, resolver);
        Ok(Self { pool: Pool::new(tls::Connectors::new(guard, roots)?), user_agent, refusals: None })
    }

    /// Counts what the guard forbids.
    pub fn counting_refusals(self, counter: IntCounter) -> Self {
        Self { refusals: Some(counter), ..self }
    }

    /// Makes one attempt. It ends within the target's timeout, whatever the receiver does; every failure is a result.
    pub async fn send(&self, outgoing: Outgoing<'_>) -> AttemptResult {
        let started = Instant::now();
        let timeout = outgoing.target.timeout();
        let request = request::assemble(&outgoing, &self.user_agent);
        // Outside the timeout, so that what came before the deadline is known after it.
        let mut answer = None;
        let ended = {
            let exchange = pin!(self.exchange(outgoing.target.origin(), request, outgoing.now, &mut answer));
            tokio::time::timeout(timeout, exchange).await
        };
        let duration = started.elapsed();
        // A status, once read, decides: what the body does afterwards changes nothing.
        let result = match (answer, ended) {
            (Some(answer), _) => answer.into_result(duration),
            (None, Ok(Err(failure))) => failure.into_result(duration),
            (None, _) => Failure::timeout(timeout).into_result(duration),
        };
        if result.outcome == AttemptOutcome::Blocked
            && let Some(refusals) = &self.refusals
        {
            refusals.inc();
        }
        result
    }

    /// The headers that [`Self::send`] would send, but for the length of the body.
    pub fn headers(&self, outgoing: &Outgoing<'_>) -> Vec<(String, String)> {
        let request = request::assemble(outgoing, &self.user_agent);
        let shown = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        request.headers().iter().map(|(name, value)| (name.to_string(), shown(value))).collect()
    }

    async fn exchange(
        &self,
        origin: &Origin,
        request: Request<Body>,
        now: Timestamp,
        answer: &mut Option<Answer>,
    ) -> Result<(), Failure> {
        let (mut connection, response) = self.pool.send(origin, request).await?;
        let (head, body) = response.into_parts();
        let read = connection.while_reading(answer.insert(Answer::new(&head, now)).read(body)).await;
        if read == BodyEnd::Reached {
            self.pool.keep(origin, connection).await;
        }
        Ok(())
    }
}

impl fmt::Debug for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Egress").field("user_agent", &self.user_agent).finish_non_exhaustive()
    }
}
