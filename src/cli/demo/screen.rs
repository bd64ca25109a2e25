//! What the demo looks like: headings, lines, a little colour, and how moments, spans and ids are written.
//!
//! Colour only says again what a word says already: in a pipe, or with `NO_COLOR`, nothing is lost.

use std::io::IsTerminal as _;

use crate::cli::{Failure, say};

/// Standard output, in colour or plain.
pub(super) struct Screen {
    is_coloured: bool,
}

/// The few colours there are.
#[derive(Debug, Clone, Copy)]
pub(super) enum Paint {
    Strong,
    Dim,
    Good,
    Bad,
    Waiting,
    Name,
}

impl Screen {
    /// In colour when standard output is a terminal and `NO_COLOR` is unset or empty (<https://no-color.org>).
    pub(super) fn for_stdout() -> Self {
        let colour_wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { is_coloured: colour_wanted && std::io::stdout().is_terminal() }
    }

    /// A numbered heading, and what it is done with.
    pub(super) fn heading(&self, number: &str, title: &str, note: &str) -> Result<(), Failure> {
        self.blank()?;
        say(&format!("{}  {}", self.paint(Paint::Strong, &format!("{number}. {title}")), self.paint(Paint::Dim, note)))
    }

    /// A line below a heading; `text` may be painted.
    pub(super) fn line(&self, text: &str) -> Result<(), Failure> {
        say(&format!("   {}", text.trim_end()))
    }

    /// An empty line.
    #[expect(clippy::unused_self, reason = "everything that prints is a method of the screen")]
    pub(super) fn blank(&self) -> Result<(), Failure> {
        say("")
    }

    /// The text in that colour. Pad before, so that columns stay straight.
    pub(super) fn paint(&self, paint: Paint, text: &str) -> String {
        if !self.is_coloured {
            return text.to_owned();
        }
        let code = match paint {
            Paint::Strong => "1",
            Paint::Dim => "2",
            Paint::Good => "32",
            Paint::Bad => "31",
            Paint::Waiting => "33",
            Paint::Name => "36",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// The end of an id: those of the same moment begin alike.
pub(super) fn short(id: &str) -> String {
    const CHARS: usize = 6;
    match id.char_indices().rev().nth(CHARS - 1) {
        Some((cut, _)) if cut > 0 => format!("…{}", &id[cut..]),
        _ => id.to_owned(),
    }
}

/// A protobuf time as an instant; `None` if unset.
pub(super) fn instant(time: Option<&prost_types::Timestamp>) -> Option<jiff::Timestamp> {
    let time = time?;
    jiff::Timestamp::new(time.seconds, time.nanos).ok()
}

/// Seconds from one instant to a later one, or less than zero to an earlier one.
pub(super) fn seconds(from: jiff::Timestamp, to: jiff::Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_into_a_pipe_has_no_escape_codes() {
        let plain = Screen { is_coloured: false };
        assert_eq!(plain.paint(Paint::Bad, "503"), "503");
        let coloured = Screen { is_coloured: true };
        assert_eq!(coloured.paint(Paint::Bad, "503"), "\x1b[31m503\x1b[0m");
    }

    #[test]
    fn an_id_is_known_by_its_end() {
        for (id, shown) in [("dlv_01h455vb4pex5vsknk084sn02q", "…4sn02q"), ("short1", "short1"), ("", "")] {
            assert_eq!(short(id), shown);
        }
    }
}
