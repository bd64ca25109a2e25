//! The way into the internet: one function, [`Egress::send`], with one guard and one deadline.
//!
//! `request` says what is sent, `guard` where it may go, `outcome` what came of it; `tether` and `stream` see to it that
//! nothing of an attempt outlives its deadline. Nothing else in the program opens an outbound HTTP connection.

mod guard;
mod outcome;
mod request;
mod stream;
#[cfg(test)]
mod tests;
mod tether;

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Request};
use http_body_util::Full;
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::capture_connection;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{ClientConfig, RootCertStore};

use crate::domain::address::EgressRules;
use crate::domain::attempt::AttemptResult;
use crate::domain::time::Timestamp;

pub use request::{Outgoing, Target};

use guard::Guard;
use outcome::{Answer, BodyEnd, Failure};
use tether::Tether;

/// What the egress is told by the settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where requests may go.
    pub rules: EgressRules,
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

/// How long an unused connection is kept: less than the 60 s after which common receivers and balancers close theirs, so
/// that few requests meet a connection that is just being closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// As many as an endpoint may have in flight: a lane at its cap finds every connection again.
const IDLE_PER_HOST_MAX: usize = 1_024;

/// The longest response head that is read, in bytes, and the most that hyper buffers of a response.
///
/// A longer head would turn a receiver's 200 into a failure and a repeat, so this is what Node.js admits (16 KiB), not
/// less. It is a bound, not a cost: hyper holds 8 KiB for each direction from the start and grows only for a long head.
/// Less than 8 KiB can be had by `http1_read_buf_exact_size` alone, which makes that the bound of a head, too.
/// Measured: 37 KB for each request that waits for a silent receiver, of which these two are 16 and hyper-util's future 9.
const HEAD_BYTES_MAX: usize = 16 * 1_024;

/// Sends requests to endpoints. Clones share one connection pool.
#[derive(Clone)]
pub struct Egress {
    client: Client<Tether<HttpsConnector<Guard>>, Full<Bytes>>,
    user_agent: HeaderValue,
}

impl Egress {
    /// An egress that trusts the system's certificate authorities. Where the system has none, https ends in TLS_FAILED.
    pub fn new(config: Config) -> Result<Self, SetupError> {
        let tls = match tls_versions()?.with_native_roots() {
            Ok(rooted) => rooted.with_no_client_auth(),
            Err(error) => {
                tracing::warn!(%error, "no certificate authority is trusted: https deliveries will fail");
                tls_versions()?.with_root_certificates(RootCertStore::empty()).with_no_client_auth()
            }
        };
        Self::with_tls(config, tls)
    }

    fn with_tls(config: Config, tls: ClientConfig) -> Result<Self, SetupError> {
        let user_agent = HeaderValue::try_from(config.user_agent).map_err(|_| SetupError::UserAgent)?;
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http() // the guard decides on http
            .enable_http1()
            .wrap_connector(Guard::new(config.rules));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_PER_HOST_MAX)
            .http1_max_buf_size(HEAD_BYTES_MAX)
            .build(Tether::new(connector));
        Ok(Self { client, user_agent })
    }

    /// Makes one attempt. It ends within the target's timeout, whatever the receiver does; every failure is a result.
    pub async fn send(&self, outgoing: Outgoing<'_>) -> AttemptResult {
        let started = Instant::now();
        let timeout = outgoing.target.timeout();
        let mut request = request::assemble(&outgoing, &self.user_agent);
        let connection = capture_connection(&mut request);
        // Outside the timeout, so that what came before the deadline is known after it.
        let mut answer = None;
        let ended = {
            let exchange = pin!(tether::attempt(self.exchange(request, outgoing.now, &mut answer)));
            let ended = tokio::time::timeout(timeout, exchange).await;
            // At the deadline the exchange still holds its connection here: nobody else has it.
            stream::release(&connection, matches!(ended, Ok(Ok(BodyEnd::Reached))));
            ended
        };
        let duration = started.elapsed();
        // A status, once read, decides: what the body does afterwards changes nothing.
        match (answer, ended) {
            (Some(answer), _) => answer.into_result(duration),
            (None, Ok(Err(failure))) => failure.into_result(duration),
            (None, _) => Failure::timeout(timeout).into_result(duration),
        }
    }

    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
        now: Timestamp,
        answer: &mut Option<Answer>,
    ) -> Result<BodyEnd, Failure> {
        let response = self.client.request(request).await.map_err(|error| Failure::classify(&error))?;
        let (head, body) = response.into_parts();
        Ok(answer.insert(Answer::new(&head, now)).read(body).await)
    }
}

fn tls_versions() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, rustls::Error> {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
}
