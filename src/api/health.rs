//! What `grpc.health.v1.Health` answers: SERVING from the start of [`super::serve`] until the process drains, but for
//! while the database does not answer.

use std::time::Duration;

use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

use crate::store::Store;

/// The names that are asked for: the server as a whole, and its one service.
const NAMES: [&str; 2] = ["", "hooklane.v1.WebhookService"];

/// Between two looks at the database.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// After one that failed: a second in a row is believed. One alone may be a moment's wait for a connection, and whoever
/// watches would turn away for it.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// How long the database may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);
const BELIEVED: u32 = 2;

/// Says whether this process takes calls. Clones speak for the same process.
#[derive(Debug, Clone, Default)]
pub struct Health(HealthReporter);

impl Health {
    /// Health that nobody has set yet; [`super::serve`] sets it to SERVING.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets SERVING or NOT_SERVING; whoever watches is told.
    ///
    /// Set it to false ahead of a shutdown, so that load balancers look elsewhere while calls are still answered.
    pub async fn set_serving(&self, is_serving: bool) {
        let status = if is_serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        for name in NAMES {
            self.0.set_service_status(name, status).await;
        }
    }

    /// SERVING while the database answers, for as long as it is polled.
    pub(super) async fn follow(&self, store: &Store) {
        let mut failures = 0;
        loop {
            tokio::time::sleep(if failures == 0 { LOOK_EVERY } else { LOOK_AGAIN }).await;
            let looked = tokio::time::timeout(ANSWER_MAX, store.ping(ANSWER_MAX)).await;
            let was_serving = failures < BELIEVED;
            failures = if matches!(looked, Ok(Ok(_))) { 0 } else { failures.saturating_add(1) };
            let is_serving = failures < BELIEVED;
            if is_serving != was_serving {
                let now = if is_serving { "answers again: SERVING" } else { "does not answer: NOT_SERVING" };
                tracing::warn!("the database {now}");
                self.set_serving(is_serving).await;
            }
        }
    }

    /// Sets NOT_SERVING and ends every watch after it has told so: an open stream would hold the shutdown up.
    pub(super) async fn end(&self) {
        self.set_serving(false).await;
        for name in NAMES {
            // A watch sees the last status before it notices that its sender has gone.
            self.0.clone().clear_service_status(name).await;
        }
        self.set_serving(false).await;
    }

    /// The service that answers.
    pub(super) fn server(&self) -> HealthServer<HealthService> {
        HealthServer::new(HealthService::from_health_reporter(self.0.clone()))
    }
}
