//! The operations port: whether the process lives, whether it is ready, how its parts are, its metrics, and what it logs.

mod health;
mod log;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, StatusCode};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::store::{Answered, Store};
use crate::telemetry::metrics::TEXT_FORMAT;

/// Where the port is.
#[derive(Debug, Clone)]
pub struct Config {
    /// `IP:PORT`; port 0 picks one.
    pub addr: SocketAddr,
}

/// How long the database may take to answer a look at it.
const PING_MAX: Duration = Duration::from_secs(2);
/// With the wait for a connection.
const LOOK_MAX: Duration = Duration::from_secs(3);

#[derive(Clone)]
struct Probed {
    store: Arc<Store>,
    draining: CancellationToken,
    started: Instant,
}

/// Of a request; a filter of the log is the only thing that is sent here.
const BODY_BYTES_MAX: usize = 4_096;

/// Serves until `end`; unready from `draining` on.
pub async fn serve(
    listener: TcpListener,
    store: Arc<Store>,
    draining: CancellationToken,
    end: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/health", get(health::show))
        .route("/metrics", get(metrics))
        .route("/log/filter", get(log::show).put(log::change).delete(log::reset))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(Probed { store, draining, started: Instant::now() })
        .into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, router).with_graceful_shutdown(end.cancelled_owned()).await
}

impl Probed {
    async fn database(&self) -> Result<Answered, &'static str> {
        match tokio::time::timeout(LOOK_MAX, self.store.ping(PING_MAX)).await {
            Ok(Ok(answered)) => Ok(answered),
            Ok(Err(_)) => Err("unreachable"),
            Err(_) => Err("does not answer"),
        }
    }
}

async fn ready(State(probed): State<Probed>) -> (StatusCode, &'static str) {
    if probed.draining.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n");
    }
    match probed.database().await {
        Ok(_) => (StatusCode::OK, "ok\n"),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the database does not answer\n"),
    }
}

async fn metrics(State(probed): State<Probed>) -> ([(HeaderName, &'static str); 1], String) {
    ([(CONTENT_TYPE, TEXT_FORMAT)], probed.store.metrics().to_text())
}
