//! `hooklane top`: a live screen of lanes, rates and failures.
//!
//! `feed` asks the service, `model` is what is known of it, `draw` makes a picture of that, `terminal` shows it.

mod draw;
mod feed;
mod model;
mod terminal;

use std::io::IsTerminal as _;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use self::feed::{Feed, News};
use self::model::{Model, Sort};
use self::terminal::{Key, Terminal};
use super::client::ConnectionArgs;
use super::show::Palette;
use super::{Failure, flags, say};

/// Watch lanes, rates and failures on one screen, live
///
/// Counts and quantiles are those of the window, by GetStats; rates are those of the last ten seconds, counted from the
/// live stream. Keys: q ends it, s sorts lanes by another column, the arrows scroll.
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_long_help = "Examples:\n  hooklane top\n  hooklane top --tenant '*' --window 1h\n  hooklane top --once"
)]
pub struct Args {
    /// Whose, or '*' for every tenant's [default: the caller's own tenant]
    #[arg(long, value_name = "TENANT", default_value = "", hide_default_value = true)]
    tenant: String,
    /// How far back what has settled counts, up to 30d
    #[arg(long, value_name = "SPAN", default_value = "5m", value_parser = flags::span)]
    window: prost_types::Duration,
    /// How often the service is asked, 1s to 1h
    #[arg(long, value_name = "SPAN", default_value = "2s", value_parser = every)]
    every: Duration,
    /// What lanes are sorted by
    #[arg(long, value_name = "COLUMN", value_enum, default_value_t = Sort::Outstanding)]
    sort: Sort,
    /// Print one picture and end, without a terminal
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    connection: ConnectionArgs,
}

fn every(text: &str) -> Result<Duration, String> {
    let span = crate::config::parse_span(text)?;
    let is_allowed = (Duration::from_secs(1)..=Duration::from_secs(3_600)).contains(&span);
    if is_allowed { Ok(span) } else { Err("is out of range; allowed is 1s to 1h".to_owned()) }
}

/// Between two pictures, unless a key asks for one.
const PICTURE_EVERY: Duration = Duration::from_millis(500);
/// News that wait to be taken in; the stream waits when they are more.
const NEWS_MAX: usize = 4_096;
/// How long a picture that is asked for once waits for its figures.
const ONCE_MAX: Duration = Duration::from_secs(30);
/// Columns of a picture that no terminal bounds.
const ONCE_COLUMNS: usize = 160;

/// Watches until q or Ctrl-C.
pub async fn run(args: Args) -> Result<(), Failure> {
    if !args.once && !std::io::stdout().is_terminal() {
        let words = "standard output is no terminal; top --once prints one picture, stats --json is for programs";
        return Err(Failure::usage(words));
    }
    let client = args.connection.connect().await?;
    let (sender, news) = mpsc::channel(NEWS_MAX);
    let feed = Feed { client, tenant: args.tenant.clone(), window: args.window, every: args.every };
    let _working = feed.start(sender);
    let mut model = Model::new(args.connection.place(), args.tenant, args.window, args.sort);
    if args.once { once(&mut model, news).await } else { watch(&mut model, news).await }
}

async fn once(model: &mut Model, mut news: mpsc::Receiver<News>) -> Result<(), Failure> {
    let began = Instant::now();
    let complete = async {
        while !model.is_complete() {
            match news.recv().await {
                Some(News::Refused(failure)) => return Err(failure),
                Some(news) => model.take(news, began.elapsed()),
                None => return Err(Failure::internal("nothing asks the service any more")),
            }
        }
        Ok(())
    };
    let late = |_| Failure::try_again(format!("the service did not answer within {} s", ONCE_MAX.as_secs()));
    timeout(ONCE_MAX, complete).await.map_err(late)??;
    let lines = draw::picture(model, began.elapsed(), ONCE_COLUMNS, usize::MAX);
    lines.iter().try_for_each(|line| say(&line.paint(Palette::for_stdout())))
}

async fn watch(model: &mut Model, mut news: mpsc::Receiver<News>) -> Result<(), Failure> {
    let began = Instant::now();
    let interrupted =
        super::interrupted().map_err(|error| Failure::internal(format!("cannot catch signals: {error}")))?;
    tokio::pin!(interrupted);
    let mut terminal = Terminal::open()?;
    let mut keys = terminal.keys();
    let mut pictures = interval(PICTURE_EVERY);
    pictures.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = pictures.tick() => {}
            // Ctrl-C is a key here; this is the terminal going away, or somebody else's doing.
            () = &mut interrupted => return Ok(()),
            key = keys.next() => match key {
                Some(Key::End) | None => return Ok(()),
                Some(Key::Sort) => model.sort_by_next(),
                Some(Key::Up) => model.scroll(-1),
                Some(Key::Down) => model.scroll(1),
                Some(Key::Other) => {}
            },
            Some(one) = news.recv() => {
                match one {
                    News::Refused(failure) => return Err(failure),
                    news => model.take(news, began.elapsed()),
                }
                // Thousands a second may come: they show with the next picture.
                continue;
            }
        }
        let (columns, rows) = terminal.size();
        let lines = draw::picture(model, began.elapsed(), columns, rows);
        terminal.show(&lines)?;
    }
}
