//! The contract's service: each call to the file of its group.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::auth::admitted;
use super::connection::ConnectionInfo;
use super::measured::trace_of;
use super::proto::webhook_service_server::WebhookService;
use super::proto::*;
use super::replays::ReplayStream;
use super::server::{Config, Services};
use super::stream::{EventStream, STREAMS_MAX};
use super::testing::TESTS_MAX;

/// Everything a call works on.
#[derive(Debug)]
pub(super) struct Webhooks {
    pub(super) services: Services,
    pub(super) config: Config,
    /// Open streams end with it.
    pub(super) shutdown: CancellationToken,
    /// Room for open streams.
    pub(super) streams: Arc<Semaphore>,
    /// Room for test requests under way.
    pub(super) tests: Semaphore,
}

impl Webhooks {
    /// The service over `services`.
    pub(super) fn new(services: Services, config: Config, shutdown: CancellationToken) -> Self {
        Self {
            services,
            config,
            shutdown,
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            tests: Semaphore::new(TESTS_MAX),
        }
    }
}

/// What a unary call answers.
type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl WebhookService for Webhooks {
    async fn register_endpoint(&self, request: Request<RegisterEndpointRequest>) -> Answer<RegisterEndpointResponse> {
        let (caller, request) = admitted(request)?;
        self.register(&caller, request).await.map(Response::new)
    }

    async fn get_endpoint(&self, request: Request<GetEndpointRequest>) -> Answer<GetEndpointResponse> {
        let (caller, request) = admitted(request)?;
        self.endpoint(&caller, request).await.map(Response::new)
    }

    async fn list_endpoints(&self, request: Request<ListEndpointsRequest>) -> Answer<ListEndpointsResponse> {
        let (caller, request) = admitted(request)?;
        self.list_endpoints_page(&caller, request).await.map(Response::new)
    }

    async fn update_endpoint(&self, request: Request<UpdateEndpointRequest>) -> Answer<UpdateEndpointResponse> {
        let (caller, request) = admitted(request)?;
        self.update(&caller, request).await.map(Response::new)
    }

    async fn delete_endpoint(&self, request: Request<DeleteEndpointRequest>) -> Answer<DeleteEndpointResponse> {
        let (caller, request) = admitted(request)?;
        self.delete(&caller, request).await.map(Response::new)
    }

    async fn pause_endpoint(&self, request: Request<PauseEndpointRequest>) -> Answer<PauseEndpointResponse> {
        let (caller, request) = admitted(request)?;
        self.pause(&caller, request).await.map(Response::new)
    }

    async fn resume_endpoint(&self, request: Request<ResumeEndpointRequest>) -> Answer<ResumeEndpointResponse> {
        let (caller, request) = admitted(request)?;
        self.resume(&caller, request).await.map(Response::new)
    }

    async fn rotate_secret(&self, request: Request<RotateSecretRequest>) -> Answer<RotateSecretResponse> {
        let (caller, request) = admitted(request)?;
        self.rotate(&caller, request).await.map(Response::new)
    }

    async fn test_endpoint(&self, request: Request<TestEndpointRequest>) -> Answer<TestEndpointResponse> {
        let (caller, request) = admitted(request)?;
        self.test(&caller, request).await.map(Response::new)
    }

    async fn publish(&self, request: Request<PublishRequest>) -> Answer<PublishResponse> {
        let trace = trace_of(&request);
        let (caller, request) = admitted(request)?;
        self.publish_one(&caller, request, trace).await.map(Response::new)
    }

    async fn publish_batch(&self, request: Request<PublishBatchRequest>) -> Answer<PublishBatchResponse> {
        let trace = trace_of(&request);
        let (caller, request) = admitted(request)?;
        self.publish_many(&caller, request, trace).await.map(Response::new)
    }

    async fn get_event(&self, request: Request<GetEventRequest>) -> Answer<GetEventResponse> {
        let (caller, request) = admitted(request)?;
        self.event(&caller, request).await.map(Response::new)
    }

    async fn get_delivery(&self, request: Request<GetDeliveryRequest>) -> Answer<GetDeliveryResponse> {
        let (caller, request) = admitted(request)?;
        self.delivery(&caller, request).await.map(Response::new)
    }

    async fn list_deliveries(&self, request: Request<ListDeliveriesRequest>) -> Answer<ListDeliveriesResponse> {
        let (caller, request) = admitted(request)?;
        self.list_deliveries_page(&caller, request).await.map(Response::new)
    }

    async fn retry_delivery(&self, request: Request<RetryDeliveryRequest>) -> Answer<RetryDeliveryResponse> {
        let (caller, request) = admitted(request)?;
        self.retry(&caller, request).await.map(Response::new)
    }

    async fn cancel_delivery(&self, request: Request<CancelDeliveryRequest>) -> Answer<CancelDeliveryResponse> {
        let (caller, request) = admitted(request)?;
        self.cancel(&caller, request).await.map(Response::new)
    }

    type StreamDeliveryEventsStream = EventStream;

    async fn stream_delivery_events(
        &self,
        request: Request<StreamDeliveryEventsRequest>,
    ) -> Answer<Self::StreamDeliveryEventsStream> {
        let finish_at = request.extensions().get::<ConnectionInfo>().map(|connection| connection.finish_at);
        let (caller, request) = admitted(request)?;
        self.stream_events(&caller, request, finish_at).await.map(Response::new)
    }

    async fn list_dead_letters(&self, request: Request<ListDeadLettersRequest>) -> Answer<ListDeadLettersResponse> {
        let (caller, request) = admitted(request)?;
        self.list_dead_letters_page(&caller, request).await.map(Response::new)
    }

    async fn delete_dead_letters(
        &self,
        request: Request<DeleteDeadLettersRequest>,
    ) -> Answer<DeleteDeadLettersResponse> {
        let (caller, request) = admitted(request)?;
        self.delete_dead_letters_of(&caller, request).await.map(Response::new)
    }

    async fn list_alerts(&self, request: Request<ListAlertsRequest>) -> Answer<ListAlertsResponse> {
        let (caller, request) = admitted(request)?;
        self.list_alerts_page(&caller, request).await.map(Response::new)
    }

    async fn acknowledge_alert(&self, request: Request<AcknowledgeAlertRequest>) -> Answer<AcknowledgeAlertResponse> {
        let (caller, request) = admitted(request)?;
        self.acknowledge(&caller, request).await.map(Response::new)
    }

    async fn start_replay(&self, request: Request<StartReplayRequest>) -> Answer<StartReplayResponse> {
        let (caller, request) = admitted(request)?;
        self.start(&caller, request).await.map(Response::new)
    }

    async fn get_replay(&self, request: Request<GetReplayRequest>) -> Answer<GetReplayResponse> {
        let (caller, request) = admitted(request)?;
        self.replay(&caller, request).await.map(Response::new)
    }

    async fn list_replays(&self, request: Request<ListReplaysRequest>) -> Answer<ListReplaysResponse> {
        let (caller, request) = admitted(request)?;
        self.list_replays_page(&caller, request).await.map(Response::new)
    }

    async fn cancel_replay(&self, request: Request<CancelReplayRequest>) -> Answer<CancelReplayResponse> {
        let (caller, request) = admitted(request)?;
        self.cancel_replay_of(&caller, request).await.map(Response::new)
    }

    type StreamReplayStream = ReplayStream;

    async fn stream_replay(&self, request: Request<StreamReplayRequest>) -> Answer<Self::StreamReplayStream> {
        let finish_at = request.extensions().get::<ConnectionInfo>().map(|connection| connection.finish_at);
        let (caller, request) = admitted(request)?;
        self.stream_progress(&caller, request, finish_at).await.map(Response::new)
    }

    async fn get_stats(&self, request: Request<GetStatsRequest>) -> Answer<GetStatsResponse> {
        let (caller, request) = admitted(request)?;
        self.stats(&caller, request).await.map(Response::new)
    }
}
