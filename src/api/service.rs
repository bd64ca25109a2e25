//! The contract's service: each call to the file of its group.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

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
        self.register(request.into_inner()).await.map(Response::new)
    }

    async fn get_endpoint(&self, request: Request<GetEndpointRequest>) -> Answer<GetEndpointResponse> {
        self.endpoint(request.into_inner()).await.map(Response::new)
    }

    async fn list_endpoints(&self, request: Request<ListEndpointsRequest>) -> Answer<ListEndpointsResponse> {
        self.list_endpoints_page(request.into_inner()).await.map(Response::new)
    }

    async fn update_endpoint(&self, request: Request<UpdateEndpointRequest>) -> Answer<UpdateEndpointResponse> {
        self.update(request.into_inner()).await.map(Response::new)
    }

    async fn delete_endpoint(&self, request: Request<DeleteEndpointRequest>) -> Answer<DeleteEndpointResponse> {
        self.delete(request.into_inner()).await.map(Response::new)
    }

    async fn pause_endpoint(&self, request: Request<PauseEndpointRequest>) -> Answer<PauseEndpointResponse> {
        self.pause(request.into_inner()).await.map(Response::new)
    }

    async fn resume_endpoint(&self, request: Request<ResumeEndpointRequest>) -> Answer<ResumeEndpointResponse> {
        self.resume(request.into_inner()).await.map(Response::new)
    }

    async fn rotate_secret(&self, request: Request<RotateSecretRequest>) -> Answer<RotateSecretResponse> {
        self.rotate(request.into_inner()).await.map(Response::new)
    }

    async fn test_endpoint(&self, request: Request<TestEndpointRequest>) -> Answer<TestEndpointResponse> {
        self.test(request.into_inner()).await.map(Response::new)
    }

    async fn publish(&self, request: Request<PublishRequest>) -> Answer<PublishResponse> {
        self.publish_one(request.into_inner()).await.map(Response::new)
    }

    async fn publish_batch(&self, request: Request<PublishBatchRequest>) -> Answer<PublishBatchResponse> {
        self.publish_many(request.into_inner()).await.map(Response::new)
    }

    async fn get_event(&self, request: Request<GetEventRequest>) -> Answer<GetEventResponse> {
        self.event(request.into_inner()).await.map(Response::new)
    }

    async fn get_delivery(&self, request: Request<GetDeliveryRequest>) -> Answer<GetDeliveryResponse> {
        self.delivery(request.into_inner()).await.map(Response::new)
    }

    async fn list_deliveries(&self, request: Request<ListDeliveriesRequest>) -> Answer<ListDeliveriesResponse> {
        self.list_deliveries_page(request.into_inner()).await.map(Response::new)
    }

    async fn retry_delivery(&self, request: Request<RetryDeliveryRequest>) -> Answer<RetryDeliveryResponse> {
        self.retry(request.into_inner()).await.map(Response::new)
    }

    async fn cancel_delivery(&self, request: Request<CancelDeliveryRequest>) -> Answer<CancelDeliveryResponse> {
        self.cancel(request.into_inner()).await.map(Response::new)
    }

    type StreamDeliveryEventsStream = EventStream;

    async fn stream_delivery_events(
        &self,
        request: Request<StreamDeliveryEventsRequest>,
    ) -> Answer<Self::StreamDeliveryEventsStream> {
        let (_, extensions, request) = request.into_parts();
        self.stream_events(request, &extensions).await.map(Response::new)
    }

    async fn list_dead_letters(&self, request: Request<ListDeadLettersRequest>) -> Answer<ListDeadLettersResponse> {
        self.list_dead_letters_page(request.into_inner()).await.map(Response::new)
    }

    async fn delete_dead_letters(
        &self,
        request: Request<DeleteDeadLettersRequest>,
    ) -> Answer<DeleteDeadLettersResponse> {
        self.delete_dead_letters_of(request.into_inner()).await.map(Response::new)
    }

    async fn list_alerts(&self, request: Request<ListAlertsRequest>) -> Answer<ListAlertsResponse> {
        self.list_alerts_page(request.into_inner()).await.map(Response::new)
    }

    async fn acknowledge_alert(&self, request: Request<AcknowledgeAlertRequest>) -> Answer<AcknowledgeAlertResponse> {
        self.acknowledge(request.into_inner()).await.map(Response::new)
    }

    async fn start_replay(&self, request: Request<StartReplayRequest>) -> Answer<StartReplayResponse> {
        self.start(request.into_inner()).await.map(Response::new)
    }

    async fn get_replay(&self, request: Request<GetReplayRequest>) -> Answer<GetReplayResponse> {
        self.replay(request.into_inner()).await.map(Response::new)
    }

    async fn list_replays(&self, request: Request<ListReplaysRequest>) -> Answer<ListReplaysResponse> {
        self.list_replays_page(request.into_inner()).await.map(Response::new)
    }

    async fn cancel_replay(&self, request: Request<CancelReplayRequest>) -> Answer<CancelReplayResponse> {
        self.cancel_replay_of(request.into_inner()).await.map(Response::new)
    }

    type StreamReplayStream = ReplayStream;

    async fn stream_replay(&self, request: Request<StreamReplayRequest>) -> Answer<Self::StreamReplayStream> {
        let (_, extensions, request) = request.into_parts();
        self.stream_progress(request, &extensions).await.map(Response::new)
    }

    async fn get_stats(&self, request: Request<GetStatsRequest>) -> Answer<GetStatsResponse> {
        self.stats(request.into_inner()).await.map(Response::new)
    }
}
