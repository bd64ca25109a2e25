//! `hooklane replay`: starts a replay of settled deliveries and follows it to its end.
//!
//! The replay is the service's: this command may end, and the replay goes on. `progress` says how far it is.

mod progress;

use std::time::Duration;

use tonic::{Code, Status};

use self::progress::Screen;
use super::client::{CallArgs, Client, Typed, refused_as};
use super::{Failure, flags};
use crate::api::proto::{
    CancelReplayRequest, DeliveryState, Replay, ReplayFilter, ReplayState, StartReplayRequest, StreamReplayRequest,
};

const EXAMPLES: &str = "\
Examples:
  hooklane replay --dry-run
  hooklane replay --endpoint ep_… --since 2h
  hooklane replay --event-type 'order.*' --max-per-second 100
  hooklane replay --state succeeded --since 90m --until 30m
  hooklane replay --follow rpl_…
  hooklane replay --cancel rpl_…";

/// Send many failed deliveries again, and watch it
///
/// Takes every FAILED delivery of the tenant that satisfies the filters, unless states are named. Failed, canceled and
/// expired ones go on themselves; succeeded ones are taken only when that state is named, and are made anew.
///
/// Ctrl-C ends the watching; the replay goes on. Exit code 1 tells of one that failed or was canceled.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    /// Deliveries in this state; repeatable [default: failed]
    #[arg(long = "state", value_name = "STATE", value_parser = state(), conflicts_with_all = ["follow", "cancel"])]
    states: Vec<DeliveryState>,

    #[command(flatten)]
    job: JobArgs,

    #[command(flatten)]
    call: CallArgs,
}

/// What says which deliveries and how fast, and so has no meaning for a replay that was started before.
const OF_NEW: [&str; 8] =
    ["tenant", "endpoints", "event_types", "since", "until", "deliveries", "dry_run", "max_per_second"];

pub(super) const TYPED: Typed = &[
    ("filter.tenant", "--tenant"),
    ("filter.endpoint_ids", "--endpoint"),
    ("filter.event_types", "--event-type"),
    ("filter.states", "--state"),
    ("filter.create_after", "--since"),
    ("filter.create_before", "--until"),
    ("filter.delivery_ids", "--delivery"),
    ("max_per_second", "--max-per-second"),
];

/// Which deliveries, how fast, and whether to watch.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct JobArgs {
    /// Whose deliveries [default: the caller's own tenant]
    #[arg(long, value_name = "TENANT", default_value = "", hide_default_value = true)]
    tenant: String,

    /// Deliveries to this endpoint, ep_…; repeatable
    #[arg(long = "endpoint", value_name = "ID")]
    endpoints: Vec<String>,

    /// Deliveries of events of this type, or pattern such as 'order.*'; repeatable
    #[arg(long = "event-type", value_name = "PATTERN")]
    event_types: Vec<String>,

    /// Deliveries made since then: a time such as 2026-01-21T12:00:00Z, or so long ago, such as 90m
    #[arg(long, value_name = "TIME", value_parser = flags::past)]
    since: Option<prost_types::Timestamp>,

    /// Deliveries made before then
    #[arg(long, value_name = "TIME", value_parser = flags::past)]
    until: Option<prost_types::Timestamp>,

    /// This delivery, dlv_…; repeatable
    #[arg(long = "delivery", value_name = "ID")]
    deliveries: Vec<String>,

    /// Only count what would be replayed
    #[arg(long)]
    dry_run: bool,

    /// Deliveries a second at most [default: as many as live traffic leaves room for]
    #[arg(long, value_name = "N", default_value_t = 0.0, hide_default_value = true, allow_negative_numbers = true)]
    max_per_second: f64,

    /// Say the replay's id and end, without watching it
    #[arg(long)]
    detach: bool,

    /// Watch a replay that was started before
    #[arg(long, value_name = "ID", conflicts_with_all = ["cancel", "detach"], conflicts_with_all = OF_NEW)]
    follow: Option<String>,

    /// Cancel a replay: what was replayed already goes on
    #[arg(long, value_name = "ID", conflicts_with = "detach", conflicts_with_all = OF_NEW)]
    cancel: Option<String>,
}

fn state() -> impl clap::builder::TypedValueParser<Value = DeliveryState> {
    flags::one_of("DELIVERY_STATE", &["failed", "canceled", "expired", "succeeded"], DeliveryState::from_str_name)
}

impl JobArgs {
    fn request(&self, states: &[DeliveryState]) -> StartReplayRequest {
        StartReplayRequest {
            filter: Some(ReplayFilter {
                tenant: self.tenant.clone(),
                endpoint_ids: self.endpoints.clone(),
                event_types: self.event_types.clone(),
                states: states.iter().map(|state| i32::from(*state)).collect(),
                create_after: self.since,
                create_before: self.until,
                delivery_ids: self.deliveries.clone(),
            }),
            dry_run: self.dry_run,
            max_per_second: self.max_per_second,
        }
    }
}

/// Starts, follows or cancels a replay.
pub async fn run(args: Args) -> Result<(), Failure> {
    start(args.job, args.states, args.call).await
}

/// The same for whoever has the states already; without any, of what has failed.
pub(super) async fn start(args: JobArgs, states: Vec<DeliveryState>, call: CallArgs) -> Result<(), Failure> {
    let interrupted =
        super::interrupted().map_err(|error| Failure::internal(format!("cannot catch signals: {error}")))?;
    let mut client = call.connection.connect().await?;
    let mut screen = Screen::for_stdout(call.json);
    if let Some(id) = &args.cancel {
        let request = CancelReplayRequest { replay_id: id.clone() };
        let answer =
            client.cancel_replay(request).await.map_err(refused_as("CancelReplay", &[("replay_id", "--cancel")]))?;
        return screen.last(&replay_of(answer.into_inner().replay)?);
    }
    let id = match &args.follow {
        Some(id) => id.clone(),
        None => {
            let started = client.start_replay(args.request(&states)).await.map_err(refused_as("StartReplay", TYPED))?;
            let started = replay_of(started.into_inner().replay)?;
            screen.started(&started)?;
            started.id
        }
    };
    if args.detach {
        return Ok(());
    }
    tokio::select! {
        ended = follow(&mut client, &id, &mut screen) => judge(&ended?),
        () = interrupted => {
            screen.leave()?;
            Err(Failure::other(format!("stopped watching; the replay goes on: hooklane replay --follow {id}")))
        }
    }
}

/// How long the service may be away while a replay is watched: it goes on by itself when that is back.
const PATIENCE: Duration = Duration::from_secs(60);

/// Shows a replay's progress to its end, over as many streams as it takes.
async fn follow(client: &mut Client, id: &str, screen: &mut Screen) -> Result<Replay, Failure> {
    let mut heard = tokio::time::Instant::now();
    loop {
        match follow_once(client, id, screen, &mut heard).await {
            Ok(Some(replay)) => return Ok(replay),
            Ok(None) => {}
            Err(status) if status.code() == Code::Unavailable && heard.elapsed() < PATIENCE => {}
            Err(status) => return Err(refused_as("StreamReplay", &[("replay_id", "--follow")])(status)),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn follow_once(
    client: &mut Client,
    id: &str,
    screen: &mut Screen,
    heard: &mut tokio::time::Instant,
) -> Result<Option<Replay>, Status> {
    let request = StreamReplayRequest { replay_id: id.to_owned() };
    let mut stream = client.stream_replay(request).await?.into_inner();
    while let Some(message) = stream.message().await? {
        *heard = tokio::time::Instant::now();
        let Some(replay) = message.replay else { continue };
        let is_last = replay.state() != ReplayState::Running;
        let shown = if is_last { screen.last(&replay) } else { screen.progress(&replay) };
        shown.map_err(|failure| Status::aborted(failure.to_string()))?;
        if is_last {
            return Ok(Some(replay));
        }
    }
    Ok(None)
}

fn judge(replay: &Replay) -> Result<(), Failure> {
    match replay.state() {
        ReplayState::Completed => Ok(()),
        ReplayState::Failed => Err(Failure::other(format!("the replay failed: {}", replay.error))),
        _ => Err(Failure::other("the replay was canceled")),
    }
}

fn replay_of(replay: Option<Replay>) -> Result<Replay, Failure> {
    replay.ok_or_else(|| Failure::internal("the service answered without the replay"))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn request(line: &str) -> StartReplayRequest {
        let args = Line::try_parse_from(line.split(' ')).expect("a command line").args;
        args.job.request(&args.states)
    }

    #[test]
    fn a_replay_that_was_started_before_is_followed_or_canceled_and_nothing_else() {
        for line in [
            "replay --follow rpl_1 --endpoint ep_1",
            "replay --follow rpl_1 --cancel rpl_1",
            "replay --follow rpl_1 --state failed",
            "replay --cancel rpl_1 --dry-run",
            "replay --cancel rpl_1 --max-per-second 2",
        ] {
            assert!(Line::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
        assert!(Line::try_parse_from(["replay", "--follow", "rpl_1"]).is_ok());
    }

    #[test]
    fn flags_become_the_filter() {
        let asked =
            request("replay --endpoint ep_1 --endpoint ep_2 --event-type order.* --state failed --state expired");
        let filter = asked.filter.expect("a filter");
        assert_eq!(filter.endpoint_ids, ["ep_1", "ep_2"]);
        assert_eq!((filter.event_types, filter.states), (vec!["order.*".to_owned()], vec![5, 7]));
        let asked = request("replay --dry-run --max-per-second 2.5 --since 2026-01-21T12:00:00Z --delivery dlv_1");
        assert!(asked.dry_run && asked.max_per_second == 2.5);
        let filter = asked.filter.expect("a filter");
        assert_eq!(filter.create_after.map(|time| time.seconds), Some(1_768_996_800));
        assert_eq!((filter.delivery_ids, filter.states), (vec!["dlv_1".to_owned()], Vec::new()));
    }
}
