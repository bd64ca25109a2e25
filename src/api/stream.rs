//! StreamDeliveryEvents: what happens to deliveries, as it happens.
//!
//! A stream holds nothing back for its reader: the transport asks for the next message when it can send one, and what
//! waits meanwhile waits in the ring that all streams share, or in the database.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::auth::Caller;
use super::connection::AGE_MAX;
use super::convert::time::{from_timestamp, to_timestamp};
use super::convert::{self, FILTER_PATTERNS_MAX, FILTER_VALUES_MAX, Violations, delivery};
use super::proto::stream_delivery_events_request::From;
use super::proto::stream_delivery_events_response::Item;
use super::proto::{Heartbeat, StreamDeliveryEventsRequest, StreamDeliveryEventsResponse};
use super::service::Webhooks;
use super::status;
use crate::domain::id::EndpointId;
use crate::domain::pattern::EventPattern;
use crate::live::{Ended, Filter, News, Start, Subscription};
use crate::store::{Store, TimelineFilter, TransitionKind};

/// Between two signs of life.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How long a stream may take to become live before the database is taken to be away.
const SUBSCRIBE_MAX: Duration = Duration::from_secs(5);
/// Streams at once in this process.
pub(super) const STREAMS_MAX: usize = 10_240;

/// What tonic sends.
pub(super) type EventStream = BoxStream<'static, Result<StreamDeliveryEventsResponse, Status>>;

impl Webhooks {
    /// Opens a stream: from its start on, nothing is missed when this answers.
    pub(super) async fn stream_events(
        &self,
        caller: &Caller,
        request: StreamDeliveryEventsRequest,
        finish_at: Option<Instant>,
    ) -> Result<EventStream, Status> {
        let (filter, start) = read_request(caller, request)?;
        let place = Arc::clone(&self.streams).try_acquire_owned().map_err(|_| status::too_many_streams())?;
        let subscribing = timeout(SUBSCRIBE_MAX, self.services.live.subscribe(filter, start));
        let subscription = tokio::select! {
            () = self.shutdown.cancelled() => return Err(status::draining()),
            subscribed = subscribing => subscribed.map_err(|_| status::store_unavailable())?.map_err(ended)?,
        };
        // The first comes earlier, at any time: streams that were opened together have their heartbeats apart.
        let first = Instant::now() + HEARTBEAT.mul_f64(rand::random_range(0.1..=1.0));
        let mut heartbeats = interval_at(first, HEARTBEAT);
        heartbeats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let feed = Feed {
            subscription,
            is_greeted: false,
            heartbeats,
            store: Arc::clone(&self.services.store),
            shutdown: self.shutdown.clone(),
            finish_at: finish_at.unwrap_or_else(|| Instant::now() + AGE_MAX),
            _place: place,
        };
        Ok(feed.into_stream())
    }
}

/// One open stream.
struct Feed {
    subscription: Subscription,
    /// Whether the first heartbeat was given.
    is_greeted: bool,
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
                    let resume_token = feed.subscription.token();
                    Some((Ok(StreamDeliveryEventsResponse { item: Some(item), resume_token }), Some(feed)))
                }
                Err(refusal) => Some((Err(refusal), None)),
            }
        })
        .boxed()
    }

    /// The next thing to send. The first heartbeat comes before any event: not as a tick of the timer, which may be a
    /// millisecond late, while the past is there at once.
    async fn next(&mut self) -> Result<Item, Status> {
        if !std::mem::replace(&mut self.is_greeted, true) {
            return Ok(self.heartbeat());
        }
        // Timers are for those who wait: a page is told in no time.
        if let Some(news) = self.subscription.at_hand() {
            return Ok(self.tell(&news));
        }
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Err(status::draining()),
            () = sleep_until(self.finish_at) => Err(status::reconnect()),
            _ = self.heartbeats.tick() => Ok(self.heartbeat()),
            news = self.subscription.next() => Ok(self.tell(&news.map_err(ended)?)),
        }
    }

    fn tell(&self, news: &News) -> Item {
        news.event().map_or_else(|| self.heartbeat(), |event| Item::Event(delivery::transition_to_proto(event)))
    }

    fn heartbeat(&self) -> Item {
        Item::Heartbeat(Heartbeat { time: Some(to_timestamp(self.store.clock().now())) })
    }
}

fn ended(end: Ended) -> Status {
    match end {
        Ended::Lagged => status::stream_lagged(),
        Ended::Draining => status::draining(),
        Ended::TokenInvalid => status::resume_token_invalid(),
        Ended::Expired => status::resume_token_expired(),
        Ended::Store(error) => error.into(),
    }
}

fn read_request(caller: &Caller, request: StreamDeliveryEventsRequest) -> Result<(Filter, Start), Status> {
    let mut v = Violations::new();
    let start = match &request.from {
        None => Some(Start::Now),
        // Whether it is one of ours is told by its own reason.
        Some(From::ResumeToken(token)) => Some(Start::Token(token.clone())),
        Some(From::StartTime(time)) => v.take("start_time", from_timestamp(time)).map(Start::Time),
    };
    let tenant = caller.tenants("tenant", &request.tenant, &mut v);
    let endpoints = v.take_all("endpoint_ids", &request.endpoint_ids, FILTER_VALUES_MAX, str::parse::<EndpointId>);
    let event_types = v.take_all("event_types", &request.event_types, FILTER_PATTERNS_MAX, EventPattern::parse);
    let event = v.take("event_id", convert::optional_id(&request.event_id));
    let delivery = v.take("delivery_id", convert::optional_id(&request.delivery_id));
    let kinds = v.take_enums("kinds", &request.kinds, TransitionKind::from_number);
    match (start, tenant, endpoints, event_types, event, delivery, kinds) {
        (Some(start), Some(tenant), Some(endpoints), Some(event_types), Some(event), Some(delivery), Some(kinds))
            if v.is_empty() =>
        {
            let stored = TimelineFilter { tenant, endpoints, event, delivery, kinds };
            Ok((Filter { stored, event_types }, start))
        }
        _ => Err(v.into_status()),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::super::auth::admin;
    use super::super::convert::tests::refused;
    use super::*;

    #[test]
    fn filters_and_the_start_are_checked() {
        let bad = StreamDeliveryEventsRequest {
            endpoint_ids: vec!["x".to_owned()],
            kinds: vec![0],
            from: Some(From::StartTime(prost_types::Timestamp { seconds: 0, nanos: -1 })),
            ..StreamDeliveryEventsRequest::default()
        };
        let (code, mut paths) = refused(&read_request(&admin(), bad).expect_err("bad"));
        paths.sort_unstable();
        assert_eq!(
            (code, paths),
            (Code::InvalidArgument, ["endpoint_ids[0]", "kinds[0]", "start_time"].map(str::to_owned).to_vec())
        );
        assert!(matches!(read_request(&admin(), StreamDeliveryEventsRequest::default()), Ok((_, Start::Now))));
    }
}
