//! Asks the service again and again, and listens to its stream: one task for each, so that none holds up the others or
//! the screen.

use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::api::proto::stream_delivery_events_response::Item;
use crate::api::proto::{
    DeliveryEvent, Endpoint, GetStatsRequest, GetStatsResponse, ListEndpointsRequest, StreamDeliveryEventsRequest,
};
use crate::cli::Failure;
use crate::cli::client::{Client, is_cut, refused_as};
use crate::cli::flags;

/// Where figures come from.
pub(super) struct Feed {
    pub(super) client: Client,
    pub(super) tenant: String,
    pub(super) window: prost_types::Duration,
    /// Between two calls of GetStats.
    pub(super) every: Duration,
}

/// What has come.
pub(super) enum News {
    Stats(Box<GetStatsResponse>),
    Endpoints(Vec<Endpoint>),
    Event(Box<DeliveryEvent>),
    /// The stream is live from here on, or not any more.
    Live(bool),
    /// A call came to nothing; the next one may not.
    Away(String),
    /// No later call will be answered either.
    Refused(Failure),
}

/// Endpoints change rarely, but their circuits do not.
const ENDPOINTS_EVERY: Duration = Duration::from_secs(5);
/// Endpoints that are known by URL and state; GetStats tells of the busiest hundred.
const ENDPOINTS_MAX: usize = 2_000;
const PAGE_SIZE: i32 = 500;
/// Before a stream is opened again.
const STREAM_PAUSE: Duration = Duration::from_secs(1);
/// What an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(30);

impl Feed {
    /// Works until the set is dropped.
    pub(super) fn start(self, news: Sender<News>) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        tasks.spawn(stats(self.client.clone(), self.tenant.clone(), self.window, self.every, news.clone()));
        tasks.spawn(endpoints(self.client.clone(), self.tenant.clone(), news.clone()));
        tasks.spawn(events(self.client, self.tenant, news));
        tasks
    }
}

async fn stats(mut client: Client, tenant: String, window: prost_types::Duration, every: Duration, news: Sender<News>) {
    loop {
        let request = GetStatsRequest { tenant: tenant.clone(), window: Some(window) };
        let answer = within(client.get_stats(request)).await;
        let one = answer.map_or_else(|status| trouble("GetStats", status), |answer| News::Stats(Box::new(answer)));
        if news.send(one).await.is_err() {
            return;
        }
        tokio::time::sleep(every).await;
    }
}

async fn endpoints(mut client: Client, tenant: String, news: Sender<News>) {
    loop {
        let one = match all_endpoints(&mut client, &tenant).await {
            Ok(endpoints) => News::Endpoints(endpoints),
            Err(status) => trouble("ListEndpoints", status),
        };
        if news.send(one).await.is_err() {
            return;
        }
        tokio::time::sleep(ENDPOINTS_EVERY).await;
    }
}

async fn all_endpoints(client: &mut Client, tenant: &str) -> Result<Vec<Endpoint>, Status> {
    let mut found = Vec::new();
    let mut page_token = String::new();
    loop {
        let tenant = tenant.to_owned();
        let request = ListEndpointsRequest { tenant, page_size: PAGE_SIZE, page_token, ..Default::default() };
        let page = within(client.list_endpoints(request)).await?;
        found.extend(page.endpoints);
        page_token = page.next_page_token;
        if page_token.is_empty() || found.len() >= ENDPOINTS_MAX {
            return Ok(found);
        }
    }
}

/// Rates are of now: a stream that was cut begins anew, and what happened meanwhile is in the figures.
async fn events(mut client: Client, tenant: String, news: Sender<News>) {
    loop {
        let ended = follow(&mut client, &tenant, &news).await;
        if news.send(News::Live(false)).await.is_err() {
            return;
        }
        if let Err(status) = ended
            && !is_cut(&status)
        {
            let _ = news.send(trouble("StreamDeliveryEvents", status)).await;
            return;
        }
        tokio::time::sleep(STREAM_PAUSE).await;
    }
}

async fn follow(client: &mut Client, tenant: &str, news: &Sender<News>) -> Result<(), Status> {
    let request = StreamDeliveryEventsRequest { tenant: tenant.to_owned(), ..Default::default() };
    let mut stream = client.stream_delivery_events(request).await?.into_inner();
    while let Some(message) = stream.message().await? {
        let one = match message.item {
            Some(Item::Event(event)) => News::Event(Box::new(event)),
            _ => News::Live(true),
        };
        if news.send(one).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

async fn within<T>(call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(ANSWER_MAX, call).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(format!("no answer within {} s", ANSWER_MAX.as_secs()))),
    }
}

/// A refusal that asking again does not cure ends the program; anything else is shown, and asked again.
fn trouble(call: &'static str, status: Status) -> News {
    let is_final = matches!(
        status.code(),
        Code::InvalidArgument | Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented
    );
    let failure = refused_as(call, flags::FILTERS)(status);
    if is_final { News::Refused(failure) } else { News::Away(failure.to_string()) }
}
