//! `hooklane tail`: what happens to deliveries, as it happens. A stream that is cut goes on from its last message, with
//! nothing left out and nothing told twice.

use std::time::Duration;

use tonic::Status;

use super::client::{CallArgs, Client, is_cut, is_routine, refused_as, to_json};
use super::delivery::kind_paint;
use super::show::{Paint, Palette, instant, short, span, time_of_day, visible, word};
use super::{Failure, flags, note, say};
use crate::api::proto::stream_delivery_events_request::From;
use crate::api::proto::stream_delivery_events_response::Item;
use crate::api::proto::{Attempt, DeliveryEvent, DeliveryEventKind, StreamDeliveryEventsRequest};

const EXAMPLES: &str = "\
Examples:
  hooklane tail
  hooklane tail --event-type 'order.*' --kind attempt-failed --kind failed
  hooklane tail --since 1h --endpoint ep_…
  hooklane tail --json --count 100 | jq .event.delivery.id
  hooklane tail --resume-token TOKEN";

/// Watch what happens to deliveries, live
///
/// Tells of everything of the tenant from now on, unless flags say otherwise. A stream that is cut goes on by itself from
/// its last message, on whichever replica answers. Ctrl-C ends it, and shows the token that goes on from there; with
/// --json every message has one.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    /// Whose, or '*' for every tenant's [default: the caller's own tenant]
    #[arg(long, value_name = "TENANT", default_value = "", hide_default_value = true)]
    tenant: String,
    /// Deliveries to this endpoint, ep_…; repeatable
    #[arg(long = "endpoint", value_name = "ID")]
    endpoints: Vec<String>,
    /// Deliveries of events of this type, or pattern such as 'order.*'; repeatable
    #[arg(long = "event-type", value_name = "PATTERN")]
    event_types: Vec<String>,
    /// Deliveries of this event, evt_…
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    event: String,
    /// This delivery, dlv_…
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    delivery: String,
    /// What happens; repeatable [default: everything]
    #[arg(long = "kind", value_name = "KIND", value_parser = kind())]
    kinds: Vec<DeliveryEventKind>,
    /// From then on: a time such as 2026-01-21T12:00:00Z, or so long ago, such as 90m [default: now]
    #[arg(long, value_name = "TIME", value_parser = flags::past, conflicts_with = "resume_token")]
    since: Option<prost_types::Timestamp>,
    /// From where another stream has ended
    #[arg(long, value_name = "TOKEN")]
    resume_token: Option<String>,
    /// End after so many events
    #[arg(long, short = 'n', value_name = "N", value_parser = flags::some)]
    count: Option<u64>,
    #[command(flatten)]
    call: CallArgs,
}

const KINDS: &[&str] =
    &["queued", "attempt-failed", "attempt-lost", "succeeded", "failed", "canceled", "expired", "retry-requested"];

fn kind() -> impl clap::builder::TypedValueParser<Value = DeliveryEventKind> {
    flags::one_of("DELIVERY_EVENT_KIND", KINDS, DeliveryEventKind::from_str_name)
}

/// Between attempts to go on, twice as long each time.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Watches until Ctrl-C, or until there were as many events as asked for.
pub async fn run(args: Args) -> Result<(), Failure> {
    let interrupted =
        super::interrupted().map_err(|error| Failure::internal(format!("cannot catch signals: {error}")))?;
    let client = args.call.connection.connect().await?;
    let mut tail = Tail::new(client, args);
    tokio::select! {
        ended = tail.follow() => ended,
        () = interrupted => {
            if let Some(From::ResumeToken(token)) = &tail.request.from {
                note(&format!("to go on from here: --resume-token {token}"));
            }
            Ok(())
        }
    }
}

struct Tail {
    client: Client,
    /// Asks for what follows the last message.
    request: StreamDeliveryEventsRequest,
    /// How many events are still wanted.
    left: Option<u64>,
    json: bool,
    palette: Palette,
    /// Before the next attempt to go on.
    pause: Duration,
    /// Whether the stream is known to be away.
    is_away: bool,
}

impl Tail {
    fn new(client: Client, args: Args) -> Self {
        let request = StreamDeliveryEventsRequest {
            tenant: args.tenant,
            endpoint_ids: args.endpoints,
            event_types: args.event_types,
            event_id: args.event,
            delivery_id: args.delivery,
            kinds: args.kinds.iter().map(|kind| i32::from(*kind)).collect(),
            from: args.resume_token.map(From::ResumeToken).or(args.since.map(From::StartTime)),
        };
        Self {
            client,
            request,
            left: args.count,
            json: args.call.json,
            palette: Palette::for_stdout(),
            pause: PAUSE_MIN,
            is_away: false,
        }
    }

    /// Over as many streams as it takes.
    async fn follow(&mut self) -> Result<(), Failure> {
        let mut has_begun = false;
        loop {
            match self.follow_once(&mut has_begun).await {
                Ok(Ended::Enough) => return Ok(()),
                Ok(Ended::Stream) => self.cut("it ended without a word"),
                Err(Stop::Refused(status)) if has_begun && is_routine(&status) => {}
                Err(Stop::Refused(status)) if has_begun && is_cut(&status) => {
                    self.cut(&refused_as("StreamDeliveryEvents", flags::FILTERS)(status).to_string());
                }
                Err(Stop::Refused(status)) => return Err(refused_as("StreamDeliveryEvents", flags::FILTERS)(status)),
                Err(Stop::Failed(failure)) => return Err(failure),
            }
            tokio::time::sleep(self.pause).await;
            self.pause = (self.pause * 2).min(PAUSE_MAX);
        }
    }

    async fn follow_once(&mut self, has_begun: &mut bool) -> Result<Ended, Stop> {
        let answer = self.client.stream_delivery_events(self.request.clone()).await.map_err(Stop::Refused)?;
        let mut stream = answer.into_inner();
        while let Some(message) = stream.message().await.map_err(Stop::Refused)? {
            *has_begun = true;
            self.pause = PAUSE_MIN;
            if std::mem::take(&mut self.is_away) {
                note("the stream goes on");
            }
            if let Some(Item::Event(event)) = &message.item {
                let line = if self.json { to_json(&message)? } else { line(event, self.palette) };
                say(&line)?;
            }
            // Only now: what was not printed has not been told.
            self.request.from = Some(From::ResumeToken(message.resume_token));
            if let Some(Item::Event(_)) = &message.item
                && let Some(left) = &mut self.left
            {
                *left -= 1;
                if *left == 0 {
                    return Ok(Ended::Enough);
                }
            }
        }
        Ok(Ended::Stream)
    }

    /// Says once that nothing comes any more.
    fn cut(&mut self, why: &str) {
        if !std::mem::replace(&mut self.is_away, true) {
            note(&format!("the stream was cut and will go on from its last message: {why}"));
        }
    }
}

enum Ended {
    /// There were as many events as asked for.
    Enough,
    Stream,
}

enum Stop {
    Refused(Status),
    Failed(Failure),
}

impl std::convert::From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// `05:40:12.345Z  SUCCEEDED       order.created  dlv_…  …abc123  attempt 1: 200 in 1.2 ms`
fn line(event: &DeliveryEvent, palette: Palette) -> String {
    let delivery = event.delivery.clone().unwrap_or_default();
    let kind = event.kind();
    let kind_name = word(kind.as_str_name(), "DELIVERY_EVENT_KIND");
    let mut words = vec![
        palette.paint(Paint::Dim, &time_of_day(event.occur_time.as_ref())),
        palette.paint(kind_paint(kind), &format!("{kind_name:<15}")),
        format!("{:<20}", visible(&delivery.event_type)),
        visible(&delivery.id),
        palette.paint(Paint::Name, &visible(&short(&delivery.endpoint_id))),
    ];
    match &event.attempt {
        Some(attempt) => words.push(result(attempt, event, &delivery)),
        None if kind != DeliveryEventKind::Queued => words.push(visible(&delivery.reason)),
        None => {}
    }
    words.retain(|word| !word.is_empty());
    words.join("  ").trim_end().to_owned()
}

fn result(attempt: &Attempt, event: &DeliveryEvent, delivery: &crate::api::proto::Delivery) -> String {
    let came = match (attempt.status_code, attempt.error.as_str()) {
        (status, "") if status > 0 => status.to_string(),
        (_, error) => visible(error),
    };
    let mut words = format!("attempt {}: {came}", attempt.number);
    if let Some(took) = &attempt.duration {
        words.push_str(&format!(" after {}", span(Some(took))));
    }
    if event.kind() == DeliveryEventKind::AttemptFailed
        && let (Some(now), Some(next)) =
            (instant(event.occur_time.as_ref()), instant(delivery.next_attempt_time.as_ref()))
    {
        let wait = next.duration_since(now);
        let wait = prost_types::Duration { seconds: wait.as_secs(), nanos: wait.subsec_nanos() };
        words.push_str(&format!("; next in {}", span(Some(&wait))));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::proto::Delivery;

    fn at(seconds: i64) -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp { seconds: 1_795_671_612 + seconds, nanos: 0 })
    }

    #[test]
    fn a_line_tells_when_what_to_whom_and_with_what_result() {
        let delivery = Delivery {
            id: "dlv_1".to_owned(),
            endpoint_id: "ep_01h455vb4pex5vsknk084sn02q".to_owned(),
            event_type: "order.paid".to_owned(),
            reason: "canceled by \u{1b}[31mhand".to_owned(),
            next_attempt_time: at(2),
            ..Delivery::default()
        };
        let attempt = Attempt {
            number: 1,
            status_code: 503,
            error: "HTTP 503: Service Unavailable".to_owned(),
            duration: Some(prost_types::Duration { seconds: 0, nanos: 1_200_000 }),
            ..Attempt::default()
        };
        let event = |kind: DeliveryEventKind, attempt| {
            let kind = kind.into();
            DeliveryEvent { kind, occur_time: at(0), delivery: Some(delivery.clone()), attempt }
        };
        let shown = |event: &DeliveryEvent| line(event, Palette::plain());
        assert_eq!(
            shown(&event(DeliveryEventKind::AttemptFailed, Some(attempt))),
            "05:40:12.000Z  ATTEMPT_FAILED   order.paid            dlv_1  …4sn02q  attempt 1: HTTP 503: Service \
             Unavailable after 1.2 ms; next in 2 s"
        );
        assert_eq!(
            shown(&event(DeliveryEventKind::Queued, None)),
            "05:40:12.000Z  QUEUED           order.paid            dlv_1  …4sn02q"
        );
        assert!(shown(&event(DeliveryEventKind::Canceled, None)).ends_with("canceled by \\u{1b}[31mhand"));
    }

    #[test]
    fn flags_know_every_kind_of_the_contract() {
        assert_eq!(crate::cli::client::values_of("DeliveryEventKind"), KINDS.len() + 1);
    }
}
