//! `/health`: how the replica and its parts are, as JSON for people and programs. What the metrics know is shown from
//! them.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::{PING_MAX, Probed};
use crate::domain::endpoint::EndpointState;
use crate::store::Replica;

/// 200 where the replica is ready, else 503, with the same body.
pub(super) async fn show(State(probed): State<Probed>) -> (StatusCode, Json<Value>) {
    let database = probed.database().await;
    let is_draining = probed.draining.is_cancelled();
    let is_ready = database.is_ok() && !is_draining;
    let replicas = if database.is_ok() { probed.replicas().await } else { Vec::new() };
    let status = match (is_draining, is_ready) {
        (true, _) => "draining",
        (false, true) => "ok",
        (false, false) => "unavailable",
    };
    let metrics = probed.store.metrics();
    metrics.refresh();
    let endpoints = |state| metrics.endpoints(state).get();
    let pool = |name| {
        let (busy, idle) = metrics.connections(name);
        json!({ "busy": busy.get(), "idle": idle.get() })
    };
    let body = json!({
        "status": status,
        "version": env!("CARGO_PKG_VERSION"),
        "replica": probed.store.replica(),
        "uptime_seconds": probed.started.elapsed().as_secs(),
        "draining": is_draining,
        "database": {
            "status": database.as_ref().err().copied().unwrap_or("ok"),
            "latency_seconds": database.as_ref().ok().map(|answered| rounded(answered.took.as_secs_f64(), 1e6)),
            "server_version": database.as_ref().ok().map(|answered| answered.server_version.as_str()),
            "connections": { "engine": pool("engine"), "reader": pool("reader"), "stream": pool("stream") },
        },
        "queue": {
            "size": metrics.queue_size.get(),
            "oldest_seconds": rounded(metrics.queue_oldest.get(), 1e3),
            "dead_letters": metrics.dead_letters.get(),
        },
        "engine": { "lanes": metrics.lanes.get(), "requests_in_flight": metrics.requests_in_flight.get() },
        "endpoints": {
            "active": endpoints(EndpointState::Active),
            "paused": endpoints(EndpointState::Paused),
            "disabled": endpoints(EndpointState::Disabled),
            "open_circuits": metrics.open_circuits.get(),
        },
        "streams": {
            "subscribers": metrics.stream_subscribers.get(),
            "lag_seconds": rounded(metrics.stream_lag.get(), 1e3),
        },
        "replicas": replicas,
    });
    (if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(body))
}

fn rounded(number: f64, parts: f64) -> f64 {
    (number * parts).round() / parts
}

impl Probed {
    /// Everybody on this database, as far as it answers in time.
    async fn replicas(&self) -> Vec<Value> {
        let rows = tokio::time::timeout(PING_MAX, self.store.replicas()).await;
        let rows = rows.ok().and_then(Result::ok).unwrap_or_default();
        let shown = |one: Replica| {
            let roles = [("api", one.roles.api), ("worker", one.roles.worker)];
            json!({
                "name": one.name,
                "version": one.version,
                "roles": roles.iter().filter(|(_, has)| *has).map(|(role, _)| *role).collect::<Vec<_>>(),
                "drives_lanes": one.drives,
                "reckons_with": one.sees.len(),
                "silent_for_seconds": rounded(one.silent_for.as_secs_f64(), 10.0),
            })
        };
        rows.into_iter().map(shown).collect()
    }
}
