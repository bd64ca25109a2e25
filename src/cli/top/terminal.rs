//! The terminal: taken over for as long as the screen is shown, and given back whatever happens.

use std::io::{self, Write as _};

use crossterm::cursor::{Hide, Show};
use crossterm::event::{Event, EventStream, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use crossterm::execute;
use crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode, size};
use futures::{Stream, StreamExt as _};

use super::draw::Line;
use crate::cli::Failure;
use crate::cli::show::Palette;

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    End,
    Sort,
    Up,
    Down,
    /// Another picture: the terminal has another size, perhaps.
    Other,
}

/// The terminal in our hands.
pub(super) struct Terminal {
    palette: Palette,
}

/// To the beginning; the rest of a line is gone; so is everything below.
const HOME: &str = "\x1b[H";
const END_LINE: &str = "\x1b[K";
const END_SCREEN: &str = "\x1b[J";

impl Terminal {
    /// Takes the terminal over.
    pub(super) fn open() -> Result<Self, Failure> {
        let terminal = Self { palette: Palette::for_stdout() };
        enable_raw_mode().map_err(failed)?;
        execute!(io::stdout(), EnterAlternateScreen, Hide).map_err(failed)?;
        Ok(terminal)
    }

    /// Keys as they are pressed.
    #[expect(clippy::unused_self, reason = "only a terminal in our hands tells of keys one by one")]
    pub(super) fn keys(&self) -> impl Stream<Item = Key> + use<> {
        let pressed = EventStream::new().map(|event| match event {
            Ok(Event::Key(key)) if key.kind != KeyEventKind::Release => meaning(key),
            // A terminal that is gone sends nothing more that could end this.
            Err(_) => Key::End,
            Ok(_) => Key::Other,
        });
        Box::pin(pressed)
    }

    /// Columns and rows.
    #[expect(clippy::unused_self, reason = "it belongs to the terminal")]
    pub(super) fn size(&self) -> (usize, usize) {
        let (columns, rows) = size().unwrap_or((80, 24));
        (columns.into(), rows.into())
    }

    /// Shows a picture in place of the one before, in one write: nothing flickers.
    pub(super) fn show(&mut self, lines: &[Line]) -> Result<(), Failure> {
        let lines: Vec<_> = lines.iter().map(|line| format!("{}{END_LINE}", line.paint(self.palette))).collect();
        let picture = format!("{HOME}{}{END_SCREEN}", lines.join("\r\n"));
        let mut out = io::stdout().lock();
        out.write_all(picture.as_bytes()).and_then(|()| out.flush()).map_err(failed)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that does not take this.
        let _ = execute!(io::stdout(), Show, LeaveAlternateScreen);
        let _ = disable_raw_mode();
    }
}

fn meaning(key: KeyEvent) -> Key {
    match key.code {
        KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => Key::End,
        KeyCode::Char('q') | KeyCode::Esc => Key::End,
        KeyCode::Char('s') => Key::Sort,
        KeyCode::Up | KeyCode::Char('k') => Key::Up,
        KeyCode::Down | KeyCode::Char('j') => Key::Down,
        _ => Key::Other,
    }
}

fn failed(error: io::Error) -> Failure {
    Failure::other(format!("the terminal: {error}"))
}
