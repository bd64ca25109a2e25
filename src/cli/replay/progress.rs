//! How far a replay is: a bar that is redrawn on a terminal, a line now and then in a pipe, or JSON.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use crate::api::proto::{Replay, ReplayState};
use crate::cli::client::to_json;
use crate::cli::show::{count, counted};
use crate::cli::{Failure, say};

/// Standard output.
pub(super) struct Screen {
    form: Form,
    /// When a line was printed last.
    printed: Option<Instant>,
    /// The first that was seen: the rate counts from it.
    first: Option<(Instant, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Bar,
    Lines,
    Json,
}

/// Between two lines in a pipe.
const LINES_EVERY: Duration = Duration::from_secs(5);
const BAR_CELLS: u64 = 30;
/// Back to the line's beginning, and whatever stood there is gone.
const REDRAW: &str = "\r\x1b[K";

impl Screen {
    pub(super) fn for_stdout(is_json: bool) -> Self {
        let form = match (is_json, io::stdout().is_terminal()) {
            (true, _) => Form::Json,
            (false, true) => Form::Bar,
            (false, false) => Form::Lines,
        };
        Self { form, printed: None, first: None }
    }

    /// A replay was started.
    pub(super) fn started(&mut self, replay: &Replay) -> Result<(), Failure> {
        match self.form {
            Form::Json => say(&to_json(replay)?),
            Form::Bar | Form::Lines if replay.dry_run => say(&format!("{} counts", replay.id)),
            Form::Bar | Form::Lines => say(&format!("{} started", replay.id)),
        }
    }

    /// It has come further.
    pub(super) fn progress(&mut self, replay: &Replay) -> Result<(), Failure> {
        let now = Instant::now();
        let done = replay.replayed + replay.skipped;
        let (since, before) = *self.first.get_or_insert((now, done));
        let rate = (done - before.min(done)) as f64 / now.duration_since(since).as_secs_f64().max(0.001);
        match self.form {
            Form::Json => say(&to_json(replay)?),
            Form::Bar => draw(&format!("{REDRAW}{} {}", bar(replay), words(replay, rate))),
            Form::Lines if self.printed.is_some_and(|printed| now.duration_since(printed) < LINES_EVERY) => Ok(()),
            Form::Lines => {
                self.printed = Some(now);
                say(&words(replay, rate))
            }
        }
    }

    /// It has ended.
    pub(super) fn last(&mut self, replay: &Replay) -> Result<(), Failure> {
        match self.form {
            Form::Json => say(&to_json(replay)?),
            Form::Bar => {
                draw(REDRAW)?;
                say(&end(replay))
            }
            Form::Lines => say(&end(replay)),
        }
    }

    /// Nobody watches any more: what is printed next gets a line of its own.
    pub(super) fn leave(&mut self) -> Result<(), Failure> {
        if self.form == Form::Bar { draw("\n") } else { Ok(()) }
    }
}

fn draw(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Failure::other(format!("standard output: {error}")))
}

fn bar(replay: &Replay) -> String {
    let done = (replay.replayed + replay.skipped).min(replay.matched);
    let filled = (done * BAR_CELLS).checked_div(replay.matched).unwrap_or_default();
    let cells: String = (0..BAR_CELLS).map(|cell| if cell < filled { '#' } else { '-' }).collect();
    format!("[{cells}]")
}

fn words(replay: &Replay, rate: f64) -> String {
    let done = replay.replayed + replay.skipped;
    // How many there are is known once all have been looked for, before the first of them is replayed.
    match (done, replay.matched) {
        (0, 0) => return "looking for deliveries".to_owned(),
        (0, matched) => return format!("{} found so far", count(matched)),
        _ => {}
    }
    let share = (done * 100).checked_div(replay.matched).unwrap_or_default();
    let left = replay.matched.saturating_sub(done) as f64 / rate.max(0.001);
    let left = if rate >= 0.01 { format!(", {} left", span(left)) } else { String::new() };
    format!("{share:>3} %  {} of {}, {rate:.0}/s{left}", count(done), count(replay.matched))
}

fn end(replay: &Replay) -> String {
    let how = match replay.state() {
        ReplayState::Completed if replay.dry_run => {
            let deliveries = counted(replay.matched, "delivery matches", "deliveries match");
            return format!("{deliveries}; nothing was replayed");
        }
        ReplayState::Completed => "completed",
        ReplayState::Canceled => "canceled",
        ReplayState::Failed => "failed",
        ReplayState::Running | ReplayState::Unspecified => "running",
    };
    let skipped = if replay.skipped > 0 { format!(", {} skipped", count(replay.skipped)) } else { String::new() };
    format!("{how}: {} of {} replayed{skipped}", count(replay.replayed), count(replay.matched))
}

fn span(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5_400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3_600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replay(matched: u64, replayed: u64, skipped: u64) -> Replay {
        let state = ReplayState::Running.into();
        Replay { id: "rpl_1".to_owned(), state, matched, replayed, skipped, ..Replay::default() }
    }

    #[test]
    fn a_bar_fills_with_what_is_done() {
        let filled = |replay: &Replay| bar(replay).matches('#').count();
        assert_eq!(filled(&replay(0, 0, 0)), 0);
        assert_eq!(filled(&replay(100, 40, 10)), 15);
        assert_eq!(filled(&replay(100, 100, 0)), 30);
        assert_eq!(filled(&replay(100, 200, 0)), 30, "never longer than the line");
    }

    #[test]
    fn words_tell_what_is_done_how_fast_and_what_is_left() {
        assert_eq!(words(&replay(0, 0, 0), 0.0), "looking for deliveries");
        assert_eq!(words(&replay(1_000, 0, 0), 0.0), "1,000 found so far");
        assert_eq!(words(&replay(1_000, 240, 10), 25.0), " 25 %  250 of 1,000, 25/s, 30 s left");
        assert_eq!(words(&replay(1_000, 10, 0), 0.0), "  1 %  10 of 1,000, 0/s");
        let done = Replay { state: ReplayState::Completed.into(), ..replay(10, 8, 2) };
        assert_eq!(end(&done), "completed: 8 of 10 replayed, 2 skipped");
        assert_eq!(end(&Replay { dry_run: true, ..done.clone() }), "10 deliveries match; nothing was replayed");
        let one = Replay { dry_run: true, matched: 1, ..done };
        assert_eq!(end(&one), "1 delivery matches; nothing was replayed");
    }
}
