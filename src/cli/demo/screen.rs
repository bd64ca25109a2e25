//! What the demo looks like: headings, lines, a little colour, and how moments, spans and ids are written.

use crate::cli::show::Palette;
pub(super) use crate::cli::show::{Paint, instant, short};
use crate::cli::{Failure, say};

/// Standard output, in colour or plain.
pub(super) struct Screen {
    palette: Palette,
}

impl Screen {
    /// In colour on a terminal.
    pub(super) fn for_stdout() -> Self {
        Self { palette: Palette::for_stdout() }
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
        self.palette.paint(paint, text)
    }
}

/// Seconds from one instant to a later one, or less than zero to an earlier one.
pub(super) fn seconds(from: jiff::Timestamp, to: jiff::Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}
