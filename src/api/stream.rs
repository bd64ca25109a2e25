//! StreamDeliveryEvents: what happens to deliveries, as it happens.
//!
//! A stream holds nothing back for its reader: the transport asks for the next message when it can send one, and what
//! waits meanwhile waits in the ring that all streams share. A reader that falls behind the ring is cut off.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Extensions, Status};

use super::connection::{AGE_MAX, ConnectionInfo};
use super::convert::time::to_timestamp;
use super::convert::{self, FILTER_PATTERNS_MAX, FILTER_VALUES_MAX, Violations, delivery};
use super::proto::stream_delivery_events_request::From as Start;
use super::proto::stream_delivery_events_response::Item;
use super::proto::{Heartbeat, StreamDeliveryEventsRequest, StreamDeliveryEventsResponse};
use super::service::Webhooks;
use super::status;
use crate::domain::id::EndpointId;
use crate::domain::pattern::EventPattern;
use crate::live::{Ended, Filter, Subscription};
use crate::store::{Store, TransitionKind};

/// Between two signs of life.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How long a stream may take to become live before the database is taken to be away.
const SUBSCRIBE_MAX: Duration = Duration::from_secs(5);
/// Streams at once in this process.
pub(super) const STREAMS_MAX: usize = 1_000;

/// What tonic sends.
pub(super) type EventStream = BoxStream<'static, Result<StreamDeliveryEventsResponse, Status>>;

impl Webhooks {
    /// Opens a stream; it is live when this answers.
    pub(super) async fn stream_events(
        &self,
        request: StreamDeliveryEventsRequest,
        extensions: &Extensions,
    ) -> Result<EventStream, Status> {
        let filter = read_filter(&request)?;
        let place = Arc::clone(&self.streams).try_acquire_owned().map_err(|_| status::too_many_streams())?;
        let subscribing = timeout(SUBSCRIBE_MAX, self.services.live.subscribe(filter));
        let subscription = tokio::select! {
            () = self.shutdown.cancelled() => return Err(status::draining()),
            subscribed = subscribing => subscribed.map_err(|_| status::store_unavailable())?.map_err(ended)?,
        };
        let mut heartbeats = interval(HEARTBEAT);
        heartbeats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let feed = Feed {
            subscription,
            heartbeats,
            store: Arc::clone(&self.services.store),
            shutdown: self.shutdown.clone(),
            finish_at: extensions.get::<ConnectionInfo>().map_or_else(|| Instant::now() + AGE_MAX, |it| it.finish_at),
            _place: place,
        };
        Ok(feed.into_stream())
    }
}

/// One open stream.
struct Feed {
    subscription: Subscription,
    heartbeats: Interval,
    store: Arc<Store>,
    shutdown: CancellationToken,
    /// When the connection is asked to finish.
    finish_at: Instant,
    _place: OwnedSemaphorePermit,
}

impl Feed {
    fn into_stream(self) -> EventStream {
        stream::unfold(Some(self), |feed| async move {
            let mut feed = feed?;
            match feed.next().await {
                Ok(item) => {
                    let message = StreamDeliveryEventsResponse { item: Some(item), resume_token: String::new() };
                    Some((Ok(message), Some(feed)))
                }
                Err(refusal) => Some((Err(refusal), None)),
            }
        })
        .boxed()
    }

    /// The next thing to send. The first heartbeat is due at once, and comes before any event.
    async fn next(&mut self) -> Result<Item, Status> {
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Err(status::draining()),
            () = sleep_until(self.finish_at) => Err(status::reconnect()),
            _ = self.heartbeats.tick() => {
                Ok(Item::Heartbeat(Heartbeat { time: Some(to_timestamp(self.store.clock().now())) }))
            }
            event = self.subscription.next() => match event {
                Ok(event) => Ok(Item::Event(delivery::transition_to_proto(&event))),
                Err(end) => Err(ended(end)),
            },
        }
    }
}

fn ended(end: Ended) -> Status {
    match end {
        Ended::Lagged => status::stream_lagged(),
        Ended::Draining => status::draining(),
        Ended::Store(error) => error.into(),
    }
}

fn read_filter(request: &StreamDeliveryEventsRequest) -> Result<Filter, Status> {
    let mut v = Violations::new();
    match &request.from {
        None => {}
        Some(Start::ResumeToken(_)) => v.unbuilt("resume_token"),
        Some(Start::StartTime(_)) => v.unbuilt("start_time"),
    }
    let tenant = v.take("tenant", convert::tenants(&request.tenant));
    let endpoints = v.take_all("endpoint_ids", &request.endpoint_ids, FILTER_VALUES_MAX, str::parse::<EndpointId>);
    let event_types = v.take_all("event_types", &request.event_types, FILTER_PATTERNS_MAX, EventPattern::parse);
    let event = v.take("event_id", convert::optional_id(&request.event_id));
    let delivery = v.take("delivery_id", convert::optional_id(&request.delivery_id));
    let kinds = v.take_enums("kinds", &request.kinds, TransitionKind::from_number);
    match (tenant, endpoints, event_types, event, delivery, kinds) {
        (Some(tenant), Some(endpoints), Some(event_types), Some(event), Some(delivery), Some(kinds))
            if v.is_empty() =>
        {
            Ok(Filter { tenant, endpoints, event_types, event, delivery, kinds })
        }
        _ => Err(v.into_status()),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::super::convert::tests::refused;
    use super::*;

    #[test]
    fn filters_are_checked_and_resuming_is_not_built() {
        let bad = StreamDeliveryEventsRequest {
            endpoint_ids: vec!["x".to_owned()],
            kinds: vec![0],
            ..StreamDeliveryEventsRequest::default()
        };
        let (code, paths) = refused(&read_filter(&bad).expect_err("bad"));
        assert_eq!((code, paths), (Code::InvalidArgument, vec!["endpoint_ids[0]".to_owned(), "kinds[0]".to_owned()]));
        for (start, field) in [
            (Start::ResumeToken(String::new()), "resume_token"),
            (Start::StartTime(prost_types::Timestamp::default()), "start_time"),
        ] {
            let resuming = StreamDeliveryEventsRequest { from: Some(start), ..StreamDeliveryEventsRequest::default() };
            let refusal = read_filter(&resuming).expect_err("not built");
            assert_eq!(refused(&refusal), (Code::Unimplemented, vec![field.to_owned()]));
        }
        assert!(read_filter(&StreamDeliveryEventsRequest::default()).is_ok());
    }
}
