//! Act 3, live: what the stream tells and what the receivers see, a line each, as it comes.
//!
//! A single loop ([`Watch::until`]) reads it all, so lines never mix and the books need no lock. A line's time is when
//! it happened; what the stream tells comes some ten milliseconds later.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status, Streaming};

use super::publish::{Event, publish};
use super::recipient::Recipient;
use super::screen::{Paint, Screen, instant, seconds, short};
use super::tally::{Progress, Tally};
use super::{Client, refused};
use crate::api::proto::stream_delivery_events_response::Item;
use crate::api::proto::{
    DeliveryEvent, DeliveryEventKind, PublishResponse, StreamDeliveryEventsRequest, StreamDeliveryEventsResponse,
};
use crate::cli::Failure;
use crate::cli::delivery::kind_paint;
use crate::cli::listen::{Received, Verdict};

/// Reads, shows and books what happens.
pub(super) struct Watch<'a> {
    recipients: &'a [Recipient; 2],
    /// Of the same index.
    endpoint_ids: Vec<String>,
    screen: &'a Screen,
    client: Client,
    stream: Streaming<StreamDeliveryEventsResponse>,
    tally: Tally,
    began: jiff::Timestamp,
}

/// One thing that happened.
enum News {
    /// The stream told of it.
    Transition(Box<DeliveryEvent>),
    /// The receiver of this index saw it.
    Arrival(usize, Box<Received>),
}

impl<'a> Watch<'a> {
    /// Subscribes to the stream; what is published from here on, it tells.
    pub(super) async fn open(
        recipients: &'a [Recipient; 2],
        endpoint_ids: Vec<String>,
        screen: &'a Screen,
        mut client: Client,
    ) -> Result<Self, Failure> {
        let stream = subscribe(&mut client).await?;
        let columns = "seconds  who      event type        id       endpoint";
        screen.line(&screen.paint(Paint::Dim, columns))?;
        let began = jiff::Timestamp::now();
        Ok(Self { recipients, endpoint_ids, screen, client, stream, tally: Tally::default(), began })
    }

    /// What was seen so far.
    pub(super) const fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Publishes the event, shows the answer and books the deliveries that it made.
    pub(super) async fn publish(&mut self, event: &Event) -> Result<(), Failure> {
        let time = jiff::Timestamp::now();
        let (response, took) = publish(event, &mut self.client).await?;
        self.show_publish(time, event, &response, took)?;
        for made in response.deliveries.into_iter().filter(|delivery| !delivery.duplicate) {
            let Some(recipient) = self.endpoint_ids.iter().position(|id| *id == made.endpoint_id) else { continue };
            self.tally.expect(Progress {
                id: made.delivery_id,
                event_type: event.event_type.to_owned(),
                recipient,
                recipient_name: self.recipients[recipient].name,
                ..Progress::default()
            });
        }
        Ok(())
    }

    /// Shows what happens until `is_done`, or says what is missing at the deadline.
    pub(super) async fn until(&mut self, deadline: Instant, is_done: impl Fn(&Tally) -> bool) -> Result<(), Failure> {
        while !is_done(&self.tally) {
            let Ok(news) = timeout_at(deadline, self.next()).await else {
                return Err(Failure::other(self.tally.missing().unwrap_or_default()));
            };
            self.take(news.map_err(refused("StreamDeliveryEvents"))?)?;
        }
        Ok(())
    }

    /// Shows what happens until dropped.
    pub(super) async fn go_on(&mut self) -> Result<(), Failure> {
        loop {
            match self.next().await {
                Ok(news) => self.take(news)?,
                // The server ends a connection at its age, and says so: the next call makes another.
                Err(status) if status.code() == Code::Unavailable => self.stream = subscribe(&mut self.client).await?,
                Err(status) => return Err(refused("StreamDeliveryEvents")(status)),
            }
        }
    }

    /// The next thing that happens. Receivers first: a request comes before what the stream says of it.
    async fn next(&mut self) -> Result<News, Status> {
        let [steady, flaky] = self.recipients;
        loop {
            tokio::select! {
                biased;
                Some(received) = steady.receiver.next() => return Ok(News::Arrival(0, Box::new(received))),
                Some(received) = flaky.receiver.next() => return Ok(News::Arrival(1, Box::new(received))),
                message = self.stream.message() => {
                    let message = message?.ok_or_else(|| Status::unavailable("the stream ended"))?;
                    // The other item is a heartbeat: the stream is alive and nothing happened.
                    if let Some(Item::Event(event)) = message.item {
                        return Ok(News::Transition(Box::new(event)));
                    }
                }
            }
        }
    }

    fn take(&mut self, news: News) -> Result<(), Failure> {
        match news {
            News::Transition(event) => {
                self.tally.note_transition(&event);
                self.show_transition(&event)
            }
            News::Arrival(recipient, received) => {
                self.tally.note_arrival(&received);
                self.show_arrival(recipient, &received)
            }
        }
    }

    fn show_publish(
        &self,
        time: jiff::Timestamp,
        event: &Event,
        response: &PublishResponse,
        took: Duration,
    ) -> Result<(), Failure> {
        let names: Vec<String> =
            response.deliveries.iter().map(|delivery| self.name_of(&delivery.endpoint_id)).collect();
        let what = match (response.duplicate, names.as_slice()) {
            (true, _) => {
                self.screen.paint(Paint::Waiting, &format!("duplicate of {}: nothing new", short(&response.event_id)))
            }
            (false, []) => self.screen.paint(Paint::Dim, "stored; no endpoint wants it"),
            (false, names) => format!("for {}", names.join(" and ")),
        };
        let acknowledged = format!("acknowledged in {:.1} ms", took.as_secs_f64() * 1_000.0);
        let head = self.head(time, Paint::Strong, "publish", event.event_type, &response.event_id, "");
        self.screen.line(&format!("{head}{what}, {acknowledged}"))
    }

    fn show_arrival(&self, recipient: usize, received: &Received) -> Result<(), Failure> {
        let signature = match received.verdict {
            Verdict::Good => self.screen.paint(Paint::Good, "signature ok"),
            Verdict::Bad(reason) => self.screen.paint(Paint::Bad, &format!("signature bad: {reason}")),
            Verdict::Unchecked => self.screen.paint(Paint::Dim, "signature unchecked"),
        };
        let answer = received.status.map_or_else(|| "nothing".to_owned(), |status| status.as_u16().to_string());
        let is_success = received.status.is_some_and(|status| status.is_success());
        let answer = self.screen.paint(if is_success { Paint::Good } else { Paint::Bad }, &answer);
        let attempt = received.attempt.map_or_else(|| "?".to_owned(), |number| number.to_string());
        // Anybody may call a receiver: what a stranger sends does not reach the terminal as it is.
        let visible = |text: &Option<String>| text.as_deref().unwrap_or("-").escape_debug().to_string();
        let (event_type, delivery_id) = (visible(&received.event_type), visible(&received.delivery_id));
        let name = self.recipients[recipient].name;
        let head = self.head(received.time, Paint::Name, "request", &event_type, &delivery_id, name);
        self.screen.line(&format!("{head}attempt {attempt}, {signature}, answered {answer}"))
    }

    fn show_transition(&self, event: &DeliveryEvent) -> Result<(), Failure> {
        let Some(delivery) = &event.delivery else { return Ok(()) };
        let kind = event.kind();
        let mut what =
            self.screen.paint(kind_paint(kind), kind.as_str_name().trim_start_matches("DELIVERY_EVENT_KIND_"));
        if let Some(attempt) = &event.attempt {
            let result = match attempt.status_code {
                0 => attempt.error.escape_debug().to_string(),
                status => status.to_string(),
            };
            what.push_str(&format!(" attempt {}: {result}", attempt.number));
        }
        let time = instant(event.occur_time.as_ref()).unwrap_or(self.began);
        if kind == DeliveryEventKind::AttemptFailed
            && let Some(next) = instant(delivery.next_attempt_time.as_ref())
        {
            what.push_str(&format!(", next in {:.2} s", seconds(time, next)));
        }
        let name = self.name_of(&delivery.endpoint_id);
        let head = self.head(time, Paint::Dim, "stream", &delivery.event_type, &delivery.id, &name);
        self.screen.line(&format!("{head}{what}"))
    }

    /// The columns that every line has: seconds since the act began, who tells, event type, id, endpoint.
    fn head(
        &self,
        time: jiff::Timestamp,
        paint: Paint,
        source: &str,
        event_type: &str,
        id: &str,
        endpoint: &str,
    ) -> String {
        let time = self.screen.paint(Paint::Dim, &format!("{:>7.3}", seconds(self.began, time)));
        let source = self.screen.paint(paint, &format!("{source:<7}"));
        format!("{time}  {source}  {event_type:<16}  {:<7}  {endpoint:<8}  ", short(id))
    }

    /// What the demo calls an endpoint; one that was registered by hand has its id's end.
    fn name_of(&self, endpoint_id: &str) -> String {
        let recipient = self.endpoint_ids.iter().position(|id| id == endpoint_id);
        recipient.map_or_else(|| short(endpoint_id), |index| self.recipients[index].name.to_owned())
    }
}

async fn subscribe(client: &mut Client) -> Result<Streaming<StreamDeliveryEventsResponse>, Failure> {
    let refused = refused("StreamDeliveryEvents");
    let request = StreamDeliveryEventsRequest::default();
    let mut stream = client.stream_delivery_events(request).await.map_err(&refused)?.into_inner();
    // The first message is a heartbeat: the stream is live from there on.
    stream.message().await.map_err(&refused)?;
    Ok(stream)
}
