//! `hooklane demo`: the whole path in one terminal, told in five short acts.
//!
//! Everything in it is real, and gone afterwards: a PostgreSQL of its own, the service in this process, two receivers on
//! loopback, and a gRPC client such as any caller has. `show` is the story; `stage` is what it plays on, `watch` is
//! the live part, and `screen` is the only one that prints.

mod by_hand;
mod publish;
mod recipient;
mod report;
mod screen;
mod stage;
mod tally;
mod watch;

use std::time::Duration;

use tokio::time::Instant;
use tonic::transport::Channel;

use self::publish::EVENTS;
use self::screen::{Paint, Screen};
use self::stage::Stage;
use self::watch::Watch;
use super::Failure;
use super::client::refused;
use super::serve::Signals;
use crate::api::proto::webhook_service_client::WebhookServiceClient;

/// See it work: a service, two receivers and deliveries to watch, in this terminal
///
/// Starts a PostgreSQL of its own and the service, registers an endpoint that always answers and one that fails twice
/// before it does, publishes a few events, and shows live what becomes of them: who gets what, signed how, retried when.
/// Ends by itself and leaves nothing behind. Needs no setting and touches nothing of yours.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  hooklane demo\n  hooklane demo --keep\n  hooklane demo | less")]
pub struct Args {
    /// Stay up afterwards, until Ctrl-C, and say how to go on by hand
    #[arg(long)]
    keep: bool,
}

type Client = WebhookServiceClient<Channel>;

/// How long the deliveries may take; with the retries below they take two seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// Plays it all, then drains, also when it was broken off or something is missing.
pub async fn run(args: Args) -> Result<(), Failure> {
    let screen = Screen::for_stdout();
    let mut signals = Signals::listen()?;
    let stage = tokio::select! {
        stage = Stage::set(&screen) => stage?,
        () = signals.first() => return Err(broken_off()),
    };
    let shown = tokio::select! {
        shown = show(&stage, &screen) => shown,
        () = signals.first() => Err(broken_off()),
    };
    let ended = match shown {
        Ok(mut watch) if args.keep => tokio::select! {
            ended = by_hand::go_on(&stage, &mut watch, &screen) => ended,
            () = signals.first() => Ok(()),
        },
        shown => shown.map(drop),
    };
    let began = Instant::now();
    let drained = signals.drain(stage.strike()).await;
    ended.and(drained)?;
    screen.blank()?;
    let farewell = format!("Drained in {:.1} s; nothing is left behind.", began.elapsed().as_secs_f64());
    screen.line(&screen.paint(Paint::Dim, &farewell))
}

/// The story.
async fn show<'a>(stage: &'a Stage, screen: &'a Screen) -> Result<Watch<'a>, Failure> {
    let mut client = stage.client().await?;
    screen.heading("2", "Register an endpoint for each receiver", "RegisterEndpoint")?;
    let mut endpoint_ids = Vec::new();
    for recipient in &stage.recipients {
        endpoint_ids.push(recipient.register(&mut client, screen).await?);
    }

    let calls = "Publish, StreamDeliveryEvents; times are when it happened";
    screen.heading("3", "Publish, and watch every step as it comes", calls)?;
    // Subscribed before the first publish: a stream tells what happens from now on.
    let mut watch = Watch::open(&stage.recipients, endpoint_ids, screen, client.clone()).await?;
    let deadline = Instant::now() + PATIENCE;
    for event in EVENTS {
        watch.publish(event).await?;
        // One event after the other only so that the lines read as a story: Hooklane itself waits for nobody.
        watch.until(deadline, |tally| tally.each_was_attempted()).await?;
    }
    watch.until(deadline, |tally| tally.is_settled()).await?;
    if let Some(missing) = watch.tally().missing() {
        return Err(Failure::other(missing));
    }

    screen.heading("4", "What came of it", "counted on the stream and at the receivers")?;
    report::summary(&stage.recipients, watch.tally(), screen)?;

    screen.heading("5", "The history of a delivery that was retried", "GetDelivery")?;
    if let Some(retried) = watch.tally().first_retried() {
        report::history(retried, &mut client, screen).await?;
    }
    Ok(watch)
}

fn broken_off() -> Failure {
    Failure::other("broken off by a signal")
}
