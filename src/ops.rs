//! The operations port: whether the process lives, whether it is ready, how its parts are, and its metrics.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, StatusCode};
use axum::routing::get;
use axum::{Json, Router};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::store::{Replica, Store};
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
}

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
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .with_state(Probed { store, draining });
    axum::serve(listener, router).with_graceful_shutdown(end.cancelled_owned()).await
}

impl Probed {
    async fn database(&self) -> Result<(), &'static str> {
        match tokio::time::timeout(LOOK_MAX, self.store.ping(PING_MAX)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err("unreachable"),
            Err(_) => Err("does not answer"),
        }
    }
}

impl Probed {
    /// Everybody on this database, as far as it answers in time.
    async fn replicas(&self) -> Vec<serde_json::Value> {
        let rows = tokio::time::timeout(PING_MAX, self.store.replicas()).await;
        let rows = rows.ok().and_then(Result::ok).unwrap_or_default();
        let shown = |one: Replica| {
            let roles = [("api", one.roles.api), ("worker", one.roles.worker)];
            serde_json::json!({
                "name": one.name,
                "version": one.version,
                "roles": roles.iter().filter(|(_, has)| *has).map(|(role, _)| *role).collect::<Vec<_>>(),
                "drives_lanes": one.drives,
                "reckons_with": one.sees.len(),
                "silent_for_seconds": (one.silent_for.as_secs_f64() * 10.0).round() / 10.0,
            })
        };
        rows.into_iter().map(shown).collect()
    }
}

async fn ready(State(probed): State<Probed>) -> (StatusCode, &'static str) {
    if probed.draining.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n");
    }
    match probed.database().await {
        Ok(()) => (StatusCode::OK, "ok\n"),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the database does not answer\n"),
    }
}

async fn metrics(State(probed): State<Probed>) -> ([(HeaderName, &'static str); 1], String) {
    ([(CONTENT_TYPE, TEXT_FORMAT)], probed.store.metrics().to_text())
}

async fn health(State(probed): State<Probed>) -> (StatusCode, Json<serde_json::Value>) {
    let database = probed.database().await;
    let is_draining = probed.draining.is_cancelled();
    let is_ready = database.is_ok() && !is_draining;
    let replicas = if database.is_ok() { probed.replicas().await } else { Vec::new() };
    let body = serde_json::json!({
        "status": if is_ready { "ok" } else { "unavailable" },
        "version": env!("CARGO_PKG_VERSION"),
        "replica": probed.store.replica(),
        "draining": is_draining,
        "database": database.err().unwrap_or("ok"),
        "replicas": replicas,
    });
    (if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(body))
}
