//! What `grpc.health.v1.Health` answers: SERVING from the start of [`super::serve`] until the process drains.

use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

/// The names that are asked for: the server as a whole, and its one service.
const NAMES: [&str; 2] = ["", "hooklane.v1.WebhookService"];

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
